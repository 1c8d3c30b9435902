"""What a method makes its Fits from: a grid's models on one task under one replicate, and one (weak, strong) pair of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from w2s_ray.fit import Data, Fit, Method, Model, Training

NAIVE = Method("naive")
"""Supervisors and ceilings learn from the truth by plain cross-entropy, whatever the student's method."""


@dataclass(frozen=True)
class Ladder:
    """A grid's models on one task, with the halves of one replicate."""

    sizes: tuple[str, ...]
    """Weak to strong."""
    data: Data
    common_data: Data
    """The same task without a replicate's own halves, for Fits that learn from neither half: their test set is common."""
    models: dict[str, Model]
    trainings: dict[str, Training]
    ceiling_split: str
    made: dict[tuple[str, str, int], Fit] = field(default_factory=dict)
    """Fits that were made already: many cells share them."""

    def fit(self, size: str, half: str, *labels: Fit, seed: int, method: Method = NAIVE, **more: Any) -> Fit:
        return Fit(self.models[size], self.data, half, labels, method, self.trainings[size], seed, **more)

    def on_truth(self, size: str, half: str, *, seed: int) -> Fit:
        """A size fine-tuned on the ground truth of a half."""
        place = (size, half, seed)
        if place not in self.made:
            self.made[place] = self.fit(size, half, seed=seed)
        return self.made[place]


@dataclass(frozen=True)
class Pair:
    """A weak and a strong size under one seed."""

    ladder: Ladder
    weak: str
    strong: str
    seed: int

    @cached_property
    def supervisor(self) -> Fit:
        return self.ladder.on_truth(self.weak, "A", seed=self.seed)

    @cached_property
    def ceiling(self) -> Fit:
        return self.ladder.on_truth(self.strong, self.ladder.ceiling_split, seed=self.seed)

    def fit(self, size: str, half: str, *labels: Fit, method: Method = NAIVE, **more: Any) -> Fit:
        """A Fit under this pair's seed."""
        return self.ladder.fit(size, half, *labels, seed=self.seed, method=method, **more)

    def student(self, *labels: Fit, method: Method, **more: Any) -> Fit:
        """The strong size on half B."""
        return self.fit(self.strong, "B", *labels, method=method, **more)

    def chain(self, sizes: list[str], *, loss: Method) -> Fit:
        """The last of several Fits of which each learns from the one before it, the first from the supervisor.

        Each works on a part of half B that none before it has seen (Burns et al. 2023, section 4.3.1).
        """
        labeller = self.supervisor
        for step, size in enumerate(sizes, start=1):
            half = "B" if len(sizes) == 1 else f"B{step}/{len(sizes)}"
            labeller = self.fit(size, half, labeller, method=loss)
        return labeller


@dataclass(frozen=True)
class CellFits:
    """The three Fits of a cell."""

    supervisor: Fit
    student: Fit
    ceiling: Fit
