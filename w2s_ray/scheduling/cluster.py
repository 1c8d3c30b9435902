"""The Ray cluster of a run: connect to it, see what its nodes have, ask an autoscaler for more.

Promises: a study with a Fit that can never be placed is refused before anything starts, with what it needs and what there
is. So is a store that some node can't see. Without an address a run starts a Ray of its own and never joins another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterator

from rich.console import Console

from w2s_ray.errors import InputError
from w2s_ray.fit import Execution
from w2s_ray.memory import GIB, Need, machine_gib
from w2s_ray.scheduling import ray_internals
from w2s_ray.scheduling.room import Node, shape_without_room, workers_on
from w2s_ray.store import Store

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `run.py` handles SIGINT itself, and stops within seconds
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "200",  # by default Tune starts a searcher's trials one by one
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read back
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Environment variables for Ray, to be set before it is imported."""
LOOK_EVERY_S = 2.0
"""How often to look for new nodes while waiting for them."""
MAX_BUNDLES = 1000
"""The most workers that an autoscaler is asked to have room for."""


NUM_START_ATTEMPTS = 4

log = logging.getLogger(__name__)


def local_node() -> Node:
    """This machine, with what a Ray started on it would have."""
    return Node("here", float(os.cpu_count() or 1), float(ray_internals.num_local_gpus()), machine_gib())


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine. A connection that this process has already is used as it is."""
    import ray

    ray_internals.mute_cluster_messages()
    is_ours = not ray.is_initialized()
    if is_ours:
        try:
            if address is None:
                _start_here()
            else:
                runtime_env = {"env_vars": QUIET}
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
        except (ConnectionError, ValueError, RuntimeError) as error:
            problem = (
                f"--address {address}: no Ray cluster answers there" if address else "Ray can't start on this machine"
            )
            raise InputError(f"{problem} ({_cause(error)})") from error
    try:
        yield
    finally:
        if is_ours:
            ray.shutdown()


def _start_here() -> None:
    """Start a Ray on this machine. On a busy machine Ray gives up on its own start after 30 seconds, so it gets more tries."""
    import ray

    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = (
        "0"  # a process a pack; nobody takes this machine away node by node
    )
    for attempt in range(NUM_START_ATTEMPTS):
        try:
            # Without "local", Ray would join any cluster that was started on this machine before.
            ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:
            if not ray_internals.is_slow_start(error):
                raise
            ray.shutdown()
            if attempt + 1 == NUM_START_ATTEMPTS:
                raise RuntimeError(f"it did not start within 30 s in {NUM_START_ATTEMPTS} tries") from error
            log.warning("Ray did not start within 30 s, trying again: %s", error)


def _cause(error: BaseException) -> str:
    """The last line of Ray's message, or what to do about a missing token."""
    message = f"{error} {error.__cause__ or ''}"
    if "AuthToken" in message or "Unauthenticated" in message:
        return (
            "it requires a token: set RAY_AUTH_MODE=token, and copy RAY_AUTH_TOKEN or ~/.ray/auth_token from its head"
        )
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def alive_nodes() -> list[Node]:
    """The nodes that can take work now: alive, and not about to be taken away."""
    import ray

    draining = ray_internals.draining_node_ids()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    return [_node(node["NodeID"], node["Resources"]) for node in nodes]


def _node(node_id: str, resources: dict[str, float]) -> Node:
    """Ray counts as memory what was free when the node joined, without its object store."""
    memory = resources.get("memory", float("inf")) + resources.get("object_store_memory", 0.0)
    return Node(node_id, resources.get("CPU", 0.0), resources.get("GPU", 0.0), memory / GIB)


# --- what fits ----------------------------------------------------------------------------------------------------


def needs(shape: Execution) -> str:
    """In words, the resources of a pack of this shape."""
    return f"{shape.workers} worker(s) of {shape.cpus_per_worker} CPU(s) and {shape.gpus_per_worker:g} GPU(s) each"


def worker_resources(shape: Execution) -> dict[str, float]:
    """The resources that Ray reserves for one worker."""
    gpus = {"GPU": shape.gpus_per_worker} if shape.gpus_per_worker else {}
    return {"CPU": shape.cpus_per_worker, **gpus}


def check_placement(shapes: set[Execution], *, nodes: list[Node], max_parallel: int | None, where: str) -> None:
    """Refuse a study with a Fit that can never be placed. `where` names the nodes in the message."""
    if max_parallel is not None and max_parallel < 1:
        raise InputError(f"--max-parallel: given {max_parallel}; allowed are 1 and more")
    if misfit := shape_without_room(shapes, nodes=nodes):
        shape, room = misfit
        total = f"{sum(n.num_cpus for n in nodes):g} CPUs and {sum(n.num_gpus for n in nodes):g} GPUs"
        raise InputError(
            f"compute: a Fit needs {needs(shape)}, but {where} has {total} on {len(nodes)} node(s), with room for {room}. "
            "Lower compute.workers, cpus_per_worker or gpus_per_worker, or add nodes. If an autoscaler has yet to add them, "
            "say how long to wait with --wait-for-nodes MINUTES"
        )


def check_memory(needs: dict[Execution, Need], *, nodes: list[Node], where: str) -> None:
    """Refuse a study with a model that no node can hold. `needs`: shape -> the largest need of a worker. A GPU that is too small is
    found out by trying: its memory is not known here."""
    for shape, need in needs.items():
        here = {node: min(shape.workers, workers_on(node, shape)) for node in nodes}
        if any(num and num * need.host_bytes / GIB <= node.memory_gib for node, num in here.items()):
            continue
        num = max(here.values())
        raise InputError(
            f"compute: {need.model} takes {num * need.host_bytes / GIB:.3g} GiB of a node's memory, for {num} worker(s), before "
            f"any activations, but {where} has {max(node.memory_gib for node in nodes):.3g} GiB. Share it between more workers "
            "with compute.zero_stage: 3, train less of it with training.tune: lora or head, or use nodes with more memory"
        )


def wait_for_nodes(shapes: set[Execution], *, minutes: float, console: Console) -> list[Node]:
    """The cluster's nodes, as soon as every shape fits on them or the time is over."""
    deadline_s = time.monotonic() + 60 * minutes
    is_announced = False
    while misfit := shape_without_room(shapes, nodes=(nodes := alive_nodes())):
        if time.monotonic() >= deadline_s:
            break
        shape, room = misfit
        request_room([shape])
        if not is_announced:
            is_announced = True
            console.print(f"waiting for nodes: a Fit needs {needs(shape)}, and there is room for {room}")
        time.sleep(LOOK_EVERY_S)
    return nodes


def request_room(shapes: list[Execution]) -> None:
    """Ask an autoscaler, if there is one, for room for packs of these shapes at the same time. The latest request replaces
    earlier ones, and nodes beyond it may be removed."""
    from ray.autoscaler.sdk import request_resources

    bundles = [worker_resources(shape) for shape in shapes for _ in range(shape.workers)]
    request_resources(bundles=bundles[:MAX_BUNDLES])


def check_shared(store: Store) -> None:
    """Refuse a store in a folder that some node can't see: its workers would write to a folder of their own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) < 2 or not store.storage.is_local:
        return
    probe = f".shared-{uuid.uuid4().hex}"
    store.storage.write(probe, b"w2s")
    try:
        exists = ray.remote(num_cpus=0)(os.path.exists)
        on_each = [
            exists.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            for node in alive
        ]
        answers = ray.get([exists_there.remote(store.storage.path(probe)) for exists_there in on_each], timeout=120)
    finally:
        store.storage.delete_file(probe)
    blind = [node["NodeManagerAddress"] for node, sees_it in zip(alive, answers, strict=True) if not sees_it]
    if blind:
        raise InputError(
            f"--store {store.uri}: is a folder that {len(blind)} of {len(alive)} nodes don't see "
            f"({', '.join(blind[:3])}); give a folder that all nodes share, or a bucket (s3://..., gs://...)"
        )
