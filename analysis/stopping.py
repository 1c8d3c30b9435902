"""When to stop training, and whether students copy their supervisors' mistakes.

A student that keeps learning weak labels may get worse (Burns et al. 2023, section 5.1.1). Scores are taken from three points
of the learning curves, by one rule for student and ceiling alike:

    final     the last point
    stopped   the first point with the highest accuracy against the Fit's own labels on held-out rows (`training.validation`)
    oracle    the point with the highest test score. It needs ground truth, which nobody has in practice, and it flatters,
              since the point is picked on the test set itself.

The predictions of a Fit, from which all other tables come, are those of `final`, or those of `stopped` with
`training.stop: validation`. Supervisors are taken as they are: from their predictions come the labels, whatever the rule.
"""

from __future__ import annotations

import polars as pl

from w2s_ray.analysis.cells import done as done_cells

CELL = ["setting", "family", "task", "method", "weak", "strong", "weak_params", "strong_params"]
GAP_TOO_SMALL = "gap_too_small: the ceiling is not clearly above the supervisor"


def stopping_table(results: pl.DataFrame, curves: pl.DataFrame, runs: pl.DataFrame, pgr: pl.DataFrame) -> pl.DataFrame:
    """Mean scores over seeds for each pair, method, task and rule, and PGR as the ratio of their sums.

    `is_result` marks the rule by which the Fits predict. `runs` and `pgr` are the tables of runs.parquet and pgr.parquet. There
    is no PGR where the pair's gap is too small for one, nor under a rule whose gap is within the error of the pair's gap, since
    learning curves have no intervals of their own.
    """
    if "test_accuracy" not in curves.columns or "step" not in curves.columns:
        return pl.DataFrame()
    stops_early = pl.col("student_key").is_in(_best_steps(runs)["key"].to_list())
    result_rule = pl.when(stops_early).then(pl.lit("stopped")).otherwise(pl.lit("final"))
    scores = _scores_by_rule(curves)
    cells = done_cells(results).with_columns(result_rule.alias("result_rule"))
    by_rule = cells.join(scores.rename({"score": "student_curve"}), left_on="student_key", right_on="key").join(
        scores.rename({"score": "ceiling_curve"}), left_on=["ceiling_key", "rule"], right_on=["key", "rule"]
    )
    is_result = pl.col("rule") == pl.col("result_rule")
    means = (
        by_rule.with_columns(
            is_result.alias("is_result"),
            pl.when(is_result).then("student_score").otherwise("student_curve").alias("score"),
            pl.when(is_result).then("ceiling_score").otherwise("ceiling_curve").alias("ceiling_score"),
        )
        .group_by(*CELL, "rule", "is_result", maintain_order=True)
        .agg(pl.col("score", "weak_score", "ceiling_score").cast(pl.Float64).mean(), pl.len().alias("num_seeds"))
    )
    place = [name for name in CELL if not name.endswith("_params")]
    gap = pl.col("ceiling_score") - pl.col("weak_score")
    is_clear = (~pl.col("gap_too_small") & (gap > pl.col("gap") - pl.col("gap_low"))).fill_null(False)
    return (
        means.join(pgr.select(*place, "gap_too_small", "gap", "gap_low"), on=place, how="left")
        .with_columns(
            pl.when(is_clear).then((pl.col("score") - pl.col("weak_score")) / gap).alias("pgr"),
            (pl.col("rule") == "oracle").alias("needs_ground_truth"),
            pl.when(~is_clear).then(pl.lit(GAP_TOO_SMALL)).alias("reason"),
        )
        .drop("gap_too_small", "gap", "gap_low")
        .sort(*CELL, "rule")
    )


def _best_steps(runs: pl.DataFrame) -> pl.DataFrame:
    """key, best_step: of Fits that predict with the weights of another step than the last."""
    if "best_step" not in runs.columns:
        return pl.DataFrame(schema={"key": pl.String, "best_step": pl.Int64})
    return runs.select("key", "best_step").drop_nulls()


def _scores_by_rule(curves: pl.DataFrame) -> pl.DataFrame:
    """key, rule, score: test scores at the points that the rules choose, where there are such."""
    points = curves.filter(pl.col("test_accuracy").is_not_null()).sort("key", "step")
    score = pl.col("test_accuracy").cast(pl.Float64)
    scores = {"final": score.last(), "oracle": score.max()}
    if "validation_accuracy" in points.columns and points["validation_accuracy"].is_not_null().any():
        scores["stopped"] = score.get(pl.col("validation_accuracy").arg_max())
    return (
        points.group_by("key")
        .agg(**scores)
        .unpivot(index="key", variable_name="rule", value_name="score")
        .drop_nulls("score")
    )


def copying_table(results: pl.DataFrame, curves: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """How often students agree with their supervisor where it is wrong, compared with naive students of the same cells: those that
    share pair, task and replicate.

    Beside it stand the losses on the supervisor's labels and on rows whose true label was known, at the step whose weights
    predict. A loss on the labels far below the loss on the truth means that the student learned to imitate its supervisor rather
    than the task.
    """
    done = done_cells(results).filter(pl.col("weak") != pl.col("strong"))
    if done.is_empty() or "train_loss" not in curves.columns:
        return pl.DataFrame()
    truth_loss = pl.col("verified_loss").last() if "verified_loss" in curves.columns else pl.lit(None, pl.Float32)
    until_prediction = curves.join(_best_steps(runs), on="key", how="left").filter(
        pl.col("best_step").is_null() | (pl.col("step") <= pl.col("best_step"))
    )
    last = until_prediction.sort("key", "step").group_by("key").agg(
        pl.col("train_loss").last().alias("label_loss"),
        truth_loss.alias("truth_loss"),
    )  # fmt: skip
    pair = ["setting", "family", "weak", "strong"]
    place = [*pair, "task", *(name for name in ("seed", "swapped") if name in done.columns)]
    naive = done.filter(pl.col("method") == "naive").select(
        *place, pl.col("agreement_when_weak_wrong").alias("of_naive")
    )
    more = pl.col("agreement_when_weak_wrong") - pl.col("of_naive")
    return (
        done.join(naive, on=place, how="left", nulls_equal=True, maintain_order="left")
        .with_columns(more.alias("more_than_naive"))
        .join(last, left_on="student_key", right_on="key", how="left")
        .group_by([*pair, "method"], maintain_order=True)
        .agg(
            pl.col("agreement_when_weak_wrong", "agreement_when_weak_right", "label_loss", "truth_loss").mean(),
            pl.col("student_score", "more_than_naive").mean(),
        )
    )
