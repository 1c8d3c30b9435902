"""From a global batch to a loss: this rank's micro-batches, and the loss of each of their rows.

A row whose truth is known learns it by plain cross-entropy, whatever the method's loss for the other rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch

from w2s_ray import methods
from w2s_ray.fit import Fit, Method
from w2s_ray.methods.step_context import GlobalBatch, StepContext
from w2s_ray.training.distributed import device, gather_rows, rank, sum_over_ranks, world_size
from w2s_ray.training.engine import Engine
from w2s_ray.training.settings import model_setting_of
from w2s_ray.training.training_set import TrainingSet


@dataclass(frozen=True)
class StepSums:
    """Sums over the rows of a global batch."""

    loss: float
    """Over the rows with labels, without their weights."""
    verified_loss: float
    """Over the rows whose truth is known."""
    hits: float
    """Rows with labels that the model predicts as they are labelled."""


@dataclass(frozen=True)
class MicroBatch:
    """A slice of the global batch for one forward pass of this rank."""

    rows: list[int]
    """Numbers in the global batch. Empty where a pass is made only because every rank must take part (ZeRO-3)."""
    inputs: tuple[Any, ...]
    targets: torch.Tensor
    """[rows, ...]"""


@dataclass(frozen=True)
class BatchLoss:
    """How one Fit turns a global batch into a loss."""

    setting: ModuleType
    objective: methods.Objective
    batch_size: int
    pad_id: int

    @classmethod
    def of(cls, fit: Fit, *, pad_id: int) -> BatchLoss:
        setting = model_setting_of(fit)
        method = Method("naive") if fit.role == "start" else fit.method
        objective = methods.objective(method, of_tokens=setting.TARGETS_ARE_TOKENS)
        return cls(setting, objective, fit.training.batch_size, pad_id)

    def train_on(self, batch: TrainingSet, engine: Engine, *, progress: float) -> StepSums:
        """One optimizer step. `progress`: 0 at the start of training, 1 at its end."""
        if engine.num_micro_batches > 1:
            batch = batch.take(self._by_length(batch, size=engine.micro_batch_size))
        micro_batches = self._micro_batches(batch, engine)
        logits, context = self._look_at_batch(batch, micro_batches, engine, progress=progress)
        weights = torch.from_numpy(batch.weights.astype(np.float32)).to(device())
        is_verified = torch.from_numpy(batch.verified).to(device())
        sums = torch.zeros(3, dtype=torch.float64, device=device())
        for i, micro_batch in enumerate(micro_batches):
            rows, targets = micro_batch.rows, micro_batch.targets
            output = logits[i] if logits else engine(*micro_batch.inputs)
            own, known = output[: len(rows)], is_verified[rows]
            losses = self.objective.loss(own, targets, context)
            if batch.verified[rows].any():
                losses = torch.where(known, self.setting.plain_loss(own, targets), losses)
            # DeepSpeed divides by the number of micro-batches and averages over ranks; the batch's mean is wanted
            scale = engine.num_micro_batches * world_size() / len(batch)
            engine.backward((losses * weights[rows]).sum() * scale + 0.0 * output.sum())
            engine.step()
            losses, hits = losses.detach(), self.setting.hits(own.detach(), targets)
            # stays on the device, since each number that the host asks for makes it wait
            sums += torch.stack([(losses * ~known).sum(), (losses * known).sum(), (hits & ~known).sum()])
        return StepSums(*sum_over_ranks(sums).tolist())

    def _micro_batches(self, batch: TrainingSet, engine: Engine) -> list[MicroBatch]:
        """This rank's share of the batch, in slices. Every rank has as many slices."""
        share, size = self._rows_per_rank, engine.micro_batch_size
        own = range(rank() * share, min((rank() + 1) * share, len(batch)))
        micro_batches = []
        for i in range(engine.num_micro_batches):
            rows = list(own[i * size : (i + 1) * size])
            inputs, targets = self.setting.collate(batch.rows, rows or [0], pad_id=self.pad_id)
            micro_batches.append(MicroBatch(rows, inputs, targets[: len(rows)]))
        return micro_batches

    def _by_length(self, batch: TrainingSet, *, size: int) -> np.ndarray:
        """An order in which the rows that all ranks read at the same time are of similar length, so that little is padding. The
        longest come first: what memory cannot hold shows at once."""
        share = self._rows_per_rank
        places = sorted(range(len(batch)), key=lambda place: (place % share // size, place))
        order = np.empty(len(batch), dtype=np.int64)
        order[places] = np.argsort([-length for length in batch.rows.lengths], kind="stable")
        return order

    @property
    def _rows_per_rank(self) -> int:
        return math.ceil(self.batch_size / world_size())

    def _look_at_batch(
        self, batch: TrainingSet, micro_batches: list[MicroBatch], engine: Engine, *, progress: float
    ) -> tuple[list[torch.Tensor] | None, StepContext]:
        """(logits, if there is one micro-batch in all and they are known now; what the loss may look at)."""
        if not self.objective.needs_global_batch:
            return None, StepContext(progress)
        logits = None
        if world_size() == 1 and len(micro_batches) == 1:
            logits = [engine(*micro_batches[0].inputs)]
            own = [logits[0].detach()]
        else:
            with torch.no_grad():
                own = [engine(*micro_batch.inputs)[: len(micro_batch.rows)] for micro_batch in micro_batches]
        own_probabilities = torch.softmax(torch.cat(own), dim=-1)[:, 1]
        probabilities = gather_rows(own_probabilities, max_rows=self._rows_per_rank)[: len(batch)]
        targets = torch.from_numpy(batch.rows.labels).to(device())
        return logits, StepContext(progress, GlobalBatch(probabilities, targets))
