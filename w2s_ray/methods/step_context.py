"""What a loss may look at besides the logits and targets of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GlobalBatch:
    """All rows of one optimizer step, over all micro-batches and workers.

    A loss that depends on the whole batch takes it from here, so the result does not depend on how the batch was cut.
    """

    probabilities: torch.Tensor
    """The student's own probability of class 1 for each row, without gradient."""
    targets: torch.Tensor


@dataclass(frozen=True)
class StepContext:
    progress: float
    """0 at the start of training, 1 at its end."""
    batch: GlobalBatch | None = None
    """Given to losses with `NEEDS_GLOBAL_BATCH`."""
