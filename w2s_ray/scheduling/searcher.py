"""The Tune searcher over the DAG: whenever Tune has a free slot, it gets the next pack.

Promises: `suggest` answers None while nothing is ready and FINISHED when nothing is left, so the experiment ends by
itself. The store is the memory: what a pack did is read from there when it ends, and Tune's own restore is not used.
Fits are leased to this driver while a pack runs them, and the lease is renewed from a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from typing import Any

from ray.tune.search import Searcher

from w2s_ray import store
from w2s_ray.fit import Fit
from w2s_ray.scheduling.packs import Pack, Walk
from w2s_ray.store import Store

HEARTBEAT_S = 10.0
LOOK_AROUND_S = 5.0
"""How often the store is asked what other drivers do, while there is work that is theirs."""

log = logging.getLogger(__name__)


class DagSearcher(Searcher):
    def __init__(self, walk: Walk, *, store_: Store, num_cpus: float, num_gpus: float) -> None:
        super().__init__(metric="step", mode="max")
        self.walk = walk
        self.store = store_
        self.owner = uuid.uuid4().hex
        self.free = [num_cpus, num_gpus]
        self.packs: dict[str, tuple[Pack, float]] = {}
        """Trial -> pack, and when it was handed out."""
        self.ended_worker_s = 0.0
        self.elsewhere: frozenset[str] = frozenset()
        self.looked_at = 0.0
        self.closed = threading.Event()
        self.lock = threading.Lock()
        threading.Thread(target=self._beat, name="w2s-leases", daemon=True).start()

    # --- Tune asks ---

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._look_around()
        if self.walk.finished:
            return Searcher.FINISHED
        pack = self.walk.next_pack(free_cpus=self.free[0], free_gpus=self.free[1], elsewhere=self.elsewhere)
        if pack is None:
            return None
        if not self._lease(pack):
            self.walk.returned(pack, crashed=False)
            return None
        self.packs[trial_id] = (pack, time.monotonic())
        self.free = [self.free[0] - pack.num_cpus, self.free[1] - pack.num_gpus]
        return {"pack": pack}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id not in self.packs or "event" not in result:
            return
        pack, _ = self.packs[trial_id]
        match result["event"]:
            case "start" | "step":
                self.walk.started(pack.name, result["key"])
            case "done":
                self.walk.committed(result["key"])
            case "failed":
                self.walk.failure(result["key"], result.get("reason", ""))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self.packs:
            return
        pack, began_s = self.packs.pop(trial_id)
        self.ended_worker_s += (time.monotonic() - began_s) * pack.execution.workers
        self.free = [self.free[0] + pack.num_cpus, self.free[1] + pack.num_gpus]
        self._settle(pack.fits)
        for key in self.walk.returned(pack, crashed=True):
            reason = f"its worker process died {self.walk.crashes[key]} times while this Fit was in hand"
            store.write_failure(self.store, self.walk.fits[key], kind="crash", reason=reason, detail="")
            self.walk.failure(key, reason)
        with self.lock:
            store.drop_lease(self.store, self._lease_name(pack))

    @property
    def worker_s(self) -> float:
        """Seconds of workers that this run has taken so far."""
        now_s = time.monotonic()
        return self.ended_worker_s + sum((now_s - s) * pack.execution.workers for pack, s in list(self.packs.values()))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store remembers."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the plan is compared with the store on every start."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its parts for a restore that never happens; there is nothing in here worth keeping."""
        return {}

    # --- the store ---

    def _settle(self, fits: tuple[Fit, ...]) -> None:
        """Take over what the store knows of these Fits."""
        done = store.committed(self.store, fits)
        failures = store.read_failures(self.store)
        for fit in fits:
            if fit.key in done:
                self.walk.committed(fit.key)
            elif fit.key in failures and fit.key not in self.walk.failed:
                self.walk.failure(fit.key, failures[fit.key]["reason"])

    def _look_around(self) -> None:
        """What other drivers on this store hold and have finished."""
        if time.monotonic() - self.looked_at < LOOK_AROUND_S:
            return
        self.looked_at = time.monotonic()
        theirs = frozenset(store.live_leases(self.store, besides=self.owner))
        ended = self.elsewhere - theirs
        self.elsewhere = theirs
        if ended or theirs:
            self._settle(tuple(self.walk.fits[key] for key in self.walk.todo if key in ended | theirs))

    def _lease_name(self, pack: Pack) -> str:
        return f"{self.owner[:12]}-{pack.name}"

    def _lease(self, pack: Pack) -> bool:
        """Claim a pack's Fits; of two drivers that claim at once the one with the smaller name keeps them."""
        keys = [fit.key for fit in pack.fits]
        with self.lock:
            store.write_lease(self.store, self._lease_name(pack), owner=self.owner, keys=keys)
        others = store.live_leases(self.store, besides=self.owner)
        rivals = {lease["owner"] for key, lease in others.items() if key in keys}
        if rivals and min(rivals) < self.owner:
            self.elsewhere = frozenset(others)
            with self.lock:
                store.drop_lease(self.store, self._lease_name(pack))
            return False
        return True

    def _beat(self) -> None:
        while not self.closed.wait(HEARTBEAT_S):
            with self.lock:
                for pack, _ in list(self.packs.values()):
                    try:
                        keys = [fit.key for fit in pack.fits]
                        store.write_lease(self.store, self._lease_name(pack), owner=self.owner, keys=keys)
                    except OSError as error:
                        log.warning("lease of %s not renewed: %s", pack.name, error)

    def close(self) -> None:
        """Give back every lease; called however the run ends."""
        self.closed.set()
        with self.lock:
            for pack, _ in self.packs.values():
                store.drop_lease(self.store, self._lease_name(pack))
            self.packs.clear()
