"""No training: some labelled rows of half B stand in the prompt (Burns et al. 2023, on prompting)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from w2s_ray.fit import Method
from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.params import MethodParams, Refusals

REFUSES: Refusals = {
    "encoder": "an encoder cannot answer untrained; use a family of decoders",
    "probe": "a probe reads features and writes nothing; use training.tune: all",
}


class Params(MethodParams):
    """No training: some labelled rows of half B stand in the prompt."""

    shots: int = Field(default=4, ge=1, le=256)
    """Rows in the prompt."""
    labels: Literal["weak", "truth"] = "weak"
    """Whose labels they carry."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    method = Method("few_shot", tuple(sorted(params.model_dump().items())))
    labellers = [pair.supervisor] if params.labels == "weak" else []
    return CellFits(pair.supervisor, pair.student(*labellers, method=method), pair.ceiling)
