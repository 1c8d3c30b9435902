"""Near duplicates between a test set and the rows that models learn from.

Groups keep together what a data set says belongs together. This finds what it does not say: texts that share most of their
pairs of neighbouring words. MinHash (Broder 1997) finds the candidates, and each is then compared exactly: 10,000 texts
against 10,000 take two seconds.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

SHINGLE_WORDS = 2
NEAR = 0.6
"""Texts whose sets of shingles have a Jaccard similarity of at least this are near duplicates. One changed word in a sentence
of ten leaves .64."""
MAX_SHARE = 0.02
"""Shingles in more than this share of the texts (a template's own words) are not compared, unless the texts are few."""
MIN_COMMON = 20
NUM_BANDS, ROWS_PER_BAND = 24, 3
"""Pairs of a similarity of .6 are missed once in 300, pairs of .7 never."""
PRIME = (1 << 31) - 1


def near_duplicates(parts: dict[str, pa.Table]) -> list[str]:
    """The ids of the rows of `test` that have a near duplicate in another part (the result of `deal`)."""
    test = parts["test"]
    learned = [text for name, part in parts.items() if name != "test" for text in _shown(part)]
    shingles = _without_common([_shingles(text) for text in [*_shown(test), *learned]])
    of_test, of_others = shingles[: test.num_rows], shingles[test.num_rows :]
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, bands in enumerate(_bands(of_others)):
        for band in bands:
            buckets[band].append(index)
    ids = test["id"].to_pylist()
    near = []
    for id_, row, bands in zip(ids, of_test, _bands(of_test), strict=True):
        candidates = {index for band in bands for index in buckets.get(band, ())}
        if any(_jaccard(row, of_others[index]) >= NEAR for index in candidates):
            near.append(id_)
    return near


def _shown(table: pa.Table) -> list[str]:
    columns = (table["text"].to_pylist(), table["completions"].to_pylist())
    return [" ".join([text, *sorted(completions)]) for text, completions in zip(*columns, strict=True)]


def _shingles(text: str) -> frozenset[int]:
    words = text.lower().split()
    runs = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return frozenset(zlib.crc32(" ".join(words[start : start + SHINGLE_WORDS]).encode()) for start in runs)


def _without_common(rows: list[frozenset[int]]) -> list[frozenset[int]]:
    counts = Counter(shingle for row in rows for shingle in row)
    limit = max(MIN_COMMON, MAX_SHARE * len(rows))
    common = {shingle for shingle, count in counts.items() if count > limit}
    return [row - common for row in rows]


def _bands(rows: Sequence[frozenset[int]]) -> list[list[tuple[int, int]]]:
    """For each row its buckets: (number of the band, hash of the band's minima). Rows without shingles have none."""
    filled = [i for i, row in enumerate(rows) if row]
    bands: list[list[tuple[int, int]]] = [[] for _ in rows]
    if not filled:
        return bands
    values = np.concatenate([np.fromiter(rows[i], np.uint64, len(rows[i])) for i in filled]) % np.uint64(PRIME)
    starts = np.cumsum([0, *(len(rows[i]) for i in filled[:-1])])
    generator = np.random.default_rng(0)
    for band in range(NUM_BANDS):
        digest = np.zeros(len(filled), np.uint64)
        for _ in range(ROWS_PER_BAND):
            factor, shift = generator.integers(1, PRIME, 2, dtype=np.uint64)
            minima = np.minimum.reduceat((values * factor + shift) % np.uint64(PRIME), starts)
            digest = digest * np.uint64(1_000_003) + minima
        for i, number in zip(filled, digest.tolist(), strict=True):
            bands[i].append((band, number))
    return bands


def _jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    return len(first & second) / len(first | second)
