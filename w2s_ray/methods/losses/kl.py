"""Kullback-Leibler divergence from the weak label p to the student s.

    KL(p || s) = sum p log(p / s)

This is cross-entropy less the label's own entropy, so its gradient is that of the naive loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from w2s_ray.methods.cross_entropy import cross_entropy
from w2s_ray.methods.params import LABELS_ARE_TEXTS, MethodParams, Refusals
from w2s_ray.methods.step_context import StepContext

if TYPE_CHECKING:
    import torch

REFUSES: Refusals = {"generation": f"{LABELS_ARE_TEXTS}; for these the divergence equals the naive loss"}
NEEDS_GLOBAL_BATCH = False


class Params(MethodParams):
    """Kullback-Leibler divergence from the label to the student. Its gradient is that of naive."""


def loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    import torch

    entropy = -torch.xlogy(targets, targets) - torch.xlogy(1 - targets, 1 - targets)
    return cross_entropy(logits, targets) - entropy
