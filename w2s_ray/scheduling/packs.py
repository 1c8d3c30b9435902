"""Which Fits run next, and together: the walk over the DAG. No Ray in here.

A *pack* is one Ray Train run that works through several Fits of one resource shape. Starting a run costs about ten
seconds and a small Fit two, so a pack takes as many Fits as make that a small share, without starving other slots. A
Fit may enter a pack when those that it stands on are committed or stand earlier in the same pack.

Promises: no Fit is handed out twice at a time, none before those that it stands on; the children of a failed Fit are blocked,
everything else goes on; a Fit that was in hand in `MAX_CRASHES` lost packs is recorded as failed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

from w2s_ray.fit import Execution, Fit

MAX_CRASHES = 3
SHORT_RUN_S = 300.0
"""A remainder of less than this on each slot is dealt out in one go."""
LONGEST_PACK_S = 1800.0


@dataclass(frozen=True)
class Pack:
    name: str
    fits: tuple[Fit, ...]
    execution: Execution

    @property
    def num_cpus(self) -> float:
        return self.execution.workers * self.execution.cpus_per_worker

    @property
    def num_gpus(self) -> float:
        return self.execution.workers * self.execution.gpus_per_worker


@dataclass
class Walk:
    """The state of one run over the DAG. Sets hold keys of Fits; each key is in exactly one of them."""

    fits: dict[str, Fit]
    executions: dict[str, Execution]
    seconds: dict[str, float]
    """Estimated cost of each Fit."""
    num_slots: int
    fits_per_pack: int | None = None
    todo: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    """Key -> key of the failed ancestor."""
    crashes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    in_hand: dict[str, str] = field(default_factory=dict)
    """Pack name -> key of the Fit that it last started."""
    num_packs: int = 0
    num_out: int = 0
    """Packs handed out and not yet returned."""

    def __post_init__(self) -> None:
        self.children: dict[str, list[str]] = defaultdict(list)
        for key, fit in self.fits.items():
            for parent in fit.parents:
                self.children[parent.key].append(key)
        self.path_s: dict[str, float] = {}
        for key in reversed(self.fits):  # children come after their parents
            longest = max((self.path_s[child] for child in self.children[key]), default=0.0)
            self.path_s[key] = self.seconds[key] + longest

    @property
    def finished(self) -> bool:
        return not self.todo and not self.running

    @property
    def num_packs_worth(self) -> int:
        """How many packs at a time the work that is left is worth: each takes a while to start."""
        left = self.todo | self.running
        if self.fits_per_pack:
            return math.ceil(len(left) / self.fits_per_pack)
        return math.ceil(sum(self.seconds[key] for key in left) / SHORT_RUN_S)

    def next_pack(self, *, free_cpus: float, free_gpus: float, elsewhere: frozenset[str] = frozenset()) -> Pack | None:
        """The next pack that fits into the free resources, or None. `elsewhere`: Fits that another driver works on."""
        open_ = [key for key in self.todo if key not in elsewhere]

        def can_start(key: str) -> bool:
            shape = self.executions[key]
            has_room = (
                shape.workers * shape.cpus_per_worker <= free_cpus
                and shape.workers * shape.gpus_per_worker <= free_gpus
            )
            return has_room and self.is_ready(key)

        by_path = sorted(open_, key=lambda key: (-self.path_s[key], self.fits[key].folder))
        first = next((key for key in by_path if can_start(key)), None)
        if first is None:
            return None
        chosen = self._gather(first, open_)
        self.todo -= set(chosen)
        self.running |= set(chosen)
        self.num_packs += 1
        self.num_out += 1
        return Pack(
            name=f"pack-{self.num_packs:05d}",
            fits=tuple(self.fits[key] for key in self._ordered(chosen)),
            execution=self.executions[first],
        )

    def is_ready(self, key: str, with_: list[str] | tuple[str, ...] = ()) -> bool:
        """Whether all that a Fit stands on is there, or in `with_`."""
        return all(parent.key in self.done or parent.key in with_ for parent in self.fits[key].parents)

    def _budget_s(self) -> float:
        left_s = sum(self.seconds[key] for key in self.todo)
        share_s = left_s / max(1, self.num_slots - self.num_out)
        return share_s if share_s <= SHORT_RUN_S else min(left_s / self.num_slots / 2, LONGEST_PACK_S)

    def _gather(self, first: str, open_: list[str]) -> list[str]:
        """Fits for one pack: those of the first one's task and seed before others, longest path first."""
        lead = self.fits[first]
        if self.crashes[first]:
            return [first]  # a Fit that lost a pack before must not take others with it again

        def nearness(key: str) -> tuple[bool, bool, float, str]:
            fit = self.fits[key]
            return (fit.data is not lead.data, fit.seed != lead.seed, -self.path_s[key], fit.folder)

        budget_s, spent_s, chosen = self._budget_s(), self.seconds[first], [first]
        waiting = sorted((key for key in open_ if key != first), key=nearness)
        waiting = [key for key in waiting if self.executions[key] == self.executions[first] and not self.crashes[key]]
        progress = True
        while progress:
            progress = False
            for key in list(waiting):
                full = len(chosen) >= self.fits_per_pack if self.fits_per_pack else spent_s >= budget_s * 0.999
                if full:
                    return chosen
                if self.is_ready(key, chosen):
                    chosen.append(key)
                    waiting.remove(key)
                    spent_s += self.seconds[key]
                    progress = True
        return chosen

    def _ordered(self, keys: list[str]) -> list[str]:
        """Supervisors first, since others wait for them; then neighbours share base model and data."""

        def place(key: str) -> tuple[int, bool, str, str, str]:
            fit = self.fits[key]
            return (len(fit.ancestors), not self.children[key], fit.model.name, fit.data.task, fit.folder)

        return sorted(keys, key=place)

    # --- what happened ---

    def started(self, pack: str, key: str) -> None:
        self.in_hand[pack] = key

    def committed(self, key: str) -> None:
        self.todo.discard(key)
        self.running.discard(key)
        self.done.add(key)

    def failure(self, key: str, reason: str) -> None:
        """A Fit failed; its descendants are blocked."""
        self.todo.discard(key)
        self.running.discard(key)
        self.failed[key] = reason
        waiting = list(self.children[key])
        while waiting:
            child = waiting.pop()
            if child not in self.done and child not in self.failed:
                self.todo.discard(child)
                self.running.discard(child)
                self.blocked[child] = key
            waiting.extend(self.children[child])

    def returned(self, pack: Pack, *, crashed: bool) -> list[str]:
        """A pack ended: what it left undone is to do again. The Fits that have now crashed too often."""
        self.num_out -= 1
        left = [fit.key for fit in pack.fits if fit.key in self.running]
        self.running -= set(left)
        self.todo |= set(left)
        in_hand = self.in_hand.pop(pack.name, None)
        if not left or not crashed:
            return []
        # without word from it, the Fit in hand was the first one left that could run: a pack keeps its order
        suspects = [in_hand] if in_hand in left else [key for key in left if self.is_ready(key)][:1]
        for key in suspects:
            self.crashes[key] += 1
        return [key for key in suspects if self.crashes[key] >= MAX_CRASHES]
