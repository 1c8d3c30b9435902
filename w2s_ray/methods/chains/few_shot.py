"""No training: some labelled rows of half B stand in the prompt (Burns et al. 2023, on prompting).

How the model is asked is in `methods/untrained.py`. The seed draws the rows and their order.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from w2s_ray.fit import Method
from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.untrained import REFUSES as REFUSES
from w2s_ray.methods.untrained import UntrainedParams


class Params(UntrainedParams):
    """No training: some labelled rows of half B stand in the prompt."""

    shots: int = Field(default=4, ge=1, le=256)
    """Rows in the prompt. In a classification half of them are of each class."""
    labels: Literal["weak", "truth"] = "weak"
    """Whose labels they carry."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    method = Method("few_shot", tuple(sorted(params.model_dump().items())))
    labellers = [pair.supervisor] if params.labels == "weak" else []
    return CellFits(pair.supervisor, pair.student(*labellers, method=method), pair.ceiling)
