"""One run of a study: connect to Ray, check that it can be placed, let Tune walk the DAG, stop in good order.

Promises: what the store has is not run again; a plan that can never be placed is refused before anything starts, with
what is needed against what there is; Ctrl-C and SIGTERM leave the store whole and give back every lease.
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

from pyarrow.fs import LocalFileSystem
from rich.console import Console

from w2s_ray import store
from w2s_ray.errors import InputError
from w2s_ray.fit import Execution
from w2s_ray.plan import Plan, costs
from w2s_ray.scheduling.packs import Walk
from w2s_ray.store import Store

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours answers within seconds
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read back
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Environment of Ray on this machine; set before Ray is imported."""


@dataclass(frozen=True)
class Node:
    num_cpus: float
    num_gpus: float


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
    budget_spent: bool = False
    worker_hours: float = 0.0


def run_plan(
    plan: Plan,
    *,
    store_: Store,
    address: str | None,
    max_parallel: int | None,
    retry_failed: bool,
    log_file: Path,
    console: Console,
    budget_worker_hours: float | None = None,
) -> Outcome:
    """Run what is missing. Returns when every Fit is done, failed or blocked, or on Ctrl-C."""
    began_s = time.monotonic()
    done = store.committed(store_, plan.fits)
    walk = _walk(plan, done=set(done), store_=store_, retry_failed=retry_failed)
    num_before = len(walk.done)
    if walk.finished:
        return _outcome(walk, num_before=num_before, began_s=began_s)
    shapes = {walk.executions[key] for key in walk.todo}
    if address is None:
        check_placement(shapes, nodes=[local_node()], max_parallel=max_parallel, where="this machine")
    store.check_writable(store_)
    for key in walk.todo:
        store.clear_failure(store_, walk.fits[key])
    os.environ.update(QUIET)
    with _log_to(log_file), _ray(address, log_file=log_file) as nodes:
        check_shared(store_, num_nodes=len(nodes))
        check_placement(shapes, nodes=nodes, max_parallel=max_parallel, where=f"the cluster at {address or 'hand'}")
        num_cpus, num_gpus = sum(n.num_cpus for n in nodes), sum(n.num_gpus for n in nodes)
        walk.num_slots = num_slots(shapes, nodes=nodes, max_parallel=max_parallel)
        return _tune(
            walk,
            store_=store_,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            num_before=num_before,
            began_s=began_s,
            console=console,
            study=plan.study.name,
            budget_worker_hours=budget_worker_hours,
        )


def _walk(plan: Plan, *, done: set[str], store_: Store, retry_failed: bool) -> Walk:
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
        for key, record in store.read_failures(store_).items():
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
    store_: Store,
    num_cpus: float,
    num_gpus: float,
    num_before: int,
    began_s: float,
    console: Console,
    study: str,
    budget_worker_hours: float | None,
) -> Outcome:
    from ray import tune

    from w2s_ray.scheduling.progress import Progress
    from w2s_ray.scheduling.searcher import DagSearcher
    from w2s_ray.scheduling.trainable import train_pack
    from w2s_ray.scheduling.watch import BudgetSpent, Watch

    ray_folder = f"{study}-{uuid.uuid4().hex[:8]}"
    storage_path = store.uri_of(store_, "ray", ray_folder)
    searcher = DagSearcher(walk, store_=store_, num_cpus=num_cpus, num_gpus=num_gpus)
    interrupted = budget_spent = False
    watch = Watch(searcher, budget_worker_hours=budget_worker_hours, console=console)
    with Progress(walk, console=console) as progress:
        progress.began_s = began_s
        # A bundle needs some resource; a mebibyte of memory leaves every core to Ray Train's workers.
        resources = tune.PlacementGroupFactory([{"CPU": 0, "memory": 2**20}])
        trainable = tune.with_parameters(train_pack, store_uri=store_.uri, ray_uri=storage_path)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=walk.num_slots,
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
        finally:
            searcher.close()
    with contextlib.suppress(OSError):  # Ray's snapshots: a cache that nobody reads again
        store_.fs.delete_dir(store_.path("ray", ray_folder))
    return _outcome(
        walk,
        num_before=num_before,
        began_s=began_s,
        startup_s=(progress.first_start_s or time.monotonic()) - began_s,
        busy_share=progress.busy_share,
        phase_s=progress.phase_s,
        interrupted=interrupted,
        budget_spent=budget_spent,
        worker_hours=searcher.worker_s / 3600,
    )


# --- resources ----------------------------------------------------------------------------------------------------


def local_node() -> Node:
    """This machine, as far as Ray would find it."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return Node(float(os.cpu_count() or 1), float(NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()))


def _workers_on(node: Node, shape: Execution) -> int:
    by_cpu = node.num_cpus // shape.cpus_per_worker
    by_gpu = node.num_gpus // shape.gpus_per_worker if shape.gpus_per_worker else by_cpu
    return int(min(by_cpu, by_gpu))


def check_placement(shapes: set[Execution], *, nodes: list[Node], max_parallel: int | None, where: str) -> None:
    """Refuse a plan of which some Fit could never be placed."""
    if max_parallel is not None and max_parallel < 1:
        raise InputError(f"--max-parallel: given {max_parallel}, allowed are 1 and more")
    for shape in shapes:
        room = sum(_workers_on(node, shape) for node in nodes)
        if room < shape.workers:
            have = f"{sum(n.num_cpus for n in nodes):g} CPUs and {sum(n.num_gpus for n in nodes):g} GPUs"
            raise InputError(
                f"compute: a Fit needs {shape.workers} worker(s) of {shape.cpus_per_worker} CPU(s) and "
                f"{shape.gpus_per_worker:g} GPU(s) each, but {where} has {have} on {len(nodes)} node(s), "
                f"room for {room}. Lower compute.workers, cpus_per_worker or gpus_per_worker, or add nodes"
            )


def check_shared(store_: Store, *, num_nodes: int) -> None:
    """Refuse a store that is a folder of this machine alone: other nodes would write to folders of their own."""
    if num_nodes < 2 or not isinstance(store_.fs, LocalFileSystem):
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = store_.path(f".shared-{uuid.uuid4().hex}")
    store.write_bytes(store_, mark, b"w2s")
    alive = [node for node in ray.nodes() if node["Alive"]]
    try:
        see = ray.remote(num_cpus=0)(os.path.exists)
        asked = [
            see.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)) for n in alive
        ]
        seen = ray.get([each.remote(mark) for each in asked], timeout=120)
    finally:
        store_.fs.delete_file(mark)
    blind = [node["NodeManagerAddress"] for node, sees in zip(alive, seen, strict=True) if not sees]
    if blind:
        raise InputError(
            f"--store {store_.uri}: is a folder of this machine, which {len(blind)} of {len(alive)} nodes don't see "
            f"({', '.join(blind[:3])}); use a folder that all share, or a bucket (s3://..., gs://...)"
        )


def num_slots(shapes: set[Execution], *, nodes: list[Node], max_parallel: int | None) -> int:
    """How many packs can run at once: as many as fit of the smallest shape."""
    most = max(sum(_workers_on(node, shape) for node in nodes) // shape.workers for shape in shapes)
    return max(1, min(most, max_parallel or most))


@contextlib.contextmanager
def _ray(address: str | None, *, log_file: Path) -> Iterator[list[Node]]:
    """Connect to a cluster, or start one on this machine; its nodes."""
    import ray

    ray._private.worker._worker_logs_enabled = False  # else raylet's warnings break into the progress lines
    ours = not ray.is_initialized()
    if ours:
        try:
            if address is None:
                # "local": without it Ray would join whatever cluster was started on this machine before
                ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            else:
                runtime_env = {"env_vars": QUIET}
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"--address {address}: no Ray cluster answers there ({error})") from error
    try:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield [Node(r.get("CPU", 0.0), r.get("GPU", 0.0)) for r in alive]
    finally:
        if ours:
            ray.shutdown()


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
