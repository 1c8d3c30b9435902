"""Comparison (reward modelling): a prompt and two completions, one of them better. A scalar reward for each completion.

    probability that the first is better = sigmoid(r1 - r2)        Burns et al. 2023, appendix A

Two rewards become two logits, (r2, r1), so labels, loss and score are those of a classification into "the second" (0) and "the
first is better" (1).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from scipy.special import expit
from torch import nn
from transformers import PreTrainedTokenizerBase

from w2s_ray import methods
from w2s_ray.fit import Fit
from w2s_ray.training.engine import Engine
from w2s_ray.training.model import ModelSpec, Probe, Scorer, load_base, trainable_copy, zero
from w2s_ray.training.rows import PreparedTask, Rows, object_array, with_completion
from w2s_ray.training.settings import classification, generation

TARGETS_ARE_TOKENS = False
plain_loss = classification.plain_loss
check_answers = classification.check_answers
truth_column = classification.truth_column
collate = classification.collate
truth = classification.truth
as_labels = classification.as_labels
as_targets = classification.as_targets
hits = classification.hits
score = classification.score


# --- model --------------------------------------------------------------------------------------------------------


class RewardHead(nn.Linear):
    """One reward a sequence. The batch holds all first completions, then all second ones."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [rows, 2], (second, first), of features [2 rows, width]: their softmax is sigmoid(r1 - r2) for class 1."""
        first, second = super().forward(features).view(2, -1)
        return torch.stack((second, first), dim=1)


def build_model(spec: ModelSpec) -> tuple[nn.Module, str]:
    """A reward model, whose head starts from zero. A probe has no backbone: it takes features."""
    if spec.tune == "head":
        return Probe(zero(RewardHead(spec.width, 1, dtype=torch.float32))), "zero"
    base = load_base(spec)
    head = zero(RewardHead(base.width, 1, bias=False, dtype=torch.float32))
    return Scorer(trainable_copy(base.backbone, spec), head, spec), "zero"


# --- rows ---------------------------------------------------------------------------------------------------------


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], completions: list[tuple[str, ...]]
) -> tuple[list[tuple[list[int], ...]], np.ndarray | None]:
    """(prompt with the first and with the second completion of each row, None: labels are not tokens)."""
    sides = [[with_completion(text, pair[i]) for text, pair in zip(texts, completions, strict=True)] for i in (0, 1)]
    tokenized = [tokenizer(side, return_attention_mask=False)["input_ids"] if side else [] for side in sides]
    return list(zip(*tokenized, strict=True)), None


def question(text: str) -> str:
    """A prompt as an untrained model is asked about it."""
    return text


def feature_matrix(rows: Rows) -> np.ndarray:
    """[row, width] of rows that are features: those of the first completion minus those of the second."""
    return np.array([first - second for first, second in rows.sequences], dtype=np.float64)


def choose_shots(rows: Rows, values: np.ndarray, order: np.ndarray, *, num_shots: int) -> list[tuple[str, str]]:
    """(prompt, better completion) of labelled rows for a prompt."""
    return [(rows.texts[i], rows.completions[i][0 if values[i] > 0.5 else 1]) for i in order[:num_shots]]


# --- predictions --------------------------------------------------------------------------------------------------


def predict(engine: Engine, rows: Rows, task: PreparedTask, fit: Fit) -> dict[str, pa.Array]:
    """Columns of predictions. An untrained model has no reward head, so it is asked as a language model."""
    if fit.role == "untrained":
        normalise = methods.untrained_params(fit.method).normalise
        preferences = _language_model_preferences(engine, rows, task, normalise=normalise)
        return {"probability": pa.array(preferences, pa.float32())}
    return classification.predict(engine, rows, task, fit)


def _language_model_preferences(engine: Engine, rows: Rows, task: PreparedTask, *, normalise: str) -> np.ndarray:
    """[rows]: the first completion's share of the two likelihoods, each the geometric mean over the completion's tokens.

    Without the mean the shorter completion would mostly win. With `normalise="bytes"` it is over the completion's bytes.
    """
    prompts = task.tokenizer(rows.texts)["input_ids"]
    mean_log_likelihoods = []
    for side in (0, 1):
        wholes = [sequences[side] for sequences in rows.sequences]
        pairs = [_cut(prompt, whole, task) for prompt, whole in zip(prompts, wholes, strict=True)]
        completions = replace(
            rows, sequences=[(before,) for before, _ in pairs], labels=object_array([tokens for _, tokens in pairs])
        )
        if normalise == "bytes":
            lengths = [len(shown[side].encode()) for shown in rows.completions]
        else:
            lengths = [len(tokens) for _, tokens in pairs]
        log_likelihoods = generation.judge(engine, completions, task)[:, 0]
        mean_log_likelihoods.append(log_likelihoods / np.maximum(lengths, 1))
    return expit(mean_log_likelihoods[0] - mean_log_likelihoods[1]).astype(np.float32)


def _cut(prompt: list[int], whole: list[int], task: PreparedTask) -> tuple[list[int], list[int]]:
    """(tokens of the prompt, tokens of the completion) of both together. A token over the seam is the completion's."""
    num_common = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    if num_common == 0:  # a completion without a prompt follows the token with which texts begin
        begins = (task.tokenizer.bos_token_id, task.tokenizer.eos_token_id, task.pad_id)
        return [next(token for token in begins if token is not None)], whole
    return whole[:num_common], whole[num_common:]
