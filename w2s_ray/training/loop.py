"""The training loop of one Fit: batch after batch, with points of the learning curve, reports and checkpoints on the way.

Promises: the same steps in the same order however the batch is cut over workers and micro-batches, and wherever the loop was
interrupted. All ranks evaluate, report and save at the same steps.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import torch

from w2s_ray import methods
from w2s_ray.fit import Fit, Training
from w2s_ray.training.batches import epoch_order
from w2s_ray.training.checkpoint import Checkpoints, Progress
from w2s_ray.training.clock import Clock
from w2s_ray.training.distributed import broadcast
from w2s_ray.training.engine import Engine
from w2s_ray.training.loss import BatchLoss, StepSums
from w2s_ray.training.predict import predict_rows
from w2s_ray.training.rows import PreparedTask
from w2s_ray.training.settings import setting_of
from w2s_ray.training.training_set import TrainingSet
from w2s_ray.training.worker import TrainingFailed, Worker

REPORT_EVERY_S = 2.0

CURVE = pa.schema(
    {
        "step": pa.int32(),
        "epoch": pa.float32(),
        "train_loss": pa.float32(),
        "train_accuracy": pa.float32(),
        "verified_loss": pa.float32(),
        "validation_loss": pa.float32(),
        "validation_accuracy": pa.float32(),
        "test_loss": pa.float32(),
        "test_accuracy": pa.float32(),
    }
)
"""Learning curve. `train_*` are against the Fit's own labels since the last point, `verified_loss` over the rows whose truth is
known (which `train_*` leave out), `validation_*` against its own labels on rows held out, `test_*` against the truth. Null
where there are no such rows."""


@dataclass
class TrainingLoop:
    fit: Fit
    engine: Engine
    training_set: TrainingSet
    task: PreparedTask
    worker: Worker
    checkpoints: Checkpoints
    clock: Clock
    progress: Progress
    """Where to begin; kept up to date."""

    began_s: float = field(init=False)
    num_steps_here: int = 0
    """Steps since this process began, which is later than the Fit did if it was resumed."""
    report_every_steps: int | None = None
    """Known once the pace is."""
    saved_s: float = 0.0
    """Seconds after the beginning at which the last checkpoint was saved."""
    has_saved_to_leave: bool = False
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """With `stop: validation`: the weights of `progress.best_step`, on rank 0."""
    test: pa.Table | None = None
    """Predictions of the test set by the weights that the loop ends with, if the last point of the curve is theirs."""

    def run(self) -> None:
        if self.num_steps == 0:
            return  # an untrained Fit
        self.loss = BatchLoss.of(self.fit, pad_id=self.task.pad_id)
        self.began_s = time.perf_counter()
        if self.progress.best_step is not None:
            self.best_weights = self.checkpoints.best_weights()
        self.engine.train()
        while self.progress.step < self.num_steps:
            with self.clock.phase("train"):
                batch = self.next_batch()
                sums = self.step(batch)
            self.account_for(batch, sums)
            if self.progress.step in self.evaluation_steps:
                with self.clock.phase("eval"):
                    self.evaluate()
            self.report(sums, num_rows=len(batch))
        if self.progress.best_step not in (None, self.progress.step):
            self.engine.set_full_weights(self.best_weights)
            self.test = None

    # --- the schedule -------------------------------------------------------------------------------------------------

    @cached_property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.training_set) / self.fit.training.batch_size)

    @cached_property
    def num_steps(self) -> int:
        return math.ceil(self.steps_per_epoch * num_passes(self.fit))

    @cached_property
    def evaluation_steps(self) -> set[int]:
        """Steps after which the learning curve gets a point. The last step always does."""
        per_epoch = self.fit.training.evals_per_epoch
        num_points = num_epochs(self.fit) * per_epoch
        steps = {round(self.steps_per_epoch * point / per_epoch) for point in range(1, num_points + 1)}
        return {step for step in steps if step < self.num_steps} | {self.num_steps}

    # --- one step -----------------------------------------------------------------------------------------------------

    def next_batch(self) -> TrainingSet:
        """The rows of the next optimizer step, over all ranks. The last batch of an epoch may be smaller."""
        epoch, number = divmod(self.progress.step, self.steps_per_epoch)
        order = epoch_order(len(self.training_set), seed=self.fit.seed, epoch=epoch)
        size = self.fit.training.batch_size
        return self.training_set.take(order[number * size : (number + 1) * size])

    def step(self, batch: TrainingSet) -> StepSums:
        """One optimizer step on a global batch, of which this rank takes its share."""
        step, num_steps = self.progress.step, self.num_steps
        self.engine.set_learning_rate(learning_rate(step, num_steps, training=self.fit.training))
        return self.loss.train_on(batch, self.engine, progress=step / num_steps)

    def account_for(self, batch: TrainingSet, sums: StepSums) -> None:
        progress, num_verified = self.progress, int(batch.verified.sum())
        progress.step += 1
        loss = _mean_loss(sums, len(batch))
        if not math.isfinite(loss):
            raise TrainingFailed("nan", f"the loss is {loss} at step {progress.step} of {self.num_steps}")
        progress.loss_sum += sums.loss
        progress.hits += sums.hits
        progress.num_rows += len(batch) - num_verified
        progress.verified_loss_sum += sums.verified_loss
        progress.num_verified += num_verified

    # --- now and then -------------------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Add a point to the learning curve."""
        progress = self.progress
        num_rows, num_verified = progress.num_rows, progress.num_verified
        point: dict[str, float | None] = {
            "step": progress.step,
            "epoch": progress.step / self.steps_per_epoch,
            "train_loss": progress.loss_sum / num_rows if num_rows else None,
            "train_accuracy": progress.hits / num_rows if num_rows else None,
            "verified_loss": progress.verified_loss_sum / num_verified if num_verified else None,
        }
        test = None if self.fit.role == "start" else self.task.parts["test"]  # a warm start answers nothing yet
        if test is not None and progress.step == self.num_steps:
            self.test = predict_rows(self.engine, self.fit, self.task, test)
        for name, rows, predicted in (("validation", self.training_set.held_out, None), ("test", test, self.test)):
            if rows is not None:
                loss, accuracy = setting_of(self.fit).score(self.engine, rows, self.task, predicted)
                point |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        progress.curve.append(point)
        self.keep_if_best(point.get("validation_accuracy"))
        progress.loss_sum, progress.hits, progress.num_rows = 0.0, 0.0, 0
        progress.verified_loss_sum, progress.num_verified = 0.0, 0
        self.worker.log(progress.step, point)

    def keep_if_best(self, validation_accuracy: float | None) -> None:
        """Remember the weights, if predictions are to be made with those of the best point and this is it so far."""
        if self.fit.training.stop != "validation" or validation_accuracy is None:
            return
        if validation_accuracy > self.progress.best_accuracy:
            self.progress.best_step, self.progress.best_accuracy = self.progress.step, validation_accuracy
            self.best_weights = self.engine.full_weights()

    def report(self, sums: StepSums, *, num_rows: int) -> None:
        """Tell the driver, about every REPORT_EVERY_S, and save a checkpoint if one is due."""
        self.num_steps_here += 1
        elapsed_s = time.perf_counter() - self.began_s
        if self.num_steps_here in (1, 10):  # again at 10, since the first step is slow
            steps_per_report = REPORT_EVERY_S / max(elapsed_s / self.num_steps_here, 1e-4)
            self.report_every_steps = broadcast(max(1, round(steps_per_report)))  # all ranks report at the same steps
        if not self.report_every_steps or self.num_steps_here % self.report_every_steps:
            return
        rows_per_s = self.num_steps_here * self.fit.training.batch_size / elapsed_s
        pace = {"loss": _mean_loss(sums, num_rows), "rows_per_s": rows_per_s}
        place = {"step": self.progress.step, "num_steps": self.num_steps}
        is_leaving = bool(self.worker.report({"event": "step", "key": self.fit.key, **place, **pace}))
        self.worker.log(self.progress.step, pace)
        is_due = broadcast(elapsed_s - self.saved_s >= self.worker.execution.checkpoint_every_s)
        if (is_due or (is_leaving and not self.has_saved_to_leave)) and self.progress.step < self.num_steps:
            self.checkpoint()
            self.has_saved_to_leave = is_leaving

    def checkpoint(self) -> None:
        with self.clock.phase("checkpoint"):
            self.checkpoints.save(self.engine, self.progress, best_weights=self.best_weights)
        self.saved_s = time.perf_counter() - self.began_s


def num_epochs(fit: Fit) -> int:
    if fit.role == "start":
        return int(dict(fit.method.params)["epochs"])
    return 0 if fit.role == "untrained" else fit.training.epochs


def num_passes(fit: Fit) -> float:
    """Passes over the rows: the epochs, or a share of them."""
    return num_epochs(fit) * methods.budget(fit.method).steps


def learning_rate(step: int, num_steps: int, *, training: Training) -> float:
    """Linear warm-up, then constant or half a cosine down to 0. `step` counts from 0."""
    warmup = training.warmup_fraction * num_steps
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    if training.schedule == "constant":
        return training.learning_rate
    progress = (step - warmup) / max(1.0, num_steps - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _mean_loss(sums: StepSums, num_rows: int) -> float:
    return (sums.loss + sums.verified_loss) / num_rows
