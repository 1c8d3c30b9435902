"""What supervisors' labels are like, and what students make of them: agreement, misfit and gain, learning curves, calibration.

Agreement is split by whether the supervisor is right. The paper found inverse scaling: larger students agree less with
their supervisor where it is wrong (Burns et al. 2023, section 5.1.3). Students of other labels, whose errors are not the
supervisor's (shuffled labels, random errors), say how much of that agreement is imitation. On half B, which the student learned
from, it says whether the student could fit those errors at all; on the test set, whether it took over what makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import binomtest

from w2s_ray.analysis.answers import Answers, Share, Term, agreement, estimate
from w2s_ray.analysis.cells import CONTROLS, done, has_method, is_generatives_own, on_plain_truth, sized
from w2s_ray.analysis.intervals import Interval
from w2s_ray.analysis.tables import Predictions, parts_of

CELL = ["setting", "family", "method", "task", "weak", "strong", "weak_params", "strong_params"]
WHEN = {"right": "agreement_when_weak_right", "wrong": "agreement_when_weak_wrong"}
NUM_BINS = 10
TEST, HALF_B = "test set", "half B"
"""The parts of a task on which a student is compared with its supervisor."""


def agreement_table(results: pl.DataFrame, answers: Mapping[str, Answers]) -> pl.DataFrame:
    """Mean agreement over tasks and seeds for each pair and method, with its 95 % interval over replicates and items. `when`: the
    supervisor is right, or wrong. Without an interval where replicates have different tasks, or answers are not known."""
    pair = [name for name in CELL if name != "task"]
    rows = []
    for when, column in WHEN.items():
        for values, cells in done(results).group_by(pair, maintain_order=True):
            _, low, high = _agreement_interval(cells, answers, when=when)
            mean = cells.select(pl.col(column).mean()).item()
            rows.append((*values, mean, low, high, cells.height, when))
    schema = {name: results.schema[name] for name in pair} | AGREEMENT
    return pl.DataFrame(rows, schema=schema, orient="row")


AGREEMENT = {
    "agreement": pl.Float64,
    "agreement_low": pl.Float64,
    "agreement_high": pl.Float64,
    "num_cells": pl.UInt32,
    "when": pl.String,
}


def _agreement_interval(cells: pl.DataFrame, answers: Mapping[str, Answers], *, when: str) -> Interval:
    by_seed: dict[int, list[tuple[str, Share]]] = {}
    for row in cells.select("seed", "task", "weak_key", "student_key").iter_rows(named=True):
        share = _agreement_when(row, answers, when=when)
        if share is None:
            return NO_INTERVAL
        by_seed.setdefault(row["seed"], []).append((row["task"], share))
    if len({tuple(sorted(task for task, _ in shares)) for shares in by_seed.values()}) != 1:
        return NO_INTERVAL
    return estimate({seed: [Term(t, 1 / len(shares), s) for t, s in shares] for seed, shares in by_seed.items()})


NO_INTERVAL: Interval = (np.nan, None, None)


# --- inverse scaling ------------------------------------------------------------------------------------------------

INVERSE = {
    "setting": pl.String,
    "family": pl.String,
    "method": pl.String,
    "when": pl.String,
    "steps_down": pl.Int64,
    "steps_up": pl.Int64,
    "p_value": pl.Float64,
    "slope": pl.Float64,
    "slope_low": pl.Float64,
    "slope_high": pl.Float64,
    "num_replicates": pl.Int64,
}


def inverse_scaling(results: pl.DataFrame, answers: Mapping[str, Answers], *, axis: str = "params") -> pl.DataFrame:
    """How agreement changes with the student's size, for each setting, family, method and `when`.

    A step leads from one student to the next larger of the same supervisor on the same task. Its change is the mean over
    replicates, whose students are too alike to count one by one. `p_value` is the two-sided sign test of equal chances, and
    steps without a change are left out. `slope` is the change of agreement when the student's size grows tenfold, with a
    95 % interval (see `w2s_ray.analysis.answers`).
    """
    cells = sized(done(results), axis).filter(pl.col("weak_size") < pl.col("strong_size"))
    rows = []
    for key, group in cells.group_by(["setting", "family", "method"], maintain_order=True):
        for when, column in WHEN.items():
            steps = _mean_steps(group, column)
            down, up = int((steps < 0).sum()), int((steps > 0).sum())
            p_value = float(binomtest(down, down + up).pvalue) if down + up else None
            terms = _slope_terms(group, answers, when=when)
            slope = estimate(terms) if terms else (None, None, None)
            rows.append((*key, when, down, up, p_value, *slope, group["seed"].n_unique()))
    return pl.DataFrame(rows, schema=INVERSE, orient="row")


def _mean_steps(cells: pl.DataFrame, column: str) -> pl.Series:
    """The mean change over replicates at each step."""
    ladder = ["task", "weak", "seed", "swapped"]
    return (
        cells.filter(pl.col(column).is_not_null())
        .sort("strong_size", maintain_order=True)
        .with_columns(pl.col(column).diff().over(ladder).alias("change"), pl.col("strong").shift().over(ladder).alias("before"))
        .filter(pl.col("change").is_not_null())
        .group_by("task", "weak", "before", "strong", maintain_order=True)
        .agg(pl.col("change").mean())["change"]
    )  # fmt: skip


def _slope_terms(cells: pl.DataFrame, answers: Mapping[str, Answers], *, when: str) -> dict[int, list[Term]]:
    """Seed -> the terms of its least-squares slope, with an intercept for each supervisor on each task."""
    terms: dict[int, list[Term]] = {}
    for (seed,), replicate in cells.group_by("seed", maintain_order=True):
        lines: list[tuple[str, list[tuple[float, Share]]]] = []
        for (task, *_), line in replicate.group_by(["task", "weak", "swapped"], maintain_order=True):
            points = []
            for row in line.select("weak_key", "student_key", "strong_size").iter_rows(named=True):
                share = _agreement_when(row, answers, when=when)
                if share is not None:
                    points.append((float(np.log10(row["strong_size"])), share))
            lines.append((str(task), points))
        centred = [
            (task, size - float(np.mean([size for size, _ in points])), share)
            for task, points in lines
            for size, share in points
        ]
        spread = sum(deviation**2 for _, deviation, _ in centred)
        if spread > 0:
            terms[int(str(seed))] = [Term(task, deviation / spread, share) for task, deviation, share in centred]
    return terms


def _agreement_when(row: dict[str, Any], answers: Mapping[str, Answers], *, when: str) -> Share | None:
    """Agreement of a cell's student with its supervisor where that is right or wrong. None if there is nothing to count."""
    weak, student = answers.get(row["weak_key"]), answers.get(row["student_key"])
    if weak is None or student is None:
        return None
    return agreement(student, weak, where=weak.correct if when == "right" else ~weak.correct)


# --- imitation ------------------------------------------------------------------------------------------------------

IMITATION = {
    "setting": pl.String,
    "family": pl.String,
    "task": pl.String,
    "weak": pl.String,
    "strong": pl.String,
    "method": pl.String,
    "part": pl.String,
    "agreement": pl.Float64,
    "agreement_low": pl.Float64,
    "agreement_high": pl.Float64,
    **{
        f"{column}{end}": pl.Float64
        for name in ("shuffled", "noise")
        for column, ends in ((name, ("",)), (f"more_than_{name}", ("", "_low", "_high")))
        for end in ends
    },
    "num_replicates": pl.Int64,
}
"""All shares are of those items of `part` (TEST or HALF_B) on which the supervisor is wrong. On half B these are the rows that
the student learned from. `shuffled` and `noise` are the agreement of students of the same size that learned from shuffled labels,
or from the truth with as many random errors as the supervisor makes."""


def imitation_table(
    results: pl.DataFrame, answers: Mapping[str, Answers], half_b: Mapping[str, Answers]
) -> pl.DataFrame:
    """How often students repeat their supervisor's mistakes, on the test set and on half B, beside students that could not learn
    them from it."""
    cells = _with_references(done(results).filter(pl.col("weak") != pl.col("strong")))
    students = cells.filter(~has_method(*CONTROLS))
    head = ["setting", "family", "task", "weak", "strong", "method"]
    rows = []
    for values, group in students.group_by(head, maintain_order=True):
        replicates = _Replicates(str(values[2]), group["seed"].to_list())
        for part, of_part in ((TEST, answers), (HALF_B, half_b)):
            student, shuffled, noise = (
                [
                    _repeated_mistakes(*(of_part.get(key) for key in keys))
                    for keys in zip(*(group[name] for name in ("weak_key", "student_key", learner)), strict=True)
                ]
                for learner in ("student_key", "shuffled_ref", "noise_ref")
            )
            row: dict[str, Any] = dict.fromkeys(IMITATION) | dict(zip(head, values, strict=True)) | {"part": part}
            row |= replicates.columns("agreement", student) | {"num_replicates": group["seed"].n_unique()}
            for name, reference in (("shuffled", shuffled), ("noise", noise)):
                row[name] = replicates.columns(name, reference).get(name)
                row |= replicates.columns(f"more_than_{name}", student, minus=reference)
            if row["agreement"] is not None:
                rows.append(row)
    return pl.DataFrame(rows, schema=IMITATION)


def _repeated_mistakes(weak: Answers | None, student: Answers | None, learner: Answers | None) -> Share | None:
    """Among the items of a student, the share of its supervisor's mistakes that a learner repeats. None if not all are known."""
    if weak is None or student is None or learner is None:
        return None
    weak, learner = weak.on_items_of(student), learner.on_items_of(student)
    if weak is None or learner is None:
        return None
    return agreement(learner, weak, where=~weak.correct)


@dataclass(frozen=True)
class _Replicates:
    """The seeds of some cells of one task, in the cells' order. A seed's twin belongs to the same replicate."""

    task: str
    seeds: list[int]

    def columns(
        self, name: str, shares: list[Share | None], *, minus: list[Share | None] | None = None
    ) -> dict[str, float | None]:
        """The mean share, or the mean difference of two, with its interval. Empty if no cell has it."""
        cells: dict[int, list[list[tuple[float, Share]]]] = {}
        for seed, share, other in zip(self.seeds, shares, minus or shares, strict=True):
            if share is not None and other is not None:
                cells.setdefault(seed, []).append([(1.0, share)] if minus is None else [(1.0, share), (-1.0, other)])
        if not cells:
            return {}
        terms = {
            seed: [Term(self.task, sign / len(twins), share) for twin in twins for sign, share in twin]
            for seed, twins in cells.items()
        }
        return dict(zip((name, f"{name}_low", f"{name}_high"), estimate(terms), strict=True))


def _with_references(cells: pl.DataFrame) -> pl.DataFrame:
    """Add `shuffled_ref` and `noise_ref`: keys of the Fits of the same size under the same seed that learned from shuffled
    labels and from random errors. The study's controls come first, then its methods of these names, without parameters if it has
    such."""
    place = ["setting", "family", "task", "weak", "strong", "seed", "swapped"]
    for name in ("shuffled", "noise"):
        arm = cells.filter(has_method(name)).sort(pl.col("method") != name, maintain_order=True)
        arm = arm.unique(place, keep="first", maintain_order=True)
        cells = cells.join(arm.select(*place, pl.col("student_key").alias(f"{name}_ref")), on=place, how="left")
    return cells.with_columns(pl.coalesce("shuffled_key", "shuffled_ref").alias("shuffled_ref"))


# --- misfit and gain ------------------------------------------------------------------------------------------------


def misfit_table(results: pl.DataFrame, answers: Mapping[str, Answers]) -> pl.DataFrame:
    """Mean over seeds of misfit and gain, for two-way tasks.

    `misfit` is the mean squared difference of the student's and the supervisor's probabilities, and `gain` is by how much the
    student's squared error (Brier score) is below its supervisor's. For students trained by squared loss, from a convex class
    that holds the truth, the gain is at least the misfit (Charikar et al. 2024, theorem 1). With cross-entropy and neural
    networks this is a conjecture, which the data may refute. Shares of answers that differ would not do: in a two-way task
    accuracy can never gain more than that.
    """
    cells = done(results)
    errors = [
        _errors(answers.get(weak), answers.get(own))
        for weak, own in cells.select("weak_key", "student_key").iter_rows()
    ]
    schema = {"misfit": pl.Float64, "gain": pl.Float64}
    return (
        pl.concat([cells, pl.DataFrame(errors, schema=schema, orient="row")], how="horizontal")
        .filter(pl.col("gain").is_not_null())
        .group_by(CELL, maintain_order=True)
        .agg(pl.col("misfit", "gain").mean(), pl.len().alias("num_cells"))
    )


def _errors(weak: Answers | None, student: Answers | None) -> tuple[float | None, float | None]:
    """(misfit, gain) under squared loss. Nulls where there is no probability of a class."""
    if weak is None or student is None or weak.label is None:
        return None, None
    p, q, y = (values.astype(np.float64) for values in (weak.probability, student.probability, weak.label))
    return float(((q - p) ** 2).mean()), float(((p - y) ** 2 - (q - y) ** 2).mean())


# --- learning and calibration ---------------------------------------------------------------------------------------


def learning_table(results: pl.DataFrame, curves: pl.DataFrame) -> pl.DataFrame:
    """Learning curves on the test set: a row for each point of each student and ceiling. `floor` is the best score of the
    supervisor and the controls, which a student has to beat."""
    if "epoch" not in curves.columns:
        return pl.DataFrame()
    cells = done(results)
    head = ["setting", "family", "task", "strong", "strong_params", "method", "weak", "weak_params", "seed"]
    students = cells.select(
        *head, pl.col("student_key").alias("key"), pl.lit("student").alias("role"), floor="floor_score", line="weak"
    )
    ceilings = on_plain_truth(cells, "ceiling").unique(["ceiling_key"], maintain_order=True)
    truth = ceilings.with_columns(pl.lit("truth").alias("method")).select(
        *head,
        pl.col("ceiling_key").alias("key"),
        pl.lit("ceiling").alias("role"),
        floor=pl.lit(None, pl.Float64),
        line=pl.lit("ceiling"),
    )
    points = curves.select("key", "epoch", "test_accuracy", "train_loss", "train_accuracy")
    return pl.concat([students, truth]).join(points, on="key", how="inner").drop("key")


def fits_by_role(results: pl.DataFrame) -> pl.DataFrame:
    """The Fits behind the cells: setting, family, task, role, method, weak, strong, key, each once.

    Supervisors and ceilings have the method `truth`, or `generative` if they are that method's own. The study's controls have
    the role `control`.
    """
    cells = done(results)
    roles = []
    for role, side, names in (
        ("supervisor", "weak", ("weak",)),
        ("ceiling", "ceiling", ("strong",)),
        ("control", "zero_shot", ("strong",)),
        ("control", "shuffled", ("strong",)),
        ("student", "student", ("weak", "strong")),
    ):
        method: dict[str, pl.Expr] = {"control": pl.lit(side), "student": pl.col("method")}
        of_truth = pl.when(is_generatives_own(side)).then(pl.lit("generative")).otherwise(pl.lit("truth"))
        roles.append(
            cells.filter(pl.col(f"{side}_key").is_not_null()).select(
                "setting",
                "family",
                "task",
                pl.lit(role).alias("role"),
                method.get(role, of_truth).alias("method"),
                *(
                    pl.col(name) if name in names else pl.lit(None, pl.String).alias(name)
                    for name in ("weak", "strong")
                ),
                pl.col(f"{side}_key").alias("key"),
            )
        )
    return pl.concat(roles).unique(maintain_order=True)


def calibration_table(results: pl.DataFrame, predictions: Predictions, half_b: Predictions) -> pl.DataFrame:
    """Predicted against observed probability by role, method and part, over sizes and seeds, in ten bins of predicted probability.

    `said` is the mean predicted probability of a bin and `was` the share of its items for which the event came true. The
    event is label 1 in classification, the first completion being better in comparison, and a correct completion in
    generation. Supervisors and ceilings learned from the truth alone (`truth`) or are `generative`'s own.
    """
    place = ["setting", "family", "task", "role", "method"]
    binned = _binned(results, predictions, half_b, place=place)
    if binned.is_empty():
        return binned
    return binned.select(
        *place,
        "part",
        "bin",
        "num_items",
        (pl.col("probability") / pl.col("num_items")).alias("said"),
        (pl.col("outcome") / pl.col("num_items")).alias("was"),
    )


def _binned(results: pl.DataFrame, predictions: Predictions, half_b: Predictions, *, place: list[str]) -> pl.DataFrame:
    """Sums over the predictions of the same place, part and bin of predicted probability. Empty if there are none."""
    roles = fits_by_role(results).unique([*place, "key"], maintain_order=True)
    outcome = pl.when(pl.col("label").is_null()).then(pl.col("correct")).otherwise(pl.col("label") == 1)
    parts = []
    for part, table in ((TEST, parts_of(predictions)), (HALF_B, parts_of(half_b))):
        if "probability" not in table.columns or roles.is_empty():
            continue
        by_key = (
            table.rows.select(
                pl.col("key").cast(pl.String),
                pl.col("probability").cast(pl.Float64),
                outcome.cast(pl.Float64).alias("outcome"),
                "correct",
                (pl.col("probability") * NUM_BINS).floor().clip(0, NUM_BINS - 1).cast(pl.Int8).alias("bin"),
            )
            .with_columns(((pl.col("probability") - pl.col("outcome")) ** 2).alias("squared_error"))
            .group_by("key", "bin")
            .agg(pl.col("probability", "outcome", "squared_error", "correct").sum(), pl.len().alias("num_items"))
            .collect(engine="streaming")
        )
        of_place = roles.join(by_key, on="key", how="inner").group_by(*place, "bin")
        sums = pl.col("probability", "outcome", "squared_error", "correct", "num_items").sum()
        parts.append(of_place.agg(sums).with_columns(pl.lit(part).alias("part")))
    return pl.concat(parts).sort(*place, pl.col("part") == HALF_B, "bin") if parts else pl.DataFrame()


def supervisors_table(results: pl.DataFrame, predictions: Predictions, half_b: Predictions) -> pl.DataFrame:
    """How good the supervisors' answers are on the test set, and on half B as labels: over seeds, for each that learned from the
    truth alone.

    Of the probabilities, `brier` is the mean squared error and `ece` the mean distance of predicted and observed probability over
    ten bins, weighted by their items. See `calibration_table` for the event.
    """
    place = ["setting", "family", "task", "role", "method", "weak"]
    binned = _binned(results, predictions, half_b, place=place)
    if binned.is_empty():
        return binned
    num_items, sizes = pl.col("num_items").sum(), pl.Enum(results["weak"].unique(maintain_order=True))
    return (
        binned.filter((pl.col("role") == "supervisor") & (pl.col("method") == "truth"))
        .group_by(*place, "part", maintain_order=True)
        .agg(
            (pl.col("correct").sum() / num_items).alias("score"),
            (pl.col("squared_error").sum() / num_items).alias("brier"),
            ((pl.col("probability") - pl.col("outcome")).abs().sum() / num_items).alias("ece"),
            num_items,
        )
        .drop("role", "method")
        .sort("setting", "family", "task", pl.col("weak").cast(sizes), maintain_order=True)
    )


def scores_table(results: pl.DataFrame, predictions: Predictions) -> pl.DataFrame:
    """Mean score over seeds for each role, method and size, beside the mean AUROC: how often an item of label 1 gets a higher
    probability than one of label 0 (ties count half). AUROC is null in generation, which has no labels."""
    parts = parts_of(predictions)
    if "probability" not in parts.columns or done(results).is_empty():
        return pl.DataFrame()
    roles = fits_by_role(results)
    is_one = pl.col("label") == 1
    num_ones, num_zeros = is_one.sum().cast(pl.Float64), (pl.col("label") == 0).sum().cast(pl.Float64)
    rank_sum = pl.col("probability").rank("average").filter(is_one).sum()
    auroc = (rank_sum - num_ones * (num_ones + 1) / 2) / (num_ones * num_zeros)
    by_key = pl.concat(
        rows.with_columns(pl.col("key").cast(pl.String))
        .filter(pl.col("key").is_in(roles["key"].implode()))
        .group_by("key")
        .agg(pl.col("correct").mean().alias("score"), pl.when(num_ones * num_zeros > 0).then(auroc).alias("auroc"))
        for rows in parts.each("key", "probability", "label", "correct")  # ranks need all rows of a Fit
    )
    place = [name for name in roles.columns if name != "key"]
    return (
        roles.join(by_key, on="key", how="inner", maintain_order="left")
        .group_by(place, maintain_order=True)
        .agg(pl.col("score", "auroc").mean(), pl.len().alias("num_fits"))
    )
