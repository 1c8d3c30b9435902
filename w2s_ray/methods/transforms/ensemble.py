"""Labels of several supervisors together.

Probabilities are averaged. Of completions, the one with the most votes wins (`mean`), or the one with the most probability
behind it (`confident`); its share of the votes is its confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from w2s_ray.fit import Fit
from w2s_ray.methods.labels import Labels, LabelSources, from_completions, from_probabilities
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.pair import Pair
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}
NEEDS_FEATURES = False
MEMBER_SEEDS = 1000
"""Distance of the members' training seeds, so that the cells of different seeds share no member but the supervisor."""


class Params(WithLoss):
    """Labels of several supervisors together."""

    members: Literal["seeds", "sizes"] = "seeds"
    """`seeds`: the weak model under this many training seeds on the cell's half A. `sizes`: every size up to the weak one."""
    num_seeds: int = Field(default=3, ge=2, le=64)
    """Number of `seeds`."""
    how: Literal["mean", "confident", "agreeing"] = "mean"
    """Mean; mean weighted by confidence; or the mean where all agree, and no label elsewhere."""


def supervisors(pair: Pair, params: Params) -> tuple[Fit, ...]:
    """The Fits that label for the student."""
    if params.members == "seeds":
        seeds = (pair.seed + MEMBER_SEEDS * number for number in range(params.num_seeds))
        return tuple(pair.ladder.on_truth(pair.weak, "A", seed=seed) for seed in seeds)
    sizes = pair.ladder.sizes[: pair.ladder.sizes.index(pair.weak) + 1]
    return tuple(pair.ladder.on_truth(size, "A", seed=pair.seed) for size in sizes)


def transform(sources: LabelSources, params: Params) -> Labels:
    combine = _elect if sources.weak.are_texts else _average
    labels, all_agree = combine(sources.supervisors, is_weighted=params.how == "confident")
    return replace(labels, weight=all_agree.astype(float)) if params.how == "agreeing" else labels


def _average(members: Sequence[Labels], *, is_weighted: bool) -> tuple[Labels, np.ndarray]:
    values = np.stack([labels.values for labels in members])
    weights = np.stack([labels.confidence for labels in members]) + 1e-6 if is_weighted else np.ones_like(values)
    all_agree = np.logical_or((values > 0.5).all(axis=0), (values <= 0.5).all(axis=0))
    return from_probabilities((values * weights).sum(axis=0) / weights.sum(axis=0)), all_agree


def _elect(members: Sequence[Labels], *, is_weighted: bool) -> tuple[Labels, np.ndarray]:
    winners, shares, all_agree = [], [], []
    for row in range(len(members[0].values)):
        votes: dict[str, float] = {}
        for labels in members:
            vote = labels.confidence[row] if is_weighted else 1.0
            votes[labels.values[row]] = votes.get(labels.values[row], 0.0) + vote
        winner = max(sorted(votes), key=lambda completion: votes[completion])
        winners.append(winner)
        shares.append(votes[winner] / max(sum(votes.values()), 1e-12))
        all_agree.append(len(votes) == 1)
    return from_completions(winners, np.array(shares)), np.array(all_agree)
