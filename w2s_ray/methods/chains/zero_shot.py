"""No training: what the pretrained strong model answers by itself."""

from __future__ import annotations

from dataclasses import replace

from w2s_ray.fit import Fit, Method
from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.params import MethodParams, Refusals

REFUSES: Refusals = {
    "encoder": "an encoder cannot answer untrained; use a family of decoders",
    "probe": "a probe reads features and writes nothing; use training.tune: all",
}


class Params(MethodParams):
    """No training: what the pretrained strong model answers by itself."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    return CellFits(pair.supervisor, fit_of(pair), pair.ceiling)


def fit_of(pair: Pair) -> Fit:
    """The untrained strong model, which is one Fit for all replicates: nothing in it is random."""
    return replace(pair.ladder.fit(pair.strong, "B", method=Method("zero_shot"), seed=0), data=pair.ladder.common_data)
