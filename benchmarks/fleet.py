"""A cluster of a thousand slots in virtual time, around the real schedule, searcher and store.

    python benchmarks/fleet.py                                        # 38,400 Fits, 512 slots
    python benchmarks/fleet.py --fits 10000 --slots 128
    python benchmarks/fleet.py --fits 1000000 --slots 1000
    python benchmarks/fleet.py --fits 4000 --slots 64 --wide          # the largest model of each family takes a node
    python benchmarks/fleet.py --fits 10000 --slots 128 --drivers 8   # eight drivers on one store
    python benchmarks/fleet.py --fits 10000 --slots 128 --drivers 8 --trouble    # nodes and drivers come and go, Fits fail

Real are the plan of a ready-made study (with more seeds), the schedule, the searcher, the leases, and the store, which lies
in memory and answers as a bucket does. Simulated are Ray's part and the training: each group of workers takes a start-up, and each
Fit its estimate times a factor that is drawn from what the embedded study left on 2 CPU cores. Ray is imported, since the
searcher is one of Tune's classes, but never started.

The driver's seconds are CPU seconds of its thread, and they are part of the virtual time: while a driver decides, slots wait.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import logging
import math
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pyarrow import fs as pafs

from w2s_ray.cost import costs
from w2s_ray.fit import Execution, Fit, Model
from w2s_ray.leases import HeldLease, LeaseLost, Leases
from w2s_ray.planning import Plan, expand
from w2s_ray.scheduling.desk import Desk, Order
from w2s_ray.scheduling.packs import SHORTEST_PACK_S, Pack, Schedule
from w2s_ray.scheduling.room import Node
from w2s_ray.scheduling.searcher import DagSearcher
from w2s_ray.storage import Storage
from w2s_ray.store import Store
from w2s_ray.study import find_study, load_study

START_UP_S = 12.0
"""Median from handing out a pack to its first Fit where workers have to be started, on warm machines."""
NEXT_PACK_S = 0.3
"""From a pack's end to the first Fit of the next, in the same group of workers."""
SLOWER, KIND_SPREAD, FIT_SPREAD = 1.3, 0.35, 0.15
"""Real over estimated seconds in the embedded study: the median, and the standard deviations of the logarithm between kinds of
Fits (model, task, role) and within a kind."""
TICK_S = 5.0
SLOTS_PER_NODE = 8

T = TypeVar("T")

GOALS = {
    "next_pack, mean": "< 2 ms",
    "next_pack, worst": "< 50 ms",
    "slots that train": ">= 95 %",
    "groups spread over nodes": "0",
    "the driver's store calls": "",
}
BEFORE = {
    (10_000, 128, False): ["28.3 ms", "155.7 ms", "93.0 %", "0", "15.4 a Fit"],
    (38_400, 512, False): ["230 ms", "4,400 ms", "66 to 77 %", "", ""],
    (4_000, 64, True): ["5.5 ms", "32.7 ms", "86.4 %", "101 of 295", "7.2 a Fit"],
}
"""(Fits, slots, wide) -> the same when each decision went through all that was left and each pack's end read every failure. The
second is what led to this benchmark: it was stopped after 1,024 packs."""


# --- the store's calls --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountingStorage(Storage):
    """Counts what a bucket would be asked: a listing takes a call for each thousand names."""

    calls: Counter[str] = field(default_factory=Counter)

    def read(self, path: str) -> bytes:
        self.calls["GET"] += 1
        return super().read(path)

    def sizes(self, paths: list[str]) -> list[int | None]:
        self.calls["HEAD"] += len(paths)
        return super().sizes(paths)

    def stamps(self, paths: list[str]) -> list[str | None]:
        self.calls["HEAD"] += len(paths)
        return super().stamps(paths)

    def names(self, folder: str) -> list[str]:
        names = super().names(folder)
        self.calls["LIST"] += max(1, math.ceil(len(names) / 1000))
        return names

    def stamps_below(self, folder: str) -> dict[str, str]:
        found = super().stamps_below(folder)
        self.calls["LIST"] += max(1, math.ceil(len(found) / 1000))
        return found

    def write(self, path: str, content: bytes) -> None:
        self.calls["PUT"] += 1
        super().write(path, content)

    def delete_file(self, path: str) -> None:
        self.calls["DELETE"] += 1
        super().delete_file(path)


# --- the simulation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    num_slots: int
    num_drivers: int = 1
    trouble: bool = False
    """Nodes come and go, half of the drivers die, of which half are gone for good, and Fits fail."""
    charge: bool = True
    """Whether the driver's seconds are part of the virtual time. Without, a simulation is the same each time."""
    seed: int = 0


@dataclass
class Costs:
    """What the drivers' parts took, in CPU seconds of a call."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    collecting_s: dict[str, list[float]] = field(default_factory=dict)
    """How much of it the garbage collector took."""
    collector_s: float = 0.0
    """What it has taken in all."""
    collection_began_s: float = 0.0

    def timed(self, part: str, act: Callable[[], T]) -> T:
        began_s, collected_s = time.thread_time(), self.collector_s
        result = act()
        self.seconds.setdefault(part, []).append(time.thread_time() - began_s)
        self.collecting_s.setdefault(part, []).append(self.collector_s - collected_s)
        return result

    def watch_collector(self, phase: str, facts: dict[str, int]) -> None:
        """For `gc.callbacks`."""
        if phase == "start":
            self.collection_began_s = time.thread_time()
        else:
            self.collector_s += time.thread_time() - self.collection_began_s

    def total_s(self) -> float:
        return sum(sum(each) for part, each in self.seconds.items() if part != "next_pack")


@dataclass
class Trial:
    """A group of workers, and the pack that it works on or has ended."""

    name: str
    driver: Driver
    pack: Pack
    lease: HeldLease
    began_s: float
    """When it got the pack."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Node -> its workers there."""
    is_waiting: bool = False
    """For another pack."""
    place: int = 0
    """Of the Fit in hand."""
    in_hand: str | None = None
    """Key of the Fit that is being trained."""
    in_hand_since_s: float = 0.0
    is_over: bool = False


@dataclass
class Driver:
    """A driver with a cluster of its own."""

    nodes: dict[str, Node]
    free: dict[str, float]
    calls: Counter[str]
    searcher: DagSearcher | None = None
    now_s: float = 0.0
    trials: dict[str, Trial] = field(default_factory=dict)
    waiting: list[Trial] = field(default_factory=list)
    """Handed out without room for them."""
    num_trials: int = 0
    is_finished: bool = False


@dataclass
class Told:
    """What came of a simulation."""

    costs: Costs
    driver_calls: Counter[str]
    worker_calls: Counter[str]
    num_fits: int
    num_packs: int = 0
    num_groups: int = 0
    num_spread: int = 0
    """Groups of workers that a node would have held but that were placed on several."""
    num_waited: int = 0
    """Groups that were started where there was no room."""
    num_lost: int = 0
    """Packs that a node or a driver took with it."""
    num_in_hand: int = 0
    """Fits that these packs were training, and that have to be trained again."""
    num_again: int = 0
    """Times that a Fit was begun again."""
    num_twice: int = 0
    """Times that a Fit was begun although nothing had taken it from who trained it."""
    num_vain: int = 0
    """Packs that were chosen and not handed out, since another driver had claimed one of their Fits."""
    num_failed: int = 0
    makespan_s: float = 0.0
    work_bound_s: float = 0.0
    path_bound_s: float = 0.0
    occupied: float = 0.0
    """Share of the slots' time that packs have, as long as work is left for all."""
    working: float = 0.0
    """The same without start-up."""


@dataclass(frozen=True)
class SimulatedDesk(Desk):
    """Has simulated workers instead of an actor."""

    simulation: Simulation
    driver: Driver

    def give(self, group: str, order: Order) -> None:
        self.simulation.give(self.driver, group, order)

    def send_away(self, group: str) -> None:
        if group in self.driver.trials:
            self.simulation.leave(self.driver.trials[group])

    def clean_up(self, group: str) -> None:
        """Nothing: `leave` has given back what the group had."""


class Simulation:
    def __init__(self, plan: Plan, setting: Setting) -> None:
        self.plan, self.setting = plan, setting
        self.draw = random.Random(setting.seed)
        self.estimates = {key: cost.seconds for key, cost in costs(plan).items()}
        self.executions = {fit.key: plan.executions[fit.model] for fit in plan.fits}
        self.fits = {fit.key: fit for fit in plan.fits}
        self.seconds = self._durations()
        self.fs = pafs._MockFileSystem()
        self.store = self._store(Counter())
        self.told = Told(Costs(), Counter(), self.store.storage.calls, num_fits=len(plan.fits))
        self.committed: set[str] = set()
        self.begun: Counter[str] = Counter()
        """Key -> times that its training began."""
        self.lost: Counter[str] = Counter()
        """Key -> times that it was lost while it was trained."""
        self.handed_out_s = 0.0
        self.first_out: set[str] = set()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.num_events = 0
        self.now_s = 0.0
        self.busy: list[tuple[float, float, int]] = []
        self.held: list[tuple[float, float, int]] = []
        self.capacity: list[tuple[float, float]] = []
        self.short_of_work_s: float | None = None
        self.work_s = sum(self.seconds[key] * self.executions[key].workers for key in self.fits)

    def _durations(self) -> dict[str, float]:
        kinds: dict[tuple[str, str, str], float] = {}
        durations = {}
        for key, fit in self.fits.items():
            kind = (fit.model.name, fit.data.task, fit.role)
            if kind not in kinds:
                kinds[kind] = SLOWER * math.exp(self.draw.gauss(0, KIND_SPREAD))
            durations[key] = self.estimates[key] * kinds[kind] * math.exp(self.draw.gauss(0, FIT_SPREAD)) + 0.05
        return durations

    def _store(self, calls: Counter[str]) -> Store:
        return Store(CountingStorage(self.fs, "store", "mock://store", calls))

    # --- time ---

    def at(self, when_s: float, act: Callable[[], None]) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (when_s, self.num_events, act))

    def run(self) -> Told:
        files = tempfile.TemporaryDirectory()
        self.files = Path(files.name)
        (self.files / "fit.json").write_text("{}")
        setting = self.setting
        drivers = []
        per_driver = setting.num_slots // setting.num_drivers
        for number in range(setting.num_drivers):
            nodes = {}
            for node in range(math.ceil(per_driver / SLOTS_PER_NODE)):
                name = f"d{number}-n{node}"
                nodes[name] = Node(name, float(min(SLOTS_PER_NODE, per_driver - node * SLOTS_PER_NODE)), 0.0)
            driver = Driver(nodes, {name: node.num_cpus for name, node in nodes.items()}, self.told.driver_calls)
            self.capacity.append((0.0, float(per_driver)))
            drivers.append(driver)
            self.at(0.0, partial(self.start, driver))
        if setting.trouble:
            whole_s = self.work_s / setting.num_slots
            for driver in drivers:
                self.at(self.draw.uniform(0.1, 0.6) * whole_s, partial(self.node_leaves, driver))
            for number, driver in enumerate(drivers[: len(drivers) // 2]):
                when_s = self.draw.uniform(0.2, 0.8) * whole_s
                self.at(when_s, partial(self.die, driver, for_good=number % 2 == 1))
        gc.collect()
        gc.freeze()  # as a run does
        gc.callbacks.append(self.told.costs.watch_collector)
        while self.events:
            self.now_s, _, act = heapq.heappop(self.events)
            act()
            if all(driver.is_finished for driver in drivers):
                break
        gc.callbacks.remove(self.told.costs.watch_collector)
        gc.unfreeze()
        files.cleanup()
        return self._tell()

    def _timed(self, driver: Driver, part: str, act: Callable[[], T]) -> T:
        """A call of the driver, whose time goes by meanwhile."""
        driver.now_s = max(driver.now_s, self.now_s)
        result = self.told.costs.timed(part, act)
        if self.setting.charge:
            driver.now_s += self.told.costs.seconds[part][-1]
        return result

    # --- drivers ---

    def start(self, driver: Driver) -> None:
        store = self._store(driver.calls)
        store.begin_index()
        done = set(store.committed(self.plan.fits))
        schedule = Schedule(
            fits=self.fits,
            executions=self.executions,
            seconds=self.estimates,
            num_slots=1,
            todo=self.fits.keys() - done,
            done=done,
        )
        for key, record in store.read_failures().items():
            if key in schedule.todo:
                schedule.mark_failed(key, str(record["reason"]))
        next_pack = schedule.next_pack

        def timed_next_pack(*given: Any, **named: Any) -> Pack | None:
            pack = self.told.costs.timed("next_pack", lambda: next_pack(*given, **named))
            self.told.num_vain += pack is not None  # `hand_out` takes off those that were handed out
            return pack

        schedule.next_pack = timed_next_pack  # type: ignore[method-assign]
        driver.now_s = self.now_s
        driver.searcher = DagSearcher(
            schedule,
            store=store,
            nodes=lambda: list(driver.nodes.values()),
            desk=SimulatedDesk(self, driver),
            clock=lambda: driver.now_s,
        )
        self.tick(driver, driver.searcher)

    def tick(self, driver: Driver, searcher: DagSearcher) -> None:
        """What happens while nothing happens: leases are renewed and looked at."""
        if driver.searcher is not searcher or driver.is_finished:
            return
        driver.now_s = max(driver.now_s, self.now_s)
        self._timed(driver, "tick", searcher.look_at_nodes)
        self._timed(driver, "tick", searcher.renew_leases)
        self.hand_out(driver)
        self.at(self.now_s + TICK_S, lambda: self.tick(driver, searcher))

    def hand_out(self, driver: Driver) -> None:
        searcher = driver.searcher
        if searcher is None or driver.is_finished:
            return
        while True:
            name = f"t{driver.num_trials}"
            suggestion = self._timed(driver, "suggest", partial(searcher.suggest, name))
            if suggestion == DagSearcher.FINISHED:
                driver.is_finished = True
                searcher.close()
                return
            if not isinstance(suggestion, dict):
                assert searcher.trouble is None, searcher.trouble
                return
            driver.num_trials += 1

    def give(self, driver: Driver, name: str, order: Order) -> None:
        """A group of workers, which there may not be yet, gets its next pack."""
        trial = driver.trials.get(name)
        self.told.num_packs += 1
        self.told.num_vain -= 1
        self._count_out(order.pack)
        lease = HeldLease(Leases(self.store.storage), order.lease)
        began_s = max(driver.now_s, self.now_s)
        if trial is not None:
            trial.pack, trial.lease, trial.began_s, trial.place, trial.is_waiting = order.pack, lease, began_s, 0, False
            self.at(began_s + NEXT_PACK_S, partial(self.begin, trial))
            return
        driver.trials[name] = trial = Trial(name, driver, order.pack, lease, began_s)
        self.told.num_groups += 1
        if not self.place(trial):
            self.told.num_waited += 1
            driver.waiting.append(trial)

    def _count_out(self, pack: Pack) -> None:
        for fit in pack.fits:
            if fit.key not in self.first_out:
                self.first_out.add(fit.key)
                self.handed_out_s += self.seconds[fit.key] * pack.execution.workers
        if self.short_of_work_s is None and (
            self.work_s - self.handed_out_s < self.setting.num_slots * SHORTEST_PACK_S
        ):
            self.short_of_work_s = self.now_s

    # --- what Ray does ---

    def place(self, trial: Trial) -> bool:
        """As Ray's PACK strategy does: all workers on the fullest node that holds them, else on as few as possible."""
        driver, shape = trial.driver, trial.pack.execution
        wanted, free = shape.workers, driver.free
        need = shape.cpus_per_worker
        whole = [name for name in driver.nodes if free[name] >= wanted * need]
        if whole:
            trial.nodes = {min(whole, key=lambda name: free[name]): wanted}
        else:
            spread: dict[str, int] = {}
            for name in sorted(driver.nodes, key=lambda name: -free[name]):
                workers = min(wanted, int(free[name] // need))
                if workers:
                    spread[name] = workers
                    wanted -= workers
            if wanted:
                return False
            trial.nodes = spread
            fits_on_one = any(node.num_cpus >= shape.workers * need for node in driver.nodes.values())
            self.told.num_spread += fits_on_one
        for name, workers in trial.nodes.items():
            free[name] -= workers * need
        start_up_s = START_UP_S * math.exp(self.draw.gauss(0, 0.2))
        trial.began_s = max(driver.now_s, self.now_s)
        self.at(trial.began_s + start_up_s, lambda: self.begin(trial))
        return True

    def begin(self, trial: Trial) -> None:
        if not trial.is_over:
            self.report(trial, {"event": "start", "key": trial.pack.fits[0].key})
            self.next_fit(trial)

    def report(self, trial: Trial, event: dict[str, Any]) -> None:
        searcher = trial.driver.searcher
        assert searcher is not None
        self._timed(trial.driver, "result", lambda: searcher.on_trial_result(trial.name, event))

    def next_fit(self, trial: Trial) -> None:
        """The worker's part of `run_pack`."""
        while trial.place < len(trial.pack.fits):
            fit = trial.pack.fits[trial.place]
            try:
                trial.lease.check()
            except LeaseLost:
                return self.crash(trial)
            if fit.key in self.committed:
                self.report(trial, {"event": "done", "key": fit.key, "seconds": {}})
            elif all(parent.key in self.committed for parent in fit.parents):
                self.begun[fit.key] += 1
                trial.in_hand, trial.in_hand_since_s = fit.key, self.now_s
                return self.at(self.now_s + self.seconds[fit.key], partial(self.fit_ends, trial, fit))
            trial.place += 1
        self.end_pack(trial)

    def fit_ends(self, trial: Trial, fit: Fit) -> None:
        if trial.is_over:
            return
        self._count_busy(trial)
        if self.setting.trouble and self.draw.random() < 0.001:
            self.told.num_failed += 1
            self.store.write_failure(fit, kind="nan", reason="the loss is nan", detail="")
            event = {"event": "failed", "key": fit.key, "reason": "the loss is nan", "seconds": {}}
        else:
            self.store.commit(fit, self.files)
            self.committed.add(fit.key)
            event = {"event": "done", "key": fit.key, "seconds": {}}
        self.report(trial, event)
        trial.place += 1
        self.next_fit(trial)

    def end_pack(self, trial: Trial) -> None:
        driver, searcher = trial.driver, trial.driver.searcher
        assert searcher is not None
        self._count_held(trial)
        trial.is_waiting = True
        event = {"event": "end", "key": trial.pack.fits[-1].key}
        self._timed(driver, "end", lambda: searcher.on_trial_result(trial.name, event))
        self.hand_out(driver)

    def _count_busy(self, trial: Trial) -> None:
        self.busy.append((trial.in_hand_since_s, self.now_s, trial.pack.execution.workers))
        trial.in_hand = None

    def _count_held(self, trial: Trial) -> None:
        if not trial.is_waiting:
            self.held += [(trial.began_s, self.now_s, workers) for workers in trial.nodes.values()]

    def leave(self, trial: Trial) -> None:
        """The workers end."""
        driver = trial.driver
        trial.is_over = True
        driver.trials.pop(trial.name, None)
        for name, workers in trial.nodes.items():
            if name in driver.free:
                driver.free[name] += workers * trial.pack.execution.cpus_per_worker
        while driver.waiting and self.place(driver.waiting[0]):
            driver.waiting.pop(0)

    def crash(self, trial: Trial) -> None:
        driver, searcher = trial.driver, trial.driver.searcher
        assert searcher is not None
        self._count_held(trial)
        self.leave(trial)
        self._timed(driver, "end", lambda: searcher.on_trial_complete(trial.name, error=True))
        self.hand_out(driver)

    # --- trouble ---

    def node_leaves(self, driver: Driver) -> None:
        if driver.is_finished or len(driver.nodes) < 2:
            return
        name = self.draw.choice(sorted(driver.nodes))
        node = driver.nodes.pop(name)
        driver.free.pop(name)
        self.capacity.append((self.now_s, -node.num_cpus))
        for trial in [trial for trial in driver.trials.values() if name in trial.nodes]:
            self._lose(trial)
            self.crash(trial)
        self.at(self.now_s + self.draw.uniform(50, 300), lambda: self.node_joins(driver))
        self.at(self.now_s + self.draw.uniform(100, 600), lambda: self.node_leaves(driver))

    def node_joins(self, driver: Driver) -> None:
        name = f"{next(iter(driver.nodes))}-{self.num_events}"
        driver.nodes[name] = Node(name, float(SLOTS_PER_NODE), 0.0)
        driver.free[name] = float(SLOTS_PER_NODE)
        self.capacity.append((self.now_s, float(SLOTS_PER_NODE)))

    def _lose(self, trial: Trial) -> None:
        self.told.num_lost += not trial.is_waiting
        if trial.in_hand is not None:
            self.lost[trial.in_hand] += 1
            self._count_busy(trial)

    def die(self, driver: Driver, *, for_good: bool) -> None:
        """A driver is gone with its cluster; its leases stay. Unless it is gone for good, it comes back a minute later."""
        if driver.is_finished:
            return
        for trial in driver.trials.values():
            trial.is_over = True
            self._lose(trial)
            self._count_held(trial)
        driver.trials, driver.waiting, driver.searcher = {}, [], None
        driver.free = {name: node.num_cpus for name, node in driver.nodes.items()}
        if for_good:
            driver.is_finished = True
            self.capacity.append((self.now_s, -sum(driver.free.values())))
        else:
            self.at(self.now_s + 60, lambda: self.start(driver))

    # --- what came of it ---

    def _tell(self) -> Told:
        told, setting = self.told, self.setting
        told.makespan_s = self.now_s
        told.num_in_hand = self.lost.total()
        told.num_again = self.begun.total() - len(self.begun)
        told.num_twice = sum(max(0, times - 1 - self.lost[key]) for key, times in self.begun.items())
        told.work_bound_s = self.work_s / setting.num_slots
        path: dict[str, float] = {}
        for key, fit in self.fits.items():
            path[key] = self.seconds[key] + max((path[parent.key] for parent in fit.parents), default=0.0)
        told.path_bound_s = max(path.values())
        until_s = self.short_of_work_s or self.now_s
        slot_s = sum((until_s - when) * change for when, change in self.capacity if when < until_s)
        told.occupied = _clipped(self.held, until_s) / slot_s
        told.working = _clipped(self.busy, until_s) / slot_s
        return told


def _clipped(intervals: list[tuple[float, float, int]], until_s: float) -> float:
    began, ended, workers = np.array(intervals).T
    return float(np.sum((np.minimum(ended, until_s) - np.minimum(began, until_s)) * workers))


# --- the study ----------------------------------------------------------------------------------------------------------


def plan_of(study: str, *, num_fits: int, wide: bool = False) -> Plan:
    """A ready-made study with so many seeds that it has about `num_fits` Fits. `wide`: the largest model of each family takes
    eight workers, and so a node."""
    path, whole = find_study(study), load_study(study)

    def of(num_seeds: int) -> Plan:
        grids = tuple(grid.model_copy(update={"seeds": num_seeds}) for grid in whole.grids)
        return expand(whole.model_copy(update={"grids": grids}), path=path)

    one, two = len(of(1).fits), len(of(2).fits)
    plan = of(max(1, round((num_fits - one) / (two - one)) + 1))
    if wide:
        largest = {model.family: model for model in sorted(plan.executions, key=lambda model: model.num_params)}
        shapes: dict[Model, Execution] = {
            model: replace(shape, workers=SLOTS_PER_NODE) if model == largest[model.family] else shape
            for model, shape in plan.executions.items()
        }
        plan = replace(plan, executions=shapes)
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", default="embedded")
    parser.add_argument("--fits", type=int, default=38_400)
    parser.add_argument("--slots", type=int, default=512)
    parser.add_argument("--drivers", type=int, default=1)
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--trouble", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    began_s = time.process_time()
    plan = plan_of(given.study, num_fits=given.fits, wide=given.wide)
    planned_s = time.process_time() - began_s
    costs(plan)
    costed_s = time.process_time() - began_s - planned_s
    print(
        f"{len(plan.fits):,} Fits, {len(plan.cells):,} cells: planned in {planned_s:.1f} s, costs {costed_s:.1f} s, ",
        end="",
    )
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)
    told = Simulation(plan, Setting(given.slots, given.drivers, given.trouble)).run()
    print_told(told)
    print_goals(told, before=BEFORE.get((given.fits, given.slots, given.wide), []))


def print_goals(told: Told, *, before: list[str]) -> None:
    """What matters, beside what it was and what it should be."""
    seconds = told.costs.seconds["next_pack"]
    now = [
        f"{1000 * np.mean(seconds):.2f} ms",
        f"{1000 * max(seconds):.1f} ms",
        f"{told.working:.1%}",
        f"{told.num_spread} of {told.num_groups:,}",
        f"{told.driver_calls.total() / told.num_fits:.2f} a Fit",
    ]
    print(f"{'':26s} {'before':>12s} {'now':>14s} {'goal':>8s}")
    for name, old, new, goal in zip(GOALS, before or [""] * len(now), now, GOALS.values(), strict=True):
        print(f"{name:26s} {old:>12s} {new:>14s} {goal:>8s}")


def print_told(told: Told) -> None:
    for part, seconds in told.costs.seconds.items():
        mean, worst = 1000 * np.mean(seconds), 1000 * max(seconds)
        collecting_s = told.costs.collecting_s[part]
        of_worst = 1000 * collecting_s[int(np.argmax(seconds))]
        without = 1000 * max(all_s - gc_s for all_s, gc_s in zip(seconds, collecting_s, strict=True))
        print(
            f"{part:10s} {len(seconds):9,} calls, mean {mean:9.3f} ms, worst {worst:9.1f} ms (garbage collection {of_worst:.1f}, "
            f"else {without:.1f} at worst), in all {sum(seconds):8.1f} s"
        )
    bound_s = max(told.work_bound_s, told.path_bound_s)
    print(
        f"{told.num_packs:,} packs on {told.num_groups:,} groups of workers, of which {told.num_spread} are spread over nodes and "
        f"{told.num_waited} were started without room"
    )
    print(f"slots while work is left for all: {told.occupied:.1%} have a pack, {told.working:.1%} train")
    print(
        f"makespan {told.makespan_s:,.0f} s: {told.makespan_s / bound_s:.3f} of the larger bound "
        f"(work {told.work_bound_s:,.0f} s, longest path {told.path_bound_s:,.0f} s)"
    )
    print(f"{told.num_vain} packs chosen in vain, since another driver had claimed a Fit of theirs")
    print(
        f"{told.num_failed} failed, {told.num_lost} packs lost with {told.num_in_hand} Fits in hand; "
        f"{told.num_again} Fits begun again, {told.num_twice} of them for nothing"
    )
    for who, calls in (("driver", told.driver_calls), ("workers", told.worker_calls)):
        shares = ", ".join(
            f"{kind} {calls[kind]:,} ({calls[kind] / told.num_fits:.2f} a Fit)" for kind in sorted(calls)
        )
        print(f"store calls of the {who}: {shares}")
    print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
