"""What several tables ask of the rows of results.parquet: how large the models are, and which Fits belong to which method.

The tables may be of an older version of this package. `complete` gives them the columns that they lack, as nulls.
"""

from __future__ import annotations

import polars as pl

AXES = {
    "params": "student's parameters",
    "compute": "student's pretraining compute (FLOP)",
    "fraction": "student's size as a fraction of the largest",
}
"""What the size axis can show -> its title."""

SIZE_NOUNS = {"params": "parameters", "compute": "pretraining compute", "fraction": "sizes"}
"""Axis -> what models of one size have in common, in messages."""

OPTIONAL = {
    "swapped": pl.Boolean,
    "weak_flops": pl.Float64,
    "strong_flops": pl.Float64,
    "weak_key": pl.String,
    "student_key": pl.String,
    "ceiling_key": pl.String,
    "zero_shot_key": pl.String,
    "shuffled_key": pl.String,
    "floor_score": pl.Float64,
    "controls": pl.Boolean,
}
"""Columns that a table may lack."""

CONTROLS = ("zero_shot", "few_shot", "shuffled", "noise", "strong_on_a")
"""Methods that other methods are compared with. They say nothing about weak-to-strong generalization by themselves."""


def complete(results: pl.DataFrame) -> pl.DataFrame:
    """The results with all of OPTIONAL. A row that does not say whether it is a twin is none."""
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in OPTIONAL.items() if name not in results.columns]
    return results.with_columns(missing).with_columns(pl.col("swapped").fill_null(False))


def done(results: pl.DataFrame) -> pl.DataFrame:
    """The cells that have a result."""
    return complete(results).filter(pl.col("status") == "done")


def sized(cells: pl.DataFrame, axis: str) -> pl.DataFrame:
    """Add `weak_size` and `strong_size`, the models' positions on the size axis. Null where they are not known."""
    unit: pl.Expr = pl.lit(1.0)
    quantity = "flops" if axis == "compute" else "params"
    if axis == "fraction":
        unit = pl.max_horizontal("weak_params", "strong_params").max().over("family")
    return complete(cells).with_columns(
        (pl.col(f"{side}_{quantity}").cast(pl.Float64) / unit).alias(f"{side}_size") for side in ("weak", "strong")
    )


def is_control(method: str) -> bool:
    """Whether a method, such as `noise(errors=longest)`, is one of CONTROLS."""
    return method.split("(")[0] in CONTROLS


def has_method(*words: str) -> pl.Expr:
    """Whether `method`, such as `noise(errors=longest)`, is one of these words."""
    return pl.col("method").str.split("(").list.first().is_in(words)


def is_generatives_own(side: str) -> pl.Expr:
    """Whether a cell's supervisor (`weak`) or `ceiling` started from `generative`'s warm start.

    Such a Fit learned to write the task's texts before it saw a label, so it does not belong with those that learned from the
    truth alone. It is known by its key, which occurs with that method and no other. `generative(supervisor=plain)` has the
    supervisors of all other methods.
    """
    is_own = has_method("generative")
    if side == "weak":
        is_own &= ~pl.col("method").str.contains("supervisor=plain", literal=True)
    return is_own.all().over(f"{side}_key")


def on_plain_truth(cells: pl.DataFrame, side: str) -> pl.DataFrame:
    """The cells whose supervisor (`weak`) or `ceiling` learned from the truth alone."""
    return cells.filter(~is_generatives_own(side))
