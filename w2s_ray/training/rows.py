"""A task's rows as training sees them: tokenised, in parts A, B and test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from w2s_ray.fit import Part


@dataclass(frozen=True)
class Rows:
    """Rows, ready for a model. The lists and arrays are in one order."""

    ids: list[str]
    texts: list[str]
    """The texts, or the prompts where there are completions."""
    completions: list[tuple[str, ...]]
    """The right one (generation), the two that are compared (comparison), or none."""
    groups: list[str]
    sequences: list[tuple[Any, ...]]
    """What a model reads: one sequence a row, or, in a comparison, prompt and completion for each of the two. A sequence is a
    list of token ids, or a vector if `are_features`."""
    labels: np.ndarray
    """[rows]: probability of class 1, or that the first completion is the better one (float32); in a generation the token ids
    of the right completion and its end (object)."""
    are_features: bool = False
    """Whether sequences are features of a frozen model, for a linear probe."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row's longest sequence. Features count as one."""
        return [1 if self.are_features else max(1, *map(len, sequences)) for sequences in self.sequences]

    def take(self, chosen: Sequence[int] | np.ndarray) -> Rows:
        """Rows by number, in the order given."""
        return replace(
            self,
            ids=[self.ids[i] for i in chosen],
            texts=[self.texts[i] for i in chosen],
            completions=[self.completions[i] for i in chosen],
            groups=[self.groups[i] for i in chosen],
            sequences=[self.sequences[i] for i in chosen],
            labels=self.labels[np.asarray(chosen, dtype=int)],
        )

    def in_order_of(self, ids: Sequence[str]) -> Rows:
        """Rows by id."""
        place = {id_: i for i, id_ in enumerate(self.ids)}
        return self.take([place[id_] for id_ in ids])

    def part(self, part: Part) -> Rows:
        """A part of these rows, in whole groups, such as the second third."""
        if part.count == 1:
            return self
        return self.take([i for i, place in enumerate(self._places()) if int(place * part.count) == part.number - 1])

    def last_share(self, share: float) -> Rows:
        """The last rows in the order of parts, in whole groups: a share of 1/n is part n of n."""
        return self.take([i for i, place in enumerate(self._places()) if place >= 1 - share])

    def is_held_out(self, share: float) -> np.ndarray:
        """[rows]: whether a row belongs to the share that validation takes, in whole groups."""
        return np.array([place >= 1 - share for place in self._places()])

    def _places(self) -> list[float]:
        """Where in [0, 1) each row's group begins when groups are ordered by their hash."""
        hashes = {group: hashlib.sha256(f"part:{group}".encode()).hexdigest() for group in self.groups}
        ranked = sorted(range(len(self)), key=lambda i: (hashes[self.groups[i]], self.groups[i], self.ids[i]))
        first: dict[str, float] = {}
        for rank, i in enumerate(ranked):
            first.setdefault(self.groups[i], rank / len(self))
        return [first[group] for group in self.groups]


@dataclass(frozen=True)
class PreparedTask:
    """A task's rows for one tokenizer, dealt into parts."""

    parts: dict[str, Rows]
    """`A`, `B` and `test`."""
    num_too_long: int
    """Rows that were dropped, since they are too long for some model of the grid."""
    truth: pa.Table
    """id, half, difficulty and label (or completion) of every row that was dealt out. Empty for a reading, which needs none."""
    tokenizer: PreTrainedTokenizerBase
    num_answer_tokens: int
    """Length of the longest right completion. Models write no more than this; 0 where nothing is written."""
    answer_ids: tuple[int, int] | None = None
    """The tokens that say 0 and 1 after the prompts of an untrained classification."""

    @property
    def pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return pad_id if pad_id is not None else 0  # padding is masked, so any id will do


def with_completion(text: str, completion: str) -> str:
    """A prompt, which may be empty, and a completion."""
    return f"{text} {completion}" if text else completion


def object_array(values: Sequence[Any]) -> np.ndarray:
    """[rows] of Python objects, such as lists of token ids."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
