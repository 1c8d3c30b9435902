"""Weigh each row by the supervisor's confidence (arXiv:2406.19032 weighs by the consistency of several answers instead).

weight of a row = c / mean(c),    c = |2 f_w(x) - 1|, or the probability of the completion
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from w2s_ray.methods.labels import Labels, LabelSources
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}
NEEDS_FEATURES = False


class Params(WithLoss):
    """Weigh each row by the supervisor's confidence."""


def transform(sources: LabelSources, params: Params) -> Labels:
    confidence = sources.weak.confidence
    mean = confidence.mean()
    return replace(sources.weak, weight=confidence / mean if mean > 0 else np.ones_like(confidence))
