"""A group of workers as one Ray Train run, and the Tune function that starts it.

The group works through pack after pack, as the desk hands them out. The Tune function holds no CPU. Ray Train's workers take the
resources, so a trial can't wait for resources that it holds itself. Each run has a name of its own and is never restored: what
it finished is in the store. When Ray announces that a node will be taken away, the training loop learns of it from the return
value of its report. What workers warn of travels with their reports, since their own output stays on their node.
"""

from __future__ import annotations

import logging
import os
import uuid
from typing import Any

from w2s_ray.fit import Execution
from w2s_ray.scheduling.cluster import worker_resources
from w2s_ray.scheduling.desk import Order
from w2s_ray.tracking import Tracking

MAX_WARNINGS, MAX_CHARACTERS = 50, 2000
"""So many warnings, and so much of each, are kept until the next report."""


def run_group(config: dict[str, Any], *, desk: Any, store_uri: str, ray_uri: str, tracking: Tracking | None) -> None:
    """The Tune trainable: a group of workers of one shape, from its first pack until the desk sends it away."""
    import ray.train

    from w2s_ray.scheduling.group_trainer import GroupTrainer, KeepAtDesk, ReportToTune
    from w2s_ray.scheduling.process_group import ProcessGroupConfig

    execution: Execution = config["execution"]
    trainer = GroupTrainer(
        work,
        train_loop_config={**config, "desk": desk, "store_uri": store_uri, "tracking": tracking},
        backend_config=ProcessGroupConfig(backend="nccl" if execution.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=execution.workers,
            use_gpu=execution.gpus_per_worker > 0,
            resources_per_worker=worker_resources(execution),
        ),
        run_config=ray.train.RunConfig(
            name=f"workers-{uuid.uuid4().hex[:8]}",
            storage_path=ray_uri,
            callbacks=[ReportToTune(), KeepAtDesk(desk, config["group"])],
            failure_config=ray.train.FailureConfig(max_failures=1),
        ),
    )
    trainer.fit()


def work(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs: pack after pack, and the Fits of each in order."""
    import ray
    import ray.train

    from w2s_ray.training.distributed import use_gpu
    from w2s_ray.training.pack import run_pack

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    warned = Warned()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    execution: Execution = config["execution"]
    if execution.gpus_per_worker:
        from ray.train.torch import get_device

        use_gpu(get_device().index)

    def report(event: dict[str, Any]) -> bool:
        """Report to the driver. True if this node will be taken away soon."""
        ray.train.report(event | {"warnings": warned.take()})
        return ray.train.get_preemption_info() is not None

    group, desk = config["group"], config["desk"]
    order: Order | None = ray.get(desk.take.remote(group))
    with warned:
        while order is not None:
            run_pack(
                list(order.pack.fits),
                store_uri=config["store_uri"],
                execution=execution,
                report=report,
                lease=order.lease,
                tracking=config["tracking"],
            )
            report({"event": "end", "key": order.pack.fits[-1].key})
            order = ray.get(desk.take.remote(group, after=order.pack.name))


class Warned(logging.Handler):
    """Keeps what any library in this process warns of, until it is taken."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self.texts: list[str] = []

    def __enter__(self) -> Warned:
        logging.captureWarnings(True)
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
        logging.captureWarnings(False)

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record).strip()[:MAX_CHARACTERS]
        if text not in self.texts and len(self.texts) < MAX_WARNINGS:
            self.texts.append(text)

    def take(self) -> list[str]:
        texts, self.texts = self.texts, []
        return texts
