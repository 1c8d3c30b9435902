"""The Ray cluster that a run stands on: connecting to it, what its nodes have, what fits on them, asking for more.

Promises: a plan of which some Fit could never be placed is refused before anything starts, with what is needed against what
there is; so is a store that some node doesn't see. On this machine alone a Ray of our own is started, and none is joined.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from w2s_ray.errors import InputError
from w2s_ray.fit import Execution
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
LOOK_EVERY_S = 2.0
MAX_BUNDLES = 1000
"""No more workers than this are asked of an autoscaler at a time."""


@dataclass(frozen=True)
class Node:
    id: str
    num_cpus: float
    num_gpus: float


def local_node() -> Node:
    """This machine, as far as Ray would find it."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    num_gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    return Node("here", float(os.cpu_count() or 1), float(num_gpus))


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine."""
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
            raise InputError(f"--address {address}: no Ray cluster answers there ({_cause(error)})") from error
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _cause(error: BaseException) -> str:
    """Ray's last line, or what to do about a token."""
    whole = f"{error} {error.__cause__ or ''}"
    if "AuthToken" in whole or "Unauthenticated" in whole:
        return "it wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as on its head"
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def alive_nodes() -> list[Node]:
    """The nodes that take work now: alive, and not about to be taken away."""
    import ray

    leaving = ray._private.state.state.get_draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return [Node(n["NodeID"], n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0)) for n in nodes]


# --- what fits ----------------------------------------------------------------------------------------------------


def _workers_on(node: Node, shape: Execution) -> int:
    by_cpu = node.num_cpus // shape.cpus_per_worker
    by_gpu = node.num_gpus // shape.gpus_per_worker if shape.gpus_per_worker else by_cpu
    return int(min(by_cpu, by_gpu))


def needs(shape: Execution) -> str:
    """In words, what a pack of this shape takes."""
    return f"{shape.workers} worker(s) of {shape.cpus_per_worker} CPU(s) and {shape.gpus_per_worker:g} GPU(s) each"


def worker_resources(shape: Execution) -> dict[str, float]:
    """What Ray is to keep for one worker."""
    gpus = {"GPU": shape.gpus_per_worker} if shape.gpus_per_worker else {}
    return {"CPU": shape.cpus_per_worker, **gpus}


def num_slots(shapes: set[Execution], *, nodes: list[Node], max_parallel: int | None) -> int:
    """How many packs can run at once: as many as fit of the smallest shape."""
    most = max(sum(_workers_on(node, shape) for node in nodes) // shape.workers for shape in shapes)
    return max(1, min(most, max_parallel or most))


def missing(shapes: set[Execution], *, nodes: list[Node]) -> tuple[Execution, int] | None:
    """A shape that the nodes have no room for, and how many of its workers they have room for."""
    for shape in sorted(shapes, key=lambda shape: -shape.workers):
        room = sum(_workers_on(node, shape) for node in nodes)
        if room < shape.workers:
            return shape, room
    return None


def check_placement(shapes: set[Execution], *, nodes: list[Node], max_parallel: int | None, where: str) -> None:
    """Refuse a plan of which some Fit could never be placed."""
    if max_parallel is not None and max_parallel < 1:
        raise InputError(f"--max-parallel: given {max_parallel}, allowed are 1 and more")
    if found := missing(shapes, nodes=nodes):
        shape, room = found
        have = f"{sum(n.num_cpus for n in nodes):g} CPUs and {sum(n.num_gpus for n in nodes):g} GPUs"
        raise InputError(
            f"compute: a Fit needs {needs(shape)}, but {where} has {have} on {len(nodes)} node(s), "
            f"room for {room}. Lower compute.workers, cpus_per_worker or gpus_per_worker, or add nodes; for nodes that an "
            "autoscaler has yet to add, say how long: --wait-for-nodes MINUTES"
        )


def wait_for_nodes(shapes: set[Execution], *, minutes: float, say: Callable[[str], None]) -> list[Node]:
    """The cluster's nodes once every shape has room, or when the time is over."""
    deadline_s, said = time.monotonic() + 60 * minutes, False
    while found := missing(shapes, nodes=(nodes := alive_nodes())):
        if time.monotonic() >= deadline_s:
            break
        shape, room = found
        ask_for([shape])
        if not said:
            said = True
            say(f"waiting for nodes: a Fit needs {needs(shape)}, there is room for {room}")
        time.sleep(LOOK_EVERY_S)
    return nodes


def ask_for(shapes: list[Execution]) -> None:
    """Tell an autoscaler, if there is one, to have room for these packs at a time; it may remove what is beyond."""
    from ray.autoscaler.sdk import request_resources

    bundles = [worker_resources(shape) for shape in shapes for _ in range(shape.workers)]
    request_resources(bundles=bundles[:MAX_BUNDLES])


def check_shared(store: Store) -> None:
    """Refuse a store that is a folder of this machine alone: other nodes would write to folders of their own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) < 2 or not store.storage.is_local:
        return
    mark = f".shared-{uuid.uuid4().hex}"
    store.storage.write(mark, b"w2s")
    try:
        see = ray.remote(num_cpus=0)(os.path.exists)
        asked = [
            see.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)) for n in alive
        ]
        seen = ray.get([each.remote(store.storage.path(mark)) for each in asked], timeout=120)
    finally:
        store.storage.delete_file(mark)
    blind = [node["NodeManagerAddress"] for node, sees in zip(alive, seen, strict=True) if not sees]
    if blind:
        raise InputError(
            f"--store {store.uri}: is a folder of this machine, which {len(blind)} of {len(alive)} nodes don't see "
            f"({', '.join(blind[:3])}); use a folder that all share, or a bucket (s3://..., gs://...)"
        )
