"""Kullback-Leibler divergences between weak label p and student s, either way round.

    KL(p || s) = sum p log(p / s)        forward: cross-entropy less the label's own entropy, so the same gradient
    KL(s || p) = sum s log(s / p)        reverse: seeks the label's mode (arXiv:2502.11107)

In the reverse form a label of 0 or 1 would cost infinitely much to doubt, so labels are kept `floor` away from both.
"""

from __future__ import annotations

import torch

from w2s_ray.methods import naive


def forward(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    entropy = -torch.xlogy(targets, targets) - torch.xlogy(1 - targets, 1 - targets)
    return naive.loss(logits, targets) - entropy


def reverse(logits: torch.Tensor, targets: torch.Tensor, *, floor: float) -> torch.Tensor:
    log_s = torch.log_softmax(logits, dim=-1)
    kept = targets.clamp(floor, 1 - floor)
    log_p = torch.stack((1 - kept, kept), dim=1).log()
    return (log_s.exp() * (log_s - log_p)).sum(dim=1)
