"""Cross-entropy on soft labels: -[p log s1 + (1 - p) log s0] (Burns et al. 2023, section 3); for a completion, minus the
log-likelihood of its tokens."""

from __future__ import annotations

import torch


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    log_s = torch.log_softmax(logits, dim=-1)
    return -(targets * log_s[:, 1] + (1 - targets) * log_s[:, 0])


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[rows] of logits [rows, tokens, vocabulary] and tokens [rows, tokens], of which negative ones are passed over."""
    log_s = torch.log_softmax(logits, dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return -(log_s * (targets >= 0)).sum(dim=1)
