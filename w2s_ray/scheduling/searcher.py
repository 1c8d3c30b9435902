"""The Tune searcher over the schedule: whenever there is room, it hands out the next pack.

A Tune trial is a group of workers. It is started for a pack, and gets pack after pack of one shape until it has waited for too
long or its place is needed for another shape.

Promises:

- `suggest` returns the group to start for a pack; None while nothing is ready, or where groups that wait take what is; and
  FINISHED when nothing is left, which ends the experiment. There are never more groups than slots.
- The store is the only memory. When a pack ends, the searcher reads from the store what became of its Fits. Tune's own
  restore is not used.
- A pack is handed out when there is room for it, node by node (`room.py`).
- Nodes that join the cluster are used. A pack that was lost with its node does not count as a crash of its Fits.
- This driver holds a lease on the Fits of a pack while the pack runs. When a lease is lost or the store is out of reach,
  `trouble` says so, and nothing more is handed out.
- What a call costs depends on what changed, not on how many Fits or packs there are.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ray.tune.search import Searcher

from w2s_ray import leases
from w2s_ray.fit import Execution, Fit
from w2s_ray.leases import Lease, LeaseLost, Leases
from w2s_ray.scheduling.cluster import MAX_BUNDLES
from w2s_ray.scheduling.desk import Desk, Order
from w2s_ray.scheduling.packs import Pack, Schedule
from w2s_ray.scheduling.room import Node, Room, num_slots
from w2s_ray.storage import StoreDown
from w2s_ray.store import Store

LOOK_AT_NODES_EVERY_S = 2.0
LONGEST_WAIT_S = 30.0
"""Of a group of workers for its next pack, before it gives back its CPUs and GPUs: a few times what starting another takes."""
MAX_LOOKED_UP = 256
"""Fits of other drivers that a driver without work looks up at a time, to see whether those that wait for them can start."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Waiting:
    """A group of workers without a pack."""

    shape: Execution
    since_s: float


class DagSearcher(Searcher):
    def __init__(
        self,
        schedule: Schedule,
        *,
        store: Store,
        nodes: Callable[[], list[Node]],
        desk: Desk,
        max_parallel: int | None = None,
        driver: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(metric="step", mode="max")
        self.schedule = schedule
        self.store = store
        self.desk = desk
        self.max_parallel = max_parallel
        self.clock = clock
        self.owner = driver or uuid.uuid4().hex
        """This driver, in its leases."""
        self.packs: dict[str, tuple[Pack, float]] = {}
        """Trial -> its pack, and when it was handed out."""
        self.waiting: dict[str, _Waiting] = {}
        """Trial -> workers that have ended a pack."""
        self.ended_worker_s = 0.0
        """Worker seconds of the packs that ended, and of waiting that ended."""
        self.trouble: StoreDown | LeaseLost | None = None
        """Why this driver can't go on."""
        self.list_nodes = nodes
        self.nodes = nodes()
        self.room = Room(self.nodes)
        self.looked_at_nodes_s = clock()
        self.node_lost_s = float("-inf")
        """When a node was last found to be gone."""
        self.wanted_s, self.wanted_shapes = float("-inf"), list[Execution]()
        self.neighbours = leases.Neighbours(Leases(store.storage), self.owner)
        self.theirs: dict[str, Lease] = {}
        """Name -> lease of another driver that lives."""
        self.withdrawn: set[str] = set()
        """Keys of Fits that this driver claimed in vain since the last look."""
        self.look_at_leases_s = float("-inf")
        """When to look at the other drivers' leases again."""
        self.renewed_s = clock()
        self.closed = threading.Event()
        self.lock = threading.Lock()
        self._fit_to_nodes()

    def keep_leases(self) -> None:
        """Renew the leases in a thread of its own, until the searcher is closed."""

        def keep() -> None:
            while not self.closed.wait(leases.HEARTBEAT_S / 10):
                self.renew_leases()

        threading.Thread(target=keep, name="w2s-leases", daemon=True).start()

    # --- Tune asks ---

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        try:
            return None if self.trouble else self._suggest(trial_id)
        except StoreDown as error:
            self.trouble = error
            return None

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._look_at_leases()
        for trial, waiting in list(self.waiting.items()):
            if self.schedule.finished or self.clock() - waiting.since_s >= LONGEST_WAIT_S:
                self._send_away(trial)
        if self.schedule.finished:
            return Searcher.FINISHED
        while len(self.packs) < self.schedule.num_slots:
            now_s = self.clock()
            pack = self.schedule.next_pack(self.room, now_s=now_s)
            if pack is None:
                return None
            if not self._claim(pack):
                self.schedule.take_back(pack, crashed=False)
                return None
            self._begin(pack.place.group or trial_id, pack, now_s)
            if pack.place.group is None:
                return {"group": trial_id, "execution": pack.execution}
        return None

    def _begin(self, trial_id: str, pack: Pack, now_s: float) -> None:
        """Give a pack to a group of workers, and send those away that are in its way or one too many."""
        self._end_wait(trial_id)
        self.packs[trial_id] = (pack, now_s)
        for trial in self.room.take(pack.name, pack.execution, pack.place, until_s=now_s + pack.seconds):
            self._send_away(trial)
        while self.waiting and len(self.packs) + len(self.waiting) > self.schedule.num_slots:
            self._send_away(next(iter(self.waiting)))  # it waits longest
        self.desk.give(trial_id, Order(pack, self._lease_name(pack)))

    def _send_away(self, trial_id: str) -> None:
        """Tell a group of workers to end."""
        self._end_wait(trial_id)
        self.room.leave(trial_id)
        self.desk.send_away(trial_id)

    def _end_wait(self, trial_id: str) -> None:
        if waiting := self.waiting.pop(trial_id, None):
            self.ended_worker_s += (self.clock() - waiting.since_s) * waiting.shape.workers

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
            case "end":
                self._end_pack(trial_id)
                self._let_wait(trial_id, pack, may_go_on=not result.get("was_restarted"))

    def _let_wait(self, trial_id: str, pack: Pack, *, may_go_on: bool) -> None:
        """Let a group of workers wait for its next pack. Workers that Ray Train has started again would not be started another
        time, so they end instead."""
        if self.schedule.finished or self.trouble or not may_go_on:
            self.desk.send_away(trial_id)
        else:
            self.waiting[trial_id] = _Waiting(pack.execution, self.clock())
            self.room.wait(trial_id, pack.execution, pack.place)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A group of workers has ended."""
        self._end_wait(trial_id)
        self.room.leave(trial_id)
        self.desk.clean_up(trial_id)
        if trial_id in self.packs:
            self._end_pack(trial_id)

    def _end_pack(self, trial_id: str) -> None:
        pack, began_s = self.packs.pop(trial_id)
        self.room.give_back(pack.name)
        self.ended_worker_s += (self.clock() - began_s) * pack.execution.workers
        self.look_at_nodes(now=True)
        is_blameless = self.node_lost_s >= began_s or self.trouble is not None
        try:
            self._read_results(pack.fits)  # what the pack did not report
            if any(fit.key in self.schedule.running for fit in pack.fits):
                self.store.storage.check_room()  # a full disk is no crash: it raises StoreDown
            for key in self.schedule.take_back(pack, crashed=not is_blameless):
                reason = f"its worker process died {self.schedule.crashes[key]} times while this Fit was in progress"
                self.store.write_failure(self.schedule.fits[key], kind="crash", reason=reason, detail="")
                self.schedule.mark_failed(key, reason)
            with self.lock:
                self.neighbours.drop(self._lease_name(pack))
        except StoreDown as down:
            self.trouble = self.trouble or down

    @property
    def worker_s(self) -> float:
        """Worker seconds that this run has used so far."""
        now_s = self.clock()
        of_packs = sum((now_s - s) * pack.execution.workers for pack, s in list(self.packs.values()))
        of_waiting = sum((now_s - each.since_s) * each.shape.workers for each in list(self.waiting.values()))
        return self.ended_worker_s + of_packs + of_waiting

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store is the only memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: every run compares the plan with the store when it starts."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore, which is never used here."""
        return {}

    # --- the cluster ---

    def look_at_nodes(self, *, now: bool = False) -> None:
        """Notice nodes that joined or left. Without `now`, at most every `LOOK_AT_NODES_EVERY_S`."""
        if not now and self.clock() - self.looked_at_nodes_s < LOOK_AT_NODES_EVERY_S:
            return
        self.looked_at_nodes_s = self.clock()
        before, self.nodes = self.nodes, self.list_nodes()
        if {node.id for node in before} - {node.id for node in self.nodes}:
            self.node_lost_s = self.clock()
        if self.nodes != before:
            self.room.set_nodes(self.nodes)
            self._fit_to_nodes()

    def _fit_to_nodes(self) -> None:
        if shapes := self.schedule.shapes_left:
            self.schedule.num_slots = num_slots(shapes, nodes=self.nodes, max_parallel=self.max_parallel)

    def wanted(self) -> list[Execution]:
        """The shapes of the packs that run, and of those that could run now if there were room."""
        if self.looked_at_nodes_s == self.wanted_s:
            return self.wanted_shapes
        self.wanted_s = self.looked_at_nodes_s
        running = [pack.execution for pack, _ in self.packs.values()]
        most = min(self.schedule.num_packs_worthwhile, self.max_parallel or MAX_BUNDLES)
        self.wanted_shapes = running + self.schedule.shapes_ready(max(0, most - len(running)))
        return self.wanted_shapes

    # --- the store ---

    def _read_results(self, fits: Iterable[Fit]) -> None:
        """Bring the schedule up to date with what the store knows of these Fits, as far as they are not done."""
        left = [fit for fit in fits if fit.key in self.schedule.running or fit.key in self.schedule.todo]
        if not left:
            return
        done = self.store.committed_now(left)
        for key in done:
            self.schedule.mark_done(key)
        failures = self.store.failures_of([fit for fit in left if fit.key not in done])
        for key, record in failures.items():
            self.schedule.mark_failed(key, str(record["reason"]))

    def _look_at_leases(self) -> None:
        """Find out which Fits other drivers work on, and which of them are done by now."""
        if self.clock() < self.look_at_leases_s:
            return
        self.look_at_leases_s = self.clock() + leases.LOOK_EVERY_S
        before, self.theirs = self.theirs, self.neighbours.look()
        self.schedule.leave_to_others(leases.keys_of(self.theirs[name] for name in self.theirs.keys() - before.keys()))
        self.schedule.num_packs_elsewhere = len(self.theirs)
        ended = leases.keys_of(before[name] for name in before.keys() - self.theirs.keys()) | self.withdrawn
        self.withdrawn = set()
        ended = {key for key in ended if self.neighbours.is_free(key)}
        self._read_results(self.schedule.fits[key] for key in ended if key in self.schedule.fits)
        self.schedule.take_up(ended)
        if self.schedule.elsewhere and not self.schedule.num_ready:
            self._read_results(self.schedule.awaited_elsewhere(MAX_LOOKED_UP))

    def _lease_name(self, pack: Pack) -> str:
        return f"{self.owner[:12]}-{pack.name}"

    def _claim(self, pack: Pack) -> bool:
        keys = [fit.key for fit in pack.fits]
        with self.lock:
            claimed = self.neighbours.claim(self._lease_name(pack), keys)
        if not claimed:
            # The other driver may have withdrawn too. After a random wait, whichever looks first takes the Fits.
            self.withdrawn |= set(keys)
            self.schedule.leave_to_others(keys)
            self.look_at_leases_s = self.clock() + random.uniform(0, leases.LOOK_EVERY_S)
        return claimed

    def renew_leases(self) -> None:
        """Renew the leases of the packs that run, at most every `HEARTBEAT_S`."""
        if self.clock() - self.renewed_s < leases.HEARTBEAT_S:
            return
        self.renewed_s = self.clock()
        self.renew_now()

    def renew_now(self) -> None:
        with self.lock:
            if self.closed.is_set():
                return
            try:
                lost = self.neighbours.renew()
            except (OSError, StoreDown) as error:
                log.warning("the leases are not renewed: %s", error)
                return
        if lost is not None:
            self.trouble = self.trouble or LeaseLost(
                f"another driver has taken over the Fits of {lost}, because this driver's lease was not renewed for too long; "
                "`w2s status` shows who works on them"
            )

    def close(self) -> None:
        """Give back every lease, and remove those of dead drivers. Call it however the run ends."""
        self.closed.set()
        with self.lock:
            owned, dead = [self._lease_name(pack) for pack, _ in self.packs.values()], sorted(self.neighbours.dead)
            for name in [*owned, *dead]:
                self._give_back(self.neighbours.leases.drop, name)
            self._give_back(self.neighbours.leases.end, self.owner)
            self.packs.clear()
            self.waiting.clear()

    def _give_back(self, drop: Callable[[str], None], name: str) -> None:
        try:
            drop(name)
        except (OSError, StoreDown) as error:
            log.warning("lease %s not given back: %s", name, error)
