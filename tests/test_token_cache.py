"""Tokens are made once on a node, whatever happens to the files that keep them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from w2s_ray.training.token_cache import Encoded, TokenCache

TEXTS = [f"text {number}" for number in range(1200)]
COMPLETIONS = [("yes", "no")] * len(TEXTS)
SIDES = [([number, 7], [number] * (number % 5)) for number in range(len(TEXTS))]


class Encoder:
    def __init__(self, answers: np.ndarray | None = None) -> None:
        self.answers = answers
        self.num_calls = 0

    def __call__(self) -> Encoded:
        self.num_calls += 1
        return SIDES, self.answers


def answers() -> np.ndarray:
    found = np.empty(len(TEXTS), dtype=object)
    found[:] = [[number, 1] if number else [] for number in range(len(TEXTS))]
    return found


def encoded(folder: Path, encode: Encoder, *, texts: list[str] = TEXTS, tokenizer: str = "t") -> Encoded:
    return TokenCache(folder).encoded(texts, COMPLETIONS[: len(texts)], by=("comparison", tokenizer), encode=encode)


@pytest.mark.parametrize("is_generation", [False, True])
def test_what_is_read_is_what_was_written(tmp_path: Path, is_generation: bool) -> None:
    encode = Encoder(answers() if is_generation else None)
    for _ in range(3):
        sequences, found = encoded(tmp_path / "tokens", encode)
        assert sequences == SIDES
        assert found is None if encode.answers is None else found is not None and (found == encode.answers).all()
    assert encode.num_calls == 1


def test_other_texts_and_other_tokenizers_have_files_of_their_own(tmp_path: Path) -> None:
    encode = Encoder()
    encoded(tmp_path, encode)
    encoded(tmp_path, encode, tokenizer="u")
    encoded(tmp_path, encode, texts=["text 00", *TEXTS[1:]])
    encoded(tmp_path, encode, texts=["text 0text", " 1", *TEXTS[2:]])
    assert encode.num_calls == 4


def test_a_damaged_file_is_written_anew(tmp_path: Path) -> None:
    encode = Encoder()
    encoded(tmp_path, encode)
    (file,) = tmp_path.glob("*.parquet")
    for content in (b"", file.read_bytes()[:-100]):
        file.write_bytes(content)
        assert encoded(tmp_path, encode)[0] == SIDES
        assert encoded(tmp_path, encode)[0] == SIDES
    assert encode.num_calls == 3


def test_where_nothing_can_be_kept_tokens_are_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    encode = Encoder()
    assert encoded(tmp_path / "file" / "tokens", encode)[0] == SIDES
    assert encode.num_calls == 1 and "tokens are not kept" in caplog.text


def test_workers_that_start_together_wait_for_the_first(tmp_path: Path) -> None:
    encode, found = Encoder(), list[Encoded]()
    workers = [threading.Thread(target=lambda: found.append(encoded(tmp_path, encode))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert encode.num_calls == 1 and all(sequences == SIDES for sequences, _ in found)
