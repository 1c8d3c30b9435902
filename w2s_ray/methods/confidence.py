"""The auxiliary confidence loss (Burns et al. 2023, section 4.3 and appendix A.4).

    L(f) = (1 - a) CE(f(x), f_w(x)) + a CE(f(x), 1[f(x) > t])

The student's own hardened predictions are held fixed. Paper: a rises linearly from 0 to its maximum over the first fifth
of training, and t is such that exactly half of the global batch lies above it. Reference (the code published with the
paper): a is maximum x progress until a tenth of training and then jumps to the maximum, and t is such that the share of
predicted ones equals the mean of the weak labels.

For completions the hardened prediction is the likeliest token at each position after the weak label's ones before it;
with many words to choose from there is no threshold to set, so the variants differ by their warm-up alone.
"""

from __future__ import annotations

import torch

from w2s_ray.methods import GlobalBatch, Loss, naive

REFERENCE_WARMUP = 0.1


def weight(progress: float, *, max_weight: float, warmup_fraction: float, variant: str) -> float:
    """a, at a point of training between 0 and 1."""
    if variant == "reference":
        return max_weight * (1.0 if progress > REFERENCE_WARMUP else progress)
    return max_weight * min(1.0, progress / warmup_fraction)


def threshold(batch: GlobalBatch, *, variant: str) -> torch.Tensor:
    """t: the median of the student's predictions, or their quantile at the weak labels' prior."""
    share_of_zeros = 0.5 if variant == "paper" else float(1 - batch.targets.mean())
    return torch.quantile(batch.probabilities, share_of_zeros)


def loss(
    progress: float, batch: GlobalBatch | None, *, max_weight: float, warmup_fraction: float, variant: str
) -> Loss:
    assert batch is not None
    a = weight(progress, max_weight=max_weight, warmup_fraction=warmup_fraction, variant=variant)
    t = threshold(batch, variant=variant)

    def rows(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        own = (torch.softmax(logits.detach(), dim=-1)[:, 1] > t).to(logits.dtype)
        return (1 - a) * naive.loss(logits, targets) + a * naive.loss(logits, own)

    return rows


def token_loss(progress: float, *, max_weight: float, warmup_fraction: float, variant: str) -> Loss:
    a = weight(progress, max_weight=max_weight, warmup_fraction=warmup_fraction, variant=variant)

    def rows(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        own = torch.where(targets >= 0, logits.detach().argmax(dim=-1), targets)
        return (1 - a) * naive.token_loss(logits, targets) + a * naive.token_loss(logits, own)

    return rows
