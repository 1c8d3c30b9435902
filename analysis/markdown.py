"""The tables of a study as Markdown: `python -m w2s_ray.analysis.markdown OUT`.

OUT is a folder that `w2s report` wrote. Printed are a table of pairs (naive students, with what bounds their PGR) and, where a
study has other methods, a table of PGR by method. Intervals are those of pgr.parquet, at 95 %. The tables in studies/README.md
were made by this command.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import polars as pl

from w2s_ray.analysis import tables
from w2s_ray.analysis.findings import interval_text
from w2s_ray.analysis.text_tables import markdown

NONE = "–"
KEYS = ["task", "weak", "strong"]


def pairs_table(pgr: pl.DataFrame) -> str:
    """A row for each task and pair of naive students."""
    columns = ["supervisor", "untrained", "shuffled", "student", "ceiling"]
    scores = ["weak_score", "zero_shot_score", "shuffled_score", "student_score", "ceiling_score"]
    rows = [
        [row["task"], f"{row['weak']} → {row['strong']}"]
        + [_score(row[name]) for name in scores]
        + [_pgr(row, "pgr"), _pgr(row, "pgr_above_floor")]
        for row in _by_task(pgr).filter(pl.col("method") == "naive").iter_rows(named=True)
    ]
    return markdown(["task", "pair", *columns, "PGR", "PGR above the floor"], rows)


def methods_table(pgr: pl.DataFrame) -> str:
    """A row for each pair and method, a column for each task: PGR. Where each task has one pair, the pair stands in its column's
    head, and each method has one row."""
    by_task = _by_task(pgr)
    pairs_of: dict[str, list[tuple[str, str]]] = {}
    for task, weak, strong in by_task.select(KEYS).unique(maintain_order=True).iter_rows():
        pairs_of.setdefault(task, []).append((weak, strong))
    cells = {(*(row[key] for key in KEYS), row["method"]): _pgr(row, "pgr") for row in by_task.iter_rows(named=True)}
    methods = list(dict.fromkeys(by_task["method"]))
    if all(len(pairs) == 1 for pairs in pairs_of.values()):
        places = [(task, *pairs[0]) for task, pairs in pairs_of.items()]
        heads = [f"{task}, {weak} → {strong}" for task, weak, strong in places]
        rows = [[f"`{method}`", *(cells.get((*place, method), NONE) for place in places)] for method in methods]
        return markdown(["method", *heads], rows)
    rows = []
    for weak, strong, method in dict.fromkeys(by_task.select("weak", "strong", "method").iter_rows()):
        found = (cells.get((task, weak, strong, method), NONE) for task in pairs_of)
        rows.append([f"{weak} → {strong}", f"`{method}`", *found])
    return markdown(["pair", "method", *pairs_of], rows)


def _by_task(pgr: pl.DataFrame) -> pl.DataFrame:
    """The rows of single tasks, without pairs of a size with itself."""
    return pgr.filter(pl.col("task").is_not_null(), pl.col("weak") != pl.col("strong")).sort(
        "setting", "task", "weak_params", "strong_params", maintain_order=True
    )


def _score(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}".removeprefix("0")


def _pgr(row: dict[str, Any], name: str) -> str:
    if row[name] is not None:
        return interval_text((row[name], row[f"{name}_low"], row[f"{name}_high"]))
    if name == "pgr":
        return "gap too small" if row["gap_too_small"] else NONE
    return "no headroom" if row["pgr"] is not None and row["floor"] is not None else NONE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    pgr = tables.read(parser.parse_args().out / "pgr.parquet", dict.fromkeys([*KEYS, "method"], pl.String))
    print(pairs_table(pgr))
    if pgr["method"].n_unique() > 1:
        print(f"\n{methods_table(pgr)}")


if __name__ == "__main__":
    main()
