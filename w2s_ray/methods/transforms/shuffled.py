"""Control: the supervisor's labels, given to the wrong rows.

The labels keep their distribution and lose what they say. A student that does as well with them as with the supervisor's labels
has learned nothing from supervision.
"""

from __future__ import annotations

from dataclasses import replace

from w2s_ray.methods.labels import Labels, LabelSources
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}
NEEDS_FEATURES = False


class Params(WithLoss):
    """Control: the supervisor's labels, given to the wrong rows."""


def transform(sources: LabelSources, params: Params) -> Labels:
    labels = sources.weak
    order = sources.generator.permutation(len(labels.values))
    return replace(labels, values=labels.values[order], confidence=labels.confidence[order])
