"""Ground truth on a random share of the rows, together with the supervisor's labels on the others.

The verified rows learn the truth by plain cross-entropy, whatever the loss of the others. The two kinds of rows have weights of
their own, and their losses are recorded separately.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from w2s_ray.methods.labels import Labels, LabelSources
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}
NEEDS_FEATURES = False


class Params(WithLoss):
    """Ground truth on some verified rows, together with the supervisor's labels on the others."""

    verified: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows whose truth is known."""
    truth_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the verified rows in the loss."""
    weak_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the other rows."""


def transform(sources: LabelSources, params: Params) -> Labels:
    labels, num_rows = sources.weak, len(sources.truth)
    is_verified = np.zeros(num_rows, bool)
    is_verified[sources.generator.permutation(num_rows)[: max(1, round(params.verified * num_rows))]] = True
    return Labels(
        values=np.where(is_verified, sources.truth, labels.values),
        confidence=np.where(is_verified, 1.0, labels.confidence),
        weight=np.where(is_verified, params.truth_weight, params.weak_weight * labels.weight),
        verified=is_verified,
    )
