"""Losses: how a student learns from its labels. One file a word.

Each file holds `Params`, `REFUSES` (where the loss makes no sense, and why), `NEEDS_GLOBAL_BATCH`, and the loss of each row:
`loss` of logits [rows, 2] and soft labels, and `token_loss` of logits [rows, tokens, vocabulary] and completions, unless it
refuses generation. A comparison's logits have the form of a classification's, so the two share `loss`.

To add a loss, write its file and add it to the table below.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from w2s_ray.fit import Method
from w2s_ray.methods.losses import adaptconf, confidence, entropy, kl, naive, product, reverse_kl, window
from w2s_ray.methods.params import MethodParams

LOSSES: dict[str, ModuleType] = {
    "naive": naive,
    "kl": kl,
    "reverse_kl": reverse_kl,
    "confidence": confidence,
    "product": product,
    "entropy": entropy,
    "window": window,
    "adaptconf": adaptconf,
}

if TYPE_CHECKING:
    LossWord = str
else:
    LossWord = Literal[tuple(LOSSES)]


class WithLoss(MethodParams):
    """Parameters of a transform or chain, which trains with any loss."""

    loss: LossWord = "naive"
    """Any loss, with its default parameters."""


@cache
def default_loss(word: str) -> Method:
    """A loss with its default parameters."""
    return Method(word, tuple(sorted(LOSSES[word].Params().model_dump().items())))
