"""The tables of the page: which columns are shown, in which order, and what a reader must know of them.

Pairs of a size with itself are left out, as in the figures; the files have them.
"""

from __future__ import annotations

import polars as pl

from w2s_ray.analysis.cells import done, on_plain_truth
from w2s_ray.analysis.findings import interval_text
from w2s_ray.analysis.page import Section, section


def sections(frames: dict[str, pl.DataFrame]) -> list[Section]:
    """The tables of the page, in order, without empty ones."""
    results = frames["results"]
    sections = (
        _ladder(results),
        _pgr(frames["pgr"]),
        _methods(frames["methods"]),
        _scores(frames["scores"]),
        _fits(frames["fits"]),
        _inverse(frames["inverse_scaling"]),
        _supervisors(frames["supervisors"]),
        _labels(frames["labels"]),
        _imitation(frames["imitation"]),
        _misfit(frames["misfit"]),
        _stopping(frames["stopping"]),
        _copying(frames["copying"]),
        _parts(frames["parts"]),
        _left_out(frames["left_out"]),
        _without_result(results),
    )
    return [section for section in sections if section is not None]


def _ladder(results: pl.DataFrame) -> Section | None:
    """Scores of models trained on ground truth: what each size reaches as a supervisor and as a ceiling."""
    cells = done(results)
    if cells.is_empty():
        return None
    sides = []
    for side, size, column in (("weak", "weak", "as supervisor"), ("ceiling", "strong", "as ceiling")):
        place = ["task", "family", pl.col(size).alias("size"), pl.col(f"{size}_params").alias("params")]
        sides.append(on_plain_truth(cells, side).group_by(place).agg(pl.col(f"{side}_score").mean().alias(column)))
    weak, strong = sides
    ladder = weak.join(strong, on=["task", "family", "size", "params"], how="full", coalesce=True).sort(
        "task", "family", "params"
    )
    note = ""
    if any(on_plain_truth(cells, side).height < cells.height for side in ("weak", "ceiling")):
        note = "Without the supervisors and ceilings of `generative`, which learned to write the task's texts first."
    return section("Models trained on ground truth", ladder, note=note)


def pairs_section(pgr: pl.DataFrame) -> Section:
    """The table that stands under the findings: a row for each pair on each task."""
    rows = _pairs(pgr).filter(pl.col("task").is_not_null())
    has_families, has_methods = (rows[name].n_unique() > 1 for name in ("family", "method"))
    shown = rows.select(
        "task",
        *(["family"] if has_families else []),
        "weak",
        "strong",
        *(["method"] if has_methods else []),
        pl.col("weak_score").alias("supervisor"),
        pl.col("student_score").alias("student"),
        pl.col("ceiling_score").alias("ceiling"),
        _with_interval(rows, "pgr", title="PGR"),
        "floor",
        _with_interval(rows, "pgr_above_floor", title="PGR above floor"),
        _why_not(rows),
    )
    note = (
        "PGR = (student - supervisor) / (ceiling - supervisor), with its 95 % interval. The floor is the best of the supervisor, the "
        "untrained model and a student of shuffled labels, as far as the study has them; PGR above floor puts it in the supervisor's "
        "place. An interval with an unknown end has none that data can give."
    )
    if pgr.filter(pl.col("num_cells") > 0)["num_seeds"].max() == 1:
        note += " There is one seed only, so intervals hold the noise of the test set but not the noise between seeds."
    return section("Pairs", shown, of="pgr", note=note, is_open=True)


def _pairs(rows: pl.DataFrame) -> pl.DataFrame:
    """Without pairs of a size with itself."""
    return rows.filter((pl.col("weak") != pl.col("strong")).fill_null(True))


def _with_interval(rows: pl.DataFrame, name: str, *, title: str) -> pl.Series:
    """Such as `0.57 (0.49 to 0.66)`."""
    values = rows.select(name, f"{name}_low", f"{name}_high").iter_rows()
    texts = [None if value is None else interval_text((value, low, high)) for value, low, high in values]
    return pl.Series(title, texts, dtype=pl.String)


def _why_not(rows: pl.DataFrame) -> pl.Series:
    """Which control fails, and why values are missing."""
    return rows.select(pl.concat_str("fails", "reason", separator="; ", ignore_nulls=True).alias("remarks")).to_series()


def _pgr(pgr: pl.DataFrame) -> Section | None:
    """Rows over several tasks come with those of single tasks. With one task they would say the same twice."""
    is_double = pl.col("task").is_null() & (pl.col("num_tasks") < 2)
    rows = _pairs(pgr).filter(~is_double)
    if rows.is_empty():
        return None
    flags = [pl.col(name) for name in ("no_headroom", "label_sensitive")]
    untested = pl.when(pl.all_horizontal(flag.is_null() for flag in flags)).then(pl.lit("not tested"))
    shown = rows.select(
        pl.col("task").fill_null("all tasks"),
        "family",
        "weak",
        "strong",
        "method",
        *(
            _with_interval(rows, name, title=title)
            for name, title in (
                ("gap", "gap"),
                ("gain", "gain"),
                ("pgr", "PGR"),
                ("pgr_above_floor", "PGR above floor"),
            )
        ),
        _with_interval(rows, "pgr_median", title="median").str.replace(" (no interval)", "", literal=True),
        pl.col("num_left_out").alias("left out of the median"),
        pl.col("num_seeds").alias("seeds"),
        pl.col("num_dropped").alias("dropped"),
        pl.coalesce("fails", untested).fill_null("").alias("fails a control"),
        pl.concat_str("reason", "controls_reason", separator="; ", ignore_nulls=True).alias("reason"),
    )
    note = (
        "PGR is a ratio of means over seeds and tasks. Gap is ceiling - supervisor, gain is student - supervisor. The median is over "
        "cells in the row of a task, without an interval, and over tasks in the row of all; there is none where there is no PGR. "
        "Intervals are 95 %, over replicates and groups of test items. A dash is a value whose reason is at the end of the row."
    )
    return section("PGR in full", shown, of="pgr", note=note)


def _fits(fits: pl.DataFrame) -> Section | None:
    if fits.is_empty():
        return None
    is_fitted = pl.col("value").is_not_null()
    has_any, is_first = (
        is_fitted.any().over("setting", "family", "method"),
        pl.int_range(pl.len()).over("setting", "family") == 0,
    )
    none_has = ~is_fitted.any().over("setting", "family")
    num_methods = fits["method"].n_unique()
    fits = fits.filter(has_any | (none_has & is_first))
    form = ["setting", "family", "method", "target", "axis", "form"]
    shown = fits.filter(is_fitted | (pl.int_range(pl.len()).over(form) == 0)).with_columns(
        pl.when(is_fitted).then("parameter").alias("parameter"),  # one row for all of a form that could not be fitted
        pl.col("reason").fill_null(""),
    )
    shown = shown.drop("num_points")
    note = (
        "Student score and PGR as functions of the size of both models (axis), fitted in four forms. Intervals are 95 %, from "
        "refits to the bootstrap's resamples. The chosen form is the one that predicts the largest student best when it is "
        "fitted without it (held_out_rmse), or a simpler one that does nearly as well. The curves mix all forms by their "
        "weights, which fall with the squared held-out error, so their bands don't depend on one form. num_failing counts "
        "the pairs that fail a control."
    )
    if fits["method"].n_unique() < num_methods:
        note += " Methods with too few pairs for any form are only in fits.csv."
    return section("Scaling fits", shown, of="fits", note=note)


def _inverse(steps: pl.DataFrame) -> Section | None:
    steps = steps.filter(pl.col("steps_down") + pl.col("steps_up") > 0)
    if steps.is_empty():
        return None
    note = (
        "How often agreement with the supervisor falls and rises from one student to the next larger, where the supervisor "
        "is right and where it is wrong. Each step is the mean over replicates. The p-value is that of a two-sided sign test. "
        "The slope is the change of agreement when the student's size grows tenfold, with its 95 % interval over replicates "
        "and test items; with one replicate it holds the noise of the test items only. num_failing counts the pairs that fail "
        "a control."
    )
    return section("Inverse scaling of agreement", steps, of="inverse_scaling", note=note)


def _scores(scores: pl.DataFrame) -> Section | None:
    if scores.is_empty():
        return None
    note = (
        "Mean test scores over seeds. AUROC is how often an item of label 1 gets a higher probability than one of label 0; it "
        "asks nothing of the threshold. Supervisors and ceilings learned from the truth alone, or are generative's own. Controls "
        "are the untrained strong model (zero_shot) and the strong model trained on shuffled labels (shuffled)."
    )
    return section("Scores of all models", _pairs(scores), of="scores", note=note)


def _methods(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty():
        return None
    note = (
        "Scores of each method's students minus those of naive students, over the replicates that both have, with paired 95 % "
        "intervals. Whoever tries many methods finds one that seems better by chance: p_holm is adjusted for the num_methods "
        "methods that were tried on the same pair and task (Holm 1979). Controls are left out."
    )
    num_tasks = pl.col("task").drop_nulls().n_unique().over("setting", "family", "weak", "strong", "method")
    shown = (
        _pairs(rows)
        .filter(pl.col("task").is_not_null() | (num_tasks > 1))
        .with_columns(pl.col("task").fill_null("all tasks"), pl.col("reason").fill_null(""))
    )
    return section("Methods against naive", shown, of="methods", note=note)


def _supervisors(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty():
        return None
    note = (
        "The supervisors' answers on the test set and on half B, where they are the students' labels, over seeds. The event is label "
        "1, the first completion being the better one, or the written completion being right. brier is the mean squared error of "
        "its probability; ece is the mean distance of predicted and observed probability over ten bins. Without intervals."
    )
    return section("Supervisors and their labels", rows, of="supervisors", note=note)


def _labels(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty():
        return None
    note = (
        "labels_right is the share of right labels among the rows that a student learned from, after its method chose or changed "
        "them. labeller_score is the test score of the model that gave the labels, or the mean of several, with the best of "
        "them beside it. ensemble_score is what several label right together on the test set: where it is not above its best "
        "member, nothing is gained by taking several. All are means over replicates."
    )
    return section("The labels that students learned from", _pairs(rows), of="labels", note=note)


def _imitation(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty():
        return None
    note = (
        "How often students repeat their supervisor's mistakes, beside models of the same size that could not learn them from it: "
        "shuffled learned from shuffled labels, noise from the truth with as many random errors. Half B are the rows that the "
        "student learned from: a student that agrees with the mistakes there no more than the others do could not fit them. On "
        "the test set it could, but did not take them over. The labels of noise are hard, so its match is `harden`. Intervals are "
        "95 %, over replicates and items."
    )
    return section("Imitated mistakes", rows, of="imitation", note=note)


def _misfit(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty():
        return None
    note = (
        "Misfit is the mean squared difference of the student's and the supervisor's probabilities, and gain is by how much the "
        "student's squared error is below its supervisor's. For students trained by squared loss, from a convex class that holds "
        "the truth, the gain is at least the misfit (Charikar et al. 2024). Students here are networks trained by other losses, "
        "so a gain below the misfit contradicts nothing but the hope that the theorem carries over."
    )
    return section("Misfit and gain", _pairs(rows).drop("weak_params", "strong_params"), of="misfit", note=note)


def _parts(parts: pl.DataFrame) -> Section | None:
    """How many rows and groups the halves and the test set of each task have: the fewest over replicates."""
    if parts.is_empty():
        return None
    counts = ("num_rows", "num_groups", "effective_groups")
    shown = (
        parts.group_by("task", "part")
        .agg(
            *(pl.col(name).min() for name in counts if name in parts.columns),
            *(pl.col(name).max() for name in ("largest_group",) if name in parts.columns),
        )
        .sort("task", "part")
    )
    note = (
        "Half A teaches supervisors, half B students and ceilings. Where replicates have halves of their own, the counts are the "
        "fewest of all, and the largest group is the largest of all. Rows of one group are not independent: effective_groups "
        "says how many groups of equal size would be as good."
    )
    return section("Rows and groups of each part", shown, of="parts", note=note)


def _left_out(rows: pl.DataFrame) -> Section | None:
    """Rows of each task that no part has, and why."""
    if rows.is_empty():
        return None
    note = (
        "Rows of the tasks' files that no model sees. share is of all rows of the task. Where replicates or grids deal a task in "
        "several ways, the counts are the fewest of all."
    )
    return section("Rows left out", rows, of="left_out", note=note)


def _stopping(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty() or "stopped" not in rows["rule"]:
        return None
    note = (
        "Scores of student and ceiling, both at their last step (final), at the best step by their own labels on held-out rows "
        "(stopped), or at the best step by the test set itself (oracle), which nobody has in practice and which flatters. "
        "is_result marks the rule by which these models predict, so that all other tables and figures hold for it. No PGR where "
        "the gap is too small for one. Without intervals."
    )
    return section("When to stop training", _pairs(rows).drop("weak_params", "strong_params"), of="stopping", note=note)


def _copying(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty() or rows["truth_loss"].is_null().all():
        return None
    note = (
        "How often students repeat their supervisor's mistakes, beside their losses on the supervisor's labels and on "
        "rows whose true label they were given, at the step whose weights predict. A loss on the labels far below the loss on the truth means that the student "
        "learned to imitate its supervisor rather than the task."
    )
    return section("Copied mistakes", _pairs(rows), of="copying", note=note)


def _without_result(results: pl.DataFrame) -> Section | None:
    without_result = results.filter(pl.col("status") != "done")
    if without_result.is_empty():
        return None
    counts = without_result.group_by("status", "reason").len("cells").sort("cells", descending=True)
    return section("Cells without a result", counts, is_open=True)
