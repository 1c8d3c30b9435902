"""Leases: which driver works on which Fits, so that several drivers on one store share the work.

    leases/<driver>-<pack>.json     owner, host, process and Fits of a pack; `beat` counts up while the driver lives

Buckets offer no locks, so leases work without one:

- A driver that claims Fits reads the other leases *after* writing its own, and withdraws if another one covers the same
  Fits. Of two drivers that claim at the same moment, at most one goes on.
- A lease is dead when its beat has not moved in `DEAD_AFTER_LOOKS` looks of the driver that wants its Fits, or when its
  process on this host is gone. No two machines' clocks are compared.
- Taking over removes the dead lease. A driver that finds its own lease gone stops and commits nothing.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from w2s_ray.storage import Storage

HEARTBEAT_S = 10.0
LOOK_EVERY_S = 5.0
DEAD_AFTER_LOOKS = 12
STALE_S = 60.0
"""For onlookers such as `w2s status`: a beat that is older than this, by the clock, is no sign of life."""

Lease = dict[str, Any]
"""What a lease's file says: owner, host, pid, keys, beat."""


class LeaseLost(Exception):
    """Another driver has taken over the Fits that this one was working on."""


@dataclass(frozen=True)
class Leases:
    """The leases in a store."""

    storage: Storage

    def write(self, name: str, *, owner: str, keys: list[str]) -> None:
        """Take or renew a lease. `owner` names the driver."""
        record = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "keys": keys, "beat": time.time()}
        self.storage.write(f"leases/{name}.json", json.dumps(record).encode())

    def holds(self, name: str) -> bool:
        """Whether a lease that was taken is still there."""
        return self.storage.exists(f"leases/{name}.json")

    def drop(self, name: str) -> None:
        self.storage.delete_file(f"leases/{name}.json")

    def read(self) -> dict[str, Lease]:
        """Every lease by name. One that can't be read is skipped: it is being written, or was cut short."""
        leases = {}
        for file in self.storage.names("leases"):
            if not file.endswith(".json"):
                continue
            try:
                lease = json.loads(self.storage.read(f"leases/{file}"))
                fields = ("owner", "host", "pid", "keys", "beat")
                leases[file.removesuffix(".json")] = {field: lease[field] for field in fields}
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return leases

    def read_alive(self) -> dict[str, Lease]:
        """Key of a Fit -> lease of a driver that seems alive, for onlookers."""
        alive = {
            name: lease
            for name, lease in self.read().items()
            if time.time() - lease["beat"] <= STALE_S and not _has_ended_here(lease)
        }
        return by_fit(alive)


@dataclass(frozen=True)
class HeldLease:
    """The lease under which a pack's workers train."""

    leases: Leases
    name: str

    def check(self) -> None:
        """Raise `LeaseLost` if another driver has taken it over."""
        if not self.leases.holds(self.name):
            raise LeaseLost(f"another driver has taken over the lease {self.name}")


def by_fit(leases: dict[str, Lease]) -> dict[str, Lease]:
    """Key of a Fit -> the lease on it."""
    return {key: lease for lease in leases.values() for key in lease["keys"]}


def _has_ended_here(lease: Lease) -> bool:
    """Whether the lease's process ran on this host and is gone."""
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
    """What one driver knows of the others. It looks again and again, and tells dead leases from live ones."""

    leases: Leases
    owner: str
    beats: dict[str, float] = field(default_factory=dict)
    num_still: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Name of a lease -> looks in a row in which its beat did not move."""
    dead: set[str] = field(default_factory=set)

    def look(self) -> dict[str, Lease]:
        """The live leases of others. Looks should be `LOOK_EVERY_S` apart."""
        others = self._others()
        for name, lease in others.items():
            has_moved = self.beats.get(name) != lease["beat"]
            self.beats[name] = lease["beat"]
            self.num_still[name] = 0 if has_moved else self.num_still[name] + 1
            if _has_ended_here(lease) or self.num_still[name] >= DEAD_AFTER_LOOKS:
                self.dead.add(name)
            else:
                self.dead.discard(name)
        self.dead &= set(others)
        return {name: lease for name, lease in others.items() if name not in self.dead}

    def claim(self, name: str, keys: list[str]) -> bool:
        """Take a lease on Fits. False, and no lease taken, if another driver has one on any of them."""
        self.leases.write(name, owner=self.owner, keys=keys)
        others = self._others()
        rivals = {other for other, lease in others.items() if set(lease["keys"]) & set(keys)}
        if any(rival not in self.dead or others[rival]["beat"] != self.beats[rival] for rival in rivals):
            self.leases.drop(name)
            return False
        for rival in rivals:
            self.leases.drop(rival)
        return True

    def _others(self) -> dict[str, Lease]:
        return {name: lease for name, lease in self.leases.read().items() if lease["owner"] != self.owner}
