"""The confidence window (EleutherAI's w2s): cross-entropy where the student is still undecided, nothing where it is not.

    L(f) = CE(f(x), f_w(x))  1[max f(x) < 1/2 + radius]

The mean is over all rows of the batch, so a batch of which the student is sure moves it little.
"""

from __future__ import annotations

import torch

from w2s_ray.methods import naive


def loss(logits: torch.Tensor, targets: torch.Tensor, *, radius: float) -> torch.Tensor:
    undecided = torch.softmax(logits.detach(), dim=-1).amax(dim=-1) < 0.5 + radius
    return naive.loss(logits, targets) * undecided
