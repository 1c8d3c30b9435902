"""A Fit's rows, tokenised and dealt out: the same test ids for every model of a task.

Rows that are too long for any model of the grid are dropped for all models, before the dealing, and counted.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from w2s_ray import tasks
from w2s_ray.families import MAX_UNKNOWN
from w2s_ray.fit import Data, Fit
from w2s_ray.training.model import load_tokenizer, load_tokenizer_of
from w2s_ray.training.rows import PreparedTask, Rows
from w2s_ray.training.settings import setting_of
from w2s_ray.training.worker import TrainingFailed

NUM_CACHED_TASKS = 4
"""Tokenised tasks that a worker keeps in memory."""

_prepared: dict[tuple[Data, str], PreparedTask] = {}


def prepare(fit: Fit) -> PreparedTask:
    """The task for the Fit's tokenizer, tokenised once in this process."""
    kind = (fit.data, fit.model.tokenizer)
    if kind not in _prepared:
        while len(_prepared) >= NUM_CACHED_TASKS:
            _prepared.pop(next(iter(_prepared)))
        _prepared[kind] = _prepare(fit)
    return _prepared[kind]


def _prepare(fit: Fit) -> PreparedTask:
    data, setting, tokenizer = fit.data, setting_of(fit), load_tokenizer_of(fit.model)
    table = tasks.read_rows(tasks.load_pinned(data.source, commits=data.commits))
    short_enough = table.filter(pa.array(_fits_all_models(fit, table)))
    dealt = tasks.deal(short_enough, tasks.Deal.of(data))
    parts, truth, num_answer_tokens = {}, [], 0
    for name, part in sorted(dealt.items()):
        texts, completions = _texts(part)
        sequences, answers = setting.encode(tokenizer, texts, completions)
        check_words(fit, tokenizer, sequences)
        setting.check_answers(tokenizer, part, answers, task=data.source)
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
        parts[name] = Rows(
            ids=part["id"].to_pylist(),
            texts=texts,
            completions=completions,
            groups=part["group"].to_pylist(),
            sequences=sequences,
            labels=part["label"].to_numpy().astype(np.float32) if answers is None else answers,
        )
    return PreparedTask(
        parts=parts,
        num_too_long=table.num_rows - short_enough.num_rows,
        truth=pa.concat_tables(truth),
        tokenizer=tokenizer,
        num_answer_tokens=num_answer_tokens,
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


def _fits_all_models(fit: Fit, table: pa.Table) -> np.ndarray:
    """[rows]: whether a row is short enough for every tokenizer of the grid."""
    texts, completions = _texts(table)
    is_short = np.ones(table.num_rows, dtype=bool)
    for source, revision in fit.data.tokenizer_sources:
        tokenizer = load_tokenizer(source, revision, trust_remote_code=fit.model.trust_remote_code)
        sequences, answers = setting_of(fit).encode(tokenizer, texts, completions)
        lengths = np.array([max(map(len, row)) for row in sequences], dtype=int)
        if answers is not None:
            lengths += np.array(list(map(len, answers)), dtype=int)
        is_short &= lengths <= fit.data.max_tokens
    return is_short


def _texts(table: pa.Table) -> tuple[list[str], list[tuple[str, ...]]]:
    return table["text"].to_pylist(), [tuple(shown) for shown in table["completions"].to_pylist()]
