"""Leases: which driver works on which Fits, so that two drivers on one store share the work.

    leases/<driver>-<pack>.json     owner, host, process and Fits of a pack; `beat` counts up while the driver lives

Promises, without a lock, which buckets don't offer: who claims a Fit looks around *after* writing the claim and withdraws when
there is another's, so that of two at once at most one goes on. A lease is dead when its beat stood still in `DEAD_AFTER_LOOKS`
looks of the one who wants its Fits (nobody's clock is compared with another's), or when its process is gone from this
host. Taking over removes the dead lease, and whoever finds its own lease gone stops and commits nothing.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from w2s_ray import store
from w2s_ray.store import Store

HEARTBEAT_S = 10.0
LOOK_EVERY_S = 5.0
DEAD_AFTER_LOOKS = 12
STALE_S = 60.0
"""For those who only watch, as `w2s status` does: a beat older than this, by the clock, is no sign of life."""


class LeaseLost(Exception):
    """Another driver has taken over what this one was working on."""


def _path(opened: Store, name: str) -> str:
    return opened.path("leases", f"{name}.json")


def write(opened: Store, name: str, *, owner: str, keys: list[str]) -> None:
    """Take or renew a lease. `owner` names the driver."""
    record = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "keys": keys, "beat": time.time()}
    store.write_bytes(opened, _path(opened, name), json.dumps(record).encode())


def holds(opened: Store, name: str) -> bool:
    """Whether a lease that was taken is still there."""
    return store.exists(opened, _path(opened, name))


def drop(opened: Store, name: str) -> None:
    store.delete_file(opened, _path(opened, name))


def read(opened: Store) -> dict[str, dict[str, Any]]:
    """Every lease by name. One that can't be read is none: it is being written, or was cut short."""
    found = {}
    for file in store.names(opened, "leases"):
        if not file.endswith(".json"):
            continue
        try:
            lease = json.loads(store.read_bytes(opened, opened.path("leases", file)))
            found[file.removesuffix(".json")] = {name: lease[name] for name in ("owner", "host", "pid", "keys", "beat")}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def by_fit(leases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key of a Fit -> the lease on it."""
    return {key: lease for lease in leases.values() for key in lease["keys"]}


def shown(opened: Store) -> dict[str, dict[str, Any]]:
    """Key -> lease of a driver that seems alive, for those who only watch."""
    alive = {
        name: lease
        for name, lease in read(opened).items()
        if time.time() - lease["beat"] <= STALE_S and not _ended_here(lease)
    }
    return by_fit(alive)


def _ended_here(lease: dict[str, Any]) -> bool:
    """Whether the lease's process was of this host and is gone."""
    if lease["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(lease["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@dataclass
class Neighbours:
    """What one driver knows of the others: it looks again and again, and tells the dead from the living."""

    opened: Store
    owner: str
    beats: dict[str, float] = field(default_factory=dict)
    stood_still: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    dead: set[str] = field(default_factory=set)

    def look(self) -> dict[str, dict[str, Any]]:
        """The others' leases, without those of the dead. One look; looks should be `LOOK_EVERY_S` apart."""
        others = {name: lease for name, lease in read(self.opened).items() if lease["owner"] != self.owner}
        for name, lease in others.items():
            moved = self.beats.get(name) != lease["beat"]
            self.beats[name] = lease["beat"]
            self.stood_still[name] = 0 if moved else self.stood_still[name] + 1
            if _ended_here(lease) or self.stood_still[name] >= DEAD_AFTER_LOOKS:
                self.dead.add(name)
            else:
                self.dead.discard(name)
        self.dead &= set(others)
        return {name: lease for name, lease in others.items() if name not in self.dead}

    def claim(self, name: str, keys: list[str]) -> bool:
        """Take a lease on Fits; False, and none taken, where another driver has one on any of them."""
        write(self.opened, name, owner=self.owner, keys=keys)
        others = {n: lease for n, lease in read(self.opened).items() if lease["owner"] != self.owner}
        rivals = {n for n, lease in others.items() if set(lease["keys"]) & set(keys)}
        if any(n not in self.dead or others[n]["beat"] != self.beats[n] for n in rivals):
            drop(self.opened, name)
            return False
        for rival in rivals:
            drop(self.opened, rival)
        return True
