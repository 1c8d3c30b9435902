"""What a study's controls allow one to conclude, and the marks on what fails them.

Two controls stand beside every cell: the untrained strong model, and the strong model trained on shuffled labels. A PGR means
little where the untrained model is as good as the ceiling (`no_headroom` in pgr.parquet), and nothing about supervision where
shuffled labels do as well as the supervisor's (`label_sensitive` is false). `controls_reason` says in words what a control forbids to conclude. This file reads these columns
and computes none.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from analysis import tables
from analysis.cells import CONTROLS, has_method

PLACE = ["setting", "family", "task", "weak", "strong", "method"]
NO_HEADROOM = "ceiling not clearly above untrained"
NOT_SENSITIVE = "not clearly above shuffled labels"
OPTIONAL = {"no_headroom": pl.Boolean, "label_sensitive": pl.Boolean, "controls_reason": pl.String}


def with_fails(pgr: pl.DataFrame) -> pl.DataFrame:
    """Add `fails`, which says what a row's controls show, and is null if they show nothing bad or were not run."""
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in OPTIONAL.items() if name not in pgr.columns]
    texts = (
        pl.when(pl.col("no_headroom")).then(pl.lit(NO_HEADROOM)),
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
    place = [name for name in PLACE if name in table.columns]
    if "strong" not in place:
        pairs = pgr.filter(pl.col("task").is_null() & (pl.col("weak") != pl.col("strong")))
        counts = pairs.group_by(place).agg(pl.col("fails").count().cast(pl.Int64).alias("num_failing"))
        return table.join(counts, on=place, how="left", maintain_order="left")
    rows = pgr.filter(pl.col("task").is_null()) if "task" not in place else pgr
    fails = rows.select(*place, "fails").unique(place, keep="first")
    return table.join(fails, on=place, how="left", nulls_equal=True, maintain_order="left")


def verdicts(pgr: pl.DataFrame) -> list[str]:
    """One sentence for each task: what its controls allow one to conclude from its PGR. Judged by naive students, if any."""
    pairs = with_fails(pgr).filter(
        pl.col("task").is_not_null() & (pl.col("weak") != pl.col("strong")) & (pl.col("num_cells") > 0)
    )
    sentences = []
    for (task,), rows in pairs.group_by("task", maintain_order=True):
        naive, arms = rows.filter(has_method("naive")), rows.filter(~has_method(*CONTROLS))
        sentences.append(f"{task}: {_verdict(next(table for table in (naive, arms, rows) if table.height))}.")
    return sentences


def _verdict(pairs: pl.DataFrame) -> str:
    clear = pairs.filter(~pl.col("gap_too_small"))
    if clear.is_empty():
        return "no ceiling is clearly above its supervisor, so there is no PGR"
    reasons = [reason for text in clear["controls_reason"].drop_nulls() for reason in text.split(". ")]
    if reasons:
        counts = {reason: reasons.count(reason) for reason in reasons}
        return "; moreover, ".join(
            reason if count == clear.height else f"{reason} ({count} of {clear.height} pairs)"
            for reason, count in counts.items()
        )
    has_untrained, has_shuffled = (clear[column].is_not_null().any() for column in ("no_headroom", "label_sensitive"))
    if has_untrained and has_shuffled:
        return (
            "shuffled labels do worse than the supervisor's and the ceiling is above the untrained model; its PGR measures "
            "what supervision adds"
        )
    if has_shuffled:
        return "shuffled labels do worse than the supervisor's; no untrained model tells what pretraining alone gives"
    if has_untrained:
        return "the ceiling is above the untrained model; no students of shuffled labels vouch for its PGR"
    return "no controls were run, so nothing vouches for its PGR"


def read_verdicts(folder: Path) -> list[str]:
    """The sentences of a report that was written to this folder."""
    return verdicts(tables.read(folder / "pgr.parquet", {}))
