"""What a study's controls allow one to conclude, and the marks on what fails them.

Two controls stand beside every cell: the untrained strong model, and the strong model trained on shuffled labels. A PGR means
little where the untrained model is as good as the ceiling (`no_headroom` in pgr.parquet) or the student (`above_untrained` is
false). It means nothing about supervision where shuffled labels do as well as the supervisor's (`label_sensitive` is false).
`controls_reason` says in words what a control forbids to conclude. This file reads these columns and computes none.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from w2s_ray.analysis.cells import CONTROLS, has_method

PAIR_ON_TASK = ["setting", "family", "task", "weak", "strong", "method"]
MAX_NAMED = 4
"""A sentence names at most this many pairs."""
NO_HEADROOM = "ceiling not clearly above untrained"
NOT_ABOVE_UNTRAINED = "not clearly above untrained"
NOT_SENSITIVE = "not clearly above shuffled labels"
OPTIONAL = {
    "no_headroom": pl.Boolean,
    "above_untrained": pl.Boolean,
    "label_sensitive": pl.Boolean,
    "controls_reason": pl.String,
    "pgr_above_floor_low": pl.Float64,
}


class Place(NamedTuple):
    """Where something was measured: tasks are not compared across families, which have controls of their own."""

    setting: str
    task: str
    family: str


def with_fails(pgr: pl.DataFrame) -> pl.DataFrame:
    """Add `fails`, which says what a row's controls show, and is null if they show nothing bad or were not run."""
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in OPTIONAL.items() if name not in pgr.columns]
    texts = (
        pl.when(pl.col("no_headroom")).then(pl.lit(NO_HEADROOM)),
        pl.when(~pl.col("above_untrained") & ~pl.col("no_headroom")).then(pl.lit(NOT_ABOVE_UNTRAINED)),
        pl.when(~pl.col("label_sensitive")).then(pl.lit(NOT_SENSITIVE)),
    )
    fails = pl.concat_str(texts, separator="; ", ignore_nulls=True)
    return pgr.with_columns(missing).with_columns(pl.when(fails != "").then(fails).alias("fails"))


def marked(table: pl.DataFrame, pgr: pl.DataFrame) -> pl.DataFrame:
    """A table with the column `fails` of the same task, pair and method.

    A table without tasks takes it from the pairs over all tasks. One without pairs gets `num_failing`, the number of pairs of
    its family and method that fail a control.
    """
    if table.is_empty() or not {"family", "method"} <= set(table.columns):
        return table
    pgr = with_fails(pgr)
    place = [name for name in PAIR_ON_TASK if name in table.columns]
    if "strong" not in place:
        pairs = pgr.filter(pl.col("task").is_null() & (pl.col("weak") != pl.col("strong")))
        counts = pairs.group_by(place).agg(pl.col("fails").count().cast(pl.Int64).alias("num_failing"))
        return table.join(counts, on=place, how="left", maintain_order="left")
    rows = pgr.filter(pl.col("task").is_null()) if "task" not in place else pgr
    fails = rows.select(*place, "fails").unique(place, keep="first")
    return table.join(fails, on=place, how="left", nulls_equal=True, maintain_order="left")


def verdicts(pgr: pl.DataFrame) -> dict[Place, str]:
    """What the controls of each task and family allow one to conclude from its PGR."""
    return {place: _verdict(speaking(rows)) for place, rows in by_task(pgr)}


def by_task(pgr: pl.DataFrame) -> list[tuple[Place, pl.DataFrame]]:
    """The pairs of different sizes of each task and family, in their order. `pgr`: the table of `w2s_ray.analysis.pgr`."""
    pairs = with_fails(pgr).filter(
        pl.col("task").is_not_null() & (pl.col("weak") != pl.col("strong")) & (pl.col("num_cells") > 0)
    )
    groups = pairs.group_by("setting", "task", "family", maintain_order=True)
    return [(Place(str(setting), str(task), str(family)), rows) for (setting, task, family), rows in groups]


def speaking(pairs: pl.DataFrame) -> pl.DataFrame:
    """The rows that speak for a task: naive students, else all that are no controls, else all."""
    naive, arms = pairs.filter(pl.col("method") == "naive"), pairs.filter(~has_method(*CONTROLS))
    return next(rows for rows in (naive, arms, pairs) if rows.height or rows is pairs)


def _verdict(pairs: pl.DataFrame) -> str:
    clear = pairs.filter(~pl.col("gap_too_small"))
    if clear.is_empty():
        return "No ceiling is clearly above its supervisor, so there is no PGR."
    clauses = []
    failing: dict[str, list[str]] = {}
    for row in clear.filter(pl.col("controls_reason").is_not_null()).iter_rows(named=True):
        for reason in row["controls_reason"].split(". "):
            failing.setdefault(reason, []).append(f"{row['weak']} to {row['strong']}")
    clauses += [f"{reason}{_some(names, clear)}" for reason, names in failing.items()]
    passing = clear.filter(pl.col("controls_reason").is_null())
    if passing.height:
        clauses += _of_passing(passing, clear)
    return " ".join(f"{clause[0].upper()}{clause[1:]}." for clause in clauses)


def _of_passing(passing: pl.DataFrame, clear: pl.DataFrame) -> list[str]:
    """What to conclude from pairs that fail no control. `clear`: all with a clear gap."""
    has_untrained, has_shuffled = (passing[column].is_not_null().any() for column in ("no_headroom", "label_sensitive"))
    if not has_untrained and not has_shuffled:
        return ["no controls were run, so nothing vouches for its PGR"]
    if not has_shuffled:
        return ["no students of shuffled labels vouch for its PGR"]
    clauses = []
    if not has_untrained:
        clauses.append("no untrained model tells what pretraining alone gives")
    is_above = (pl.col("pgr_above_floor_low") > 0).fill_null(False)
    for rows, text in (
        (
            passing.filter(~is_above),
            "the student is not clearly above the floor, so nothing shows what its labels taught",
        ),
        (
            passing.filter(is_above),
            "students beat their controls; their PGR above the floor measures what the labels taught",
        ),
    ):
        if rows.height:
            names = [f"{weak} to {strong}" for weak, strong in rows.select("weak", "strong").iter_rows()]
            clauses.append(f"{text}{_some(names, clear)}")
    return clauses


def _some(names: list[str], pairs: pl.DataFrame) -> str:
    """Which pairs something is true of, or nothing if it is true of all."""
    names = list(dict.fromkeys(names))
    if len(names) == pairs.select("weak", "strong").n_unique():
        return ""
    return f" ({', '.join(names[:MAX_NAMED])}{' and others' if len(names) > MAX_NAMED else ''})"
