"""Classification: a text and a label of 0 or 1. Two logits, cross-entropy with soft targets, accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.special import expit, logit
from torch import nn
from transformers import PreTrainedTokenizerBase

from w2s_ray.fit import Fit
from w2s_ray.methods import untrained
from w2s_ray.methods.cross_entropy import cross_entropy
from w2s_ray.methods.labels import Labels, from_probabilities
from w2s_ray.training.batches import evaluate_in_batches, stack_or_pad
from w2s_ray.training.distributed import device
from w2s_ray.training.engine import Engine
from w2s_ray.training.model import ModelSpec, Probe, Scorer, load_base, trainable_copy, zero
from w2s_ray.training.rows import PreparedTask, Rows, object_array, with_completion
from w2s_ray.training.settings import generation
from w2s_ray.training.worker import TrainingFailed

TARGETS_ARE_TOKENS = False
plain_loss = cross_entropy


# --- model --------------------------------------------------------------------------------------------------------


def build_model(spec: ModelSpec) -> tuple[nn.Module, str]:
    """A model with two logits, and what its head starts from.

    The head starts from the output embeddings of "0" and "1" (Burns et al. 2023, appendix A), or from zero where a model has
    none. A probe has no backbone: it takes features.
    """
    if spec.tune == "head":
        return Probe(zero(nn.Linear(spec.width, 2, dtype=torch.float32))), "zero"
    base, head_start = load_base(spec), "zero"
    head = zero(nn.Linear(base.width, 2, bias=False, dtype=torch.float32))
    if base.label_rows is not None:
        head_start = "output embeddings of 0 and 1"
        with torch.no_grad():
            head.weight.copy_(base.label_rows)
    return Scorer(trainable_copy(base.backbone, spec), head, spec), head_start


# --- rows ---------------------------------------------------------------------------------------------------------


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], completions: list[tuple[str, ...]]
) -> tuple[list[tuple[list[int], ...]], np.ndarray | None]:
    """(sequences of each row, None: labels are not tokens)."""
    return [(tokens,) for tokens in (tokenizer(texts, return_attention_mask=False)["input_ids"] if texts else [])], None


def question(text: str) -> str:
    """A text as an untrained model is asked about it."""
    return f"{text}{untrained.QUESTION}"


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, questions: list[str]
) -> tuple[list[tuple[list[int], ...]], tuple[int, int]]:
    """(what an untrained model reads of each question, the tokens that say 0 and 1 after it).

    Which token says 0 depends on what stands before it. After a colon and a blank GPT-2 has one token for both, ` 0`, and Llama 3
    has one for each. So every question is tokenised with either answer behind it: the model reads what the two have in
    common, and the first tokens that differ are the answers.
    """
    with_zero, with_one = (
        tokenizer([with_completion(text, answer) for text in questions])["input_ids"] for answer in "01"
    )
    sequences: list[tuple[list[int], ...]] = []
    answer_ids: set[tuple[int, int]] = set()
    for tokens_0, tokens_1 in zip(with_zero, with_one, strict=True):
        length = next((i for i, (a, b) in enumerate(zip(tokens_0, tokens_1, strict=False)) if a != b), None)
        if length is None or tokenizer.unk_token_id in (tokens_0[length], tokens_1[length]):
            raise TrainingFailed(
                "words", "an untrained classification needs tokens for 0 and 1; this tokenizer has none"
            )
        sequences.append((tokens_0[:length],))
        answer_ids.add((tokens_0[length], tokens_1[length]))
    if len(answer_ids) != 1:
        raise TrainingFailed("words", "the tokenizer writes the answers 0 and 1 in more than one way after these texts")
    return sequences, answer_ids.pop()


def check_answers(
    tokenizer: PreTrainedTokenizerBase, table: pa.Table, answers: np.ndarray | None, *, task: str
) -> None:
    """Nothing is written, so nothing can be lost by the tokenizer."""


def truth_column(table: pa.Table) -> tuple[str, Any]:
    return "label", table["label"]


def collate(rows: Rows, chosen: Sequence[int], *, pad_id: int) -> tuple[tuple[Any, ...], torch.Tensor]:
    """(model inputs, targets [rows]) of rows by number. Of rows with several sequences, all first ones come first."""
    num_sequences = len(rows.sequences[0])
    sequences = [rows.sequences[i][number] for number in range(num_sequences) for i in chosen]
    targets = torch.from_numpy(rows.labels[list(chosen)]).to(device())
    return stack_or_pad(sequences, are_features=rows.are_features, pad_id=pad_id), targets


def feature_matrix(rows: Rows) -> np.ndarray:
    """[row, width] of rows that are features."""
    return np.array([sequences[0] for sequences in rows.sequences], dtype=np.float64)


# --- labels -------------------------------------------------------------------------------------------------------


def truth(rows: Rows) -> np.ndarray:
    """[rows]: the truth in the form of `Labels.values`."""
    return rows.labels


def as_labels(predictions: pa.Table, chosen: list[int]) -> Labels:
    """A Fit's predictions of rows by number, as labels for another."""
    return from_probabilities(predictions.column("probability").to_numpy()[chosen])


def as_targets(labels: Labels, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Labels in the form of `Rows.labels`."""
    return labels.values.astype(np.float32)


def choose_shots(rows: Rows, values: np.ndarray, order: np.ndarray, *, num_shots: int) -> list[tuple[str, str]]:
    """(text, answer) of labelled rows for a prompt: as many of one class as of the other, as far as there are.

    Of an odd number one more is of the class of the first row in `order`.
    """
    first = bool(values[order[0]] > 0.5)
    by_class = [[i for i in order if (values[i] > 0.5) == class_] for class_ in (first, not first)]
    balanced = [i for pair in zip(*by_class, strict=False) for i in pair]
    taken = set(balanced)
    others = [i for i in order if i not in taken]
    return [(rows.texts[i], str(int(values[i] > 0.5))) for i in [*balanced, *others][:num_shots]]


# --- predictions --------------------------------------------------------------------------------------------------


def hits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[rows]: whether the likelier class is that of the target."""
    return (logits[:, 1] > logits[:, 0]) == (targets > 0.5)


def probabilities(engine: Engine, rows: Rows, *, pad_id: int) -> np.ndarray:
    """[rows]: probability of class 1."""

    def compute(chosen: list[int]) -> torch.Tensor:
        inputs, _ = collate(rows, chosen, pad_id=pad_id)
        return torch.softmax(engine(*inputs), dim=-1)[:, 1:]

    return evaluate_in_batches(engine, rows, compute, width=1, dtype=torch.float32)[:, 0]


def predict(engine: Engine, rows: Rows, task: PreparedTask, fit: Fit) -> dict[str, pa.Array]:
    """Columns of predictions. An untrained model has no classifier's head, so it is asked as a language model."""
    if fit.role == "untrained":
        return {"probability": pa.array(_answer_probabilities(engine, rows, task), pa.float32())}
    return {"probability": pa.array(probabilities(engine, rows, pad_id=task.pad_id), pa.float32())}


def _answer_probabilities(engine: Engine, rows: Rows, task: PreparedTask) -> np.ndarray:
    """[rows]: probability of the answer 1 against the answer 0, after calibration if the task has content-free texts.

    Calibration divides each answer's probability by its mean over the content-free texts (Zhao et al. 2021, section 5).
    """
    log_odds = _answer_log_odds(engine, rows, task)
    if "content_free" in task.parts:
        baseline = expit(_answer_log_odds(engine, task.parts["content_free"], task)).mean()
        log_odds -= logit(np.clip(baseline, 1e-7, 1 - 1e-7))
    return expit(log_odds).astype(np.float32)


def _answer_log_odds(engine: Engine, rows: Rows, task: PreparedTask) -> np.ndarray:
    """[rows]: logarithm of P(1) / P(0), as the token after each prompt."""
    assert task.answer_ids is not None
    zero, one = task.answer_ids
    asked = replace(rows, labels=object_array([[zero]] * len(rows)))

    def compute(chosen: list[int]) -> torch.Tensor:
        inputs, _ = generation.collate(asked, chosen, pad_id=task.pad_id)
        logits = engine(*inputs)[:, 0]
        return (logits[:, one] - logits[:, zero])[:, None]

    return evaluate_in_batches(engine, asked, compute, width=1, dtype=torch.float32)[:, 0].astype(np.float64)


def score(engine: Engine, rows: Rows, task: PreparedTask, predicted: pa.Table | None = None) -> tuple[float, float]:
    """(loss, accuracy) against the rows' labels, which may be soft. `predicted`: of these rows, if they are known."""
    given = (
        predicted["probability"].to_numpy()
        if predicted is not None
        else probabilities(engine, rows, pad_id=task.pad_id)
    )
    q = given.astype(np.float64)
    p, s = rows.labels.astype(np.float64), np.clip(q, 1e-7, 1 - 1e-7)
    loss = -(p * np.log(s) + (1 - p) * np.log(1 - s)).mean()
    return float(loss), float(((q > 0.5) == (p > 0.5)).mean())
