"""Losses against values computed by hand, and against the formulas' own promises."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from w2s_ray.fit import Method
from w2s_ray.methods import PARAMS, GlobalBatch, confidence, naive, objective


def test_cross_entropy_on_soft_labels_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # s1 = 3/4 and 1/2
    found = naive.loss(logits, torch.tensor([0.5, 0.9]))
    expected = [-(0.5 * math.log(0.75) + 0.5 * math.log(0.25)), math.log(2)]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize(
    ("variant", "max_weight", "step", "expected"),
    [
        ("paper", 0.75, 0, 0.0),
        ("paper", 0.75, 10, 0.375),
        ("paper", 0.75, 20, 0.75),
        ("paper", 0.75, 90, 0.75),
        ("reference", 0.5, 5, 0.025),
        ("reference", 0.5, 10, 0.05),
        ("reference", 0.5, 11, 0.5),
    ],
)
def test_the_confidence_weight_at_a_step_of_100(variant: str, max_weight: float, step: int, expected: float) -> None:
    found = confidence.weight(step / 100, max_weight=max_weight, warmup_fraction=0.2, variant=variant)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("num_rows", [32, 31, 2])
def test_half_of_the_batch_lies_above_the_papers_threshold(num_rows: int) -> None:
    own = torch.rand(num_rows, generator=torch.Generator().manual_seed(0)) * 0.1  # all sure of class 0
    t = confidence.threshold(GlobalBatch(own, torch.full((num_rows,), 0.9)), variant="paper")
    assert int((own > t).sum()) == num_rows // 2


def test_the_reference_threshold_follows_the_weak_prior() -> None:
    own = torch.linspace(0, 1, 101)
    t = confidence.threshold(GlobalBatch(own, torch.full((101,), 0.25)), variant="reference")
    assert int((own > t).sum()) == 25


def test_the_loss_is_the_mixture_and_its_target_is_held_fixed() -> None:
    logits = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, 0.5], [0.0, 0.1]], requires_grad=True)
    targets = torch.tensor([0.2, 0.6, 0.7, 0.1])
    own = torch.softmax(logits, -1)[:, 1].detach()
    loss = objective(
        Method("confidence", (("max_weight", 0.5), ("variant", "paper"), ("warmup_fraction", 0.2))),
        setting="classification",
    ).at(1.0, GlobalBatch(own, targets))
    hard = torch.tensor([1.0, 0.0, 1.0, 0.0])  # above and below the median
    mixed = naive.loss(logits, 0.5 * targets + 0.5 * hard)
    torch.testing.assert_close(loss(logits, targets), mixed)
    [found] = torch.autograd.grad(loss(logits, targets).sum(), logits)
    [expected] = torch.autograd.grad(mixed.sum(), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "params", [{"max_weight": 1.5}, {"max_weight": -0.1}, {"warmup_fraction": 0}, {"variant": "own"}, {"weight": 0.5}]
)
def test_bad_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PARAMS["confidence"].model_validate(params)
