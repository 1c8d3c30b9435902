"""Tokens of a task, made once on a node and kept on its disk for the workers that come after.

Promises: a file is named by all that its tokens are made from, so none is ever out of date; it is whole or not there; workers that
want the same tokens at the same time wait for the first of them; where nothing can be kept, tokens are made anew, and the log
says why. Files that nobody has used for a week are removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
import transformers

from w2s_ray.fit import SEMANTICS
from w2s_ray.training.rows import object_array

FEWEST_ROWS = 1000
"""Fewer are tokenised as fast as they are read."""
KEPT_S = 7 * 24 * 3600
TOKENS = pa.list_(pa.int32())
SCHEMA = pa.schema([("sequences", pa.list_(TOKENS)), ("answer", TOKENS)])

Encoded = tuple[list[tuple[list[int], ...]], np.ndarray | None]
"""What a model reads of each row, and the tokens of each answer if a setting has them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenCache:
    """Below the machine's temporary folder, one for each user."""

    folder: Path

    @classmethod
    def of_this_node(cls) -> TokenCache:
        return cls(Path(tempfile.gettempdir()) / f"w2s-tokens-{os.getuid()}")

    def encoded(
        self,
        texts: list[str],
        completions: list[tuple[str, ...]],
        *,
        by: tuple[str, str],
        encode: Callable[[], Encoded],
    ) -> Encoded:
        """The tokens, from disk if they are there. `by`: names of the setting and of the tokenizer that `encode` uses."""
        if len(texts) < FEWEST_ROWS:
            return encode()
        path = self.folder / f"{_fingerprint(texts, completions, by=by)}.parquet"
        with ExitStack() as stack:
            try:
                self._open()
                stack.enter_context(_alone(path.with_suffix(".lock")))
                found = _read(path)
            except OSError as error:
                log.warning("tokens are not kept in %s: %s", self.folder, error)
                return encode()
            if found is None:
                found = encode()
                self._keep(path, found)
            return found

    def _keep(self, path: Path, encoded: Encoded) -> None:
        try:
            _write(path, encoded)
            self._remove_old()
        except OSError as error:
            log.warning("tokens are not kept in %s: %s", self.folder, error)

    def _open(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self.folder.lstat().st_uid != os.getuid():
            raise PermissionError("it belongs to another user")

    def _remove_old(self) -> None:
        for path in self.folder.iterdir():
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink(missing_ok=True)


def _fingerprint(texts: list[str], completions: list[tuple[str, ...]], *, by: tuple[str, str]) -> str:
    versions = (str(SEMANTICS), transformers.__version__, tokenizers.__version__)
    found = hashlib.sha256()
    for text in itertools.chain(by, versions, texts, *completions):
        found.update(f"{len(text)}:".encode())
        found.update(text.encode())
    return found.hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Only one process at a time is within the block. The system opens the lock of a process that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> Encoded | None:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("%s is damaged and is written anew: %s", path, error)
        return None
    path.touch()
    outer = pa.concat_arrays(table["sequences"].chunks)
    sequences = iter(_lists(outer.flatten()))
    rows = [tuple(itertools.islice(sequences, length)) for length in np.diff(outer.offsets.to_numpy()).tolist()]
    answers = pa.concat_arrays(table["answer"].chunks)
    return rows, None if answers.null_count else object_array(_lists(answers))


def _lists(array: Any) -> list[list[int]]:
    """Much faster than `to_pylist`."""
    tokens, offsets = array.flatten().to_numpy().tolist(), array.offsets.to_numpy()
    offsets = (offsets - offsets[0]).tolist()
    return [tokens[first:last] for first, last in itertools.pairwise(offsets)]


def _write(path: Path, encoded: Encoded) -> None:
    sequences, answers = encoded
    columns = {
        "sequences": [list(row) for row in sequences],
        "answer": [None] * len(sequences) if answers is None else list(answers),
    }
    early = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(pa.table(columns, schema=SCHEMA), early, compression="zstd")
    early.rename(path)
