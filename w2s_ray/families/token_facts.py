"""What a model's tokenizer makes of a task's texts: how many tokens it does not know, and how many rows are too long.

Promises: no transformers; only tokenizer.json of a local folder is read. A tokenizer that keeps its vocabulary elsewhere is judged
where it is loaded (`training/data.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from w2s_ray.errors import InputError

NUM_SAMPLED_ROWS = 300
WARN_UNKNOWN, MAX_UNKNOWN = 0.03, 0.2
"""Shares of unknown tokens. A model reads all unknown words alike: above the first it loses words, above the second it learns from
nonsense."""


@dataclass(frozen=True)
class TokenFacts:
    """Over a sample of a task's rows."""

    share_too_long: float
    """Share of rows that have more tokens than `training.max_tokens`."""
    share_unknown: float
    """Share of tokens that the tokenizer does not know; 0 for one that can write every text."""
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
    num_too_long = num_tokens = num_unknown = 0
    first: tuple[str, int] | None = None
    for place in _evenly_spaced(len(texts)):
        longest = 0
        for text in texts[place]:
            encoding = tokenizer.encode(text)
            longest = max(longest, len(encoding.ids))
            is_unknown = [id_ == unknown_id for id_ in encoding.ids]
            num_tokens += len(encoding.ids) - sum(encoding.special_tokens_mask)
            num_unknown += sum(is_unknown)
            if first is None and any(is_unknown):
                start, end = encoding.offsets[is_unknown.index(True)]
                first = (text[start:end], place)
        num_too_long += longest > max_tokens
    num_rows = len(_evenly_spaced(len(texts)))
    return TokenFacts(num_too_long / num_rows, num_unknown / max(1, num_tokens), *(first or ()))


def _evenly_spaced(num_rows: int) -> list[int]:
    num_sampled = min(num_rows, NUM_SAMPLED_ROWS)
    return [i * num_rows // num_sampled for i in range(num_sampled)]
