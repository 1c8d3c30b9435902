"""Control: the truth with as many errors as the supervisor makes.

If the student does as well as with the supervisor's labels, what matters is how many labels are wrong, not which. Half of the
errors fall on each class. A wrong completion is the right one of another row. These labels are hard, so compare with `harden`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from w2s_ray.methods.labels import Labels, LabelSources, from_completions, from_probabilities
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}
NEEDS_FEATURES = False
NUM_CANDIDATES = 64
"""Rows that are tried for a completion other than the right one."""


class Params(WithLoss):
    """Control: the truth with as many errors as the supervisor makes."""

    errors: Literal["random", "longest", "shortest"] = "random"
    """Which rows get the errors: random ones, or those with the longest or shortest texts."""


def transform(sources: LabelSources, params: Params) -> Labels:
    priority = {
        "random": np.zeros(len(sources.truth)),
        "longest": -sources.num_characters,
        "shortest": sources.num_characters,
    }[params.errors]
    if sources.weak.are_texts:
        num_errors = int((sources.weak.values != sources.truth).sum())
        return _swapped(sources.truth, num_errors, priority, sources.generator)
    num_errors = int(((sources.weak.values > 0.5) != (sources.truth > 0.5)).sum())
    return _flipped(sources.truth, num_errors, priority, sources.generator)


def _order(priority: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Row numbers by priority, ties at random."""
    return np.lexsort((generator.permutation(len(priority)), priority))


def _flipped(truth: np.ndarray, num_errors: int, priority: np.ndarray, generator: np.random.Generator) -> Labels:
    order, values = _order(priority, generator), truth.copy()
    for label, num_flips in ((0.0, num_errors // 2), (1.0, num_errors - num_errors // 2)):
        values[[row for row in order if truth[row] == label][:num_flips]] = 1 - label
    return from_probabilities(values)


def _swapped(truth: np.ndarray, num_errors: int, priority: np.ndarray, generator: np.random.Generator) -> Labels:
    order, values = _order(priority, generator), truth.copy()
    for row in order[:num_errors]:
        candidates = truth[generator.permutation(len(truth))[:NUM_CANDIDATES]]
        values[row] = next((text for text in candidates if text != truth[row]), truth[row])
    return from_completions(list(values), np.ones(len(truth)))
