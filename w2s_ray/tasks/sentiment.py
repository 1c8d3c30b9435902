"""How the sentiment tasks were made: `python -m w2s_ray.tasks.sentiment FOLDER [OUT]`.

FOLDER is `hutto_ICWSM_2014`, from the archive in the source package of vaderSentiment 0.5 (PyPI, MIT; Hutto and Gilbert
2014): sentences of product reviews and of newspaper editorials, each rated by about 20 people from -4 to 4. Its film
reviews are left out: there depth helps little (.79 to .83 from one layer to five, against .78 to .84 here). `sentiment` keeps those whose mean rating is clearly on one side; `sentiment-pairs` compares two snippets of one kind,
each snippet in one pair, whose ratings lie a point or more apart.
"""

from __future__ import annotations

import argparse
import html
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEED = 20231214
KINDS = {"review": "amazonReview", "editorial": "nytEditorial"}
MIN_RATING = 0.8
MIN_MARGIN = 1.0
PAIRING_ROUNDS = 20


def read_snippets(folder: Path) -> list[tuple[str, str, str, float]]:
    """(kind, document, text, mean rating); of equal texts the first."""
    found: dict[str, tuple[str, str, str, float]] = {}
    for kind, name in KINDS.items():
        content = (folder / f"{name}Snippets_GroundTruth.txt").read_text(encoding="utf-8", errors="strict")
        for line in content.splitlines():
            number, rating, text = line.split("\t", 2)
            clean = re.sub(r"\s+", " ", html.unescape(text)).strip()
            # sentences of one review or editorial are numbered document_sentence
            found.setdefault(clean, (kind, f"{kind}-{number.split('_')[0]}", clean, float(rating)))
    return [row for row in found.values() if row[2]]


def pairs(snippets: list[tuple[str, str, str, float]]) -> list[tuple[str, str, str]]:
    """(kind, higher, lower) of disjoint pairs within a kind: what does not pair in a round is dealt anew in the next."""
    rng = np.random.default_rng(SEED)
    found = []
    for kind in KINDS:
        left = [snippet for snippet in snippets if snippet[0] == kind]
        for _ in range(PAIRING_ROUNDS):
            left = [left[i] for i in rng.permutation(len(left))]
            rest = left[len(left) // 2 * 2 :]
            for one, other in zip(left[0::2], left[1::2], strict=False):
                if abs(one[3] - other[3]) < MIN_MARGIN:
                    rest += [one, other]
                    continue
                high, low = (one, other) if one[3] > other[3] else (other, one)
                found.append((kind, high[2], low[2]))
            left = rest
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parent, help="default: the package")
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
    rows = pairs(snippets)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("kind", "higher", "lower"))}
    pq.write_table(pa.table(columns), options.out / "sentiment-pairs.parquet", compression="zstd", compression_level=19)
    print(f"{table.num_rows:,} snippets, {len(rows):,} pairs")


if __name__ == "__main__":
    main()
