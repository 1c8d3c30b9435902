"""The Fits' answers to the test items, and how often two Fits agree, with an interval.

An interval holds two kinds of noise. That of the test items, drawn by groups, comes from the influence of each group on the
estimate (a delta method). That between replicates comes from their spread. All models of a task answer the same items, so
their common noise cancels in a difference. The quantile is Student's t with the degrees of freedom of Satterthwaite (1946).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.stats import t as student_t

CONFIDENCE = 0.95


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


class Estimate(NamedTuple):
    value: float
    low: float
    high: float


def read_answers(predictions: pl.DataFrame) -> dict[str, Answers]:
    """Key -> answers of every Fit."""
    if not {"probability", "label"} <= set(predictions.columns):
        return {}
    answers = {}
    for (key,), rows in predictions.group_by("key", maintain_order=True):
        by_id = rows if rows["id"].is_sorted() else rows.sort("id")
        is_two_way = not by_id["label"].has_nulls()
        group = by_id["group" if "group" in by_id.columns else "id"].hash().to_numpy()
        answers[str(key)] = Answers(
            (by_id["probability"] > 0.5 if is_two_way else by_id["completion"].hash()).to_numpy(),
            by_id["probability"].to_numpy(),
            by_id["label"].to_numpy() if is_two_way else None,
            by_id["correct"].to_numpy(),
            np.unique(group, return_inverse=True)[1].astype(np.int32),
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


def estimate(replicates: Mapping[int, list[Term]]) -> Estimate:
    """The mean over replicates of a linear combination of shares, with its 95 % interval. `replicates`: seed -> its terms."""
    values = np.array([sum(term.coefficient * term.share.value for term in terms) for terms in replicates.values()])
    influences: dict[str, np.ndarray] = {}
    for term in (term for terms in replicates.values() for term in terms):
        influence = term.coefficient * term.share.influence / len(values)
        influences[term.task] = influences.get(term.task, 0) + influence
    variances = [float(values.var(ddof=1)) / len(values)] if len(values) > 1 else []
    freedom = [len(values) - 1] if variances else []
    for influence in influences.values():
        num_groups = len(influence)
        variances.append(float((influence**2).sum()) * num_groups / max(num_groups - 1, 1))
        freedom.append(max(num_groups - 1, 1))
    total, value = sum(variances), float(values.mean())
    if total == 0:
        return Estimate(value, value, value)
    degrees = total**2 / sum(variance**2 / df for variance, df in zip(variances, freedom, strict=True))
    half_width = float(student_t.ppf((1 + CONFIDENCE) / 2, degrees)) * total**0.5
    return Estimate(value, value - half_width, value + half_width)
