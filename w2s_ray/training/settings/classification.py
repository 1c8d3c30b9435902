"""Classification: a text and a label of 0 or 1. Two logits, cross-entropy with soft targets, accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from w2s_ray.fit import Fit
from w2s_ray.methods.cross_entropy import cross_entropy
from w2s_ray.methods.labels import Labels, from_probabilities
from w2s_ray.training.batches import evaluate_in_batches, stack_or_pad
from w2s_ray.training.distributed import device
from w2s_ray.training.engine import Engine
from w2s_ray.training.model import ModelSpec, Probe, Scorer, load_base, trainable_copy, zero
from w2s_ray.training.rows import PreparedTask, Rows

TARGETS_ARE_TOKENS = False
plain_loss = cross_entropy


# --- model --------------------------------------------------------------------------------------------------------


def build_model(spec: ModelSpec) -> tuple[nn.Module, str]:
    """A model with two logits, and what its head starts from.

    The head starts from the output embeddings of "0" and "1" (Burns et al. 2023, appendix A), or from zero where a model has
    none. A probe has no backbone: it takes features.
    """
    base = load_base(spec)
    is_probe = spec.tune == "head"
    head = zero(nn.Linear(base.width, 2, bias=is_probe, dtype=torch.float32))
    if is_probe:
        return Probe(head), "zero"
    head_start = "zero"
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
    return [(tokens,) for tokens in (tokenizer(texts)["input_ids"] if texts else [])], None


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
    """(text, answer) of labelled rows for a prompt: as many of one class as of the other, in turns."""
    by_class = [[i for i in order if (values[i] > 0.5) == bool(class_)] for class_ in (0, 1)]
    balanced = [i for pair in zip(*by_class, strict=False) for i in pair]
    return [(rows.texts[i], str(int(values[i] > 0.5))) for i in balanced[:num_shots]]


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
    """Columns of predictions."""
    return {"probability": pa.array(probabilities(engine, rows, pad_id=task.pad_id), pa.float32())}


def score(engine: Engine, rows: Rows, task: PreparedTask) -> tuple[float, float]:
    """(loss, accuracy) against the rows' labels, which may be soft."""
    predicted = probabilities(engine, rows, pad_id=task.pad_id).astype(np.float64)
    p, s = rows.labels.astype(np.float64), np.clip(predicted, 1e-7, 1 - 1e-7)
    loss = -(p * np.log(s) + (1 - p) * np.log(1 - s)).mean()
    return float(loss), float(((predicted > 0.5) == (p > 0.5)).mean())
