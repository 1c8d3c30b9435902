"""Control: the supervisor's label stands in the text, so that imitating it is trivial (Burns et al. 2023, appendix E).

The labels stay as they are. The texts of half B and of the test set are rewritten before they are tokenised.
"""

from __future__ import annotations

from w2s_ray.methods.labels import Labels, LabelSources
from w2s_ray.methods.losses import WithLoss
from w2s_ray.methods.params import Refusals

REFUSES: Refusals = {
    "generation": "a prompt that contains its own answer is copied, not answered",
    "comparison": "two completions are compared, so there is no single text to put the label into",
}
NEEDS_FEATURES = False


class Params(WithLoss):
    """Control: the supervisor's label stands in the text, so that imitating it is trivial."""


def transform(sources: LabelSources, params: Params) -> Labels:
    return sources.weak


def rewritten(text: str, label: bool) -> str:
    """A text with the supervisor's label at its end."""
    return f"{text} What do you think? I think this is {int(label)}"
