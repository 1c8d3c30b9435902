"""Leases: which driver works on which Fits, so that several drivers on one store share the work.

    leases/<driver>-<pack>.json     owner, host, process and Fits of a pack, written once
    leases/<driver>.beat            counts up while the driver lives: one for all of its leases

Buckets offer no locks, so leases work without one:

- A driver that claims Fits looks at the other leases *after* writing its own, and withdraws if another one covers the same
  Fits. Of two drivers that claim at the same moment, at most one goes on.
- A lease is dead when its driver's beat has not moved in `DEAD_AFTER_LOOKS` looks of the driver that wants its Fits, or when
  its process on this host is gone. No two machines' clocks are compared.
- Taking over removes the dead lease. A driver that finds one of its own leases gone stops and commits nothing.

A lease never changes, and its name is never used again. So a look lists the names, reads each lease once, and one beat for
each other driver; renewing a thousand leases is one listing and one file.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from w2s_ray.storage import Storage

HEARTBEAT_S = 10.0
LOOK_EVERY_S = 5.0
DEAD_AFTER_LOOKS = 12
STALE_S = 60.0
"""For onlookers such as `w2s status`: a beat that is older than this, by the clock, is no sign of life."""

Lease = dict[str, Any]
"""What a lease says: owner, host, pid, keys, and the newest beat of its driver."""


class LeaseLost(Exception):
    """Another driver has taken over the Fits that this one was working on."""


@dataclass(frozen=True)
class Leases:
    """The leases in a store."""

    storage: Storage

    def write(self, name: str, *, owner: str, keys: list[str]) -> None:
        """Take a lease. `owner` names the driver."""
        record = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "keys": keys, "beat": time.time()}
        self.storage.write(f"leases/{name}.json", json.dumps(record).encode())

    def beat(self, owner: str) -> None:
        """Renew all leases of a driver."""
        self.storage.write(f"leases/{owner}.beat", json.dumps(time.time()).encode())

    def read_beat(self, owner: str) -> float:
        """The driver's latest beat; 0 if there is none, as from a driver that has not been at work for long."""
        try:
            return float(json.loads(self.storage.read(f"leases/{owner}.beat")))
        except (OSError, ValueError, TypeError):
            return 0.0

    def holds(self, name: str) -> bool:
        """Whether a lease that was taken is still there."""
        return self.storage.exists(f"leases/{name}.json")

    def names(self) -> set[str]:
        """The names of all leases."""
        return {name.removesuffix(".json") for name in self.storage.names("leases") if name.endswith(".json")}

    def drop(self, name: str) -> None:
        self.storage.delete_file(f"leases/{name}.json")

    def end(self, owner: str) -> None:
        """A driver has given back its leases."""
        self.storage.delete_file(f"leases/{owner}.beat")

    def read_one(self, name: str) -> Lease | None:
        """A lease as it was taken. None if it can't be read: it is being written, or was cut short."""
        try:
            lease = json.loads(self.storage.read(f"leases/{name}.json"))
            return {field: lease[field] for field in ("owner", "host", "pid", "keys", "beat")}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read(self) -> dict[str, Lease]:
        """Every lease by name."""
        leases = {name: lease for name in self.names() if (lease := self.read_one(name)) is not None}
        beats = {owner: self.read_beat(owner) for owner in {lease["owner"] for lease in leases.values()}}
        return {name: lease | {"beat": max(lease["beat"], beats[lease["owner"]])} for name, lease in leases.items()}

    def read_alive(self) -> dict[str, Lease]:
        """Key of a Fit -> lease of a driver that seems alive, for onlookers."""
        return {
            key: lease
            for lease in self.read().values()
            if time.time() - lease["beat"] <= STALE_S and not _has_ended_here(lease)
            for key in lease["keys"]
        }


@dataclass(frozen=True)
class HeldLease:
    """The lease under which a pack's workers train."""

    leases: Leases
    name: str

    def check(self) -> None:
        """Raise `LeaseLost` if another driver has taken it over."""
        if not self.leases.holds(self.name):
            raise LeaseLost(f"another driver has taken over the lease {self.name}")


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
    others: dict[str, Lease] = field(default_factory=dict)
    """Name -> a lease of another driver, read once."""
    names_of: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Key of a Fit -> the names of the others' leases on it."""
    mine: set[str] = field(default_factory=set)
    """Names of this driver's own leases."""
    beats: dict[str, float] = field(default_factory=dict)
    """Name of a lease -> its driver's beat at the last look."""
    num_still: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Name of a lease -> looks in a row in which the beat did not move."""
    dead: set[str] = field(default_factory=set)

    def look(self) -> dict[str, Lease]:
        """The live leases of others. Looks should be `LOOK_EVERY_S` apart."""
        self._list()
        beats = {owner: self.leases.read_beat(owner) for owner in {each["owner"] for each in self.others.values()}}
        ended = {(each["host"], each["pid"]) for each in self.others.values()}
        ended = {(host, pid) for host, pid in ended if _has_ended_here({"host": host, "pid": pid})}
        for name, lease in self.others.items():
            beat = max(lease["beat"], beats[lease["owner"]])
            self.num_still[name] = self.num_still[name] + 1 if self.beats.get(name) == beat else 0
            self.beats[name] = beat
            if (lease["host"], lease["pid"]) in ended or self.num_still[name] >= DEAD_AFTER_LOOKS:
                self.dead.add(name)
            else:
                self.dead.discard(name)
        return {name: lease for name, lease in self.others.items() if name not in self.dead}

    def claim(self, name: str, keys: list[str]) -> bool:
        """Take a lease on Fits. False, and no lease taken, if another driver has one on any of them."""
        if not self.mine:
            self.leases.beat(self.owner)  # before the lease, which lives by it
        self.mine.add(name)
        self.leases.write(name, owner=self.owner, keys=keys)
        self._list()
        rivals = {rival for key in keys if key in self.names_of for rival in self.names_of[key]}
        if any(rival not in self.dead or self._beat_now(rival) != self.beats[rival] for rival in rivals):
            self.drop(name)
            return False
        for rival in rivals:
            owner = self.others[rival]["owner"]
            self.leases.drop(rival)
            self._forget(rival)
            if all(lease["owner"] != owner for lease in self.others.values()):
                self.leases.end(owner)
        return True

    def drop(self, name: str) -> None:
        """Give back a lease of this driver's own."""
        self.leases.drop(name)
        self.mine.discard(name)

    def renew(self) -> str | None:
        """Renew this driver's leases, unless one is gone: then its name."""
        if not self.mine:
            return None
        if lost := self.mine - self.leases.names():
            return min(lost)
        self.leases.beat(self.owner)
        return None

    def is_free(self, key: str) -> bool:
        """Whether no live lease of another driver covers a Fit, as of the last look."""
        return self.names_of.get(key, set()) <= self.dead

    def _beat_now(self, name: str) -> float:
        lease = self.others[name]
        return float(max(lease["beat"], self.leases.read_beat(lease["owner"])))

    def _list(self) -> None:
        """Notice which leases there are, and read those that are new."""
        names = self.leases.names() - self.mine
        for name in set(self.others) - names:
            self._forget(name)
        for name in names - self.others.keys():
            lease = self.leases.read_one(name)
            if lease is not None and lease["owner"] != self.owner:
                self.others[name] = lease
                for key in lease["keys"]:
                    self.names_of[key].add(name)

    def _forget(self, name: str) -> None:
        for key in self.others.pop(name)["keys"]:
            self.names_of[key].discard(name)
            if not self.names_of[key]:
                del self.names_of[key]
        self.beats.pop(name, None)
        self.num_still.pop(name, None)
        self.dead.discard(name)


def keys_of(leases: Iterable[Lease]) -> set[str]:
    """The keys of the Fits that these leases cover."""
    return {key for lease in leases for key in lease["keys"]}
