"""No training: what the pretrained strong model answers by itself."""

from __future__ import annotations

from w2s_ray.fit import Method
from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.params import MethodParams, Refusals

REFUSES: Refusals = {
    "encoder": "an encoder cannot answer untrained; use a family of decoders",
    "probe": "a probe reads features and writes nothing; use training.tune: all",
}


class Params(MethodParams):
    """No training: what the pretrained strong model answers by itself."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    student = pair.ladder.fit(pair.strong, "B", method=Method("zero_shot"), seed=0)  # nothing in it is random
    return CellFits(pair.supervisor, student, pair.ceiling)
