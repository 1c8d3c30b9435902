"""When to stop training, and whether students copy their supervisors' mistakes.

A student that keeps learning weak labels may get worse (Burns et al. 2023, section 5.1.1). Its test score is taken at three
points of its learning curve:

    final     the last point
    stopped   the first point with the highest accuracy against its own labels on held-out rows (`training.validation`)
    oracle    the point with the highest test score. It needs ground truth, which nobody has in practice.

The ceiling is taken at its last point for `final` and `stopped`. For `oracle` it is taken at its own best point, as the student
is: a best point is picked on the test set itself, so it flatters whoever may pick it. Supervisors are taken at their last
point, from which their labels come.
"""

from __future__ import annotations

import polars as pl

from analysis.cells import done as done_cells

RULES = ("final", "stopped", "oracle")
CELL = ["setting", "family", "task", "method", "weak", "strong", "weak_params", "strong_params"]


def stopping_table(results: pl.DataFrame, curves: pl.DataFrame, pgr: pl.DataFrame) -> pl.DataFrame:
    """Mean scores over seeds for each pair, method, task and rule, and PGR as the ratio of their sums.

    There is no PGR where the pair's gap is too small for one in `pgr`, the table of pgr.parquet.
    """
    if "test_accuracy" not in curves.columns or "step" not in curves.columns:
        return pl.DataFrame()
    points = curves.filter(pl.col("test_accuracy").is_not_null()).sort("key", "step")
    if "validation_accuracy" not in points.columns:
        points = points.with_columns(pl.lit(None, pl.Float32).alias("validation_accuracy"))
    score_by_rule = points.group_by("key").agg(
        pl.col("test_accuracy").last().alias("final"),
        pl.col("test_accuracy").get(pl.col("validation_accuracy").arg_max()).alias("stopped")
        if points["validation_accuracy"].is_not_null().any()
        else pl.lit(None, pl.Float32).alias("stopped"),
        pl.col("test_accuracy").max().alias("oracle"),
    )
    best_ceiling = score_by_rule.select("key", pl.col("oracle").alias("best_ceiling_score"))
    ceiling = pl.when(pl.col("rule") == "oracle").then("best_ceiling_score").otherwise("ceiling_score")
    cells = (
        done_cells(results)
        .join(score_by_rule, left_on="student_key", right_on="key", how="inner")
        .join(best_ceiling, left_on="ceiling_key", right_on="key", how="left")
        .unpivot(
            RULES,
            index=[*CELL, "seed", "weak_score", "ceiling_score", "best_ceiling_score"],
            variable_name="rule",
            value_name="score",
        )
        .with_columns(ceiling.cast(pl.Float64).alias("ceiling_score"))
    )
    means = (
        cells.filter(pl.col("score").is_not_null() & pl.col("ceiling_score").is_not_null())
        .group_by(*CELL, "rule", maintain_order=True)
        .agg(pl.col("score", "weak_score", "ceiling_score").cast(pl.Float64).mean(), pl.len().alias("num_seeds"))
    )
    place = [name for name in CELL if not name.endswith("_params")]
    clear = pgr.filter(~pl.col("gap_too_small")).select(*place, pl.lit(True).alias("has_clear_gap"))
    gap = pl.col("ceiling_score") - pl.col("weak_score")
    return (
        means.join(clear, on=place, how="left")
        .with_columns(
            pl.when(pl.col("has_clear_gap") & (gap > 0))
            .then((pl.col("score") - pl.col("weak_score")) / gap)
            .alias("pgr"),
            (pl.col("rule") == "oracle").alias("needs_ground_truth"),
            pl.when(pl.col("has_clear_gap").is_null())
            .then(pl.lit("gap_too_small: the ceiling is not clearly above the supervisor"))
            .alias("reason"),
        )
        .drop("has_clear_gap")
        .sort(*CELL, "rule")
    )


def copying_table(results: pl.DataFrame, curves: pl.DataFrame) -> pl.DataFrame:
    """How often students agree with their supervisor where it is wrong, compared with naive students of the same pair.

    Beside it stand the last losses on the supervisor's labels and on rows whose true label was known. A loss on the labels
    far below the loss on the truth means that the student learned to imitate its supervisor rather than the task.
    """
    done = done_cells(results).filter(pl.col("weak") != pl.col("strong"))
    if done.is_empty() or "train_loss" not in curves.columns:
        return pl.DataFrame()
    truth_loss = pl.col("verified_loss").last() if "verified_loss" in curves.columns else pl.lit(None, pl.Float32)
    last = curves.sort("key", "step").group_by("key").agg(
        pl.col("train_loss").last().alias("label_loss"),
        truth_loss.alias("truth_loss"),
    )  # fmt: skip
    pair = ["setting", "family", "weak", "strong"]
    means = (
        done.join(last, left_on="student_key", right_on="key", how="left")
        .group_by([*pair, "method"], maintain_order=True)
        .agg(
            pl.col("agreement_when_weak_wrong", "agreement_when_weak_right", "label_loss", "truth_loss").mean(),
            pl.col("student_score").mean(),
        )
    )
    naive = means.filter(pl.col("method") == "naive").select(
        *pair, pl.col("agreement_when_weak_wrong").alias("of_naive")
    )
    return (
        means.join(naive, on=pair, how="left")
        .with_columns((pl.col("agreement_when_weak_wrong") - pl.col("of_naive")).alias("more_than_naive"))
        .drop("of_naive")
    )
