"""Labels smoothed over the student's own pretrained features (EleutherAI's w2s).

The label of each row becomes what its features suggest: the mean label of the nearest rows, or the prediction of a probe that
was fitted to the other rows (`feature_opinion.py`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from w2s_ray.methods.feature_opinion import feature_opinion
from w2s_ray.methods.labels import Labels, LabelSources, from_probabilities
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {"generation": "features are compared between two classes, not between written texts"}
NEEDS_FEATURES = True


class Params(WithLoss):
    """Labels smoothed over the student's own pretrained features."""

    how: Literal["knn", "logistic"] = "knn"
    """The mean label of the nearest rows, or a probe that was fitted to the other rows."""
    neighbours: int = Field(default=20, ge=1, le=1000)
    """Number of nearest rows, for knn."""
    l2: float = Field(default=1e-3, gt=0)
    """Penalty on the probe's weights."""


def transform(sources: LabelSources, params: Params) -> Labels:
    opinion = feature_opinion(
        sources.weak.values, sources.features(), how=params.how, neighbours=params.neighbours, l2=params.l2
    )
    return from_probabilities(opinion)
