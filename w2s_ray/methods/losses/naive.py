"""Cross-entropy on the labels as they come (Burns et al. 2023, section 3).

L(f) = CE(f(x), f_w(x))

Other methods learn from fewer rows, or take fewer steps, than a naive student with its whole half B. `rows` and `steps` make a
naive student on the same budget, as a control for them:

    {name: bootstrap}, {name: iterate, rounds: 2}    {name: naive, rows: 0.5} for two steps, whose last one sees these very rows
    {name: filter, keep: 0.5}                        {name: naive, rows: 0.5}, as many rows and steps
                                                     {name: naive, steps: 0.5}, as many steps over all rows
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from w2s_ray.methods.cross_entropy import cross_entropy, token_cross_entropy
from w2s_ray.methods.params import MethodParams, Refusals
from w2s_ray.methods.step_context import StepContext

if TYPE_CHECKING:
    import torch

REFUSES: Refusals = {}
NEEDS_GLOBAL_BATCH = False


class Params(MethodParams):
    """Cross-entropy on the labels as they come. `rows` and `steps` match the budget of chains and filters, as a control."""

    rows: float = Field(default=1.0, gt=0, le=1)
    """Share of half B to learn from, in whole groups. 1/n are the rows that the last of n steps of a chain sees."""
    steps: float = Field(default=1.0, gt=0, le=1)
    """Share of the optimizer steps to take. The schedule of the learning rate is shortened with them."""


def loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    return cross_entropy(logits, targets)


def token_loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    return token_cross_entropy(logits, targets)
