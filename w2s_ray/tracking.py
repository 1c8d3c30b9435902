"""Trackers, for those who watch learning curves elsewhere: TensorBoard, MLflow, Weights & Biases.

Promises: one run a Fit, named by its folder and grouped by study, written by rank 0 alone; into local files unless the tracker's
own environment (MLFLOW_TRACKING_URI, WANDB_MODE=online) says otherwise; a Fit that is taken up again goes on in its run.
A tracker never changes a result: one that fails is left with a warning in the log, and the Fit goes on. The store stays the
record; a tracker gets copies.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
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
Log = Callable[[int, Point], None]
"""Take the figures of a step; what is None is left out."""


@dataclass(frozen=True)
class Tracking:
    trackers: tuple[str, ...]
    study: str
    folder: str
    """Where local files go."""


def tracking(names: list[str], *, study: str, folder: Path) -> Tracking | None:
    """What `--track` asks for, checked; None for nothing."""
    for name in names:
        if name not in PACKAGES:
            allowed = ", ".join(PACKAGES)
            raise InputError(f"--track: given '{name}', allowed are {allowed}{nearest(name, PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise InputError(f"--track {name}: {PACKAGES[name]} is not installed; pip install 'w2s_ray[trackers]'")
    return Tracking(tuple(dict.fromkeys(names)), study, str(folder.resolve())) if names else None


@dataclass(frozen=True)
class Run:
    say: Log
    end: Callable[[bool], object]
    """Whether the Fit came to its end."""


@contextmanager
def run_of(fit: Fit, wanted: Tracking | None) -> Iterator[Log]:
    """A run in every tracker that is wanted; what it yields takes the figures."""
    runs: dict[str, Run] = {}

    def attempt(name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # whatever it is, it is the tracker's own problem
            log.warning("%s does not track %s any more: %s", name, fit.folder, error)
            runs.pop(name, None)

    def begin(name: str, wanted: Tracking) -> None:
        runs[name] = BEGIN[name](fit, wanted)

    def say(step: int, point: Point) -> None:
        known = {key: value for key, value in point.items() if value is not None}
        for name, run in list(runs.items()):
            attempt(name, partial(run.say, step, known))

    if wanted:
        for name in wanted.trackers:
            attempt(name, partial(begin, name, wanted))
    ended = False
    try:
        yield say
        ended = True
    finally:
        for name, run in list(runs.items()):
            attempt(name, partial(run.end, ended))


def _facts(fit: Fit) -> dict[str, Any]:
    """What a tracker can sort runs by."""
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


def _tensorboard(fit: Fit, wanted: Tracking) -> Run:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(Path(wanted.folder, "tensorboard", wanted.study, fit.folder)))
    writer.add_text("fit", "\n".join(f"    {name}: {value}" for name, value in _facts(fit).items()))

    def say(step: int, point: Point) -> None:
        for name, value in point.items():
            writer.add_scalar(name, value, global_step=step)
        writer.flush()

    return Run(say, lambda ended: writer.close())


def _mlflow(fit: Fit, wanted: Tracking) -> Run:
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    address = os.environ.get("MLFLOW_TRACKING_URI")
    if address is None:
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # plain files are what many writers can share
        address = Path(wanted.folder, "mlflow").as_uri()
    client = MlflowClient(tracking_uri=address)
    group = client.get_experiment_by_name(wanted.study)
    if group is None:
        try:
            group = client.get_experiment(client.create_experiment(wanted.study))
        except MlflowException:  # another worker was quicker
            group = client.get_experiment_by_name(wanted.study)
    assert group is not None
    known = client.search_runs([group.experiment_id], filter_string=f"tags.w2s_key = '{fit.key}'", max_results=1)
    if known:
        run_id = known[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = client.create_run(group.experiment_id, run_name=fit.folder, tags={"w2s_key": fit.key}).info.run_id
        client.log_batch(run_id, params=[Param(name, str(value)) for name, value in _facts(fit).items()])

    def say(step: int, point: Point) -> None:
        now_ms = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(name, value, now_ms, step) for name, value in point.items()])

    return Run(say, lambda ended: client.set_terminated(run_id, status="FINISHED" if ended else "FAILED"))


def _wandb(fit: Fit, wanted: Tracking) -> Run:
    import wandb

    os.environ.setdefault("WANDB_MODE", "offline")
    folder = Path(wanted.folder, "wandb")
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "w2s"),
        group=wanted.study,
        name=fit.folder,
        id=fit.key[:32],
        resume="allow",
        config=_facts(fit),
        dir=str(folder),
        reinit="create_new",
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True, save_code=False),
    )
    return Run(lambda step, point: run.log(point, step=step), lambda ended: run.finish(exit_code=0 if ended else 1))


BEGIN: dict[str, Callable[[Fit, Tracking], Run]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
