"""Training methods: the words of a study's `methods`, each with its parameters, its paper and its formula in one file.

- A *loss* (`losses/`) says how a student learns from its labels.
- A *transform* (`transforms/`) changes the labels first, and trains with any loss.
- A *chain* (`chains/`) shapes the DAG of Fits: what a student learns from, what it starts from.

This file only maps words to files. It imports no torch, so that a study can be checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from w2s_ray.fit import Fit, Method
from w2s_ray.methods.chains import CHAINS
from w2s_ray.methods.labels import Labels, LabelSources
from w2s_ray.methods.losses import LOSSES, naive
from w2s_ray.methods.pair import CellFits, Pair
from w2s_ray.methods.params import Circumstance, MethodParams
from w2s_ray.methods.step_context import StepContext
from w2s_ray.methods.transforms import TRANSFORMS, ensemble, shuffled
from w2s_ray.methods.untrained import NOT_CALIBRATED, UntrainedParams

if TYPE_CHECKING:
    import torch

METHODS: dict[str, ModuleType] = {**LOSSES, **TRANSFORMS, **CHAINS}
PARAMS: dict[str, type[MethodParams]] = {word: module.Params for word, module in METHODS.items()}


@cache
def params_of(method: Method) -> MethodParams:
    return PARAMS[method.name].model_validate(dict(method.params))


def refusal(method: Method, circumstances: Iterable[Circumstance]) -> str | None:
    """Why a method makes no sense somewhere, or None. A transform or chain is refused where its loss is."""
    circumstances = tuple(circumstances)
    if dict(method.params).get("calibrate") and "classification" not in circumstances:
        return NOT_CALIBRATED
    loss = dict(method.params).get("loss")
    for word in (method.name, loss) if loss else (method.name,):
        for circumstance in circumstances:
            if circumstance in METHODS[word].REFUSES:
                return str(METHODS[word].REFUSES[circumstance])
    return None


def cell_fits(method: Method, pair: Pair) -> CellFits:
    """The supervisor, student and ceiling that a method makes for a pair of sizes."""
    params = params_of(method)
    if method.name in CHAINS:
        fits: CellFits = CHAINS[method.name].cell_fits(pair, params)
        return fits
    labellers: tuple[Fit, ...] = (pair.supervisor,)
    if isinstance(params, ensemble.Params):
        labellers = ensemble.supervisors(pair, params)
    elif isinstance(params, shuffled.Params):
        labellers = shuffled.supervisors(pair, params)
    student = pair.student(*labellers, method=method, looks_at_features=_needs_features(method))
    return CellFits(pair.supervisor, student, pair.ceiling)


def _needs_features(method: Method) -> bool:
    """Whether the method looks at the student's own pretrained features."""
    return method.name in TRANSFORMS and bool(TRANSFORMS[method.name].NEEDS_FEATURES)


# --- what training asks for -------------------------------------------------------------------------------------------


def transform_labels(method: Method, sources: LabelSources) -> Labels:
    """The labels that a student learns from."""
    if method.name not in TRANSFORMS:
        return sources.weak
    labels: Labels = TRANSFORMS[method.name].transform(sources, params_of(method))
    return labels


def untrained_params(method: Method) -> UntrainedParams:
    """How an untrained model is asked."""
    params = params_of(method)
    assert isinstance(params, UntrainedParams)
    return params


def budget(method: Method) -> naive.Params:
    """The shares of rows and steps that a Fit takes. All methods but `naive` take the whole."""
    params = params_of(method)
    return params if isinstance(params, naive.Params) else naive.Params()


@dataclass(frozen=True)
class Objective:
    """A method's loss, ready for one Fit."""

    needs_global_batch: bool
    """Whether the loss looks at the global batch, which may cost a forward pass of its own."""
    loss: Callable[[torch.Tensor, torch.Tensor, StepContext], torch.Tensor]
    """(logits, targets, context) -> loss of each row."""


def objective(method: Method, *, of_tokens: bool) -> Objective:
    """The loss that a method trains with: its own, or the one that its parameter `loss` names.

    `of_tokens`: the targets are completions rather than probabilities of class 1.
    """
    word, params = method.name, params_of(method)
    if word in TRANSFORMS:
        word = str(dict(method.params)["loss"])
        params = PARAMS[word]()
    if of_tokens and (reason := refusal(Method(word), ["generation"])):
        raise ValueError(f"method '{word}' in a generation: {reason}")
    module = LOSSES[word]
    loss = module.token_loss if of_tokens else module.loss

    def of_rows(logits: torch.Tensor, targets: torch.Tensor, context: StepContext) -> torch.Tensor:
        losses: torch.Tensor = loss(logits, targets, params, context)
        return losses

    return Objective(needs_global_batch=bool(module.NEEDS_GLOBAL_BATCH) and not of_tokens, loss=of_rows)
