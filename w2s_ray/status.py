"""A plan compared with the store: which Fits are done, running, failed, blocked or still to do, and why one is not there.

Everything is read from the store alone, so the answer is the same on every machine and needs no running driver.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from w2s_ray.fit import Fit
from w2s_ray.leases import Lease, Leases
from w2s_ray.planning import Plan
from w2s_ray.readings import unneeded
from w2s_ray.store import Store

Difference = tuple[str, Any, Any]
"""A field in which two Fits differ, its value in the store, and its value in the study."""


@dataclass(frozen=True)
class Status:
    """Every key of the plan is in exactly one of these."""

    done: frozenset[str]
    """In the store, or a reading that no Fit needs any more."""
    running: dict[str, Lease]
    """Key -> the lease of the driver that works on the Fit."""
    failed: dict[str, dict[str, Any]]
    """Key -> failure record."""
    blocked: dict[str, str]
    """Key -> key of the failed dependency."""
    todo: frozenset[str]


def done_keys(plan: Plan, *, store: Store) -> set[str]:
    """What need not be run: committed Fits, and readings of which all dependents are committed."""
    committed = set(store.committed(plan.fits))
    return committed | unneeded(plan.fits, committed)


def status(plan: Plan, *, store: Store) -> Status:
    """Sort every Fit of the plan by its state in the store."""
    done = frozenset(done_keys(plan, store=store))
    leases = Leases(store.storage).read_alive()
    failures = store.read_failures()
    running = {f.key: leases[f.key] for f in plan.fits if f.key in leases and f.key not in done}
    known = done | running.keys()
    failed = {f.key: failures[f.key] for f in plan.fits if f.key in failures and f.key not in known}
    blocked = {}
    for fit in plan.fits if failed else ():
        cause = next((dependency.key for dependency in fit.ancestors if dependency.key in failed), None)
        if cause and fit.key not in done and fit.key not in failed:
            blocked[fit.key] = cause
    todo = {f.key for f in plan.fits} - done - running.keys() - failed.keys() - blocked.keys()
    return Status(done=done, running=running, failed=failed, blocked=blocked, todo=frozenset(todo))


def nearest_committed(fit: Fit, *, store: Store) -> tuple[str | None, list[Difference]]:
    """The folder of the committed Fit that differs from this one in the fewest fields, and these fields."""
    nearest: tuple[str | None, list[Difference]] = (None, [])
    for folder in store.committed_folders():
        if not folder.startswith(f"{fit.data.task}-{fit.model.name}-"):
            continue
        identity = json.loads(store.read_file(folder, "fit.json"))["identity"]
        differences = _differences(identity, fit.identity, "")
        if nearest[0] is None or len(differences) < len(nearest[1]):
            nearest = (folder, differences)
    return nearest


def _differences(stored: Any, wanted: Any, field: str) -> list[Difference]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            difference
            for name in sorted(stored.keys() | wanted.keys())
            for difference in _differences(stored.get(name), wanted.get(name), f"{field}.{name}".lstrip("."))
        ]
    stored, wanted = (list(value) if isinstance(value, tuple) else value for value in (stored, wanted))
    return [] if stored == wanted else [(field, stored, wanted)]
