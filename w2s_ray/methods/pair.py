"""What a method makes its Fits from: a grid's models on one task under one replicate, and one (weak, strong) pair of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from w2s_ray.errors import InputError
from w2s_ray.fit import Data, Fit, Method, Model, Training
from w2s_ray.readings import Network, Replicate, networks, readings_of, readings_of_told

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
    num_fresh: int = 0
    """Fresh parts for the steps of chains; without any, these share half B."""
    made: dict[tuple[str, str, int], Fit] = field(default_factory=dict)
    """Fits that were made already: many cells share them."""
    earlier: tuple[int, ...] = ()
    """Seeds of the replicates that come before this one."""

    @cached_property
    def networks(self) -> dict[str, Network]:
        """Size -> the network that it is cut from."""
        return networks({size: self.models[size] for size in self.sizes})

    def fit(
        self,
        size: str,
        half: str,
        *labels: Fit,
        seed: int,
        method: Method = NAIVE,
        looks_at_features: bool = False,
        **more: Any,
    ) -> Fit:
        model, training = self.models[size], self.trainings[size]
        is_probe, readings = training.tune == "head", tuple[Fit, ...]()
        if is_probe and method.name == "told":
            readings = readings_of_told(model, self.data, labels, training.precision)
        elif is_probe or looks_at_features:
            replicate = Replicate(self.data, self.earlier, self.num_fresh)
            readings = readings_of(self.networks[size], replicate, training.precision, is_probe=is_probe)
        return Fit(model, self.data, half, labels, method, training, seed, readings=readings, **more)

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

        Each learns from rows that none before it has seen (Burns et al. 2023, section 4.3.1): the last from half B and the others
        from fresh parts of that size, or all from equal parts of half B if the grid deals no fresh ones.
        """
        num_steps = len(sizes)
        if num_steps == 1:
            return self.fit(sizes[0], "B", self.supervisor, method=loss)
        if self.ladder.num_fresh:
            return self._fresh_chain(sizes, loss=loss)
        labeller = self.supervisor
        for step, size in enumerate(sizes, start=1):
            labeller = self.fit(size, f"B{step}/{num_steps}", labeller, method=loss)
        return labeller

    def _fresh_chain(self, sizes: list[str], *, loss: Method) -> Fit:
        """The chain over fresh parts.

        Only its inner steps know of these parts, and a supervisor like the cell's own, which labels the first of them. So the
        other Fits keep their keys when fresh parts are added.
        """
        num_fresh = self.ladder.num_fresh
        if len(sizes) - 1 > num_fresh:
            raise InputError(
                f"split.fresh: given {num_fresh}, but a chain from {self.weak} through {' and '.join(sizes)} has "
                f"{len(sizes)} steps: half B for the last and a fresh part for each before it; give {len(sizes) - 1}, or 0 to "
                "share half B between the steps"
            )
        data = replace(self.ladder.data, num_fresh=num_fresh)
        inner = replace(self, ladder=replace(self.ladder, data=data, made={}))
        labeller = inner.supervisor
        for step, size in enumerate(sizes[:-1], start=1):
            labeller = inner.fit(size, f"F{step}", labeller, method=loss)
        return self.fit(sizes[-1], "B", labeller, method=loss)


@dataclass(frozen=True)
class CellFits:
    """The three Fits of a cell."""

    supervisor: Fit
    student: Fit
    ceiling: Fit
