"""One run of a study: connect to Ray, check that every Fit has a place, let Tune work through the schedule, stop cleanly.

Promises:

- What the store holds already is not run again.
- A study that can never be placed is refused before anything starts, with what it needs and what there is.
- Ctrl-C, SIGTERM, a spent budget, a lost lease and an unreachable store all leave the store intact, and every lease is
  given back.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from w2s_ray.cost import Cost, costs, measured_speeds
from w2s_ray.memory import largest_needs
from w2s_ray.planning import Plan
from w2s_ray.run_log import RunLog
from w2s_ray.run_options import RunOptions
from w2s_ray.scheduling import cluster
from w2s_ray.scheduling.packs import Schedule
from w2s_ray.scheduling.progress import Progress, phase
from w2s_ray.scratch import remove_abandoned
from w2s_ray.speeds import Timed, remember
from w2s_ray.status import done_keys
from w2s_ray.storage import StoreDown
from w2s_ray.store import Store
from w2s_ray.tracking import Tracking, tracking


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    num_done: int
    num_new: int
    failed: dict[str, str]
    """Key -> reason."""
    num_blocked: int
    wall_s: float
    startup_s: float = 0.0
    """Until the first Fit began."""
    busy_share: float = 0.0
    """Share of the slots' time in which Fits were trained or evaluated."""
    phase_s: dict[str, float] = field(default_factory=dict)
    """Phase of a Fit -> seconds, over all slots."""
    interrupted: bool = False
    trouble: str = ""
    """Why the run could not go on: the store is out of reach, or another driver took over."""
    budget_spent: bool = False
    worker_hours: float = 0.0


@dataclass(frozen=True)
class Run:
    """What a run is given, and keeps from its start to its end."""

    plan: Plan
    costs: dict[str, Cost]
    """By key, of every Fit of the plan."""
    store: Store
    address: str | None
    """Of a Ray cluster; None runs on this machine alone."""
    max_parallel: int | None
    budget_worker_hours: float | None
    tracking: Tracking | None
    console: Console
    began_s: float
    driver: str
    """This driver's name, in its leases and in its workers' temporary folders."""


def run_plan(
    plan: Plan, options: RunOptions, *, store: Store, address: str | None, log: RunLog, console: Console
) -> Outcome:
    """Run what is missing. Returns when every Fit is done, failed or blocked, or when the run has to stop. The trackers' local
    files go beside the log."""
    run = Run(
        plan=plan,
        costs=costs(plan, speeds=measured_speeds(plan, store=store)),
        store=store,
        address=address,
        max_parallel=options.max_parallel,
        budget_worker_hours=options.budget_worker_hours(plan),
        tracking=tracking(options.track, study=plan.study.name, folder=log.path.parent),
        console=console,
        began_s=time.monotonic(),
        driver=uuid.uuid4().hex[:12],
    )
    failures = store.read_failures()
    schedule = _schedule(run, failures={} if options.retry_failed else failures)
    if schedule.finished:
        return _outcome(schedule, run)
    _compare_with_budget(schedule, run)
    shapes = schedule.shapes_left
    needs = largest_needs((schedule.fits[key], schedule.executions[key]) for key in schedule.todo)
    if address is None:
        nodes = [cluster.local_node()]
        cluster.check_placement(shapes, nodes=nodes, max_parallel=run.max_parallel, where="this machine")
        cluster.check_memory(needs, nodes=nodes, where="this machine")
    store.storage.check_writable()
    store.begin_index()
    for key in schedule.todo & failures.keys():
        store.clear_failure(schedule.fits[key])
    os.environ.update(cluster.QUIET)
    gc.freeze()  # the plan lives as long as the run: the collector need not go through a million Fits again and again
    try:
        with contextlib.redirect_stderr(log.begin()), _connected(address, console=console):
            minutes = options.wait_for_nodes_min if address else 0.0
            nodes = cluster.wait_for_nodes(shapes, minutes=minutes, console=console)
            where = f"the cluster at {address}" if address else "the cluster in use"
            cluster.check_placement(shapes, nodes=nodes, max_parallel=run.max_parallel, where=where)
            cluster.check_memory(needs, nodes=nodes, where=where)
            cluster.check_shared(store)
            return _tune(schedule, run)
    finally:
        gc.unfreeze()
        remove_abandoned(driver=run.driver)


@contextlib.contextmanager
def _connected(address: str | None, *, console: Console) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        said = f"connecting to the cluster at {address}" if address else "starting Ray (about 20 s)"
        with phase(said, console=console):
            stack.enter_context(cluster.connected(address))
        yield


def _schedule(run: Run, *, failures: dict[str, dict[str, Any]]) -> Schedule:
    """What is to do. `failures`: key -> record of the Fits that are not to be tried again."""
    plan = run.plan
    fits_per_pack = plan.study.compute.fits_per_pack
    done = done_keys(plan, store=run.store)
    schedule = Schedule(
        fits={fit.key: fit for fit in plan.fits},
        executions={fit.key: plan.executions[fit.model] for fit in plan.fits},
        seconds={key: cost.seconds for key, cost in run.costs.items()},
        num_slots=1,
        fits_per_pack=None if fits_per_pack == "auto" else fits_per_pack,
        todo={fit.key for fit in plan.fits} - done,
        done=done,
    )
    for key, record in failures.items():
        if key in schedule.todo:
            schedule.mark_failed(key, str(record.get("reason", "")))
    return schedule


def _compare_with_budget(schedule: Schedule, run: Run) -> None:
    """Say so if the budget will not do."""
    left_h = sum(schedule.seconds[key] * schedule.executions[key].workers for key in schedule.todo) / 3600
    if run.budget_worker_hours is not None and left_h > run.budget_worker_hours:
        run.console.print(
            f"the budget is {run.budget_worker_hours:.3g} worker hours, and what is left takes about {left_h:.3g}, without start-up"
        )


def _tune(schedule: Schedule, run: Run) -> Outcome:
    from w2s_ray.scheduling.desk import Desk

    desk = Desk()  # its process starts while this one imports Tune
    from ray import tune

    from w2s_ray.scheduling.searcher import DagSearcher
    from w2s_ray.scheduling.trainable import run_group
    from w2s_ray.scheduling.tune_progress import TuneProgress
    from w2s_ray.scheduling.watch import BudgetSpent, Trouble, Watch

    storage = run.store.storage
    ray_folder = f"ray/{run.plan.study.name}-{uuid.uuid4().hex[:8]}"
    ray_uri = storage.uri_of(*ray_folder.split("/"))
    searcher = DagSearcher(
        schedule,
        store=run.store,
        nodes=cluster.alive_nodes,
        desk=desk,
        max_parallel=run.max_parallel,
        driver=run.driver,
    )
    searcher.keep_leases()
    watch = Watch(
        searcher,
        budget_worker_hours=run.budget_worker_hours,
        console=run.console,
        may_autoscale=run.address is not None,
    )
    stopped_by: KeyboardInterrupt | None = None
    with Progress(schedule, console=run.console, began_s=run.began_s) as progress:
        # A placement group needs some resource; with a mebibyte of memory the trial leaves every core to Ray Train's workers.
        resources = tune.PlacementGroupFactory([{"CPU": 0, "memory": 2**20}])
        trainable = tune.with_parameters(
            run_group, desk=desk.actor, store_uri=run.store.uri, ray_uri=ray_uri, tracking=run.tracking
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{uuid.uuid4().hex[:8]}",
                storage_path=ray_uri,
                callbacks=[TuneProgress(progress, searcher), watch],
                verbose=0,
            ),
        )
        try:
            with _sigterm_as_interrupt():
                tuner.fit()
        except KeyboardInterrupt as error:
            stopped_by = error
        finally:
            searcher.close()
            watch.close()
            desk.close()
    trouble = str(stopped_by) if isinstance(stopped_by, Trouble) else ""
    if not trouble:
        _remember_speeds(progress, run)
        with contextlib.suppress(OSError, StoreDown):  # Ray's own snapshots, which are never read back
            storage.delete_folder(ray_folder)
    return _outcome(
        schedule,
        run,
        startup_s=(progress.first_start_s or time.monotonic()) - run.began_s,
        busy_share=progress.busy_share,
        phase_s=progress.phase_s,
        interrupted=stopped_by is not None,
        trouble=trouble,
        budget_spent=isinstance(stopped_by, BudgetSpent),
        worker_hours=searcher.worker_s / 3600,
    )


def _remember_speeds(progress: Progress, run: Run) -> None:
    """Leave in the store what this run's Fits took. A run is no worse where that fails."""
    schedule = progress.schedule
    timed = [
        Timed(schedule.fits[key], schedule.executions[key], machine, seconds, run.costs[key].assumed)
        for key, (machine, seconds) in progress.timed.items()
    ]
    with contextlib.suppress(OSError, StoreDown):
        remember(run.store, timed)


def _outcome(schedule: Schedule, run: Run, **measured: Any) -> Outcome:
    return Outcome(
        num_done=len(schedule.done),
        num_new=schedule.num_new,
        failed=dict(schedule.failed),
        num_blocked=len(schedule.blocked),
        wall_s=time.monotonic() - run.began_s,
        **measured,
    )


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM, which cluster schedulers send, stops a run in the same way as Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
