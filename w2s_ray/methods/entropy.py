"""Entropy minimisation (Grandvalet & Bengio 2004): learn the label, and be sure of something.

    L(f) = (1 - a) CE(f(x), f_w(x)) + a H(f(x))

The weight a rises linearly as the confidence loss's does. The gradient flows through H: with the student's own soft
prediction held fixed, as one published code base has it, the second term has no gradient at all, for that of
CE(f, stop(f)) is f - f, and what is left is cross-entropy with a smaller learning rate.
"""

from __future__ import annotations

import torch

from w2s_ray.methods import naive


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """[...] of logits [..., choices]."""
    log_s = torch.log_softmax(logits, dim=-1)
    return -(log_s.exp() * log_s).sum(dim=-1)


def loss(logits: torch.Tensor, targets: torch.Tensor, *, weight: float) -> torch.Tensor:
    return (1 - weight) * naive.loss(logits, targets) + weight * entropy(logits)


def token_loss(logits: torch.Tensor, targets: torch.Tensor, *, weight: float) -> torch.Tensor:
    own = (entropy(logits) * (targets >= 0)).sum(dim=1)
    return (1 - weight) * naive.token_loss(logits, targets) + weight * own
