"""No training: what the pretrained strong model answers by itself. How it is asked is in `methods/untrained.py`."""

from __future__ import annotations

from dataclasses import replace

from w2s_ray.fit import Fit, Method
from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.untrained import REFUSES as REFUSES
from w2s_ray.methods.untrained import UntrainedParams


class Params(UntrainedParams):
    """No training: what the pretrained strong model answers by itself."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    return CellFits(pair.supervisor, fit_of(pair, params), pair.ceiling)


def fit_of(pair: Pair, params: Params = Params()) -> Fit:  # noqa: B008 - frozen
    """The untrained strong model, which is one Fit for all replicates: nothing in it is random."""
    method = Method("zero_shot", tuple(sorted(params.model_dump().items())))
    return replace(pair.ladder.fit(pair.strong, "B", method=method, seed=0), data=pair.ladder.common_data)
