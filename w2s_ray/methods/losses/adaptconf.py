"""Adaptive confidence distillation, AdaptConf (Guo et al. 2024, arXiv:2402.03749): each row weighs its two teachers.

    L(f) = (1 - b) CE(f, f_w) + b CE(f, argmax f),    b = e^(CE(f, argmax f) / T) / (e^(CE(f, argmax f) / T) + e^(CE(f, argmax f_w) / T))

The weight b is held fixed. The smaller the temperature T, the harder it decides between the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from w2s_ray.methods.cross_entropy import cross_entropy, greedy_tokens, token_cross_entropy
from w2s_ray.methods.params import MethodParams, Refusals
from w2s_ray.methods.step_context import StepContext

if TYPE_CHECKING:
    import torch

REFUSES: Refusals = {}
NEEDS_GLOBAL_BATCH = False


class Params(MethodParams):
    """Each row weighs the label against the student's own prediction."""

    temperature: float = Field(default=1.0, gt=0, le=100)
    """The smaller, the harder a row decides between its two teachers."""


def loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    own = (logits.detach()[:, 1] > logits.detach()[:, 0]).to(logits.dtype)
    return _mixed(
        cross_entropy(logits, targets),
        cross_entropy(logits, own),
        against_hard=cross_entropy(logits, (targets > 0.5).to(logits.dtype)),
        temperature=params.temperature,
    )


def token_loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    weak = token_cross_entropy(logits, targets)
    own = token_cross_entropy(logits, greedy_tokens(logits, targets))
    return _mixed(weak, own, against_hard=weak, temperature=params.temperature)


def _mixed(weak: torch.Tensor, own: torch.Tensor, *, against_hard: torch.Tensor, temperature: float) -> torch.Tensor:
    import torch

    b = torch.sigmoid((own - against_hard).detach() / temperature)
    return (1 - b) * weak + b * own
