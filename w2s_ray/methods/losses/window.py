"""The confidence window (EleutherAI's w2s): cross-entropy where the student is still undecided, nothing where it is not.

    L(f) = CE(f(x), f_w(x))  1[max f(x) < 1/2 + radius]

The mean is over all rows of the batch, so a batch of which the student is certain moves it little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from w2s_ray.methods.cross_entropy import cross_entropy
from w2s_ray.methods.params import MethodParams, Refusals
from w2s_ray.methods.step_context import StepContext

if TYPE_CHECKING:
    import torch

REFUSES: Refusals = {"generation": "a window around 1/2 needs two classes, not a vocabulary of words"}
NEEDS_GLOBAL_BATCH = False


class Params(MethodParams):
    """Cross-entropy where the student is undecided, nothing where it is certain."""

    radius: float = Field(default=0.15, gt=0, le=0.5)
    """A student is undecided while its likelier class has less than 1/2 + radius."""


def loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    import torch

    is_undecided = torch.softmax(logits.detach(), dim=-1).amax(dim=-1) < 0.5 + params.radius
    return cross_entropy(logits, targets) * is_undecided
