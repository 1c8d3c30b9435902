"""The Tune searcher over the schedule: whenever there is room, it hands out the next pack.

Promises:

- `suggest` returns None while nothing is ready, and FINISHED when nothing is left, which ends the experiment.
- The store is the only memory. When a pack ends, the searcher reads from the store what became of its Fits. Tune's own
  restore is not used.
- Nodes that join the cluster are used. A pack that was lost with its node does not count as a crash of its Fits.
- This driver holds a lease on the Fits of a pack while the pack runs. When a lease is lost or the store is out of reach,
  `trouble` says so, and nothing more is handed out.
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
from w2s_ray.scheduling.packs import Pack, Schedule
from w2s_ray.storage import StoreDown
from w2s_ray.store import Store

LOOK_AT_NODES_EVERY_S = 2.0

log = logging.getLogger(__name__)


class DagSearcher(Searcher):
    def __init__(
        self,
        schedule: Schedule,
        *,
        store: Store,
        nodes: Callable[[], list[Node]],
        max_parallel: int | None = None,
        driver: str | None = None,
    ) -> None:
        super().__init__(metric="step", mode="max")
        self.schedule = schedule
        self.store = store
        self.max_parallel = max_parallel
        self.owner = driver or uuid.uuid4().hex
        """This driver, in its leases."""
        self.packs: dict[str, tuple[Pack, float]] = {}
        """Trial -> its pack, and when it was handed out."""
        self.ended_worker_s = 0.0
        """Worker seconds of the packs that ended."""
        self.trouble: StoreDown | LeaseLost | None = None
        """Why this driver can't go on."""
        self.list_nodes = nodes
        self.nodes = nodes()
        self.looked_at_nodes_s = time.monotonic()
        self.node_lost_s = 0.0
        """When a node was last found to be gone."""
        self.wanted_s, self.wanted_shapes = 0.0, list[Execution]()
        self.leases = Leases(store.storage)
        self.neighbours = leases.Neighbours(self.leases, self.owner)
        self.elsewhere: frozenset[str] = frozenset()
        """Keys of the Fits that other drivers work on."""
        self.look_at_leases_s = 0.0
        """When to look at the other drivers' leases again."""
        self.closed = threading.Event()
        self.lock = threading.Lock()
        self._fit_to_nodes()
        threading.Thread(target=self._keep_leases, name="w2s-leases", daemon=True).start()

    # --- Tune asks ---

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        try:
            return None if self.trouble else self._suggest(trial_id)
        except StoreDown as error:
            self.trouble = error
            return None

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._look_at_leases()
        if self.schedule.finished:
            return Searcher.FINISHED
        if len(self.packs) >= self.schedule.num_slots:
            return None
        free_cpus, free_gpus = self.free
        pack = self.schedule.next_pack(free_cpus=free_cpus, free_gpus=free_gpus, elsewhere=self.elsewhere)
        if pack is None:
            return None
        if not self._claim(pack):
            self.schedule.take_back(pack, crashed=False)
            return None
        self.packs[trial_id] = (pack, time.monotonic())
        return {"pack": pack, "lease": self._lease_name(pack)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id not in self.packs or "event" not in result:
            return
        pack, _ = self.packs[trial_id]
        match result["event"]:
            case "start" | "step":
                self.schedule.mark_started(pack.name, result["key"])
            case "done":
                self.schedule.mark_done(result["key"])
            case "failed":
                self.schedule.mark_failed(result["key"], result.get("reason", ""))
            case "store":
                self.trouble = self.trouble or StoreDown(result["reason"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self.packs:
            return
        pack, began_s = self.packs.pop(trial_id)
        self.ended_worker_s += (time.monotonic() - began_s) * pack.execution.workers
        self.look_at_nodes(now=True)
        is_blameless = self.node_lost_s >= began_s or self.trouble is not None
        try:
            self._read_results(pack.fits)
            if any(fit.key in self.schedule.running for fit in pack.fits):
                self.store.storage.check_room()  # a full disk is no crash: it raises StoreDown
            for key in self.schedule.take_back(pack, crashed=not is_blameless):
                reason = f"its worker process died {self.schedule.crashes[key]} times while this Fit was in progress"
                self.store.write_failure(self.schedule.fits[key], kind="crash", reason=reason, detail="")
                self.schedule.mark_failed(key, reason)
            with self.lock:
                self.leases.drop(self._lease_name(pack))
        except StoreDown as down:
            self.trouble = self.trouble or down

    @property
    def worker_s(self) -> float:
        """Worker seconds that this run has used so far."""
        now_s = time.monotonic()
        return self.ended_worker_s + sum((now_s - s) * pack.execution.workers for pack, s in list(self.packs.values()))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store is the only memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: every run compares the plan with the store when it starts."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore, which is never used here."""
        return {}

    # --- the cluster ---

    @property
    def free(self) -> tuple[float, float]:
        """CPUs and GPUs that no pack of this driver has."""
        packs = [pack for pack, _ in self.packs.values()]
        return (
            sum(node.num_cpus for node in self.nodes) - sum(pack.num_cpus for pack in packs),
            sum(node.num_gpus for node in self.nodes) - sum(pack.num_gpus for pack in packs),
        )

    def look_at_nodes(self, *, now: bool = False) -> None:
        """Notice nodes that joined or left. Without `now`, at most every `LOOK_AT_NODES_EVERY_S`."""
        if not now and time.monotonic() - self.looked_at_nodes_s < LOOK_AT_NODES_EVERY_S:
            return
        self.looked_at_nodes_s = time.monotonic()
        before, self.nodes = self.nodes, self.list_nodes()
        if {node.id for node in before} - {node.id for node in self.nodes}:
            self.node_lost_s = time.monotonic()
        if self.nodes != before:
            self._fit_to_nodes()

    def _fit_to_nodes(self) -> None:
        shapes = {self.schedule.executions[key] for key in self.schedule.todo | self.schedule.running}
        if shapes:
            self.schedule.num_slots = num_slots(shapes, nodes=self.nodes, max_parallel=self.max_parallel)

    def wanted(self) -> list[Execution]:
        """The shapes of the packs that run, and of those that could run now if there were room."""
        if self.looked_at_nodes_s == self.wanted_s:
            return self.wanted_shapes
        self.wanted_s = self.looked_at_nodes_s
        schedule = self.schedule
        running = [pack.execution for pack, _ in self.packs.values()]
        ready = [schedule.executions[key] for key in sorted(schedule.todo) if schedule.is_ready(key)]
        most = min(schedule.num_packs_worthwhile, self.max_parallel or MAX_BUNDLES)
        self.wanted_shapes = (running + ready)[: max(most, len(running))]
        return self.wanted_shapes

    # --- the store ---

    def _read_results(self, fits: tuple[Fit, ...]) -> None:
        """Bring the schedule up to date with what the store knows of these Fits."""
        done = self.store.committed(fits)
        failures = self.store.read_failures()
        for fit in fits:
            if fit.key in done:
                self.schedule.mark_done(fit.key)
            elif fit.key in failures and fit.key not in self.schedule.failed:
                self.schedule.mark_failed(fit.key, failures[fit.key]["reason"])

    def _look_at_leases(self) -> None:
        """Find out which Fits other drivers work on, and which of them are done by now."""
        if time.monotonic() < self.look_at_leases_s:
            return
        self.look_at_leases_s = time.monotonic() + leases.LOOK_EVERY_S
        theirs = frozenset(leases.by_fit(self.neighbours.look()))
        ended = self.elsewhere - theirs
        self.elsewhere = theirs
        if ended or theirs:
            keys = [key for key in self.schedule.todo if key in ended | theirs]
            self._read_results(tuple(self.schedule.fits[key] for key in keys))

    def _lease_name(self, pack: Pack) -> str:
        return f"{self.owner[:12]}-{pack.name}"

    def _claim(self, pack: Pack) -> bool:
        keys = [fit.key for fit in pack.fits]
        with self.lock:
            claimed = self.neighbours.claim(self._lease_name(pack), keys)
        if not claimed:
            # The other driver may have withdrawn too. After a random wait, whichever looks first takes the Fits.
            self.elsewhere |= set(keys)
            self.look_at_leases_s = time.monotonic() + random.uniform(0, leases.LOOK_EVERY_S)
        return claimed

    def _keep_leases(self) -> None:
        """Renew the leases of the packs that run, until the searcher is closed. Runs in a thread of its own."""
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
                f"another driver has taken over the Fits of {pack.name}, because this driver's lease was not renewed for "
                "too long; `w2s status` shows who works on them"
            )
            return
        self.leases.write(name, owner=self.owner, keys=[fit.key for fit in pack.fits])

    def close(self) -> None:
        """Give back every lease, and remove those of dead drivers. Call it however the run ends."""
        self.closed.set()
        with self.lock:
            for name in [*(self._lease_name(pack) for pack, _ in self.packs.values()), *self.neighbours.dead]:
                try:
                    self.leases.drop(name)
                except (OSError, StoreDown) as error:
                    log.warning("lease %s not given back: %s", name, error)
            self.packs.clear()
