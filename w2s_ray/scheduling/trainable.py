"""One pack as one Ray Train run, and the Tune function that starts it.

The Tune function holds no CPU: Ray Train's workers take the resources, so that a slot can't deadlock against itself.
Each run has a name of its own and is never restored: what it finished is in the store, where the next one looks. A notice
that a node will be taken away reaches the training loop through what a report answers.
"""

from __future__ import annotations

import logging
import os
import uuid
from typing import Any

from w2s_ray.scheduling.cluster import worker_resources
from w2s_ray.scheduling.packs import Pack
from w2s_ray.tracking import Tracking


def train_pack(config: dict[str, Any], *, store_uri: str, ray_uri: str, tracking: Tracking | None) -> None:
    """Tune trainable: run one pack to its end on Ray Train."""
    import ray.train
    from ray.train._internal.session import get_session
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    # Tune's session (Ray 2.60) has one place for a result. When this function ends while Tune is busy, its end takes that
    # place, and the thread that should clear it waits to put the last report there first: neither ever goes on.
    get_session().result_queue.maxsize = 0
    pack: Pack = config["pack"]
    execution = pack.execution
    trainer = TorchTrainer(
        work,
        train_loop_config={"pack": pack, "lease": config["lease"], "store_uri": store_uri, "tracking": tracking},
        torch_config=TorchConfig(backend="nccl" if execution.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=execution.workers,
            use_gpu=execution.gpus_per_worker > 0,
            resources_per_worker=worker_resources(execution),
        ),
        run_config=ray.train.RunConfig(
            name=f"{pack.name}-{uuid.uuid4().hex[:8]}",
            storage_path=ray_uri,
            callbacks=[TuneReportCallback()],
            failure_config=ray.train.FailureConfig(max_failures=1),
        ),
    )
    trainer.fit()


def work(config: dict[str, Any]) -> None:
    """What each Ray Train worker does: the pack's Fits in order."""
    import ray.train

    from w2s_ray.training.pack import run_pack

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pack: Pack = config["pack"]

    def report(event: dict[str, Any]) -> bool:
        ray.train.report(event)
        return ray.train.get_preemption_info() is not None

    run_pack(
        list(pack.fits),
        store_uri=config["store_uri"],
        execution=pack.execution,
        report=report,
        lease=config["lease"],
        tracking=config["tracking"],
    )
