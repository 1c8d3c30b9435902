"""How a pretrained model is asked without training it: what `zero_shot` and `few_shot` have in common.

- Classification: every text is followed by `QUESTION`, in the test rows and in the shots alike. The probability of class 1 is
  that of the answer 1 against the answer 0.
- Comparison: the completion with the higher likelihood for its length is the better one.
- Generation: the model continues the prompt.
"""

from __future__ import annotations

from typing import Literal

from w2s_ray.methods.params import MethodParams, Refusals

QUESTION = "\nAnswer (0 or 1):"
"""Follows every text of a classification, and says what an answer looks like. The answer follows after a blank."""
BETWEEN_SHOTS = "\n\n"
CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts that say nothing, for contextual calibration (Zhao et al. 2021, section 5)."""

REFUSES: Refusals = {
    "encoder": "an encoder cannot answer untrained; use a family of decoders",
    "probe": "a probe reads features and writes nothing; use training.tune: all",
}
NOT_CALIBRATED = "'calibrate' divides by the probabilities of the answers 0 and 1, which only a classification has"


class UntrainedParams(MethodParams):
    calibrate: bool = False
    """Classification: divide the probability of each answer by its probability after texts that say nothing, such as `N/A`
    (contextual calibration, Zhao et al. 2021)."""
    normalise: Literal["tokens", "bytes"] = "tokens"
    """Comparison: what a completion's log-likelihood is divided by, so that shorter completions have no advantage."""
