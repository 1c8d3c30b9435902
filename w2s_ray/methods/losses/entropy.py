"""Entropy minimisation (Grandvalet & Bengio 2004): learn the label, and be certain of something.

    L(f) = (1 - a) CE(f(x), f_w(x)) + a H(f(x))

The weight a rises linearly, as that of the confidence loss does. The gradient flows through H. One published code base holds
the student's own soft prediction fixed instead; then the second term has no gradient at all, since that of CE(f, stop(f)) is
f - f, and what is left is cross-entropy with a smaller learning rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from w2s_ray.methods.cross_entropy import cross_entropy, token_cross_entropy
from w2s_ray.methods.params import Refusals
from w2s_ray.methods.step_context import StepContext
from w2s_ray.methods.warmup import WarmupParams, linear_weight

if TYPE_CHECKING:
    import torch

REFUSES: Refusals = {}
NEEDS_GLOBAL_BATCH = False


class Params(WarmupParams):
    """Learn the label, and be certain of something (entropy minimisation)."""


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """[...] of logits [..., choices]."""
    import torch

    log_s = torch.log_softmax(logits, dim=-1)
    return -(log_s.exp() * log_s).sum(dim=-1)


def loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    a = linear_weight(context.progress, params)
    return (1 - a) * cross_entropy(logits, targets) + a * entropy(logits)


def token_loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    a = linear_weight(context.progress, params)
    return (1 - a) * token_cross_entropy(logits, targets) + a * (entropy(logits) * (targets >= 0)).sum(dim=1)
