"""Training methods: a word in a study, its parameters, and a few lines that name their paper and formula.

Three kinds of word. A *loss* says how a student learns from labels. A *transform* changes the labels first (`labels.py`)
and takes any loss. A *chain* shapes the DAG of Fits instead (`plan.py`): where labels come from, what a student starts from.

A loss sees the logits of some rows, those rows' targets, and the student's own predictions on the whole global batch;
so nothing depends on how the batch was cut into micro-batches or over workers. No torch is imported until a loss is
asked for, so that a study can be checked without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from w2s_ray.fit import Method, Setting

if TYPE_CHECKING:
    import torch


class Params(BaseModel):
    """Parameters of a method; `w2s methods` shows the docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# --- losses -------------------------------------------------------------------------------------------------------


class Naive(Params):
    """Cross-entropy on the labels as they come."""


class Kl(Params):
    """Kullback-Leibler divergence from the label to the student; the gradient is that of naive."""


class ReverseKl(Params):
    """Kullback-Leibler divergence from the student to the label, which seeks the label's mode."""

    floor: float = Field(default=0.01, gt=0, lt=0.5)
    """Labels are kept this far from 0 and 1, which the divergence can't bear."""


class Warmed(Params):
    max_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the second term after warm-up; the paper takes 0.75 for its largest students."""
    warmup_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of training over which the weight rises linearly (paper); the reference variant has its own, 0.1."""


class Confidence(Warmed):
    """The auxiliary confidence loss: learn the label, and one's own hardened predictions."""

    variant: Literal["paper", "reference"] = "paper"
    """The paper's warm-up and threshold, or those of the code that was published with it."""


class Product(Params):
    """Learn the product of the label's and one's own confidence."""

    own_power: float = Field(default=1.0, ge=0, le=10)
    """Exponent of one's own confidence."""
    weak_power: float = Field(default=1.0, gt=0, le=10)
    """Exponent of the label's."""


class Entropy(Warmed):
    """Learn the label, and be sure of something (entropy minimisation)."""


class Window(Params):
    """Cross-entropy where the student is undecided, nothing where it is sure."""

    radius: float = Field(default=0.15, gt=0, le=0.5)
    """A student is undecided while its likelier class has less than 1/2 + radius."""


class AdaptConf(Params):
    """Each row weighs the label against the student's own prediction."""

    temperature: float = Field(default=1.0, gt=0, le=100)
    """The smaller, the harder a row decides between its two teachers."""


LOSSES: dict[str, type[Params]] = {
    "naive": Naive,
    "kl": Kl,
    "reverse_kl": ReverseKl,
    "confidence": Confidence,
    "product": Product,
    "entropy": Entropy,
    "window": Window,
    "adaptconf": AdaptConf,
}

Loss_ = Literal["naive", "kl", "reverse_kl", "confidence", "product", "entropy", "window", "adaptconf"]


class WithLoss(Params):
    loss: Loss_ = "naive"
    """Any loss above, with its defaults."""


# --- transforms of labels -----------------------------------------------------------------------------------------


class Ensemble(WithLoss):
    """Labels of several supervisors together."""

    members: Literal["seeds", "sizes"] = "seeds"
    """`seeds`: the weak model under this many seeds from the cell's on; `sizes`: every size up to the weak one."""
    num_seeds: int = Field(default=3, ge=2, le=64)
    """Of `seeds`."""
    how: Literal["mean", "confident", "agreeing"] = "mean"
    """Mean; mean weighted by confidence; or the mean where all agree, and nothing elsewhere."""


class Filter(WithLoss):
    """Learn only from the labels that the supervisor is surest of."""

    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the rows that stays, in each predicted class."""


class Reliability(WithLoss):
    """Weigh each row by the supervisor's confidence."""


class Relabel(WithLoss):
    """Labels smoothed over the student's own pretrained features."""

    how: Literal["knn", "logistic"] = "knn"
    """The mean label of the nearest rows, or a probe that was fitted to the other rows."""
    neighbours: int = Field(default=20, ge=1, le=1000)
    """Of knn."""
    l2: float = Field(default=1e-3, gt=0)
    """Penalty of the probe's weights."""


class Sieve(WithLoss):
    """Leave out the labels that the student's own pretrained features speak against."""

    how: Literal["knn", "logistic", "topological"] = "knn"
    """As in relabel; or keep each class's largest connected component among nearest neighbours."""
    drop: float = Field(default=0.1, gt=0, lt=1)
    """Share of rows left out by knn and logistic; the topological filter finds its own."""
    neighbours: int = Field(default=20, ge=1, le=1000)
    """Of knn and topological."""
    l2: float = Field(default=1e-3, gt=0)
    """Penalty of the probe's weights."""


class Combined(WithLoss):
    """Ground truth on some verified rows together with the supervisor's labels on the others."""

    verified: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows whose truth is known."""
    truth_weight: float = Field(default=1.0, ge=0, le=1000)
    """Of the verified rows in the loss."""
    weak_weight: float = Field(default=1.0, ge=0, le=1000)
    """Of the others."""


class Noise(WithLoss):
    """Control: the truth with errors, as many as the supervisor makes."""

    errors: Literal["random", "longest", "shortest"] = "random"
    """Which rows they fall on; by the length of the text otherwise."""


class Shuffled(WithLoss):
    """Control: the supervisor's labels, dealt out to the wrong rows."""


class Told(WithLoss):
    """Control: the supervisor's label stands in the text, so that imitating it is trivial."""


TRANSFORMS: dict[str, type[WithLoss]] = {
    "ensemble": Ensemble,
    "filter": Filter,
    "reliability": Reliability,
    "relabel": Relabel,
    "sieve": Sieve,
    "combined": Combined,
    "noise": Noise,
    "shuffled": Shuffled,
    "told": Told,
}


# --- chains of Fits -----------------------------------------------------------------------------------------------


class Bootstrap(WithLoss):
    """Labels handed up a chain of sizes, each step on a fresh part of half B."""

    through: Literal["auto"] | tuple[str, ...] = "auto"
    """Sizes between the weak and the strong one; auto: all that the grid has."""


class Iterate(WithLoss):
    """The student labels the next part of half B for a fresh copy of itself."""

    rounds: int = Field(default=2, ge=2, le=10)
    """Parts of half B, and so copies of the student."""


class Generative(WithLoss):
    """Learn to write the task's texts first, without labels: student, supervisor and ceiling alike."""

    epochs: int = Field(default=1, ge=1, le=100)
    """Passes over the texts of half B."""


class StrongOnA(Params):
    """Control: the strong model on the half that the supervisor learned from, with its truth."""


class ZeroShot(Params):
    """No training: what the pretrained strong model says by itself."""


class FewShot(Params):
    """No training: some labelled rows of half B stand in the prompt."""

    shots: int = Field(default=4, ge=1, le=256)
    """Rows in the prompt."""
    labels: Literal["weak", "truth"] = "weak"
    """Whose labels they carry."""


CHAINS: dict[str, type[Params]] = {
    "bootstrap": Bootstrap,
    "iterate": Iterate,
    "generative": Generative,
    "strong_on_a": StrongOnA,
    "zero_shot": ZeroShot,
    "few_shot": FewShot,
}

PARAMS: dict[str, type[Params]] = {**LOSSES, **TRANSFORMS, **CHAINS}

HARD = "labels of a generation are moves or words that were written, not probabilities"
NOT_WRITTEN: dict[str, str] = {
    "kl": f"{HARD}, for which this divergence is the naive loss",
    "reverse_kl": f"{HARD}, which this divergence can't bear",
    "product": f"{HARD}, which no product can change",
    "window": "a window around 1/2 speaks of two classes, not of all words",
    "relabel": "features are compared over two classes, not over what may be written",
    "sieve": "features are compared over two classes, not over what may be written",
    "told": "a prompt with its own answer in it is copied, not answered",
}
"""Why a method doesn't go with generation."""


def refusal(method: Method, *, setting: Setting) -> str | None:
    """Why a method makes no sense in a setting, or None."""
    name, loss = method.name, dict(method.params).get("loss")
    if setting == "generation":
        return NOT_WRITTEN.get(name) or (NOT_WRITTEN.get(str(loss)) if loss else None)
    if name == "told" and setting == "comparison":
        return "two completions are compared, and no text of one row could hold the label"
    return None


# --- objectives ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GlobalBatch:
    """What a method may know of all rows of one optimizer step, over micro-batches and workers."""

    probabilities: torch.Tensor
    """The student's own probability of class 1, held fixed (no gradient)."""
    targets: torch.Tensor


Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(logits [rows, 2], targets [rows]) -> loss [rows]; of a completion, (logits [rows, tokens, vocabulary], tokens)."""


@dataclass(frozen=True)
class Objective:
    """A method made ready for one Fit."""

    needs_batch: bool
    """Whether the loss looks at the global batch, which may cost a pass of its own."""
    at: Callable[[float, GlobalBatch | None], Loss]
    """The loss at a point of training (0 at its start, 1 at its end)."""


def objective(method: Method, *, setting: Setting) -> Objective:
    """The objective of a method by its name and parameters. A comparison's logits and labels are of the same form as a
    classification's (the second against the first), so they share their losses."""
    from w2s_ray.methods import adaptive, confidence, divergence, entropy, naive, product, window

    name, params = method.name, dict(method.params)
    if name in TRANSFORMS:
        name = str(params["loss"])
        params = LOSSES[name]().model_dump()
    why_not = refusal(Method(name), setting=setting)
    if why_not:
        raise ValueError(f"method '{name}' in a {setting}: {why_not}")

    def constant(loss: Callable[..., torch.Tensor]) -> Objective:
        return Objective(needs_batch=False, at=lambda progress, batch: partial(loss, **params))

    def warmed(loss: Callable[..., torch.Tensor]) -> Objective:
        return Objective(
            needs_batch=False,
            at=lambda progress, batch: partial(loss, weight=confidence.weight(progress, variant="paper", **params)),
        )

    match name, setting:
        case "naive", "generation":
            return constant(naive.token_loss)
        case "naive", _:
            return constant(naive.loss)
        case "kl", _:
            return constant(divergence.forward)
        case "reverse_kl", _:
            return constant(divergence.reverse)
        case "confidence", "generation":
            return Objective(needs_batch=False, at=lambda progress, batch: confidence.token_loss(progress, **params))
        case "confidence", _:
            return Objective(needs_batch=True, at=lambda progress, batch: confidence.loss(progress, batch, **params))
        case "product", _:
            return constant(product.loss)
        case "entropy", "generation":
            return warmed(entropy.token_loss)
        case "entropy", _:
            return warmed(entropy.loss)
        case "window", _:
            return constant(window.loss)
        case "adaptconf", "generation":
            return constant(adaptive.token_loss)
        case "adaptconf", _:
            return constant(adaptive.loss)
    raise ValueError(f"'{name}' is no loss")
