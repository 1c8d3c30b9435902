"""Scores by the difficulty of test items: easy-to-hard generalization (Burns et al. 2023, appendix D.2.1).

A study may train on easy rows in one grid and on hard or all rows in another. The grids' labels make tasks of their own
here, such as `chess-mate (easy)`. They share one test set, which is cut into bins of about equal size.
"""

from __future__ import annotations

import polars as pl

from w2s_ray.analysis.agreement import fits_by_role
from w2s_ray.analysis.tables import Predictions, parts_of

MAX_BINS = 6


def difficulty_table(results: pl.DataFrame, predictions: Predictions, items: pl.DataFrame) -> pl.DataFrame:
    """Mean score over seeds for each role, size and method in each bin of difficulty. `items`: task, id, difficulty.

    Without the supervisors and ceilings of `generative`, which learned more than the truth.
    """
    roles = fits_by_role(results).filter(pl.col("role").is_in(["student", "control"]) | (pl.col("method") == "truth"))
    if items.is_empty() or roles.is_empty():
        return pl.DataFrame()
    binned = pl.concat(_binned(rows) for _, rows in items.group_by("task", maintain_order=True))
    by_key = (
        parts_of(predictions)
        .rows.select(pl.col("key", "task").cast(pl.String), "id", "correct")
        .join(binned.lazy(), on=["task", "id"], how="inner")
        .group_by("key", "difficulty", "bin")
        .agg(pl.col("correct").mean().alias("score"), pl.len().alias("num_items"))
        .collect(engine="streaming")
    )
    columns = ["setting", "family", "task", "role", "method", "weak", "strong"]
    return (
        roles.join(by_key, on="key", how="inner")
        .group_by(*columns, "difficulty", "bin", maintain_order=True)
        .agg(pl.col("score").mean(), pl.col("num_items").first(), pl.len().alias("num_seeds"))
        .sort(*columns, "difficulty")
    )


def _binned(items: pl.DataFrame) -> pl.DataFrame:
    """task, id, the mean difficulty of the item's bin, and the bin's range as text."""
    values = items["difficulty"].unique().sort()
    if len(values) > MAX_BINS:
        cuts = items["difficulty"].qcut(MAX_BINS, allow_duplicates=True).to_physical()
    else:
        cuts = items["difficulty"].rank("dense")
    return items.with_columns(cuts.alias("cut")).select(
        "task",
        "id",
        pl.col("difficulty").mean().over("cut"),
        pl.format("{} to {}", pl.col("difficulty").min().over("cut"), pl.col("difficulty").max().over("cut")).alias(
            "bin"
        ),
    )
