"""Kullback-Leibler divergence from the student s to the weak label p, which seeks the label's mode (arXiv:2502.11107).

    KL(s || p) = sum s log(s / p)

Contradicting a label of exactly 0 or 1 would cost infinitely much, so labels are kept at least `floor` away from both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from w2s_ray.methods.params import LABELS_ARE_TEXTS, MethodParams, Refusals
from w2s_ray.methods.step_context import StepContext

if TYPE_CHECKING:
    import torch

REFUSES: Refusals = {"generation": f"{LABELS_ARE_TEXTS}; for these the divergence is infinite"}
NEEDS_GLOBAL_BATCH = False


class Params(MethodParams):
    """Kullback-Leibler divergence from the student to the label, which seeks the label's mode."""

    floor: float = Field(default=0.01, gt=0, lt=0.5)
    """Labels are kept at least this far from 0 and 1, where the divergence is infinite."""


def loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    import torch

    log_s = torch.log_softmax(logits, dim=-1)
    bounded = targets.clamp(params.floor, 1 - params.floor)
    log_p = torch.stack((1 - bounded, bounded), dim=1).log()
    return (log_s.exp() * (log_s - log_p)).sum(dim=1)
