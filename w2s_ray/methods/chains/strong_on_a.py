"""Control: the strong model on the half that the supervisor learned from, with its truth.

It tells how much of a student's gain comes from the rows of half B rather than from the model.
"""

from __future__ import annotations

from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.params import MethodParams, Refusals

REFUSES: Refusals = {}


class Params(MethodParams):
    """Control: the strong model on the half that the supervisor learned from, with its truth."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    return CellFits(pair.supervisor, pair.ladder.on_truth(pair.strong, "A", seed=pair.seed), pair.ceiling)
