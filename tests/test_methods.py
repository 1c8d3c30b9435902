"""Losses against values computed by hand, and against the formulas' own promises."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from w2s_ray.fit import Method
from w2s_ray.methods import LOSSES, PARAMS, TRANSFORMS, objective, refusal
from w2s_ray.methods.cross_entropy import cross_entropy, token_cross_entropy
from w2s_ray.methods.feature_opinion import nearest_rows
from w2s_ray.methods.labels import Labels, LabelSources, from_completions, from_probabilities
from w2s_ray.methods.losses import confidence
from w2s_ray.methods.step_context import GlobalBatch, StepContext

TWO_TO_ONE = torch.tensor([[0.0, math.log(2.0)]])  # s1 = 2/3


def method(name: str, **params: Any) -> Method:
    return Method(name, tuple(sorted(PARAMS[name].model_validate(params).model_dump().items())))


def loss_of(name: str, **params: Any) -> Any:
    """(logits, targets) -> losses, at the end of training."""
    return partial(objective(method(name, **params), of_tokens=False).loss, context=StepContext(1.0))


def transformed(name: str, labels: Labels | list[Labels], **sources: Any) -> Any:
    """Labels under a transform; keywords that its parameters don't know are what it looks at."""
    supervisors = labels if isinstance(labels, list) else [labels]
    known = PARAMS[name].model_fields
    params = PARAMS[name].model_validate({key: value for key, value in sources.items() if key in known})
    given: dict[str, Any] = {
        "truth": np.zeros(len(supervisors[0].values)),
        "num_characters": np.zeros(len(supervisors[0].values)),
        "generator": np.random.default_rng(0),
        "features": lambda: None,
    } | {key: value for key, value in sources.items() if key not in known}
    return TRANSFORMS[name].transform(LabelSources(tuple(supervisors), **given), params)


def gradient(loss: Any, logits: torch.Tensor, target: float) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    [found] = torch.autograd.grad(loss(logits, torch.tensor([target])).sum(), logits)
    return found


def test_cross_entropy_on_soft_labels_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # s1 = 3/4 and 1/2
    found = cross_entropy(logits, torch.tensor([0.5, 0.9]))
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
    found = confidence.weight(step / 100, confidence.Params(max_weight=max_weight, variant=variant))
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
    loss = partial(
        objective(method("confidence"), of_tokens=False).loss, context=StepContext(1.0, GlobalBatch(own, targets))
    )
    hard = torch.tensor([1.0, 0.0, 1.0, 0.0])  # above and below the median
    mixed = cross_entropy(logits, 0.5 * targets + 0.5 * hard)
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


def test_the_divergences_by_hand() -> None:
    s, p = 2 / 3, 0.9
    forward = p * math.log(p / s) + (1 - p) * math.log((1 - p) / (1 - s))
    reverse = s * math.log(s / p) + (1 - s) * math.log((1 - s) / (1 - p))
    assert float(loss_of("kl")(TWO_TO_ONE, torch.tensor([p]))) == pytest.approx(forward, rel=1e-5)
    assert float(loss_of("reverse_kl")(TWO_TO_ONE, torch.tensor([p]))) == pytest.approx(reverse, rel=1e-5)
    torch.testing.assert_close(gradient(loss_of("kl"), TWO_TO_ONE, p), gradient(cross_entropy, TWO_TO_ONE, p))
    assert float(loss_of("kl")(TWO_TO_ONE, torch.tensor([1.0]))) == pytest.approx(-math.log(s), rel=1e-5)


def test_the_reverse_divergence_keeps_its_distance_from_certainty() -> None:
    loss = loss_of("reverse_kl", floor=0.1)
    torch.testing.assert_close(loss(TWO_TO_ONE, torch.tensor([1.0])), loss(TWO_TO_ONE, torch.tensor([0.9])))


def test_the_product_of_confidences_by_hand() -> None:
    weak, own = 0.6, 2 / 3
    target = own * weak / (own * weak + (1 - own) * (1 - weak))
    expected = cross_entropy(TWO_TO_ONE, torch.tensor([target]))
    torch.testing.assert_close(loss_of("product")(TWO_TO_ONE, torch.tensor([weak])), expected)
    # the target is held fixed, and a hard label can't be moved
    torch.testing.assert_close(
        gradient(loss_of("product"), TWO_TO_ONE, weak), gradient(cross_entropy, TWO_TO_ONE, target)
    )
    torch.testing.assert_close(gradient(loss_of("product"), TWO_TO_ONE, 0.0), gradient(cross_entropy, TWO_TO_ONE, 0.0))
    sharp = loss_of("product", own_power=0.0, weak_power=2.0)(TWO_TO_ONE, torch.tensor([weak]))
    torch.testing.assert_close(sharp, cross_entropy(TWO_TO_ONE, torch.tensor([0.36 / 0.52])))


def test_entropy_is_minimised_and_not_only_added() -> None:
    s = 2 / 3
    entropy = -s * math.log(s) - (1 - s) * math.log(1 - s)
    assert float(loss_of("entropy", max_weight=1.0)(TWO_TO_ONE, torch.tensor([0.1]))) == pytest.approx(
        entropy, rel=1e-5
    )
    pull = gradient(loss_of("entropy", max_weight=1.0), TWO_TO_ONE, 0.1)
    assert pull[0, 1] < 0 < pull[0, 0], "towards the likelier class, whatever the label"


def test_the_window_is_open_where_the_student_is_undecided() -> None:
    rows = torch.tensor([[0.0, math.log(0.64 / 0.36)], [0.0, math.log(0.66 / 0.34)], [math.log(0.9 / 0.1), 0.0]])
    found = loss_of("window", radius=0.15)(rows, torch.tensor([0.2, 0.2, 0.2]))
    assert found.tolist() == [pytest.approx(float(cross_entropy(rows[:1], torch.tensor([0.2])))), 0.0, 0.0]


def test_adaptive_confidence_by_hand() -> None:
    s, weak = 2 / 3, 0.4
    own_ce, weak_ce, hard_ce = -math.log(s), -(weak * math.log(s) + (1 - weak) * math.log(1 - s)), -math.log(1 - s)
    b = math.exp(own_ce / 0.5) / (math.exp(own_ce / 0.5) + math.exp(hard_ce / 0.5))
    loss = loss_of("adaptconf", temperature=0.5)
    assert float(loss(TWO_TO_ONE, torch.tensor([weak]))) == pytest.approx((1 - b) * weak_ce + b * own_ce, rel=1e-5)
    target = (1 - b) * weak + b  # b is held fixed
    torch.testing.assert_close(gradient(loss, TWO_TO_ONE, weak), gradient(cross_entropy, TWO_TO_ONE, target))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_completions_counts_no_prompt_or_is_refused_with_its_reason(name: str) -> None:
    if refusal(Method(name), ["generation"]):
        with pytest.raises(ValueError, match=r"written|words"):
            objective(method(name), of_tokens=True)
        return
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[-100, 1, 2], [3, 4, 0]])
    loss = partial(objective(method(name), of_tokens=True).loss, context=StepContext(0.5))
    moved = logits.clone()
    moved[0, 0] += torch.arange(5.0)
    torch.testing.assert_close(loss(moved, tokens), loss(logits, tokens))
    assert (loss(logits, tokens) > 0).all()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_takes_any_loss(name: str) -> None:
    target = torch.tensor([0.3])
    torch.testing.assert_close(loss_of(name, loss="kl")(TWO_TO_ONE, target), loss_of("kl")(TWO_TO_ONE, target))


def test_a_loss_or_a_loss_of_a_transform_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValidationError, match="loss"):
        PARAMS["filter"].model_validate({"loss": "filter"})


def test_the_loss_of_a_completion_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.2, 0.2, 0.6], [0.9, 0.05, 0.05]]]))
    targets = torch.tensor([[0, 1], [-100, 1]])
    expected = -torch.log(torch.tensor([0.5 * 0.8, 0.05]))
    torch.testing.assert_close(token_cross_entropy(logits, targets), expected)
    mixed = confidence.token_loss(logits, targets, confidence.Params(), StepContext(0.1))
    own = -torch.log(torch.tensor([0.5 * 0.8, 0.9]))
    torch.testing.assert_close(mixed, 0.75 * expected + 0.25 * own)


# --- transforms of labels -----------------------------------------------------------------------------------------


def test_an_ensemble_of_probabilities() -> None:
    members = [from_probabilities(np.array(each)) for each in ([0.9, 0.4, 0.8], [0.6, 0.3, 0.3], [0.6, 0.2, 0.1])]
    assert transformed("ensemble", members, how="mean").values == pytest.approx([0.7, 0.3, 0.4])
    sure = transformed("ensemble", members, how="confident").values
    assert sure[0] == pytest.approx((0.9 * 0.8 + 0.6 * 0.2 + 0.6 * 0.2) / 1.2, rel=1e-4)
    assert transformed("ensemble", members, how="agreeing").weight.tolist() == [1, 1, 0]


def test_an_ensemble_of_moves_votes() -> None:
    members = [
        from_completions(["e4", "d4"], np.array([0.3, 0.9])),
        from_completions(["e4", "c4"], np.array([0.3, 0.2])),
        from_completions(["c4", "c4"], np.array([0.9, 0.3])),
    ]
    assert transformed("ensemble", members, how="mean").values.tolist() == ["e4", "c4"]
    assert transformed("ensemble", members, how="confident").values.tolist() == ["c4", "d4"]
    assert transformed("ensemble", members, how="agreeing").weight.tolist() == [0, 0]


def test_the_surest_rows_of_each_class_stay() -> None:
    said = from_probabilities(np.array([0.99, 0.98, 0.97, 0.6, 0.45, 0.3]))
    assert transformed("filter", said, keep=0.5).weight.tolist() == [1, 1, 0, 0, 0, 1]
    weights = transformed("reliability", said).weight
    assert weights.mean() == pytest.approx(1) and weights.argmax() == 0


def test_verified_rows_carry_the_truth_and_their_own_weight() -> None:
    said, truth = from_probabilities(np.full(100, 0.5)), np.ones(100)
    found = transformed("combined", said, truth=truth, verified=0.2, truth_weight=3.0, weak_weight=0.5)
    assert found.verified.sum() == 20 and (found.values[found.verified] == 1).all()
    assert set(found.weight[found.verified]) == {3.0} and set(found.weight[~found.verified]) == {0.5}
    assert (found.values[~found.verified] == 0.5).all()


def test_noise_makes_as_many_errors_as_the_supervisor_and_where_it_is_told() -> None:
    truth = np.tile([0.0, 1.0], 50)
    weak = from_probabilities(np.where(np.arange(100) < 20, 1 - truth, truth))  # 20 errors
    wrong = transformed("noise", weak, truth=truth).values != truth
    assert wrong.sum() == 20 and wrong[::2].sum() == 10
    lengths = np.arange(100.0)
    structured = transformed("noise", weak, truth=truth, num_characters=lengths, errors="longest").values != truth
    assert np.flatnonzero(structured).min() == 80
    moves = np.array([f"m{i % 7}" for i in range(100)], dtype=object)
    weak = from_completions(["m7" if i < 30 else moves[i] for i in range(100)], np.ones(100))
    noisy = transformed("noise", weak, truth=moves).values
    assert (noisy != moves).sum() == 30 and set(noisy) <= set(moves)


def test_hard_labels() -> None:
    hard = transformed("harden", from_probabilities(np.array([0.9, 0.5, 0.2])))
    assert hard.values.tolist() == [1, 0, 0] and hard.weight.tolist() == [1, 1, 1]
    written = from_completions(["e4", "d4"], np.array([0.3, 0.9]))
    assert transformed("harden", written) == written, "what was written is hard already"


def test_shuffling_keeps_the_labels_and_loses_their_rows() -> None:
    said = from_probabilities(np.linspace(0, 1, 50))
    found = transformed("shuffled", said).values
    assert sorted(found) == sorted(said.values) and (found != said.values).mean() > 0.8


def _two_clouds(num_wrong: int) -> tuple[np.ndarray, np.ndarray, Labels]:
    """Features of two classes far apart, and labels of which some are wrong."""
    generator = np.random.default_rng(0)
    truth = np.tile([0.0, 1.0], 50)
    features = generator.normal(size=(100, 4)) + 6 * truth[:, None]
    said = np.where(truth == 1, 0.8, 0.2)
    said[:num_wrong] = 1 - said[:num_wrong]
    return features, truth, from_probabilities(said)


@pytest.mark.parametrize("how", ["knn", "logistic"])
def test_features_speak_against_wrong_labels(how: str) -> None:
    features, truth, said = _two_clouds(num_wrong=10)
    relabelled = transformed("relabel", said, features=lambda: features, how=how, neighbours=10, l2=1e-2)
    assert ((relabelled.values > 0.5) == (truth > 0.5)).all()
    sieved = transformed("sieve", said, features=lambda: features, how=how, neighbours=10, l2=1e-2)
    assert (sieved.weight[:10] == 0).all() and (sieved.weight[10:] == 1).all()


def test_the_topological_filter_keeps_the_largest_component() -> None:
    features, _, said = _two_clouds(num_wrong=6)
    weight = transformed("sieve", said, features=lambda: features, how="topological", neighbours=10).weight
    assert (weight[:6] == 0).all() and weight[6:].mean() > 0.9


def test_no_row_is_its_own_neighbour() -> None:
    features = np.random.default_rng(0).normal(size=(1100, 3))
    near = nearest_rows(features, 5)
    assert not (near == np.arange(1100)[:, None]).any()
    brute = np.linalg.norm(features[700] - features, axis=1)
    brute[700] = np.inf
    assert set(near[700]) == set(np.argsort(brute)[:5])
