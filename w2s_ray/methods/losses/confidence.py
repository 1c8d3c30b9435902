"""The auxiliary confidence loss (Burns et al. 2023, section 4.3 and appendix A.4).

    L(f) = (1 - a) CE(f(x), f_w(x)) + a CE(f(x), 1[f(x) > t])

The student's own hardened predictions are held fixed. Two variants:

- `paper`: a rises linearly from 0 to its maximum over the first fifth of training. The threshold t is the median of the
  student's predictions, so that half of the global batch lies above it.
- `reference` (the code published with the paper): a is maximum x progress until a tenth of training, then jumps to the
  maximum. The threshold is such that the share of predicted ones equals the mean of the weak labels.

For completions the hardened prediction is the likeliest token at each position, given the weak label's tokens before it.
A vocabulary has no threshold, so for completions the variants differ only in their warm-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from w2s_ray.methods.cross_entropy import cross_entropy, greedy_tokens, token_cross_entropy
from w2s_ray.methods.params import Refusals
from w2s_ray.methods.step_context import GlobalBatch, StepContext
from w2s_ray.methods.warmup import WarmupParams, linear_weight

if TYPE_CHECKING:
    import torch

REFUSES: Refusals = {}
NEEDS_GLOBAL_BATCH = True
REFERENCE_WARMUP = 0.1


class Params(WarmupParams):
    """The auxiliary confidence loss: learn the label, and one's own hardened predictions."""

    variant: Literal["paper", "reference"] = "paper"
    """Warm-up and threshold of the paper, or of the code that was published with it."""


def weight(progress: float, params: Params) -> float:
    """a, at a point of training between 0 and 1."""
    if params.variant == "reference":
        return params.max_weight * (1.0 if progress > REFERENCE_WARMUP else progress)
    return linear_weight(progress, params)


def threshold(batch: GlobalBatch, *, variant: str) -> torch.Tensor:
    """t: the median of the student's predictions, or their quantile at the weak labels' prior."""
    import torch

    share_of_zeros = 0.5 if variant == "paper" else float(1 - batch.targets.mean())
    return torch.quantile(batch.probabilities, share_of_zeros)


def loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    import torch

    assert context.batch is not None
    a, t = weight(context.progress, params), threshold(context.batch, variant=params.variant)
    own = (torch.softmax(logits.detach(), dim=-1)[:, 1] > t).to(logits.dtype)
    return (1 - a) * cross_entropy(logits, targets) + a * cross_entropy(logits, own)


def token_loss(logits: torch.Tensor, targets: torch.Tensor, params: Params, context: StepContext) -> torch.Tensor:
    a, own = weight(context.progress, params), greedy_tokens(logits, targets)
    return (1 - a) * token_cross_entropy(logits, targets) + a * token_cross_entropy(logits, own)
