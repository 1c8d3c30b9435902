"""Cross-entropy on the labels as they come (Burns et al. 2023, section 3).

L(f) = CE(f(x), f_w(x))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from w2s_ray.methods.cross_entropy import cross_entropy, token_cross_entropy
from w2s_ray.methods.params import MethodParams, Refusals
from w2s_ray.methods.step_context import StepContext

if TYPE_CHECKING:
    import torch

REFUSES: Refusals = {}
NEEDS_GLOBAL_BATCH = False


class Params(MethodParams):
    """Cross-entropy on the labels as they come."""


def loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    return cross_entropy(logits, targets)


def token_loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    return token_cross_entropy(logits, targets)
