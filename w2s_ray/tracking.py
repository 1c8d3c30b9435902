"""Copies of the learning curves in TensorBoard, MLflow or Weights & Biases, for those who watch them there.

Promises:

- Each Fit is one run, named after its folder and grouped by study. A Fit that resumes continues its run.
- Rank 0 alone writes. Everything goes into local files, unless the tracker's own environment variables
  (MLFLOW_TRACKING_URI, WANDB_MODE=online) say otherwise.
- A tracker never changes a result. If one fails, a warning goes into the log, and the Fit continues without it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from w2s_ray.errors import InputError, nearest
from w2s_ray.fit import Fit, describe

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}

log = logging.getLogger(__name__)
Point = Mapping[str, float | None]
"""Name of a metric -> its value; None leaves the metric out."""
Log = Callable[[int, Point], None]
"""Takes a step and its metrics."""


@dataclass(frozen=True)
class Tracking:
    trackers: tuple[str, ...]
    study: str
    folder: str
    """Of the trackers' local files."""


def tracking(names: Sequence[str], *, study: str, folder: Path) -> Tracking | None:
    """The trackers that `--track` names, after a check that each is known and installed. None if it names none."""
    for name in names:
        if name not in PACKAGES:
            allowed = ", ".join(PACKAGES)
            raise InputError(f"--track: given '{name}', allowed are {allowed}{nearest(name, PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise InputError(f"--track {name}: {PACKAGES[name]} is not installed; pip install 'w2s_ray[trackers]'")
    return Tracking(tuple(dict.fromkeys(names)), study, str(folder.resolve())) if names else None


@dataclass(frozen=True)
class Run:
    """A Fit's run in one tracker."""

    log: Log
    end: Callable[[bool], object]
    """Takes whether the Fit was completed."""


@contextmanager
def run_of(fit: Fit, tracking: Tracking | None) -> Iterator[Log]:
    """Open a run of this Fit in every tracker. Yields a function that logs to all of them."""
    runs: dict[str, Run] = {}

    def attempt(name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a tracker's failure of any kind must not reach the Fit
            log.warning("%s does not track %s any more: %s", name, fit.folder, error)
            runs.pop(name, None)

    def begin(name: str, tracking: Tracking) -> None:
        runs[name] = BEGIN[name](fit, tracking)

    def log_to_all(step: int, point: Point) -> None:
        metrics = {key: value for key, value in point.items() if value is not None}
        for name, run in list(runs.items()):
            attempt(name, partial(run.log, step, metrics))

    if tracking:
        for name in tracking.trackers:
            attempt(name, partial(begin, name, tracking))
    completed = False
    try:
        yield log_to_all
        completed = True
    finally:
        for name, run in list(runs.items()):
            attempt(name, partial(run.end, completed))


def _facts(fit: Fit) -> dict[str, Any]:
    """Parameters by which a tracker can filter and sort runs."""
    return {
        "key": fit.key,
        "role": fit.role,
        "task": fit.data.task,
        "setting": fit.data.setting,
        "model": fit.model.name,
        "params": fit.model.num_params,
        "half": fit.half,
        "method": fit.method.name,
        "seed": fit.seed,
        **{f"training.{name}": value for name, value in describe(fit)["identity"]["training"].items()},
    }


def _tensorboard(fit: Fit, tracking: Tracking) -> Run:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(Path(tracking.folder, "tensorboard", tracking.study, fit.folder)))
    writer.add_text("fit", "\n".join(f"    {name}: {value}" for name, value in _facts(fit).items()))

    def log_point(step: int, point: Point) -> None:
        for name, value in point.items():
            writer.add_scalar(name, value, global_step=step)
        writer.flush()

    return Run(log_point, lambda completed: writer.close())


def _mlflow(fit: Fit, tracking: Tracking) -> Run:
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = (
            "true"  # several workers can write to plain files, but not to its database
        )
        uri = Path(tracking.folder, "mlflow").as_uri()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(tracking.study)
    if experiment is None:
        try:
            experiment = client.get_experiment(client.create_experiment(tracking.study))
        except MlflowException:  # another worker has just created it
            experiment = client.get_experiment_by_name(tracking.study)
    assert experiment is not None
    earlier = client.search_runs([experiment.experiment_id], filter_string=f"tags.w2s_key = '{fit.key}'", max_results=1)
    if earlier:
        run_id = earlier[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = client.create_run(experiment.experiment_id, run_name=fit.folder, tags={"w2s_key": fit.key}).info.run_id
        client.log_batch(run_id, params=[Param(name, str(value)) for name, value in _facts(fit).items()])

    def log_point(step: int, point: Point) -> None:
        now_ms = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(name, value, now_ms, step) for name, value in point.items()])

    return Run(log_point, lambda completed: client.set_terminated(run_id, status="FINISHED" if completed else "FAILED"))


def _wandb(fit: Fit, tracking: Tracking) -> Run:
    import wandb

    os.environ.setdefault("WANDB_MODE", "offline")
    folder = Path(tracking.folder, "wandb")
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "w2s"),
        group=tracking.study,
        name=fit.folder,
        id=fit.key[:32],
        resume="allow",
        config=_facts(fit),
        dir=str(folder),
        reinit="create_new",
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True, save_code=False),
    )
    return Run(
        lambda step, point: run.log(point, step=step), lambda completed: run.finish(exit_code=0 if completed else 1)
    )


BEGIN: dict[str, Callable[[Fit, Tracking], Run]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
