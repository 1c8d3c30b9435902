"""Adaptive confidence distillation, AdaptConf (Guo et al. 2024, arXiv:2402.03749): each row weighs its two teachers.

    L(f) = (1 - b) CE(f, f_w) + b CE(f, argmax f),    b = e^(CE(f, argmax f) / T) / (e^(CE(f, argmax f) / T) + e^(CE(f, argmax f_w) / T))

The weight b is held fixed; the smaller the temperature T, the harder it decides between the two.
"""

from __future__ import annotations

import torch

from w2s_ray.methods import naive


def loss(logits: torch.Tensor, targets: torch.Tensor, *, temperature: float) -> torch.Tensor:
    own = (logits.detach()[:, 1] > logits.detach()[:, 0]).to(logits.dtype)
    return _mixed(
        naive.loss(logits, targets),
        naive.loss(logits, own),
        against_hard=naive.loss(logits, (targets > 0.5).to(logits.dtype)),
        temperature=temperature,
    )


def token_loss(logits: torch.Tensor, targets: torch.Tensor, *, temperature: float) -> torch.Tensor:
    own = torch.where(targets >= 0, logits.detach().argmax(dim=-1), targets)
    weak = naive.token_loss(logits, targets)
    return _mixed(weak, naive.token_loss(logits, own), against_hard=weak, temperature=temperature)


def _mixed(weak: torch.Tensor, own: torch.Tensor, *, against_hard: torch.Tensor, temperature: float) -> torch.Tensor:
    b = torch.sigmoid((own - against_hard).detach() / temperature)
    return (1 - b) * weak + b * own
