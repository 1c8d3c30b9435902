"""What this project uses of Ray's private interface, as read in Ray 2.60. Look here and in `group_trainer.py` first when Ray is
upgraded.

Each function says what Ray's public interface lacks.
"""

from __future__ import annotations

from typing import Any


def num_local_gpus() -> int:
    """GPUs of this machine, counted as `ray.init` would count them. The public interface tells only after Ray was started, and
    a study that can't be placed is refused before that."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return int(NvidiaGPUAcceleratorManager.get_current_node_num_accelerators())


def mute_cluster_messages() -> None:
    """Keep the cluster's error messages, such as a node's warnings, out of the progress lines. Ray's driver prints what the
    cluster publishes even with `log_to_driver=False`, and no public option turns that off."""
    import ray

    ray._private.worker._worker_logs_enabled = False


def draining_node_ids() -> set[str]:
    """Nodes that will be taken away soon. `ray.nodes()` lists them as alive and does not say that they drain."""
    import ray

    return set(ray._private.state.state.get_draining_nodes())


def report_to_tune(metrics: dict[str, Any]) -> None:
    """Report to Tune without waiting until Tune has taken the result, as `ray.tune.report` does. The trial's controller has to go on
    watching its workers meanwhile.

    The session's queue has room for one result. If the trial ends while Tune is busy, its final result would take this place,
    and the thread that takes results out would wait to put the last report in.
    """
    from ray.train._internal.session import get_session

    session = get_session()
    session.result_queue.maxsize = 0
    session.continue_lock.release()
    session.report(metrics)


def is_slow_start(error: Exception) -> bool:
    """Whether `ray.init` gave up on a node that was slow to start. Ray raises a bare Exception for it (node.py)."""
    return type(error) is Exception and "timed out during startup" in str(error)
