"""Comparison: the order of two completions does not matter, and a reward model learns which is better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from w2s_ray import tasks
from w2s_ray.planning import load_plan
from w2s_ray.results import write_results
from w2s_ray.training.batches import pad
from w2s_ray.training.distributed import device
from w2s_ray.training.settings import comparison

from tiny import save_model
from trained import LEARNING, spec_of, study_of, train_study


def test_the_order_of_two_completions_does_not_matter(tmp_path: Path) -> None:
    save_model(tmp_path, "llama")
    model = comparison.build_model(spec_of(tmp_path))[0].eval().to(device())
    torch.nn.init.normal_(model.head.weight)
    first, second = [[5, 6, 7], [8, 9]], [[5, 6], [8, 10, 11]]
    there = torch.softmax(model(*pad(first + second, pad_id=0)), -1)[:, 1]
    back = torch.softmax(model(*pad(second + first, pad_id=0)), -1)[:, 1]
    torch.testing.assert_close(there + back, torch.ones(2, device=device()))
    features = model.features(*pad(first + second, pad_id=0))
    rewards = torch.nn.Linear.forward(model.head, features)[:, 0]
    torch.testing.assert_close(there, torch.sigmoid(rewards[:2] - rewards[2:]), atol=1e-6, rtol=1e-5)


def test_a_reward_model_learns_which_is_better(folder: Path, tmp_path: Path) -> None:
    training = LEARNING | {"epochs": 30, "learning_rate": 0.01}
    split = {"num_train": 150, "num_test": 64}
    study = study_of(folder, "choosing.yaml", training=training, split=split, pairs=[["big", "big"]])
    store, _ = train_study(study, tmp_path / "store")
    results = write_results(load_plan(study).cells, study="s", store=store, out=tmp_path / "out")
    assert results["metric"].unique().to_list() == ["pairwise_accuracy"]
    assert results["setting"].unique().to_list() == ["comparison"]
    on_halves = results.row(0, named=True)
    assert (on_halves["weak_score"] + on_halves["ceiling_score"]) / 2 > 0.65, on_halves


def test_comparisons_are_shown_in_an_order_of_their_own(folder: Path) -> None:
    rows = tasks.read_rows(tasks.load_task("choosing.yaml", base=folder)).to_pylist()
    labels = [row["label"] for row in rows]
    assert 0.4 < np.mean(labels) < 0.6, "the better one stands first as often as second"
    parts = tasks.deal(
        tasks.read_rows(tasks.load_task("choosing.yaml", base=folder)), tasks.Deal(seed=0, num_train=60, num_test=40)
    )
    assert [sum(part["label"].to_pylist()) for part in parts.values()] == [30, 30, 20]
    prompts = [set(part["text"].to_pylist()) for part in parts.values()]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
