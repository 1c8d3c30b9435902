"""The labels that students learned from: how many are right, beside the scores of the models that gave them.

A method that changes labels, leaves some out, or takes those of several supervisors together, shows here what it made of them,
before any student learned. Shuffled labels are those of the study's control.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from w2s_ray.analysis.agreement import fits_by_role
from w2s_ray.analysis.answers import Answers

PLACE = ["setting", "family", "task", "weak", "strong", "method"]
SCHEMA = {
    **dict.fromkeys(PLACE, pl.String),
    "labels_right": pl.Float64,
    "num_labellers": pl.Int64,
    "labeller_score": pl.Float64,
    "best_labeller_score": pl.Float64,
    "ensemble_score": pl.Float64,
    "num_fits": pl.Int64,
}
"""All are means over replicates. `labels_right`: share of right labels among the rows that a student learned from.
`labeller_score` and `best_labeller_score`: the mean and the best test score of the models whose labels these are; null if one
has no predictions here. `ensemble_score`: share of the test rows that several labellers label right together; null for one
labeller."""


def label_table(results: pl.DataFrame, runs: pl.DataFrame, answers: Mapping[str, Answers]) -> pl.DataFrame:
    """One row for each task, pair and method. `runs`: the table of runs.parquet."""
    if not {"key", "label_score", "labellers"} <= set(runs.columns):
        return pl.DataFrame(schema=SCHEMA)
    score_of = {key: float(answer.correct.mean()) for key, answer in answers.items()}
    labelled = [
        {
            "key": run["key"],
            "labels_right": run["label_score"],
            "ensemble_score": run["ensemble_score"],
            "num_labellers": len(run["labellers"] or []),
            "scores": _scores(run["labellers"] or [], score_of),
        }
        for run in runs.filter(pl.col("label_score").is_not_null()).iter_rows(named=True)
    ]
    types: dict[str, Any] = {
        "key": pl.String,
        "labels_right": pl.Float64,
        "ensemble_score": pl.Float64,
        "num_labellers": pl.Int64,
        "scores": pl.List(pl.Float64),
    }
    learners = fits_by_role(results).filter(pl.col("role").is_in(["student", "control"]))
    return (
        learners.join(pl.DataFrame(labelled, schema=types), on="key", how="inner", maintain_order="left")
        .group_by(PLACE, maintain_order=True)
        .agg(
            pl.col("labels_right").mean(),
            pl.col("num_labellers").max(),
            pl.col("scores").list.mean().mean().alias("labeller_score"),
            pl.col("scores").list.max().mean().alias("best_labeller_score"),
            pl.col("ensemble_score").mean(),
            pl.len().cast(pl.Int64).alias("num_fits"),
        )
    )


def _scores(labellers: list[str], score_of: Mapping[str, float]) -> list[float]:
    """The test scores of all labellers. None at all if one is unknown: the others' mean would pass for the mean of all."""
    scores = [score_of[key] for key in labellers if key in score_of]
    return scores if len(scores) == len(labellers) else []
