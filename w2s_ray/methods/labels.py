"""Labels that a student learns from, and what a transform of labels may look at.

Labels come in two forms: probabilities of class 1 (classification, comparison), or completions that a supervisor wrote, each
with the probability that it gave to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Labels:
    """Labels of some rows, in their order."""

    values: np.ndarray
    """[rows]: probabilities of class 1 (float), or completions (object)."""
    confidence: np.ndarray
    """[rows]: |2p - 1|, or the probability of the completion."""
    weight: np.ndarray
    """[rows]: each row's weight in the loss. Rows of weight 0 are left out."""
    verified: np.ndarray
    """[rows]: whether the label is known to be the truth."""

    @property
    def are_texts(self) -> bool:
        return self.values.dtype == object

    @property
    def classes(self) -> np.ndarray:
        """[rows]: whether each label leans to class 1. Completions all count as one class."""
        return np.zeros(len(self.values), bool) if self.are_texts else self.values > 0.5

    def are_right(self, truth: np.ndarray) -> np.ndarray:
        """[rows]: whether each label is the truth, or leans to its class."""
        return self.values == truth if self.are_texts else (self.values > 0.5) == (truth > 0.5)


@dataclass(frozen=True)
class LabelSources:
    """What a transform makes its labels from. All arrays are over the same rows."""

    supervisors: tuple[Labels, ...]
    """What each labelling Fit predicts; all transforms but `ensemble` have one."""
    truth: np.ndarray
    """[rows]: in the form of `Labels.values`."""
    num_characters: np.ndarray
    """[rows]: length of the text with its completions."""
    generator: np.random.Generator
    """For random choices; seeded by the Fit."""
    features: Callable[[], np.ndarray]
    """[row, width]: the student's own pretrained features. Only for transforms with `NEEDS_FEATURES`."""

    @property
    def weak(self) -> Labels:
        return self.supervisors[0]


def from_probabilities(probability: np.ndarray) -> Labels:
    num_rows = len(probability)
    return Labels(probability, np.abs(2 * probability - 1), np.ones(num_rows), np.zeros(num_rows, bool))


def from_completions(completions: Sequence[str], probability: np.ndarray) -> Labels:
    num_rows = len(completions)
    return Labels(np.array(completions, dtype=object), probability, np.ones(num_rows), np.zeros(num_rows, bool))
