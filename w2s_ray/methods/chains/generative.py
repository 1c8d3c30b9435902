"""Generative fine-tuning first (Burns et al. 2023, on reward models): learn to write the task's texts, without labels.

Student and ceiling start from such a warm start. In the paper the supervisor is a plain one (`supervisor: plain`); by default it
has a warm start too, so that none has an advantage.
"""

from __future__ import annotations

from typing import Literal

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
    """Learn to write the task's texts first, without labels: student, ceiling and, unless it is plain, supervisor."""

    epochs: int = Field(default=1, ge=1, le=100)
    """Passes over the texts of half B."""
    supervisor: Literal["generative", "plain"] = "generative"
    """Whether the supervisor starts from a warm start, too. The paper's is plain."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    writing = Method("generative", (("epochs", params.epochs),))
    supervisor, strong_start = pair.supervisor, pair.fit(pair.strong, "B", method=writing)
    if params.supervisor == "generative":
        supervisor = pair.fit(pair.weak, "A", warm_start=pair.fit(pair.weak, "B", method=writing))
    student = pair.student(supervisor, method=default_loss(params.loss), warm_start=strong_start)
    return CellFits(supervisor, student, pair.fit(pair.strong, pair.ladder.ceiling_split, warm_start=strong_start))
