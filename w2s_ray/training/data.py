"""A Fit's rows, tokenised and dealt out: the same test ids for every model of a task.

Rows that are too long for any model of the grid are dropped for all models, before the dealing, and counted. A task is tokenised
once on a node, read and arranged once in a process, and each replicate deals from that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from w2s_ray import tasks
from w2s_ray.families import MAX_UNKNOWN
from w2s_ray.fit import Data, Fit
from w2s_ray.training.model import load_tokenizer, load_tokenizer_of
from w2s_ray.training.rows import PreparedTask, Rows, object_array
from w2s_ray.training.settings import setting_of
from w2s_ray.training.token_cache import Encoded, TokenCache
from w2s_ray.training.worker import TrainingFailed

NUM_CACHED_DEALS = 4
"""Replicates of tasks that a worker keeps in memory."""
MAX_ROWS_KEPT = 200_000
"""A larger task is read anew for each replicate, since every worker would hold all of its rows."""


@dataclass(frozen=True)
class TokenisedTask:
    """The rows of a task that are short enough for every model of the grid, for one tokenizer."""

    arranged: tasks.Arranged
    schema: pa.Schema
    sequences: dict[str, tuple[Any, ...]]
    """By id: what a model reads of a row."""
    answers: dict[str, list[int]] | None
    """By id: the tokens of the right completion, in a generation."""
    num_too_long: int
    tokenizer: PreTrainedTokenizerBase


_deals: dict[tuple[Data, str], PreparedTask] = {}
_tokenised: dict[tuple[Data, str], TokenisedTask] = {}


def prepare(fit: Fit) -> PreparedTask:
    """The task for the Fit's tokenizer, dealt out."""
    kind = (fit.data, fit.model.tokenizer)
    if kind not in _deals:
        while len(_deals) >= NUM_CACHED_DEALS:
            _deals.pop(next(iter(_deals)))
        _deals[kind] = _deal(fit, tokenised(fit))
    return _deals[kind]


def prepare_to_read(reading: Fit) -> PreparedTask:
    """The rows that a reading reads: of its test set, or of the halves without the rows that earlier replicates have, its share."""
    task, deal = tokenised(reading), tasks.Deal.of(reading.data)
    dealt = tasks.deal_arranged(task.arranged, deal)
    if reading.half == "test":
        wanted = {"test": dealt["test"]}
    else:
        read = {
            row["id"]
            for seed in dict(reading.method.params)["without"]
            for name, rows in tasks.deal_arranged(task.arranged, replace(deal, halves_seed=seed)).items()
            for row in rows
            if name != "test"
        }
        wanted = {
            name: [row for row in rows if row["id"] not in read] for name, rows in dealt.items() if name != "test"
        }
    number, count = dict(reading.method.params).get("share", (1, 1))
    parts = {
        name: _rows(reading, task, pa.Table.from_pylist(rows[number - 1 :: count], schema=task.schema))
        for name, rows in wanted.items()
    }
    return PreparedTask(parts, task.num_too_long, pa.table({}), task.tokenizer, num_answer_tokens=0)


def tokenised(fit: Fit) -> TokenisedTask:
    """The same for all replicates, whose data differ in how rows are dealt alone."""
    of_all = replace(
        fit.data, num_train=None, num_test=None, halves_seed=None, is_swapped=False, difficulty=None, num_fresh=0
    )
    kind = (of_all, fit.model.tokenizer)
    if kind in _tokenised:
        return _tokenised[kind]
    task = _tokenise(fit)
    _tokenised.clear()
    if len(task.sequences) <= MAX_ROWS_KEPT:
        _tokenised[kind] = task
    return task


def _tokenise(fit: Fit) -> TokenisedTask:
    data = fit.data
    table = tasks.read_rows(tasks.load_pinned(data.source, commits=data.commits))
    texts, completions = _texts(table)
    tokenizer, own = load_tokenizer_of(fit.model), None
    is_short = np.ones(table.num_rows, dtype=bool)
    for fingerprint, (source, revision) in zip(data.tokenizers, data.tokenizer_sources, strict=True):
        is_own = fingerprint == fit.model.tokenizer
        other = tokenizer if is_own else load_tokenizer(source, revision, trust_remote_code=fit.model.trust_remote_code)
        encoded = _encoded(fit, other, texts, completions, fingerprint=fingerprint)
        own = encoded if is_own else own
        is_short &= _lengths(*encoded) <= data.max_tokens
    sequences, answers = own or _encoded(fit, tokenizer, texts, completions, fingerprint=fit.model.tokenizer)
    kept, ids = np.flatnonzero(is_short), table["id"].to_pylist()
    return TokenisedTask(
        arranged=tasks.arrange(table.take(kept).to_pylist(), tasks.Deal.of(data)),
        schema=table.schema,
        sequences={ids[i]: sequences[i] for i in kept},
        answers=None if answers is None else {ids[i]: answers[i] for i in kept},
        num_too_long=table.num_rows - len(kept),
        tokenizer=tokenizer,
    )


def _encoded(
    fit: Fit,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    completions: list[tuple[str, ...]],
    *,
    fingerprint: str,
) -> Encoded:
    setting = setting_of(fit)
    return TokenCache.of_this_node().encoded(
        texts,
        completions,
        by=(fit.data.setting, fingerprint),
        encode=lambda: setting.encode(tokenizer, texts, completions),
    )


def _deal(fit: Fit, task: TokenisedTask) -> PreparedTask:
    setting, tokenizer = setting_of(fit), task.tokenizer
    parts, truth, num_answer_tokens = {}, [], 0
    for name, rows in sorted(tasks.deal_arranged(task.arranged, tasks.Deal.of(fit.data)).items()):
        part = pa.Table.from_pylist(rows, schema=task.schema)
        parts[name] = _rows(fit, task, part)
        answers = None if task.answers is None else parts[name].labels
        setting.check_answers(tokenizer, part, answers, task=fit.data.source)
        if answers is not None:
            num_answer_tokens = max(num_answer_tokens, *map(len, answers))
        right_name, right = setting.truth_column(part)
        columns = {
            "id": part["id"],
            "half": pa.array([name] * part.num_rows, pa.string()),
            "group": pa.array([_short_name(group) for group in part["group"].to_pylist()], pa.string()),
            "difficulty": part["difficulty"],
            right_name: right,
        }
        truth.append(pa.table(columns))
    return PreparedTask(
        parts=parts,
        num_too_long=task.num_too_long,
        truth=pa.concat_tables(truth),
        tokenizer=tokenizer,
        num_answer_tokens=num_answer_tokens,
    )


def _rows(fit: Fit, task: TokenisedTask, part: pa.Table) -> Rows:
    """Some rows as training sees them."""
    ids, (texts, completions) = part["id"].to_pylist(), _texts(part)
    sequences = [task.sequences[id_] for id_ in ids]
    check_words(fit, task.tokenizer, sequences)
    answers = None if task.answers is None else object_array([task.answers[id_] for id_ in ids])
    return Rows(
        ids=ids,
        texts=texts,
        completions=completions,
        groups=part["group"].to_pylist(),
        sequences=sequences,
        labels=part["label"].to_numpy().astype(np.float32) if answers is None else answers,
    )


def check_words(fit: Fit, tokenizer: PreTrainedTokenizerBase, sequences: list[tuple[list[int], ...]]) -> None:
    """Refuse texts of which the tokenizer does not know the words. A plan sees this for tokenizers that it can read."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return
    tokens = np.fromiter((token for row in sequences for sequence in row for token in sequence), dtype=np.int64)
    share = float((tokens == unknown).mean()) if len(tokens) else 0.0
    if share > MAX_UNKNOWN:
        raise TrainingFailed(
            "words",
            f"the tokenizer of {fit.model.name} does not know {share:.0%} of the tokens of task '{fit.data.task}'; allowed are "
            f"{MAX_UNKNOWN:.0%}. Choose a family that was made for such texts",
        )


def _short_name(group: str) -> str:
    """A group may be named by its text, of which a hash will do."""
    return hashlib.sha256(group.encode()).hexdigest()[:16]


def _lengths(sequences: list[tuple[list[int], ...]], answers: np.ndarray | None) -> np.ndarray:
    """[rows]: tokens that a model reads at once, those of the answer included."""
    lengths = np.array([max(map(len, row)) for row in sequences], dtype=int)
    return lengths if answers is None else lengths + np.array(list(map(len, answers)), dtype=int)


def _texts(table: pa.Table) -> tuple[list[str], list[tuple[str, ...]]]:
    return table["text"].to_pylist(), [tuple(shown) for shown in table["completions"].to_pylist()]
