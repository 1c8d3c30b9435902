"""The Fits' answers to the test items, and how often two Fits agree, with an interval.

All models of a task answer the same items, so their common noise cancels in a difference. What an interval holds is said in
`analysis.intervals`: the noise of the test items, drawn by groups, which replicates share, and what differs between replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from analysis.intervals import Interval, Moments


@dataclass(frozen=True)
class Answers:
    """What one Fit answers to the test items, in the order of their ids."""

    answer: np.ndarray
    """[item]: the class, or a hash of the completion."""
    probability: np.ndarray
    label: np.ndarray | None
    """None where the answers are completions."""
    correct: np.ndarray
    group: np.ndarray
    """[item]: number of the item's group."""


class Share(NamedTuple):
    """A share of the test items, and each group's influence on it."""

    value: float
    influence: np.ndarray
    """[group]: by how much the share would change with another draw of the group, to first order."""


class Term(NamedTuple):
    """A share in a linear combination of shares."""

    task: str
    coefficient: float
    share: Share


def read_answers(predictions: pl.DataFrame) -> dict[str, Answers]:
    """Key -> answers of every Fit."""
    if not {"probability", "label"} <= set(predictions.columns):
        return {}
    answers = {}
    for (key,), rows in predictions.group_by("key", maintain_order=True):
        by_id = rows if rows["id"].is_sorted() else rows.sort("id")
        is_two_way = not by_id["label"].has_nulls()
        group = by_id["group"].fill_null(by_id["id"]) if "group" in by_id.columns else by_id["id"]
        answers[str(key)] = Answers(
            (by_id["probability"] > 0.5 if is_two_way else by_id["completion"].hash()).to_numpy(),
            by_id["probability"].to_numpy(),
            by_id["label"].to_numpy() if is_two_way else None,
            by_id["correct"].to_numpy(),
            np.unique(group.hash().to_numpy(), return_inverse=True)[1].astype(np.int32),
        )
    return answers


def agreement(student: Answers, weak: Answers, *, where: np.ndarray) -> Share | None:
    """The share of items, among those that `where` selects, on which two Fits agree. None if it selects none."""
    if not where.any():
        return None
    same = (student.answer == weak.answer) & where
    num_same, num_items = (np.bincount(weak.group, weights=chosen) for chosen in (same, where))
    value = num_same.sum() / num_items.sum()
    return Share(float(value), (num_same - value * num_items) / num_items.sum())


def estimate(replicates: Mapping[int, list[Term]]) -> Interval:
    """The mean over replicates of a linear combination of shares, with its 95 % interval. `replicates`: seed -> its terms."""
    num_replicates = len(replicates)
    values = np.array([sum(term.coefficient * term.share.value for term in terms) for terms in replicates.values()])
    influences: dict[str, dict[int, np.ndarray]] = {}
    for seed, terms in replicates.items():
        for term in terms:
            of_task = influences.setdefault(term.task, {})
            of_task[seed] = of_task.get(seed, 0) + term.coefficient * term.share.influence / num_replicates
    items, num_groups = 0.0, 1.0
    for of_task in influences.values():
        by_seed = np.stack(list(of_task.values()))
        variance = float((by_seed.sum(axis=0) ** 2).sum())
        if num_replicates > 1:  # products of different replicates alone tell what these share
            variance = (variance - float((by_seed**2).sum())) * num_replicates / (num_replicates - 1)
        num_task_groups = int(by_seed.any(axis=0).sum())
        items += variance * num_task_groups / max(num_task_groups - 1, 1)
        num_groups += max(num_task_groups - 1, 0)
    between = float(values.var(ddof=1)) / num_replicates if num_replicates > 1 else 0.0
    moments = Moments(
        ("mean",),
        np.array([values.mean()]),
        np.array([[items]]),
        np.array([[between]]),
        num_replicates,
        num_groups,
    )
    return moments.interval({"mean": 1.0})
