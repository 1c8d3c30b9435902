"""Makes the sentiment tasks: `python -m w2s_ray.recipes.sentiment FOLDER [OUT]`.

FOLDER is `hutto_ICWSM_2014`, from the archive in the source package of vaderSentiment 0.5 (PyPI, MIT; Hutto and Gilbert
2014). It holds sentences of product reviews and of newspaper editorials, each rated by about 20 people from -4 to 4. Its film
reviews are left out because depth helps little there (.79 to .83 from one layer to five, against .78 to .84 here).

The task `sentiment` keeps the sentences with a clearly positive or negative mean rating. `sentiment-pairs` pairs sentences of
one document whose ratings differ by a point or more; each sentence is in one pair at most.
"""

from __future__ import annotations

import argparse
import html
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from w2s_ray.tasks.task import CATALOGUE

SEED = 20231214
KINDS = {"review": "amazonReview", "editorial": "nytEditorial"}
MIN_RATING = 0.8
MIN_MARGIN = 1.0
NUM_PAIRING_ROUNDS = 20


def read_snippets(folder: Path) -> list[tuple[str, str, str, float]]:
    """(kind, document, text, mean rating) of each sentence; of equal texts the first."""
    snippets: dict[str, tuple[str, str, str, float]] = {}
    for kind, name in KINDS.items():
        content = (folder / f"{name}Snippets_GroundTruth.txt").read_text(encoding="utf-8", errors="strict")
        for line in content.splitlines():
            number, rating, text = line.split("\t", 2)
            clean = re.sub(r"\s+", " ", html.unescape(text)).strip()
            # sentences of one review or editorial are numbered document_sentence
            snippets.setdefault(clean, (kind, f"{kind}-{number.split('_')[0]}", clean, float(rating)))
    return [row for row in snippets.values() if row[2]]


def pair_up(snippets: list[tuple[str, str, str, float]]) -> list[tuple[str, str, str]]:
    """(document, higher rated text, lower rated text) of disjoint pairs within a document.

    Sentences are paired at random; those whose ratings are too close go into the next round. Pairs across documents would
    join nearly all documents into one group, of which no test set could be independent.
    """
    rng = np.random.default_rng(SEED)
    documents: dict[str, list[tuple[str, str, str, float]]] = {}
    for snippet in snippets:
        documents.setdefault(snippet[1], []).append(snippet)
    pairs = []
    for document, left in documents.items():
        for _ in range(NUM_PAIRING_ROUNDS):
            left = [left[i] for i in rng.permutation(len(left))]
            rest = left[len(left) // 2 * 2 :]
            for first, second in zip(left[0::2], left[1::2], strict=False):
                if abs(first[3] - second[3]) < MIN_MARGIN:
                    rest += [first, second]
                    continue
                high, low = (first, second) if first[3] > second[3] else (second, first)
                pairs.append((document, high[2], low[2]))
            left = rest
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "out", type=Path, nargs="?", default=CATALOGUE, help="default: the package's catalogue of tasks"
    )
    options = parser.parse_args()
    snippets = read_snippets(options.folder)
    clear = [row for row in snippets if abs(row[3]) >= MIN_RATING]
    table = pa.table(
        {
            "text": [row[2] for row in clear],
            "document": [row[1] for row in clear],
            "kind": [row[0] for row in clear],
            "rating": pa.array([row[3] for row in clear], pa.float32()),
            "positive": pa.array([int(row[3] > 0) for row in clear], pa.int8()),
        }
    )
    pq.write_table(table, options.out / "sentiment.parquet", compression="zstd", compression_level=19)
    rows = pair_up(snippets)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("document", "higher", "lower"))}
    pq.write_table(pa.table(columns), options.out / "sentiment-pairs.parquet", compression="zstd", compression_level=19)
    print(f"{table.num_rows:,} snippets, {len(rows):,} pairs")


if __name__ == "__main__":
    main()
