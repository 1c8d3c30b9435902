"""The student labels the next part of half B for a fresh copy of itself, several times over.

Each of n rounds learns from 1/n of half B. Compare with {name: naive, rows: 1/n}, not with naive on the whole half.
"""

from __future__ import annotations

from pydantic import Field

from w2s_ray.methods.losses import WithLoss, default_loss
from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}


class Params(WithLoss):
    """The student labels the next part of half B for a fresh copy of itself. Its control is {name: naive, rows: 1/rounds}."""

    rounds: int = Field(default=2, ge=2, le=10)
    """Parts of half B, and so copies of the student."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    student = pair.chain([pair.strong] * params.rounds, loss=default_loss(params.loss))
    return CellFits(pair.supervisor, student, pair.ceiling)
