"""Ray Train's trainer with fewer processes: two for a group of workers besides the workers, where Ray starts six and another for
the whole cluster, each of which imports Ray Train. Written for Ray 2.60.

Left out are

- the controller's own process, since the Tune trial does nothing else while it waits for the controller; and the queue between
  the two;
- the manager of datasets, since there are none;
- the process that gives back what a dead controller has reserved. It would run on the head node, one for each group. The desk
  does it for all groups (`desk.py`);
- the actor that asks an autoscaler for the workers' resources. The driver does (`watch.py`), also for packs that are not started
  yet, and each of the two would replace the other's request.

`python benchmarks/startup.py` shows which processes are left, and what each takes until the first Fit.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.train import Result, UserCallback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from w2s_ray.scheduling import ray_internals


class GroupTrainer(DataParallelTrainer):
    """A trainer whose controller runs in the process that calls `fit`."""

    def _create_default_callbacks(self) -> list[Any]:
        left_out = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, left_out)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        async def run() -> Result:
            controller = TrainController(**arguments | {"scaling_policy": FixedSize(self.scaling_config)})
            await controller.run()
            return controller.get_result()

        return asyncio.run(run())


class FixedSize(FixedScalingPolicy):
    """A group of as many workers as were asked for. No autoscaler is told."""

    def _maybe_send_resource_request(self) -> None: ...

    def after_controller_start(self, train_run_context: Any) -> None: ...


class KeepAtDesk(WorkerGroupCallback):
    """Tells the desk what a group has reserved."""

    def __init__(self, desk: Any, group: str) -> None:
        self.desk, self.group = desk, group

    def after_worker_group_start(self, worker_group: Any) -> None:
        handle = worker_group.get_worker_group_state().placement_group_handle
        self.desk.keep.remote(self.group, handle.placement_group)


class ReportToTune(UserCallback):
    """Hands what rank 0 reports to the Tune session of this process, with what all ranks warn of, and whether a failure has made
    Ray Train start the workers again."""

    was_restarted = False

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        texts = [text for event in metrics for text in event.get("warnings", ())]
        ray_internals.report_to_tune(metrics[0] | {"warnings": texts, "was_restarted": self.was_restarted})

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.was_restarted = True
