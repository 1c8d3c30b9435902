"""Labels handed up a chain of sizes (Burns et al. 2023, section 4.3.1): weak -> middle -> ... -> strong.

Each size learns from the one before it, on rows that no other step sees. With `split: {fresh: n - 1}` these are a fresh part for
each of the first n - 1 steps, and half B for the last, as in the paper. Without, each of n steps learns from 1/n of half B: then
compare with {name: naive, rows: 1/n}, not with naive on the whole half.
"""

from __future__ import annotations

from typing import Literal

from w2s_ray.methods.losses import WithLoss, default_loss
from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}


class Params(WithLoss):
    """Labels handed up a chain of sizes, each step on rows of its own: fresh parts and half B (split: {fresh: steps - 1}), or 1/n
    of half B for each of n steps, whose control is {name: naive, rows: 1/n}."""

    through: Literal["auto"] | tuple[str, ...] = "auto"
    """Sizes between the weak and the strong one. `auto` takes all that the grid has."""


def cell_fits(pair: Pair, params: Params) -> CellFits:
    sizes = pair.ladder.sizes
    between = sizes[sizes.index(pair.weak) + 1 : sizes.index(pair.strong)]
    steps = [size for size in between if params.through == "auto" or size in params.through]
    student = pair.chain([*steps, pair.strong], loss=default_loss(params.loss))
    return CellFits(pair.supervisor, student, pair.ceiling)
