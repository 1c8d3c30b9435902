"""Cross-entropy, from which every loss is built (Burns et al. 2023, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-[p log s1 + (1 - p) log s0] for each row, of logits [rows, 2] and probabilities of class 1 [rows]."""
    import torch

    log_s = torch.log_softmax(logits, dim=-1)
    return -(targets * log_s[:, 1] + (1 - targets) * log_s[:, 0])


def token_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Minus the log-likelihood of each row's completion, of logits [rows, tokens, vocabulary] and tokens [rows, tokens].

    Negative target tokens mark positions that don't count.
    """
    import torch

    log_s = torch.log_softmax(logits, dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return -(log_s * (targets >= 0)).sum(dim=1)


def greedy_tokens(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The student's likeliest token at each position that counts, without gradient: its own hard label."""
    import torch

    return torch.where(targets >= 0, logits.detach().argmax(dim=-1), targets)
