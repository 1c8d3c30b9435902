"""One run of a study: connect to Ray, check that it can be placed, let Tune walk the DAG, stop in good order.

Promises: what the store has is not run again; a plan that can never be placed is refused before anything starts, with
what is needed against what there is; Ctrl-C, SIGTERM, a spent budget, a lost lease and a store that is gone leave the store
whole and give back every lease.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from w2s_ray.plan import Plan, costs
from w2s_ray.scheduling import cluster
from w2s_ray.scheduling.packs import Walk
from w2s_ray.storage import StoreDown
from w2s_ray.store import Store
from w2s_ray.tracking import Tracking


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    num_done: int
    num_new: int
    failed: dict[str, str]
    num_blocked: int
    wall_s: float
    startup_s: float
    busy_share: float
    phase_s: dict[str, float]
    interrupted: bool
    trouble: str = ""
    """Why the run could not go on: the store is gone, or another driver took over."""
    budget_spent: bool = False
    worker_hours: float = 0.0


def run_plan(
    plan: Plan,
    *,
    store: Store,
    address: str | None,
    max_parallel: int | None,
    retry_failed: bool,
    log_file: Path,
    console: Console,
    budget_worker_hours: float | None = None,
    wait_for_nodes_min: float = 0.0,
    tracking: Tracking | None = None,
) -> Outcome:
    """Run what is missing. Returns when every Fit is done, failed or blocked, or when it has to stop."""
    began_s = time.monotonic()
    done = store.committed(plan.fits)
    walk = _walk(plan, done=set(done), store=store, retry_failed=retry_failed)
    num_before = len(walk.done)
    if walk.finished:
        return _outcome(walk, num_before=num_before, began_s=began_s)
    shapes = {walk.executions[key] for key in walk.todo}
    if address is None:
        cluster.check_placement(shapes, nodes=[cluster.local_node()], max_parallel=max_parallel, where="this machine")
    store.storage.check_writable()
    for key in walk.todo:
        store.clear_failure(walk.fits[key])
    os.environ.update(cluster.QUIET)
    with _log_to(log_file), cluster.connected(address):
        nodes = cluster.wait_for_nodes(
            shapes, minutes=wait_for_nodes_min if address else 0.0, say=lambda line: console.print(line)
        )
        where = f"the cluster at {address or 'hand'}"
        cluster.check_placement(shapes, nodes=nodes, max_parallel=max_parallel, where=where)
        cluster.check_shared(store)
        return _tune(
            walk,
            store=store,
            max_parallel=max_parallel,
            num_before=num_before,
            began_s=began_s,
            console=console,
            study=plan.study.name,
            grows=address is not None,
            budget_worker_hours=budget_worker_hours,
            tracking=tracking,
        )


def _walk(plan: Plan, *, done: set[str], store: Store, retry_failed: bool) -> Walk:
    estimates = costs(plan)
    compute = plan.study.compute
    walk = Walk(
        fits={fit.key: fit for fit in plan.fits},
        executions={fit.key: plan.executions[fit.model] for fit in plan.fits},
        seconds={key: cost.seconds for key, cost in estimates.items()},
        num_slots=1,
        fits_per_pack=None if compute.fits_per_pack == "auto" else compute.fits_per_pack,
        todo={fit.key for fit in plan.fits} - done,
        done=done,
    )
    if not retry_failed:
        for key, record in store.read_failures().items():
            if key in walk.todo:
                walk.failure(key, str(record.get("reason", "")))
    return walk


def _outcome(walk: Walk, *, num_before: int, began_s: float, **measured: Any) -> Outcome:
    facts: dict[str, Any] = {"startup_s": 0.0, "busy_share": 0.0, "phase_s": {}, "interrupted": False} | measured
    return Outcome(
        num_done=len(walk.done),
        num_new=len(walk.done) - num_before,
        failed=dict(walk.failed),
        num_blocked=len(walk.blocked),
        wall_s=time.monotonic() - began_s,
        **facts,
    )


def _tune(
    walk: Walk,
    *,
    store: Store,
    max_parallel: int | None,
    num_before: int,
    began_s: float,
    console: Console,
    study: str,
    grows: bool,
    budget_worker_hours: float | None,
    tracking: Tracking | None,
) -> Outcome:
    from ray import tune

    from w2s_ray.scheduling.progress import Progress
    from w2s_ray.scheduling.searcher import DagSearcher
    from w2s_ray.scheduling.trainable import train_pack
    from w2s_ray.scheduling.watch import BudgetSpent, Trouble, Watch

    ray_folder = f"{study}-{uuid.uuid4().hex[:8]}"
    storage_path = store.storage.uri_of("ray", ray_folder)
    searcher = DagSearcher(walk, store=store, nodes=cluster.alive_nodes, max_parallel=max_parallel)
    interrupted, budget_spent, trouble = False, False, ""
    watch = Watch(searcher, budget_worker_hours=budget_worker_hours, console=console, grows=grows)
    with Progress(walk, console=console) as progress:
        progress.began_s = began_s
        # A bundle needs some resource; a mebibyte of memory leaves every core to Ray Train's workers.
        resources = tune.PlacementGroupFactory([{"CPU": 0, "memory": 2**20}])
        trainable = tune.with_parameters(train_pack, store_uri=store.uri, ray_uri=storage_path, tracking=tracking)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["pack"].name,
                trial_dirname_creator=lambda trial: trial.config["pack"].name,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{uuid.uuid4().hex[:8]}", storage_path=storage_path, callbacks=[progress, watch], verbose=0
            ),
        )
        try:
            with _term_is_interrupt():
                tuner.fit()
        except KeyboardInterrupt as error:
            interrupted, budget_spent = True, isinstance(error, BudgetSpent)
            trouble = str(error) if isinstance(error, Trouble) else ""
        finally:
            searcher.close()
            watch.close()
    if not trouble:
        with contextlib.suppress(OSError, StoreDown):  # Ray's snapshots: a cache that nobody reads again
            store.storage.delete_folder(f"ray/{ray_folder}")
    return _outcome(
        walk,
        num_before=num_before,
        began_s=began_s,
        startup_s=(progress.first_start_s or time.monotonic()) - began_s,
        busy_share=progress.busy_share,
        phase_s=progress.phase_s,
        interrupted=interrupted,
        trouble=trouble,
        budget_spent=budget_spent,
        worker_hours=searcher.worker_s / 3600,
    )


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send the libraries' chatter, and what they print to standard error, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train", "w2s_ray")]
    before = [(logger, logger.propagate, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler]
        logger.propagate = False
    try:
        with contextlib.redirect_stderr(handler.stream):
            yield
    finally:
        for logger, propagate, handlers in before:
            logger.propagate = propagate
            logger.handlers = handlers
        handler.close()


@contextlib.contextmanager
def _term_is_interrupt() -> Iterator[None]:
    """SIGTERM, as schedulers send it, stops in the same good order as Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
