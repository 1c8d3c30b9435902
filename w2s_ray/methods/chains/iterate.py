"""The student labels rows that it has not seen for a fresh copy of itself, several times over.

With `split: {fresh: n - 1}` each of n rounds has a set of full size: fresh parts, then half B. Without, it learns from 1/n of half
B: then compare with {name: naive, rows: 1/n}, not with naive on the whole half.
"""

from __future__ import annotations

from pydantic import Field

from w2s_ray.methods.losses import WithLoss, default_loss
from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}


class Params(WithLoss):
    """The student labels new rows for a fresh copy of itself: fresh parts and half B (split: {fresh: rounds - 1}), or parts of half
    B, with the control {name: naive, rows: 1/rounds}."""

    rounds: int = Field(default=2, ge=2, le=10)
    """Copies of the student."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    student = pair.chain([pair.strong] * params.rounds, loss=default_loss(params.loss))
    return CellFits(pair.supervisor, student, pair.ceiling)
