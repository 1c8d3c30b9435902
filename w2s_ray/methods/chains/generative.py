"""Generative fine-tuning first (Burns et al. 2023, on reward models): learn to write the task's texts, without labels.

Student, supervisor and ceiling all start from such a warm start, so none has an advantage.
"""

from __future__ import annotations

from pydantic import Field

from w2s_ray.fit import Method
from w2s_ray.methods.losses import WithLoss, default_loss
from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {
    "encoder": "an encoder cannot write text; use a family of decoders",
    "probe": "a probe reads features and writes nothing; use training.tune: all",
    "lora": "a warm start learns all weights and keeps them; use training.tune: all",
}


class Params(WithLoss):
    """Learn to write the task's texts first, without labels: student, supervisor and ceiling alike."""

    epochs: int = Field(default=1, ge=1, le=100)
    """Passes over the texts of half B."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    writing = Method("generative", (("epochs", params.epochs),))
    weak_start, strong_start = (pair.fit(size, "B", method=writing) for size in (pair.weak, pair.strong))
    supervisor = pair.fit(pair.weak, "A", warm_start=weak_start)
    student = pair.student(supervisor, method=default_loss(params.loss), warm_start=strong_start)
    return CellFits(supervisor, student, pair.fit(pair.strong, pair.ladder.ceiling_split, warm_start=strong_start))
