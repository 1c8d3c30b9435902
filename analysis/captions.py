"""What stands under each figure of the report: how to read it, and what it shows of this study.

Nothing is computed here that no table holds. Words such as "clearly" mean a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import polars as pl

from w2s_ray.analysis.agreement import HALF_B, TEST
from w2s_ray.analysis.cells import CONTROLS, has_method
from w2s_ray.analysis.charts.difficulty import largest_by_difficulty
from w2s_ray.analysis.charts.training import RULE_TEXTS, drawn_curves
from w2s_ray.analysis.findings import SIGNIFICANT, interval_text

FALL = 0.01
"""A learning curve that ends this far below its best point is said to fall."""
CROSS = "A red cross: there the untrained model or shuffled labels do about as well, so PGR is no evidence of what supervision adds."


def captions(frames: dict[str, pl.DataFrame], names: Iterable[str]) -> dict[str, str]:
    """Name of a figure -> its caption. `frames`: the tables that were drawn. `names`: such as `classification-pgr`."""
    texts = {}
    for name in names:
        setting, _, kind = name.partition("-")
        own = {
            table: rows.filter(pl.col("setting") == setting)
            for table, rows in frames.items()
            if "setting" in rows.columns
        }
        sentences = CAPTIONS[kind](own)
        rows = largest_by_difficulty(own[kind]) if kind == "difficulty" else own[kind if kind in own else "pgr"]
        if "fails" in rows.columns and rows["fails"].is_not_null().any() and kind not in WITHOUT_CROSSES:
            sentences.append(CROSS)
        texts[name] = " ".join(sentence for sentence in sentences if sentence)
    return texts


def _pairs(pgr: pl.DataFrame) -> pl.DataFrame:
    """Rows of pairs of different sizes that have scores."""
    return pgr.filter((pl.col("weak") != pl.col("strong")) & pl.col("student_score").is_not_null())


def _over_tasks(own: dict[str, pl.DataFrame]) -> pl.DataFrame:
    return _pairs(own["pgr"].filter(pl.col("task").is_null()))


def _by_task(own: dict[str, pl.DataFrame]) -> pl.DataFrame:
    return _pairs(own["pgr"].filter(pl.col("task").is_not_null()))


def _range(values: pl.Series) -> str:
    numbers = values.to_list()
    least, most = min(numbers), max(numbers)
    return f"{least:.2f} to {most:.2f}" if least != most else f"{least:.2f}"


# --- scores and PGR -------------------------------------------------------------------------------------------------

FLOOR = "The dotted line is the floor, the best of what is reached without the supervisor's labels; a student counts for what lies above it."

FLOOR_OF_SCORES = "Where the floor, the best of what is reached without the supervisor's labels, is above the supervisor, it is drawn dotted."


def _above_floor(rows: pl.DataFrame) -> str:
    """How many students are clearly above their floors."""
    with_floor = rows.filter(pl.col("floor").is_not_null())
    if with_floor.is_empty():
        return ""
    num_above = (with_floor["pgr_above_floor_low"] > 0).sum()
    return f"Here the student is clearly above its floor for {num_above} of {with_floor.height} pairs."


def _score(own: dict[str, pl.DataFrame]) -> list[str]:
    rows = _over_tasks(own)
    ceilings = own["pgr"].filter(pl.col("task").is_null())["ceiling_score"].drop_nulls()
    return [
        "Test scores of students, in the colour of their supervisor, against size. The dashed line is the supervisor, from the ring at "
        "its own size on; black are the same models taught by the truth (ceilings). A light column reaches from supervisor to ceiling: "
        "how far up in it the student lies is its PGR. Bars are 95 % intervals; marks of one size stand side by side.",
        FLOOR_OF_SCORES
        if rows["floor"].is_not_null().any()
        else "This study has no controls, so there is no floor to compare with.",
        _above_floor(rows),
        f"Ceilings score {_range(ceilings)}." if len(ceilings) else "",
    ]


def _pgr(own: dict[str, pl.DataFrame]) -> list[str]:
    rows = _over_tasks(own)
    found = rows.filter(pl.col("pgr").is_not_null()).sort("pgr")
    least, most = found.row(0, named=True), found.row(-1, named=True)
    num_without = rows["pgr"].is_null().sum()
    has_methods = rows["method"].n_unique() > 1

    def named(row: dict[str, Any]) -> str:
        method = f", {row['method']}" if has_methods else ""
        return f"{row['pgr']:.2f} ({row['weak']} to {row['strong']}{method})"

    return [
        "The share of the gap between supervisor and ceiling that the student recovers: 0 is the supervisor, the dashed line at 1 the "
        "ceiling. Bars are 95 % intervals; one that ends at the edge of the figure may go on.",
        f"Here PGR goes from {named(least)} to {named(most)}." if found.height > 1 else f"Here PGR is {named(least)}.",
        f"{num_without} of {rows.height} pairs are not drawn, because their ceiling is not clearly above the supervisor."
        if num_without
        else "",
    ]


def _pair_map(own: dict[str, pl.DataFrame]) -> list[str]:
    found = _over_tasks(own).filter(pl.col("pgr").is_not_null())
    return [
        "PGR of each supervisor (row) with each student (column); what is missing has no clear gap. Along a row the student grows, up "
        "a column its supervisor.",
        f"Here PGR is {_range(found['pgr'])}.",
    ]


def _methods(own: dict[str, pl.DataFrame]) -> list[str]:
    """For lines and for lists of methods."""
    tried = own["methods"].filter(pl.col("task").is_not_null() & pl.col("p_holm").is_not_null())
    better = tried.filter((pl.col("p_holm") < SIGNIFICANT) & (pl.col("difference") > 0))
    return [
        "PGR of each method with its 95 % interval. Intervals of two methods may overlap although one is clearly better, because "
        'they share supervisor, ceiling and test items; the table "Methods against naive" compares them in pairs.',
        f"Here another method is clearly better than naive in {better.height} of {tried.height} comparisons on one pair and task, "
        "after correction for the number of methods."
        if tried.height
        else "",
    ]


def _tasks(own: dict[str, pl.DataFrame]) -> list[str]:
    parts = []
    for (task,), rows in _by_task(own).group_by("task", maintain_order=True):
        with_floor = rows.filter(pl.col("floor").is_not_null())
        if with_floor.height:
            parts.append(f"{task} {(with_floor['pgr_above_floor_low'] > 0).sum()} of {with_floor.height}")
    return [
        "The same scores for each task by itself: students and the dashed lines of their supervisors, ceilings in black.",
        FLOOR_OF_SCORES if parts else "",
        f"Pairs whose student is clearly above its floor: {', '.join(parts)}." if parts else "",
    ]


# --- what students make of their labels -----------------------------------------------------------------------------


def _agreement(own: dict[str, pl.DataFrame]) -> list[str]:
    slopes = own["inverse_scaling"].filter((pl.col("when") == "wrong") & pl.col("slope").is_not_null())
    parts = [
        f"{interval_text((row['slope'], row['slope_low'], row['slope_high']), sign='+')} ({row['family']}, {row['method']})"
        for row in slopes.filter(~has_method(*CONTROLS)).iter_rows(named=True)
    ]
    return [
        "How often a student answers as its supervisor does, where the supervisor is right (solid) and where it is wrong (dashed), with "
        "95 % intervals. A dashed line that falls means that larger students repeat fewer of their supervisor's mistakes.",
        f"Change where it is wrong, for a student ten times as large: {', '.join(parts)}." if parts else "",
    ]


def _imitation(own: dict[str, pl.DataFrame]) -> list[str]:
    rows = own["imitation"]
    parts = []
    for part, where in ((HALF_B, "on half B"), (TEST, "on the test set")):
        tried = rows.filter((pl.col("part") == part) & pl.col("more_than_shuffled_low").is_not_null())
        if tried.height:
            parts.append(f"{(tried['more_than_shuffled_low'] > 0).sum()} of {tried.height} pairs {where}")
    return [
        "How often students repeat their supervisor's mistakes (solid), beside models of the same size that learned from other labels. "
        "Half B are the rows that the student learned from. Lines that lie together mean that the student takes over no more of its "
        "supervisor's mistakes than a model that never saw them.",
        f"Students clearly repeat more of them than models of shuffled labels in {' and '.join(parts)}."
        if parts
        else "",
    ]


def _misfit(own: dict[str, pl.DataFrame]) -> list[str]:
    rows = own["misfit"].filter(pl.col("weak") != pl.col("strong"))
    return [
        "Each point is a pair on a task. Misfit is how far the student's probabilities are from its supervisor's, gain by how much its "
        "squared error is smaller. On the dashed line they are equal; theory promises no less than that for squared loss and a convex "
        "class, which networks are not.",
        f"Here {(rows['gain'] >= rows['misfit']).sum()} of {rows.height} points are on or above the line.",
    ]


def _learning(own: dict[str, pl.DataFrame]) -> list[str]:
    rows = drawn_curves(own["learning"]).filter(pl.col("role") == "student")
    ends = (
        rows.sort("epoch")
        .group_by("panel", "family", "line")
        .agg(pl.col("test_accuracy").max().alias("best"), pl.col("test_accuracy").last())
    )
    which = "the largest students, one panel a method" if rows["method"].n_unique() > 1 else "students"
    num_falling = (ends["test_accuracy"] < ends["best"] - FALL).sum()
    return [
        f"Test score along training, the mean over replicates: {which}, in the colour of their supervisor, and ceilings in black. A "
        "line that falls at its end overfits to its labels.",
        FLOOR if rows["floor"].is_not_null().any() else "",
        f"Here {num_falling} of {ends.height} students end a point or more below their best.",
    ]


def _calibration(own: dict[str, pl.DataFrame]) -> list[str]:
    rows = own["calibration"].filter((pl.col("part") == TEST) & (pl.col("role") != "control") & ~has_method(*CONTROLS))
    off = (pl.col("num_items") * (pl.col("said") - pl.col("was")).abs()).sum() / pl.col("num_items").sum()
    by_role = dict(rows.group_by("role").agg(off).iter_rows())
    parts = [f"{role}s {by_role[role]:.2f}" for role in ("supervisor", "student", "ceiling") if role in by_role]
    return [
        "How often an event comes true among test items of which a model says that it has this probability. A calibrated model is on the "
        "dashed line; one that is too sure of itself is below it on the right and above it on the left.",
        f"Mean distance from the line: {', '.join(parts)}.",
    ]


def _fit_curves(own: dict[str, pl.DataFrame]) -> list[str]:
    chosen = own["fits"].filter((pl.col("target") == "pgr") & pl.col("chosen")).unique(["family", "method"])
    forms = [f"{row['form']} ({row['family']}, {row['method']})" for row in chosen.sort("family", "method").to_dicts()]
    return [
        "PGR as a function of both sizes: four forms fitted to all pairs and mixed by how well they predict the largest student. Bands "
        "hold the noise and the disagreement of the forms. Dashed: beyond the largest student, a forecast and no finding.",
        f"Best single form: {', '.join(forms)}." if forms else "",
    ]


def _difficulty(own: dict[str, pl.DataFrame]) -> list[str]:
    rows = largest_by_difficulty(own["difficulty"])
    ceilings = rows.filter(pl.col("role") == "ceiling").group_by("difficulty").agg(pl.col("score").mean())
    scores = ceilings.sort("difficulty")["score"]
    drawn = rows.filter(pl.col("role") == "student")["method"].unique().to_list()
    num_methods = own["difficulty"].filter(pl.col("role") == "student")["method"].n_unique()
    return [
        "Test score by how hard the items are, for the largest student, its smallest supervisor's labels and the truth. Colours tell which "
        "rows were learned from.",
        FLOOR if rows["floor"].is_not_null().any() else "",
        f"Of {num_methods} methods only {drawn[0]} is drawn, to keep lines apart; difficulty.csv has all."
        if len(drawn) == 1 < num_methods
        else "",
        f"Ceilings go from {scores[0]:.2f} on the easiest items to {scores[-1]:.2f} on the hardest."
        if len(scores)
        else "",
    ]


def _stopping(own: dict[str, pl.DataFrame]) -> list[str]:
    rows = own["stopping"].filter(pl.col("pgr").is_not_null() & (pl.col("weak") != pl.col("strong")))
    means = dict(rows.group_by("rule").agg(pl.col("pgr").mean()).iter_rows())
    results = rows.filter("is_result")["rule"].unique().to_list()
    parts = [f"{name} {means[rule]:.2f}" for rule, name in STOPPED.items() if rule in means]
    return [
        "PGR if student and ceiling stop at their last step, at the best step by their own labels, or at the best by the test set. The "
        "last needs ground truth and flatters.",
        f"Mean PGR: {', '.join(parts)}." if parts else "",
        f"All other figures show models {RULE_TEXTS[results[0]]}." if len(results) == 1 else "",
    ]


STOPPED = {"final": "last step", "stopped": "own labels", "oracle": "ground truth"}
CAPTIONS: dict[str, Callable[[dict[str, pl.DataFrame]], list[str]]] = {
    "score": _score,
    "pgr": _pgr,
    "pairs": _pair_map,
    "methods": _methods,
    "tasks": _tasks,
    "agreement": _agreement,
    "imitation": _imitation,
    "misfit": _misfit,
    "learning": _learning,
    "calibration": _calibration,
    "fit_curves": _fit_curves,
    "difficulty": _difficulty,
    "stopping": _stopping,
}
"""Kind of a figure, as in `w2s_ray.analysis.charts.figures` -> the sentences under it."""
WITHOUT_CROSSES = ("imitation", "calibration", "fit_curves")
