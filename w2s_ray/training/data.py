"""A Fit's rows, tokenised and dealt out: the same test ids for every model of a task.

Rows that are too long for any model of the grid are dropped for all, before the dealing, and counted. Batches are cut
from an order that a seed fixes; evaluation batches never depend on how the Fit is executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from w2s_ray import store, tasks
from w2s_ray.fit import Data, Fit
from w2s_ray.store import Store, StoreError
from w2s_ray.training.model import load_tokenizer, tokenizer

NUM_KEPT = 4
"""Tokenised tasks that a worker keeps."""
EVAL_BATCH_SIZE = 64
"""Part of what a prediction is: a row's padding, and with it the last bits, go with its batch."""


@dataclass(frozen=True)
class Rows:
    """One part of a task, ready for a model."""

    ids: list[str]
    tokens: list[list[int]]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Prepared:
    parts: dict[str, Rows]
    """A, B and test."""
    num_dropped: int
    """Rows too long for some model."""
    truth: pa.Table
    """id, half, label of every row that was dealt out."""
    pad_id: int


_prepared: dict[tuple[Data, str], Prepared] = {}


def prepare(fit: Fit) -> Prepared:
    """Tokenised once for each (task, tokenizer) in this process."""
    kind = (fit.data, fit.model.tokenizer)
    if kind not in _prepared:
        while len(_prepared) >= NUM_KEPT:
            _prepared.pop(next(iter(_prepared)))
        _prepared[kind] = _prepare(fit)
    return _prepared[kind]


def _prepare(fit: Fit) -> Prepared:
    data = fit.data
    rows = tasks.read_rows(tasks.load_task(Path(data.source)))
    texts = rows.column("text").to_pylist()
    fits_all = np.ones(len(texts), dtype=bool)
    for source, revision in data.tokenizer_sources:
        lengths = [len(ids) for ids in load_tokenizer(source, revision)(texts)["input_ids"]]
        fits_all &= np.array(lengths) <= data.max_tokens
    kept = rows.filter(pa.array(fits_all))
    dealt = tasks.deal(kept, split_seed=data.split_seed, num_train=data.num_train, num_test=data.num_test)
    own = tokenizer(fit.model)
    parts = {
        name: Rows(
            ids=part.column("id").to_pylist(),
            tokens=own(part.column("text").to_pylist())["input_ids"],
            labels=part.column("label").to_numpy().astype(np.float32),
        )
        for name, part in dealt.items()
    }
    truth = pa.concat_tables(
        pa.table({"id": part["id"], "half": [name] * part.num_rows, "label": part["label"]})
        for name, part in sorted(dealt.items())
    )
    pad_id = own.pad_token_id if own.pad_token_id is not None else 0  # masked, so any id will do
    return Prepared(parts=parts, num_dropped=rows.num_rows - kept.num_rows, truth=truth, pad_id=pad_id)


def targets(fit: Fit, rows: Rows, *, store_: Store) -> np.ndarray:
    """What the Fit learns from, in the order of `rows`: the truth, or its supervisor's probabilities by id."""
    if fit.labels is None:
        return rows.labels
    folder = store.committed(store_, [fit.labels]).get(fit.labels.key)
    if folder is None:
        raise StoreError(f"fits/{fit.labels.folder}: the supervisor is not in the store")
    table = store.read_table(store_, folder, "labels.parquet")
    labels = dict(zip(table.column("id").to_pylist(), table.column("probability").to_pylist(), strict=True))
    missing = [id_ for id_ in rows.ids if id_ not in labels]
    if missing:
        raise StoreError(
            f"fits/{folder}/labels.parquet has {len(labels)} labels and lacks {len(missing)} of the {len(rows)} rows "
            f"of half {fit.half}, such as {missing[0]}"
        )
    return np.array([labels[id_] for id_ in rows.ids], dtype=np.float32)


def pad(tokens: list[list[int]], *, pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(input ids, attention mask), padded on the right to the longest row. An empty row keeps one masked-in pad."""
    length = max(1, max(map(len, tokens), default=1))
    ids = torch.full((len(tokens), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(tokens), length), dtype=torch.long)
    for row, each in enumerate(tokens):
        ids[row, : len(each)] = torch.tensor(each, dtype=torch.long)
        mask[row, : max(1, len(each))] = 1
    return ids.to(device), mask.to(device)


def order(num_rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, from its seed alone."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def eval_batches(rows: Rows) -> list[list[int]]:
    """Row numbers in batches of one length class: fixed by the rows alone."""
    by_length = sorted(range(len(rows)), key=lambda i: (len(rows.tokens[i]), rows.ids[i]))
    return [by_length[i : i + EVAL_BATCH_SIZE] for i in range(0, len(by_length), EVAL_BATCH_SIZE)]
