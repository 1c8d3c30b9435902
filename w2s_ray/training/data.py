"""A Fit's rows, tokenised and dealt out: the same test ids for every model of a task.

Rows that are too long for any model of the grid are dropped for all, before the dealing, and counted. Batches are cut
from an order that a seed fixes; evaluation batches never depend on how the Fit is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from w2s_ray import tasks
from w2s_ray.errors import InputError
from w2s_ray.fit import Data, Fit, Setting
from w2s_ray.training.model import load_tokenizer, tokenizer

NUM_KEPT = 4
"""Tokenised tasks that a worker keeps."""
EVAL_BATCH_SIZE = 64
"""Part of what a prediction is: a row's padding, and with it the last bits, go with its batch."""
NOT_LEARNED = -100
"""Target of a position that the loss passes over."""


Answers = np.ndarray | list[list[int]]
"""Of each row: the probability of class 1 (or of the first completion's being better), or the tokens of a completion."""


@dataclass(frozen=True)
class Rows:
    """One part of a task, ready for a model."""

    ids: list[str]
    texts: list[str]
    """The texts, or the prompts."""
    completions: list[tuple[str, ...]]
    """The right one, or the two that are compared, or none."""
    groups: list[str]
    sequences: list[tuple[Any, ...]]
    """What a model reads for a row, as tokens (or, for a probe, as features): the text, the prompt, or prompt and
    completion for each of the two that are compared."""
    labels: Answers
    """The truth: 0 or 1, or the tokens of the right completion with the end after it."""

    def __len__(self) -> int:
        return len(self.ids)


def some(rows: Rows, chosen: Sequence[int] | np.ndarray) -> Rows:
    """Rows by number, in the order given."""
    return Rows(
        ids=[rows.ids[i] for i in chosen],
        texts=[rows.texts[i] for i in chosen],
        completions=[rows.completions[i] for i in chosen],
        groups=[rows.groups[i] for i in chosen],
        sequences=[rows.sequences[i] for i in chosen],
        labels=some_answers(rows.labels, chosen),
    )


def some_answers(answers: Answers, chosen: Sequence[int] | np.ndarray) -> Answers:
    return answers[chosen] if isinstance(answers, np.ndarray) else [answers[i] for i in chosen]


def part_of(rows: Rows, which: str) -> Rows:
    """A part such as `2/3` of a half, in whole groups; nothing is all of it."""
    if not which:
        return rows
    number, count = map(int, which.split("/"))
    return some(rows, [i for i, place in enumerate(_places(rows)) if int(place * count) == number - 1])


def held_out(rows: Rows, share: float) -> np.ndarray:
    """[rows]: whether a row is of the share, in whole groups, that a validation takes."""
    return np.array([place >= 1 - share for place in _places(rows)])


def _places(rows: Rows) -> list[float]:
    """Where in [0, 1) each row stands when groups are ordered by their hash."""
    hashes = {group: hashlib.sha256(f"part:{group}".encode()).hexdigest() for group in rows.groups}
    ranked = sorted(range(len(rows)), key=lambda i: (hashes[rows.groups[i]], rows.groups[i], rows.ids[i]))
    first: dict[str, float] = {}
    for rank, i in enumerate(ranked):
        first.setdefault(rows.groups[i], rank / len(rows))
    return [first[group] for group in rows.groups]


@dataclass(frozen=True)
class Prepared:
    parts: dict[str, Rows]
    """A, B and test."""
    num_dropped: int
    """Rows too long for some model."""
    truth: pa.Table
    """id, half, difficulty and label (or completion) of every row that was dealt out."""
    tokenizer: PreTrainedTokenizerBase
    num_answer_tokens: int
    """Of the longest right completion; a model writes no more."""

    @property
    def pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return pad_id if pad_id is not None else 0  # masked, so any id will do


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
    rows = tasks.read_rows(tasks.load_pinned(data.source, commits=data.commits))
    fits_all = np.ones(rows.num_rows, dtype=bool)
    for source, revision in data.tokenizer_sources:
        texts, completions = _read(rows)
        sequences, answers = encode(load_tokenizer(source, revision), texts, completions, setting=data.setting)
        lengths = [max(map(len, row)) + len(answer) for row, answer in zip(sequences, answers, strict=True)]
        fits_all &= np.array(lengths, dtype=int) <= data.max_tokens
    kept = rows.filter(pa.array(fits_all))
    dealt = tasks.deal(
        kept,
        split_seed=data.split_seed,
        num_train=data.num_train,
        num_test=data.num_test,
        **({"difficulty": data.difficulty[1:]} if data.difficulty else {}),
    )
    own = tokenizer(fit.model)
    parts, truth, num_answer_tokens = {}, [], 0
    for name, part in sorted(dealt.items()):
        texts, completions = _read(part)
        sequences, answers = encode(own, texts, completions, setting=data.setting)
        columns = {
            "id": part["id"],
            "half": pa.array([name] * part.num_rows, pa.string()),
            "difficulty": part["difficulty"],
        }
        if data.setting == "generation":
            _check_round_trip(own, part, answers, task=data.source)
            num_answer_tokens = max(num_answer_tokens, *map(len, answers))
            columns["completion"] = pa.array([each[0] for each in part["completions"].to_pylist()], pa.string())
        else:
            columns["label"] = part["label"]
        truth.append(pa.table(columns))
        parts[name] = Rows(
            ids=part["id"].to_pylist(),
            texts=texts,
            completions=completions,
            groups=part["group"].to_pylist(),
            sequences=sequences,
            labels=answers if data.setting == "generation" else part["label"].to_numpy().astype(np.float32),
        )
    return Prepared(
        parts=parts,
        num_dropped=rows.num_rows - kept.num_rows,
        truth=pa.concat_tables(truth),
        tokenizer=own,
        num_answer_tokens=num_answer_tokens,
    )


def _read(rows: pa.Table) -> tuple[list[str], list[tuple[str, ...]]]:
    return rows["text"].to_pylist(), [tuple(each) for each in rows["completions"].to_pylist()]


def encode(
    tokens: PreTrainedTokenizerBase, texts: list[str], completions: list[tuple[str, ...]], *, setting: Setting
) -> tuple[list[tuple[list[int], ...]], list[list[int]]]:
    """(what a model reads, what it should write: nothing but in a generation) for each row."""
    if setting == "comparison":
        joined = [[joined_text(text, each[i]) for text, each in zip(texts, completions, strict=True)] for i in (0, 1)]
        read = [tokens(each)["input_ids"] if each else [] for each in joined]
        return list(zip(*read, strict=True)), [[]] * len(texts)
    read = tokens(texts)["input_ids"] if texts else []
    if setting == "classification":
        return [(each,) for each in read], [[]] * len(texts)
    prompts = [each[:-1] if each and each[-1] == tokens.eos_token_id else each for each in read]
    right = [each[0] for each in completions]
    return [(each,) for each in prompts], answer_tokens(tokens, texts, prompts, right)


def joined_text(text: str, completion: str) -> str:
    return f"{text} {completion}" if text else completion


def answer_tokens(
    tokens: PreTrainedTokenizerBase, texts: Sequence[str], prompts: Sequence[list[int]], completions: Sequence[str]
) -> list[list[int]]:
    """Tokens of completions as they follow their prompts, with the end after them."""
    if tokens.eos_token_id is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token, which generation needs to know a completion's end"
        )
    joined = [joined_text(text, each) for text, each in zip(texts, completions, strict=True)]
    found = []
    whole = tokens(joined, add_special_tokens=True)["input_ids"] if joined else []
    for prompt, both, completion in zip(prompts, whole, completions, strict=True):
        if both[: len(prompt)] == prompt:
            answer = both[len(prompt) :]
        else:  # the tokenizer merges over the seam
            answer = tokens(f" {completion}", add_special_tokens=False)["input_ids"]
        found.append([*(answer[:-1] if answer and answer[-1] == tokens.eos_token_id else answer), tokens.eos_token_id])
    return found


def written(tokens: PreTrainedTokenizerBase, answer: Sequence[int]) -> str:
    """The text of what a model wrote, up to its end, with single blanks."""
    ids = list(answer)
    if tokens.eos_token_id in ids:
        ids = ids[: ids.index(tokens.eos_token_id)]
    return " ".join(tokens.decode(ids, skip_special_tokens=True).split())


def _check_round_trip(tokens: PreTrainedTokenizerBase, rows: pa.Table, answers: list[list[int]], *, task: str) -> None:
    """A completion that its tokens don't give back could never be matched, and would count as every model's mistake."""
    for row, (completions, answer) in enumerate(zip(rows["completions"].to_pylist(), answers, strict=True)):
        if written(tokens, answer) != " ".join(completions[0].split()):
            raise InputError(
                f"{task}: row with id {rows['id'][row]}: the completion {completions[0]!r} becomes "
                f"{written(tokens, answer)!r} through the tokenizer {tokens.name_or_path}, so nothing could match it"
            )


# --- batches ------------------------------------------------------------------------------------------------------


def inputs(
    sequences: list[tuple[Any, ...]],
    answers: Answers,
    *,
    setting: Setting,
    pad_id: int,
    device: torch.device,
) -> tuple[tuple[Any, ...], torch.Tensor]:
    """(what the model takes, what it should say). Of rows that are compared all firsts come first, then all seconds."""
    if setting == "generation":
        assert isinstance(answers, list)
        num_kept = max(map(len, answers))
        whole = [[*sequence[0], *answer] for sequence, answer in zip(sequences, answers, strict=True)]
        wanted = torch.full((len(sequences), num_kept), NOT_LEARNED, dtype=torch.long)
        for row, answer in enumerate(answers):
            wanted[row, num_kept - len(answer) :] = torch.tensor(answer, dtype=torch.long)
        return (*pad(whole, pad_id=pad_id, device=device, left=True), num_kept), wanted.to(device)
    assert isinstance(answers, np.ndarray)
    wanted = torch.from_numpy(answers).to(device)
    width = 2 if setting == "comparison" else 1
    flat = [sequence[i] for i in range(width) for sequence in sequences]
    if isinstance(flat[0], np.ndarray):
        return (torch.from_numpy(np.stack(flat)).to(device),), wanted
    return pad(flat, pad_id=pad_id, device=device), wanted


def pad(
    tokens: list[list[int]], *, pad_id: int, device: torch.device, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(input ids, attention mask), padded to the longest row. An empty row keeps one masked-in pad."""
    length = max(1, max(map(len, tokens), default=1))
    ids = torch.full((len(tokens), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(tokens), length), dtype=torch.long)
    for row, each in enumerate(tokens):
        used = max(1, len(each))
        where = slice(length - used, length) if left else slice(0, used)
        mask[row, where] = 1
        if each:
            ids[row, where] = torch.tensor(each, dtype=torch.long)
    return ids.to(device), mask.to(device)


def order(num_rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, from its seed alone."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def eval_batches(rows: Rows) -> list[list[int]]:
    """Row numbers in batches of one length class: fixed by the rows alone."""
    by_length = sorted(range(len(rows)), key=lambda i: (max(map(len, rows.sequences[i])), rows.ids[i]))
    return [by_length[i : i + EVAL_BATCH_SIZE] for i in range(0, len(by_length), EVAL_BATCH_SIZE)]
