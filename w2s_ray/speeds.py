"""How fast machines turned out to be: what Fits took against what was assumed of them, kept in the store for the next estimate.

Layout: `speeds/<machine>/<model>-<hash12>.json`, one small file for each kind of machine and model, with an entry for each kind of
Fit and shape: over how many Fits, the seconds of each phase, and the seconds that `cost.py` assumed for it from FLOPs and batches.
A run adds its own Fits when it ends, however it ends. Nothing here is part of an identity: without these files a study only
knows less of what it costs.
"""

from __future__ import annotations

import json
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from w2s_ray.fit import Execution, Fit, Model
from w2s_ray.store import Store

PHASES = ("train", "eval", "features", "other")
"""Seconds of `other`, such as those of loading, follow from no work: so many a Fit are added once they are measured."""
OLD_COUNTS_AS = 20
"""A run's Fits are added to those of earlier runs, which count as no more Fits than this: machines change."""


@dataclass
class Took:
    """Sums over Fits."""

    num_fits: float = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By phase."""
    assumed: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """The same as it was assumed."""

    def add(self, other: Took, *, weight: float = 1.0) -> None:
        self.num_fits += weight * other.num_fits
        for phase in PHASES:
            self.seconds[phase] += weight * other.seconds.get(phase, 0.0)
            self.assumed[phase] += weight * other.assumed.get(phase, 0.0)

    def expected_s(self, assumed: Mapping[str, float]) -> float:
        """What a Fit like these will take."""
        total_s = self.seconds.get("other", 0.0) / self.num_fits if self.num_fits else 0.0
        for phase, assumed_s in assumed.items():
            took_s, thought_s = self.seconds.get(phase, 0.0), self.assumed.get(phase, 0.0)
            total_s += assumed_s * took_s / thought_s if took_s and thought_s else assumed_s
        return total_s


Entries = dict[tuple[str, str], Took]
"""(kind, shape) -> what Fits of one model took."""


@dataclass(frozen=True)
class Speeds:
    """What one kind of machine has shown, in one store."""

    machine: str = ""
    by_model: dict[str, Entries] = field(default_factory=dict)

    @cached_property
    def num_fits(self) -> int:
        return round(sum(took.num_fits for entries in self.by_model.values() for took in entries.values()))

    def expected_s(self, fit: Fit, execution: Execution, assumed: Mapping[str, float]) -> tuple[float, bool]:
        """Seconds of a Fit, and whether they come from Fits of its own model and kind. Otherwise they come from other models of
        this machine, or are assumed.
        """
        kind, shape = kind_of(fit), shape_of(execution)
        of_kind = {
            (name, each_shape): took
            for name, entries in self.by_model.items()
            for (each_kind, each_shape), took in entries.items()
            if each_kind == kind
        }
        own = {place: took for place, took in of_kind.items() if place[0] == _file_name(fit.model)}
        same_shape = {place: took for place, took in own.items() if place[1] == shape}
        like_it = Took()
        for took in (same_shape or own or of_kind).values():
            like_it.add(took)
        return like_it.expected_s(assumed), bool(own)


def kind_of(fit: Fit) -> str:
    """Fits of one kind do the same for each token."""
    how = fit.role if fit.role in ("reading", "start", "untrained") else fit.training.tune
    return f"{fit.data.setting} {how} {fit.training.precision}"


def shape_of(execution: Execution) -> str:
    device = f"{execution.cpus_per_worker} CPU {execution.gpus_per_worker:g} GPU"
    return (
        f"{execution.workers} x {device} ZeRO {execution.zero_stage} {execution.offload} {execution.micro_batch_size}"
    )


# --- this machine -----------------------------------------------------------------------------------------------------


@cache
def cpu_name() -> str:
    """The kind of CPU of this machine."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


# --- the store --------------------------------------------------------------------------------------------------------


def read_speeds(store: Store, *, on_gpus: bool) -> Speeds:
    """Of this kind of machine if any Fit ran on one; else, and for GPUs, of the kind on which most Fits ran."""
    found = [_read(store, machine) for machine in sorted(store.storage.names("speeds"))]
    found = [speeds for speeds in found if speeds.num_fits and speeds.machine.startswith("GPU ") == on_gpus]
    return max(found, key=lambda speeds: (speeds.machine == f"CPU {cpu_name()}", speeds.num_fits), default=Speeds())


def _read(store: Store, folder: str) -> Speeds:
    machine, by_model = "", dict[str, Entries]()
    for name in store.storage.names(f"speeds/{folder}"):
        if name.endswith(".json"):
            of_file, by_model[name] = _read_file(store, f"speeds/{folder}/{name}")
            machine = of_file or machine
    return Speeds(machine, by_model)


def _read_file(store: Store, path: str) -> tuple[str, Entries]:
    """Machine and entries of a file; nothing of one that is cut short or that another version wrote."""
    try:
        content = json.loads(store.storage.read(path))
        entries = {(each["kind"], each["shape"]): Took(**each["took"]) for each in content["entries"]}
        return str(content["machine"]), entries if content["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return "", {}


VERSION = 1
"""Of what is assumed in `cost.py`. Files of another version are not believed."""


@dataclass(frozen=True)
class Timed:
    """A Fit that ran from its beginning to its end."""

    fit: Fit
    execution: Execution
    machine: str
    seconds: Mapping[str, float]
    """By phase, as a Fit records them."""
    assumed: Mapping[str, float]
    """Phase -> seconds, as they were assumed before anything was measured."""

    @property
    def took(self) -> Took:
        seconds = {phase: self.seconds.get(phase, 0.0) for phase in self.assumed}
        return Took(1, seconds | {"other": sum(self.seconds.values()) - sum(seconds.values())}, dict(self.assumed))


def remember(store: Store, fits: Iterable[Timed]) -> None:
    """Add what Fits took to what the store knows."""
    new: dict[tuple[str, Model], Entries] = defaultdict(lambda: defaultdict(Took))
    for timed in fits:
        new[timed.machine, timed.fit.model][kind_of(timed.fit), shape_of(timed.execution)].add(timed.took)
    for (machine, model), entries in new.items():
        path = f"speeds/{re.sub(r'[^A-Za-z0-9._-]+', '_', machine)}/{_file_name(model)}"
        for place, old in _read_file(store, path)[1].items() if store.storage.exists(path) else ():
            weight = min(1.0, OLD_COUNTS_AS / old.num_fits) if place in entries else 1.0
            entries[place].add(old, weight=weight)
        listed = [
            {"kind": kind, "shape": shape, "took": {name: _rounded(value) for name, value in vars(took).items()}}
            for (kind, shape), took in sorted(entries.items(), key=lambda entry: entry[0])
        ]
        content = {"version": VERSION, "machine": machine, "model": model.name, "entries": listed}
        store.storage.write(path, json.dumps(content, indent=1).encode())


def _rounded(value: Any) -> Any:
    return {name: round(each, 4) for name, each in value.items()} if isinstance(value, dict) else round(value, 4)


@cache
def _file_name(model: Model) -> str:
    return f"{model.name}-{sha256(model.identity_json.encode()).hexdigest()[:12]}.json"
