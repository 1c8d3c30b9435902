"""The product of confidences: the label that student and supervisor agree on (as in the code published with Burns et al.
2023).

    L(f) = CE(f(x), t),    t(c)  proportional to  f(c)^own_power  f_w(c)^weak_power

The target t is held fixed. Where the two disagree with equal confidence it is 1/2; where both lean one way it leans
further than either.
"""

from __future__ import annotations

import torch

from w2s_ray.methods import naive


def target(logits: torch.Tensor, targets: torch.Tensor, *, own_power: float, weak_power: float) -> torch.Tensor:
    log_own = torch.log_softmax(logits.detach(), dim=-1)
    log_weak = torch.stack((1 - targets, targets), dim=1).log()  # a hard label stays what it is
    return torch.softmax(own_power * log_own + weak_power * log_weak, dim=-1)[:, 1]


def loss(logits: torch.Tensor, targets: torch.Tensor, *, own_power: float, weak_power: float) -> torch.Tensor:
    return naive.loss(logits, target(logits, targets, own_power=own_power, weak_power=weak_power))
