"""Training methods: a word in a study, its parameters, and a loss of a few lines that names its paper and formula.

A loss sees the logits of some rows, those rows' targets, and the student's own predictions on the whole global batch;
so nothing depends on how the batch was cut into micro-batches or over workers. No torch is imported until a loss is
asked for, so that a study can be checked without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from w2s_ray.fit import Method, Setting

if TYPE_CHECKING:
    import torch


class Naive(BaseModel):
    """Cross-entropy on the labels as they come."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Confidence(BaseModel):
    """The auxiliary confidence loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the student's own hardened predictions after warm-up; the paper takes 0.75 for its largest students."""
    warmup_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of training over which the weight rises linearly (paper); the reference variant has its own, 0.1."""
    variant: Literal["paper", "reference"] = "paper"


PARAMS: dict[str, type[BaseModel]] = {"naive": Naive, "confidence": Confidence}


@dataclass(frozen=True)
class GlobalBatch:
    """What a method may know of all rows of one optimizer step, over micro-batches and workers."""

    probabilities: torch.Tensor
    """The student's own probability of class 1, held fixed (no gradient)."""
    targets: torch.Tensor


Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(logits [rows, 2], targets [rows]) -> loss [rows]; of a completion, (logits [rows, tokens, vocabulary], tokens)."""


@dataclass(frozen=True)
class Objective:
    """A method made ready for one Fit."""

    needs_batch: bool
    """Whether the loss looks at the global batch, which may cost a pass of its own."""
    at: Callable[[float, GlobalBatch | None], Loss]
    """The loss at a point of training (0 at its start, 1 at its end)."""


def objective(method: Method, *, setting: Setting) -> Objective:
    """The objective of a method by its name and parameters. A comparison's logits and labels are of the same form as a
    classification's (the second against the first), so they share their losses."""
    from w2s_ray.methods import confidence, naive

    params: dict[str, Any] = dict(method.params)
    match method.name, setting:
        case "naive", "generation":
            return Objective(needs_batch=False, at=lambda progress, batch: naive.token_loss)
        case "naive", _:
            return Objective(needs_batch=False, at=lambda progress, batch: naive.loss)
        case "confidence", "generation":
            return Objective(needs_batch=False, at=lambda progress, batch: confidence.token_loss(progress, **params))
        case "confidence", _:
            return Objective(needs_batch=True, at=lambda progress, batch: confidence.loss(progress, batch, **params))
    raise ValueError(f"unknown method '{method.name}'")
