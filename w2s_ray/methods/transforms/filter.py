"""Learn only from the labels of which the supervisor is most confident (used with weak labels in arXiv:2406.11431).

    keep the share `keep` of the rows with the largest |2 f_w(x) - 1|, separately for each predicted class

Filtering each class by itself keeps the balance between them. Fewer rows are fewer steps: compare with {name: naive, rows: ...} of
the same share.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from w2s_ray.methods.labels import Labels, LabelSources
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}
NEEDS_FEATURES = False


class Params(WithLoss):
    """Learn only from the labels of which the supervisor is most confident."""

    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the rows that stays, in each predicted class."""


def transform(sources: LabelSources, params: Params) -> Labels:
    labels = sources.weak
    weight = np.zeros_like(labels.weight)
    for class_ in np.unique(labels.classes):
        rows = np.flatnonzero(labels.classes == class_)
        most_confident_first = rows[np.argsort(-labels.confidence[rows], kind="stable")]
        weight[most_confident_first[: max(1, round(params.keep * len(rows)))]] = 1.0
    return replace(labels, weight=weight)
