"""What a model's tokenizer makes of a task's texts: how many tokens it does not know, and how many rows are too long.

Promises: no transformers; only tokenizer.json of a local folder is read. A tokenizer that keeps its vocabulary elsewhere is judged
where it is loaded (`training/data.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_ray.errors import InputError

NUM_SAMPLED_ROWS = 300
WARN_UNKNOWN, MAX_UNKNOWN = 0.03, 0.2
"""Shares of unknown tokens. A model reads all unknown words alike: above the first it loses words, above the second it learns from
nonsense."""


MAX_CHARACTERS_COUNTED = 2_000_000
"""So much text is tokenised to find the rows that are too long, which takes about two seconds. Of more text a sample is."""
NUM_SPECIAL, MARGIN = 8, 1.5
"""A text is tokenised only if it could be too long: if its bytes, times the most tokens that a byte has in the sample and this
margin, and the tokens that a tokenizer adds, are more than allowed."""


@dataclass(frozen=True)
class TokenFacts:
    """What a tokenizer makes of a task's rows."""

    share_too_long: float
    """Share of rows that have more tokens than `training.max_tokens`."""
    too_long: frozenset[int] | None
    """Which rows these are; None where only a sample was looked at."""
    tokens_per_row: float
    """Of all texts of a row, on average over a sample."""
    share_unknown: float
    """Share of a sample's tokens that the tokenizer does not know; 0 for one that can write every text."""
    unknown: str = ""
    """The first such piece of text."""
    unknown_row: int = 0
    """Its row's place among those given."""


def token_facts(folder: Path, texts: Sequence[Sequence[str]], *, max_tokens: int) -> TokenFacts | None:
    """Facts of rows, each with all texts that a model reads for it. None where the folder has no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file() or not texts:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower one
        raise InputError(f"{path}: is not a tokenizer ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    unknown_token = getattr(tokenizer.model, "unk_token", None)
    unknown_id = None if unknown_token is None else tokenizer.token_to_id(unknown_token)
    sampled = _evenly_spaced(len(texts))
    lengths: list[int] = []
    per_byte = 0.0
    num_tokens = num_unknown = num_read = 0
    first: tuple[str, int] | None = None
    for place in sampled:
        encodings = [tokenizer.encode(text) for text in texts[place]]
        lengths.append(max(map(len, encodings)))
        for text, encoding in zip(texts[place], encodings, strict=True):
            per_byte = max(per_byte, len(encoding) / max(NUM_SPECIAL, len(text.encode())))
            is_unknown = [id_ == unknown_id for id_ in encoding.ids]
            num_read += len(encoding)
            num_tokens += len(encoding.ids) - sum(encoding.special_tokens_mask)
            num_unknown += sum(is_unknown)
            if first is None and any(is_unknown):
                start, end = encoding.offsets[is_unknown.index(True)]
                first = (text[start:end], place)
    share_too_long = sum(length > max_tokens for length in lengths) / len(sampled)
    max_bytes = (max_tokens - NUM_SPECIAL) / min(1.0, MARGIN * per_byte)
    too_long = _too_long(tokenizer, texts, max_tokens, max_bytes=max_bytes)
    if too_long is not None:
        share_too_long = len(too_long) / len(texts)
    share_unknown = num_unknown / max(1, num_tokens)
    return TokenFacts(share_too_long, too_long, num_read / len(sampled), share_unknown, *(first or ()))


def _too_long(
    tokenizer: Any, texts: Sequence[Sequence[str]], max_tokens: int, *, max_bytes: float
) -> frozenset[int] | None:
    """The rows that are too long, all of which have texts of more than `max_bytes`; None if that is too much text to tokenise."""
    long = [(place, text) for place, of_row in enumerate(texts) for text in of_row if len(text.encode()) > max_bytes]
    if sum(len(text) for _, text in long) > MAX_CHARACTERS_COUNTED:
        return None
    return frozenset(place for place, text in long if len(tokenizer.encode(text)) > max_tokens)


def _evenly_spaced(num_rows: int) -> list[int]:
    num_sampled = min(num_rows, NUM_SAMPLED_ROWS)
    return [i * num_rows // num_sampled for i in range(num_sampled)]
