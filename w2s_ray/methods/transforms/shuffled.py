"""Control: labels given to the wrong rows.

The labels keep their distribution and lose what they say. A student that does as well with them as with the supervisor's labels
has learned nothing from supervision.

A study's default control permutes the truth rather than the supervisor's labels. Its students then depend on no supervisor, so
one Fit serves all pairs of a strong size, and a badly unbalanced supervisor cannot pass its own prior on to the control. The
marginals of the truth are balanced by construction.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal

from w2s_ray.fit import CONTROL, Fit, Method
from w2s_ray.methods.labels import Labels, LabelSources
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.pair import Pair
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {}
NEEDS_FEATURES = False


class Params(WithLoss):
    """Control: labels given to the wrong rows."""

    labels: Literal["weak", "truth"] = "weak"
    """Whose labels are permuted."""


def supervisors(pair: Pair, params: Params) -> tuple[Fit, ...]:
    """The Fits that label for the student; none if the truth is permuted."""
    return (pair.supervisor,) if params.labels == "weak" else ()


def control_of(pair: Pair) -> Fit:
    """The strong model trained on permuted truth: the control of every pair with this strong size."""
    return pair.student(method=_control())


@cache
def _control() -> Method:
    return Method(CONTROL, tuple(sorted(Params(labels="truth").model_dump().items())))


def transform(sources: LabelSources, params: Params) -> Labels:
    labels = sources.weak
    order = sources.generator.permutation(len(labels.values))
    return replace(labels, values=labels.values[order], confidence=labels.confidence[order])
