"""The Tune searcher over the DAG: whenever there is room, it hands out the next pack.

Promises: `suggest` answers None while nothing is ready and FINISHED when nothing is left, so the experiment ends by
itself. The store is the memory: what a pack did is read from there when it ends, and Tune's own restore is not used.
Room is what the cluster has now: nodes that come are used, nodes that go are no Fit's fault. Fits are leased to this driver
while a pack runs them; when the lease is lost or the store is gone, `trouble` says so and nothing more is handed out.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from w2s_ray import leases
from w2s_ray.fit import Execution, Fit
from w2s_ray.leases import LeaseLost, Leases
from w2s_ray.scheduling.cluster import MAX_BUNDLES, Node, num_slots
from w2s_ray.scheduling.packs import Pack, Walk
from w2s_ray.storage import StoreDown
from w2s_ray.store import Store

LOOK_AT_NODES_S = 2.0

log = logging.getLogger(__name__)


class DagSearcher(Searcher):
    def __init__(
        self, walk: Walk, *, store: Store, nodes: Callable[[], list[Node]], max_parallel: int | None = None
    ) -> None:
        super().__init__(metric="step", mode="max")
        self.walk = walk
        self.store = store
        self.max_parallel = max_parallel
        self.owner = uuid.uuid4().hex
        self.packs: dict[str, tuple[Pack, float]] = {}
        """Trial -> pack, and when it was handed out."""
        self.ended_worker_s = 0.0
        self.trouble: StoreDown | LeaseLost | None = None
        """Why this driver can't go on."""
        self.ask_nodes = nodes
        self.nodes = nodes()
        self.looked_at_nodes_s = time.monotonic()
        self.node_lost_s = 0.0
        """When a node was last seen to be gone."""
        self.wanted_s, self.wanted_now = 0.0, list[Execution]()
        self.leases = Leases(store.storage)
        self.neighbours = leases.Neighbours(self.leases, self.owner)
        self.elsewhere: frozenset[str] = frozenset()
        self.look_around_s = 0.0
        """When to look at the others' leases again."""
        self.closed = threading.Event()
        self.lock = threading.Lock()
        self._fit_to_nodes()
        threading.Thread(target=self._beat, name="w2s-leases", daemon=True).start()

    # --- Tune asks ---

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        try:
            return None if self.trouble else self._suggest(trial_id)
        except StoreDown as error:
            self.trouble = error
            return None

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._look_around()
        if self.walk.finished:
            return Searcher.FINISHED
        if len(self.packs) >= self.walk.num_slots:
            return None
        free_cpus, free_gpus = self.free
        pack = self.walk.next_pack(free_cpus=free_cpus, free_gpus=free_gpus, elsewhere=self.elsewhere)
        if pack is None:
            return None
        if not self._claim(pack):
            self.walk.returned(pack, crashed=False)
            return None
        self.packs[trial_id] = (pack, time.monotonic())
        return {"pack": pack, "lease": self._lease_name(pack)}

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
            case "store":
                self.trouble = self.trouble or StoreDown(result["reason"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self.packs:
            return
        pack, began_s = self.packs.pop(trial_id)
        self.ended_worker_s += (time.monotonic() - began_s) * pack.execution.workers
        self.look_at_nodes(now=True)
        blameless = self.node_lost_s >= began_s or self.trouble is not None
        try:
            self._settle(pack.fits)
            if any(fit.key in self.walk.running for fit in pack.fits):
                self.store.storage.check_room()  # it died of something: not of a full disk
            for key in self.walk.returned(pack, crashed=not blameless):
                reason = f"its worker process died {self.walk.crashes[key]} times while this Fit was in hand"
                self.store.write_failure(self.walk.fits[key], kind="crash", reason=reason, detail="")
                self.walk.failure(key, reason)
            with self.lock:
                self.leases.drop(self._lease_name(pack))
        except StoreDown as down:
            self.trouble = self.trouble or down

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

    # --- the cluster ---

    @property
    def free(self) -> tuple[float, float]:
        """CPUs and GPUs that no pack has."""
        packs = [pack for pack, _ in self.packs.values()]
        return (
            sum(node.num_cpus for node in self.nodes) - sum(pack.num_cpus for pack in packs),
            sum(node.num_gpus for node in self.nodes) - sum(pack.num_gpus for pack in packs),
        )

    def look_at_nodes(self, *, now: bool = False) -> None:
        """Take notice of nodes that came or went."""
        if not now and time.monotonic() - self.looked_at_nodes_s < LOOK_AT_NODES_S:
            return
        self.looked_at_nodes_s = time.monotonic()
        before, self.nodes = self.nodes, self.ask_nodes()
        if {node.id for node in before} - {node.id for node in self.nodes}:
            self.node_lost_s = time.monotonic()
        if self.nodes != before:
            self._fit_to_nodes()

    def _fit_to_nodes(self) -> None:
        shapes = {self.walk.executions[key] for key in self.walk.todo | self.walk.running}
        if shapes:
            self.walk.num_slots = num_slots(shapes, nodes=self.nodes, max_parallel=self.max_parallel)

    def wanted(self) -> list[Execution]:
        """The shapes of what runs and of what could run now, were there room."""
        if self.looked_at_nodes_s == self.wanted_s:
            return self.wanted_now
        self.wanted_s = self.looked_at_nodes_s
        running = [pack.execution for pack, _ in self.packs.values()]
        ready = [self.walk.executions[key] for key in sorted(self.walk.todo) if self.walk.is_ready(key)]
        most = min(self.walk.num_packs_worth, self.max_parallel or MAX_BUNDLES)
        self.wanted_now = (running + ready)[: max(most, len(running))]
        return self.wanted_now

    # --- the store ---

    def _settle(self, fits: tuple[Fit, ...]) -> None:
        """Take over what the store knows of these Fits."""
        done = self.store.committed(fits)
        failures = self.store.read_failures()
        for fit in fits:
            if fit.key in done:
                self.walk.committed(fit.key)
            elif fit.key in failures and fit.key not in self.walk.failed:
                self.walk.failure(fit.key, failures[fit.key]["reason"])

    def _look_around(self) -> None:
        """What other drivers on this store hold and have finished."""
        if time.monotonic() < self.look_around_s:
            return
        self.look_around_s = time.monotonic() + leases.LOOK_EVERY_S
        theirs = frozenset(leases.by_fit(self.neighbours.look()))
        ended = self.elsewhere - theirs
        self.elsewhere = theirs
        if ended or theirs:
            self._settle(tuple(self.walk.fits[key] for key in self.walk.todo if key in ended | theirs))

    def _lease_name(self, pack: Pack) -> str:
        return f"{self.owner[:12]}-{pack.name}"

    def _claim(self, pack: Pack) -> bool:
        keys = [fit.key for fit in pack.fits]
        with self.lock:
            claimed = self.neighbours.claim(self._lease_name(pack), keys)
        if not claimed:
            # the other one may have withdrawn, too: whoever looks again first goes on
            self.elsewhere |= set(keys)
            self.look_around_s = time.monotonic() + random.uniform(0, leases.LOOK_EVERY_S)
        return claimed

    def _beat(self) -> None:
        while not self.closed.wait(leases.HEARTBEAT_S):
            for pack, _ in list(self.packs.values()):
                with self.lock:
                    try:
                        self._renew(pack)
                    except (OSError, StoreDown) as error:
                        log.warning("lease of %s not renewed: %s", pack.name, error)

    def _renew(self, pack: Pack) -> None:
        name = self._lease_name(pack)
        if self.closed.is_set() or all(pack is not running for running, _ in self.packs.values()):
            return
        if not self.leases.holds(name):
            self.trouble = self.trouble or LeaseLost(
                f"another driver has taken over the Fits of {pack.name}, since this one had not been heard of; "
                "`w2s status` shows who works on them"
            )
            return
        self.leases.write(name, owner=self.owner, keys=[fit.key for fit in pack.fits])

    def close(self) -> None:
        """Give back every lease, and clear away those of the dead; called however the run ends."""
        self.closed.set()
        with self.lock:
            for name in [*(self._lease_name(pack) for pack, _ in self.packs.values()), *self.neighbours.dead]:
                try:
                    self.leases.drop(name)
                except (OSError, StoreDown) as error:
                    log.warning("lease %s not given back: %s", name, error)
            self.packs.clear()
