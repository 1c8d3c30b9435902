"""Cross-entropy on soft labels: -[p log s1 + (1 - p) log s0] (Burns et al. 2023, section 3)."""

from __future__ import annotations

import torch


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    log_s = torch.log_softmax(logits, dim=-1)
    return -(targets * log_s[:, 1] + (1 - targets) * log_s[:, 0])
