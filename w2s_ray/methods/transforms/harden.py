"""Hard labels: each label becomes the class that it leans to.

The match of `noise`, whose labels are hard too: both carry as many errors, and differ only in where these are. Against `naive` it
shows what the supervisor's soft probabilities are worth. A completion that a supervisor wrote is a hard label already.
"""

from __future__ import annotations

from w2s_ray.methods.labels import Labels, LabelSources, from_probabilities
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}
NEEDS_FEATURES = False


class Params(WithLoss):
    """Hard labels: each label becomes the class that it leans to. The match of `noise`."""


def transform(sources: LabelSources, params: Params) -> Labels:
    labels = sources.weak
    return labels if labels.are_texts else from_probabilities(labels.classes.astype(float))
