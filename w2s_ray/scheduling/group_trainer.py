"""Ray Train's trainer with fewer processes: three for a group of workers where Ray starts seven, each of which imports Ray Train.

Left out are the controller's own process, since the Tune trial does nothing else while it waits for the controller; the queue
between the two; and the manager of datasets, since there are none. On two cores that is a third of the time to a
group's first Fit, and of the CPU time that a group costs before it trains. Written for Ray 2.60.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.train import Result, UserCallback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from w2s_ray.scheduling import ray_internals


class GroupTrainer(DataParallelTrainer):
    """A trainer whose controller runs in the process that calls `fit`."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        async def run() -> Result:
            controller = TrainController(**arguments)
            await controller.run()
            return controller.get_result()

        return asyncio.run(run())


class ReportToTune(UserCallback):
    """Hands what rank 0 reports to the Tune session of this process, with what all ranks warn of, and whether a failure has made
    Ray Train start the workers again."""

    was_restarted = False

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        texts = [text for event in metrics for text in event.get("warnings", ())]
        ray_internals.report_to_tune(metrics[0] | {"warnings": texts, "was_restarted": self.was_restarted})

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.was_restarted = True
