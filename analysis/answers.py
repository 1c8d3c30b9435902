"""The Fits' answers to items of the test set or of half B, and how often two Fits agree, with an interval.

All models of a task answer the same test items, and those of one replicate the same rows of half B, so their common noise cancels
in a difference. What an interval holds is said in `w2s_ray.analysis.intervals`: the noise of the items that replicates share, drawn by
groups, and what differs between replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import polars as pl

from w2s_ray.analysis.intervals import Interval, Moments
from w2s_ray.analysis.tables import Predictions, by_fit, fit_slices, parts_of


@dataclass(frozen=True)
class Answers:
    """What one Fit answers to its items, in the order of their ids."""

    item: np.ndarray
    """[item]: hash of the id."""
    answer: np.ndarray
    """[item]: the class, or a hash of the completion."""
    probability: np.ndarray
    label: np.ndarray | None
    """None where the answers are completions."""
    correct: np.ndarray
    group: np.ndarray
    """[item]: number of the item's group, the same for all Fits of a task."""
    num_groups: int
    """Of all Fits of the task together. The halves of different replicates have groups in common, and groups of their own."""

    def on_items_of(self, other: Answers) -> Answers | None:
        """The answers to the items that another Fit answers. None if some are lacking."""
        if np.array_equal(self.item, other.item):
            return self
        own = self.restricted_to(other.item)
        return own if len(own.item) == len(other.item) else None

    def restricted_to(self, items: np.ndarray) -> Answers:
        """The answers to those of its items that are among these."""
        kept = np.isin(self.item, items)
        return replace(
            self,
            item=self.item[kept],
            answer=self.answer[kept],
            probability=self.probability[kept],
            label=None if self.label is None else self.label[kept],
            correct=self.correct[kept],
            group=self.group[kept],
        )


class Share(NamedTuple):
    """A share of the items, and each group's influence on it."""

    value: float
    influence: np.ndarray
    """[group]: by how much the share would change with another draw of the group, to first order."""


class Term(NamedTuple):
    """A share in a linear combination of shares."""

    task: str
    coefficient: float
    share: Share


def read_answers(predictions: Predictions) -> dict[str, Answers]:
    """Key -> answers of every Fit, from predictions.parquet or half_b.parquet, read part by part. Fits that answer the same items
    share what is said of these, so that a Fit takes six bytes an item, or thirteen where it writes."""
    parts = parts_of(predictions)
    if not {"task", "probability", "label"} <= parts.columns:
        return {}
    items: dict[tuple[str, bytes], _Items] = {}
    found: dict[str, tuple[_Items, np.ndarray, np.ndarray, np.ndarray]] = {}
    for part in parts.each("key", "task", "id", "group", "probability", "label", "completion", "correct"):
        rows = by_fit(part)
        tasks, hashes, groups = rows["task"], rows["id"].hash().to_numpy(), _group(rows).hash().to_numpy()
        labels, is_two_way = rows["label"].fill_null(0).to_numpy(), rows["label"].is_not_null().to_numpy()
        probabilities, correct = rows["probability"].to_numpy(), rows["correct"].to_numpy()
        for key, own in fit_slices(rows):
            two_way = bool(is_two_way[own].all())
            known = (hashes[own], groups[own], *([labels[own]] if two_way else []))
            place = (str(tasks[own.start]), b"".join(array.tobytes() for array in known))
            if place not in items:
                item, group, *label = (array.copy() for array in known)
                items[place] = _Items(place[0], item, group, label[0] if label else None)
            answer = probabilities[own] > 0.5 if two_way else rows["completion"][own].hash().to_numpy().copy()
            found[key] = (items[place], answer, probabilities[own].copy(), correct[own].copy())
    groups_of: dict[str, list[np.ndarray]] = {}
    for each in items.values():
        groups_of.setdefault(each.task, []).append(each.group)
    names = {task: np.unique(np.concatenate(groups)) for task, groups in groups_of.items()}
    numbers = {id(each): np.searchsorted(names[each.task], each.group).astype(np.int32) for each in items.values()}
    return {
        key: Answers(own.item, answer, probability, own.label, right, numbers[id(own)], len(names[own.task]))
        for key, (own, answer, probability, right) in found.items()
    }


@dataclass(frozen=True)
class _Items:
    """Items that Fits of a task answer."""

    task: str
    item: np.ndarray
    """[item]: hash of the id."""
    group: np.ndarray
    """[item]: hash of the group's name."""
    label: np.ndarray | None


def _group(rows: pl.DataFrame) -> pl.Series:
    """The group of each item. One without a group is its own."""
    return rows["group"].fill_null(rows["id"]) if "group" in rows.columns else rows["id"]


def agreement(student: Answers, weak: Answers, *, where: np.ndarray) -> Share | None:
    """The share of items, among those that `where` selects, on which two Fits agree. None if it selects none. Both answer the
    same items."""
    if not where.any():
        return None
    same = (student.answer == weak.answer) & where
    num_same, num_items = (
        np.bincount(weak.group, weights=chosen, minlength=weak.num_groups) for chosen in (same, where)
    )
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
