"""The product of confidences: a label on which student and supervisor agree (in the code published with Burns et al. 2023).

    L(f) = CE(f(x), t),    t(c)  proportional to  f(c)^own_power  f_w(c)^weak_power

The target t is held fixed. Where the two disagree with equal confidence it is 1/2. Where both lean one way it leans
further than either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from w2s_ray.methods.cross_entropy import cross_entropy
from w2s_ray.methods.params import LABELS_ARE_TEXTS, MethodParams, Refusals
from w2s_ray.methods.step_context import StepContext

if TYPE_CHECKING:
    import torch

REFUSES: Refusals = {"generation": f"{LABELS_ARE_TEXTS}, which no product can change"}
NEEDS_GLOBAL_BATCH = False


class Params(MethodParams):
    """Learn the product of the label's confidence and one's own."""

    own_power: float = Field(default=1.0, ge=0, le=10)
    """Exponent of the student's own confidence."""
    weak_power: float = Field(default=1.0, gt=0, le=10)
    """Exponent of the label's confidence."""


def target(logits: torch.Tensor, targets: torch.Tensor, params: Params) -> torch.Tensor:
    import torch

    log_own = torch.log_softmax(logits.detach(), dim=-1)
    log_weak = torch.stack((1 - targets, targets), dim=1).log()  # a hard label stays what it is
    return torch.softmax(params.own_power * log_own + params.weak_power * log_weak, dim=-1)[:, 1]


def loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    return cross_entropy(logits, target(logits, targets, params))
