"""What students make of their supervisors' labels: agreement, misfit and gain, learning curves, calibration.

Agreement is split by whether the supervisor is right. The paper found inverse scaling: larger students agree less with
their supervisor where it is wrong (Burns et al. 2023, section 5.1.3). The sign test here counts, over tasks, seeds and
supervisors, how often the next larger student agrees less than the one before.
"""

from __future__ import annotations

import polars as pl
from scipy.stats import binomtest

CELL = ["setting", "family", "method", "task", "weak", "strong", "weak_params", "strong_params"]
WHEN = {"right": "agreement_when_weak_right", "wrong": "agreement_when_weak_wrong"}
NUM_BINS = 10


def agreement_table(results: pl.DataFrame) -> pl.DataFrame:
    """Mean agreement over tasks and seeds for each pair and method. `when`: the supervisor is right, or wrong."""
    done = results.filter(pl.col("status") == "done")
    pair = [name for name in CELL if name != "task"]
    return pl.concat(
        done.group_by(pair, maintain_order=True)
        .agg(pl.col(column).mean().alias("agreement"), pl.len().alias("num_cells"))
        .with_columns(pl.lit(when).alias("when"))
        for when, column in WHEN.items()
    )


def inverse_scaling(results: pl.DataFrame) -> pl.DataFrame:
    """How often agreement falls and rises from one student to the next larger, for each setting, family, method and `when`.
    `p_value` is the two-sided sign test of equal chances. Steps without a change are left out."""
    done = results.filter((pl.col("status") == "done") & (pl.col("weak_params") < pl.col("strong_params")))
    rows = []
    for key, cells in done.group_by(["setting", "family", "method"], maintain_order=True):
        for when, column in WHEN.items():
            steps = (
                cells.sort("strong_params")
                .with_columns(pl.col(column).diff().over("task", "weak", "seed").alias("step"))["step"]
                .drop_nulls()
            )
            down, up = int((steps < 0).sum()), int((steps > 0).sum())
            p_value = float(binomtest(down, down + up).pvalue) if down + up else None
            rows.append((*map(str, key), when, down, up, p_value))
    names = ("setting", "family", "method", "when", "steps_down", "steps_up", "p_value")
    schema = dict.fromkeys(names[:4], pl.String) | {"steps_down": pl.Int64, "steps_up": pl.Int64, "p_value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def misfit_table(results: pl.DataFrame) -> pl.DataFrame:
    """Mean over seeds of misfit (share of test items on which student and supervisor differ) and of gain over the supervisor.

    Under squared loss and a convex class of students the gain is at least the misfit (Charikar et al. 2024, theorem 1).
    """
    done = results.filter(pl.col("status") == "done")
    return done.group_by(CELL, maintain_order=True).agg(
        (1 - pl.col("agreement")).mean().alias("misfit"),
        (pl.col("student_score") - pl.col("weak_score")).mean().alias("gain"),
    )


def learning_table(results: pl.DataFrame, curves: pl.DataFrame) -> pl.DataFrame:
    """Learning curves on the test set: a row for each point of each student and ceiling."""
    if "epoch" not in curves.columns:
        return pl.DataFrame()
    done = results.filter(pl.col("status") == "done")
    head = ["setting", "family", "task", "strong", "strong_params", "method", "weak", "weak_params", "seed"]
    students = done.select(*head, pl.col("student_key").alias("key"), pl.lit("student").alias("role"), line="weak")
    ceilings = done.unique(["ceiling_key"], maintain_order=True).select(
        *head, pl.col("ceiling_key").alias("key"), pl.lit("ceiling").alias("role"), line=pl.lit("ceiling")
    )
    truth = ceilings.with_columns(pl.lit("truth").alias("method"))
    points = curves.select("key", "epoch", "test_accuracy", "train_loss", "train_accuracy")
    return pl.concat([students, truth]).join(points, on="key", how="inner").drop("key")


def calibration_table(results: pl.DataFrame, predictions: pl.DataFrame) -> pl.DataFrame:
    """Predicted against observed probability by role, over sizes and seeds, in ten bins of predicted probability.

    `said` is the mean predicted probability of a bin and `was` the share of its items for which the event came true. The
    event is label 1 in classification, the first completion being better in comparison, and a correct completion in
    generation.
    """
    done = results.filter(pl.col("status") == "done")
    if "probability" not in predictions.columns or done.is_empty():
        return pl.DataFrame()
    roles = pl.concat(
        done.select("setting", "family", "task", pl.col(f"{side}_key").alias("key"), pl.lit(role).alias("role"))
        for side, role in (("weak", "supervisor"), ("student", "student"), ("ceiling", "ceiling"))
    ).unique(["key", "role"], maintain_order=True)
    outcome = pl.when(pl.col("label").is_null()).then(pl.col("correct")).otherwise(pl.col("label") == 1)
    binned = (
        predictions.lazy()
        .select(
            pl.col("key").cast(pl.String),
            "probability",
            outcome.cast(pl.Float32).alias("outcome"),
            (pl.col("probability") * NUM_BINS).floor().clip(0, NUM_BINS - 1).cast(pl.Int8).alias("bin"),
        )
        .group_by("key", "bin")
        .agg(
            pl.col("probability").cast(pl.Float64).sum(),
            pl.col("outcome").cast(pl.Float64).sum(),
            pl.len().alias("num_items"),
        )
        .collect(engine="streaming")
    )
    return (
        roles.join(binned, on="key", how="inner")
        .group_by("setting", "family", "task", "role", "bin")
        .agg(pl.col("probability", "outcome", "num_items").sum())
        .with_columns(
            (pl.col("probability") / pl.col("num_items")).alias("said"),
            (pl.col("outcome") / pl.col("num_items")).alias("was"),
        )
        .drop("probability", "outcome")
        .sort("setting", "family", "task", "role", "bin")
    )
