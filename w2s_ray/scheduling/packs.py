"""Which Fits run next, and which of them together: the schedule over the DAG of Fits. No Ray in here.

A *pack* is one Ray Train run that works through several Fits of one resource shape. Starting a run takes about ten seconds
and a small Fit two. A pack therefore takes enough Fits to make the start a small share of its time, but not so many that
other slots stand idle. A Fit may enter a pack when each of its dependencies is committed or comes earlier in the same pack.

Promises: no Fit is handed out twice at a time, and none before its dependencies. When a Fit fails, only the Fits that depend
on it are blocked. A Fit that was in progress in `MAX_CRASHES` crashed packs is given up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from w2s_ray.fit import Execution, Fit

MAX_CRASHES = 3
SHORTEST_PACK_S, LONGEST_PACK_S = 45.0, 1800.0
WORTHWHILE_S = 300.0
"""Work that is worth another slot where one has to be asked for."""


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
class Schedule:
    """The state of one run. Its sets hold keys of Fits, and each key is in exactly one of todo, running, done, failed and
    blocked."""

    fits: dict[str, Fit]
    """Dependencies come before the Fits that depend on them."""
    executions: dict[str, Execution]
    seconds: dict[str, float]
    """Estimated cost of each Fit."""
    num_slots: int
    """Packs that run at the same time."""
    fits_per_pack: int | None = None
    """None leaves the size of packs to the schedule."""
    todo: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """Key -> reason."""
    blocked: dict[str, str] = field(default_factory=dict)
    """Key -> key of the failed dependency."""
    crashes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Key -> number of packs that crashed while this Fit was in progress."""
    in_progress: dict[str, str] = field(default_factory=dict)
    """Name of a pack -> key of the Fit that it started last."""
    num_packs: int = 0
    num_packs_out: int = 0
    """Packs that are handed out and have not come back."""

    def __post_init__(self) -> None:
        self.num_done_before = len(self.done)
        self.children: dict[str, list[str]] = defaultdict(list)
        for key, fit in self.fits.items():
            for parent in fit.parents:
                self.children[parent.key].append(key)
        self.path_s: dict[str, float] = {}
        """Seconds of the longest chain of Fits that begins with this one."""
        for key in reversed(self.fits):  # children come after their parents
            longest = max((self.path_s[child] for child in self.children[key]), default=0.0)
            self.path_s[key] = self.seconds[key] + longest

    @property
    def finished(self) -> bool:
        return not self.todo and not self.running

    @property
    def num_new(self) -> int:
        """Fits that became done since the run began."""
        return len(self.done) - self.num_done_before

    @property
    def num_packs_worthwhile(self) -> int:
        """How many packs at a time the remaining work justifies: fewer than there is room for when little is left."""
        left = self.todo | self.running
        if self.fits_per_pack:
            return math.ceil(len(left) / self.fits_per_pack)
        return math.ceil(sum(self.seconds[key] for key in left) / WORTHWHILE_S)

    # --- handing out packs ---

    def next_pack(self, *, free_cpus: float, free_gpus: float, elsewhere: frozenset[str] = frozenset()) -> Pack | None:
        """The next pack that fits into the free resources, or None. `elsewhere` has the Fits that other drivers work on."""
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
        self.num_packs_out += 1
        return Pack(
            name=f"pack-{self.num_packs:05d}",
            fits=tuple(self.fits[key] for key in self._ordered(chosen)),
            execution=self.executions[first],
        )

    def is_ready(self, key: str, pack: Collection[str] = ()) -> bool:
        """Whether every dependency of a Fit is done, or in the pack that the Fit would enter."""
        return all(parent.key in self.done or parent.key in pack for parent in self.fits[key].parents)

    def _gather(self, first: str, open_: list[str]) -> list[str]:
        """Fits for a pack that begins with `first`: those of its task and seed before others, longest path first."""
        if self.crashes[first]:
            return [first]  # a Fit that was in progress in a crash must not take others with it again
        first_fit, shape = self.fits[first], self.executions[first]

        def distance(key: str) -> tuple[bool, bool, float, str]:
            fit = self.fits[key]
            return (fit.data is not first_fit.data, fit.seed != first_fit.seed, -self.path_s[key], fit.folder)

        candidates = [key for key in open_ if key != first and self.executions[key] == shape and not self.crashes[key]]
        candidates.sort(key=distance)
        budget_s, used_s, chosen = self._pack_budget_s(), self.seconds[first], [first]
        progress = True
        while progress:  # a Fit that was added may make others ready
            progress = False
            for key in list(candidates):
                is_full = len(chosen) >= self.fits_per_pack if self.fits_per_pack else used_s >= budget_s * 0.999
                if is_full:
                    return chosen
                if self.is_ready(key, chosen):
                    chosen.append(key)
                    candidates.remove(key)
                    used_s += self.seconds[key]
                    progress = True
        return chosen

    def _pack_budget_s(self) -> float:
        """How much work the next pack takes: half of a slot's share of what is left. So packs get shorter towards the end, where
        a wrong estimate would leave the other slots idle."""
        left_s = sum(self.seconds[key] for key in self.todo)
        return min(max(left_s / self.num_slots / 2, SHORTEST_PACK_S), LONGEST_PACK_S)

    def _ordered(self, keys: list[str]) -> list[str]:
        """Dependencies first; then Fits that others wait for; then Fits of one base model and task next to each other."""

        def place(key: str) -> tuple[int, bool, str, str, str]:
            fit = self.fits[key]
            return (len(fit.ancestors), not self.children[key], fit.model.name, fit.data.task, fit.folder)

        return sorted(keys, key=place)

    # --- what became of them ---

    def mark_started(self, pack: str, key: str) -> None:
        self.in_progress[pack] = key

    def mark_done(self, key: str) -> None:
        self.todo.discard(key)
        self.running.discard(key)
        self.done.add(key)

    def mark_failed(self, key: str, reason: str) -> None:
        """Record a failed Fit, and block those that depend on it."""
        self.todo.discard(key)
        self.running.discard(key)
        self.failed[key] = reason
        descendants = list(self.children[key])
        while descendants:
            child = descendants.pop()
            if child not in self.done and child not in self.failed:
                self.todo.discard(child)
                self.running.discard(child)
                self.blocked[child] = key
            descendants.extend(self.children[child])

    def take_back(self, pack: Pack, *, crashed: bool) -> list[str]:
        """A pack ended: put its unfinished Fits back. Returns the Fits that have now crashed too often."""
        self.num_packs_out -= 1
        left = [fit.key for fit in pack.fits if fit.key in self.running]
        self.running -= set(left)
        self.todo |= set(left)
        in_progress = self.in_progress.pop(pack.name, None)
        if not left or not crashed:
            return []
        # A pack works in order. If it never reported, the Fit in progress was the first unfinished one that could run.
        suspects = [in_progress] if in_progress in left else [key for key in left if self.is_ready(key)][:1]
        for key in suspects:
            self.crashes[key] += 1
        return [key for key in suspects if self.crashes[key] >= MAX_CRASHES]
