"""The sentences that open a report and end `w2s report`, for each task: what its controls allow one to conclude, and what was
found.

A finding speaks of naive students, or of another method where a study has none, and of the widest pair that has a PGR: the
one whose sizes are farthest apart. How PGR moves with size is the difference between the largest and the smallest student of
the same supervisor, paired as in `w2s_ray.analysis.pgr`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from w2s_ray.analysis import controls, tables
from w2s_ray.analysis.bootstrap import Sample
from w2s_ray.analysis.cells import sized
from w2s_ray.analysis.intervals import Interval
from w2s_ray.analysis.pgr import pgr_difference

PAIR = ["setting", "task", "family", "weak", "strong", "method"]
SIGNIFICANT = 0.05
NO_CHANGE = 1e-6
"""A smaller change of PGR is rounding."""
NO_PGR = (
    "No pair of different sizes has a PGR. Sizes that lie further apart may widen the gap; more test items and seeds narrow its "
    "interval."
)
SCHEMA = {
    **dict.fromkeys(PAIR, pl.String),
    "pgr": pl.Float64,
    "pgr_low": pl.Float64,
    "pgr_high": pl.Float64,
    "pgr_above_floor": pl.Float64,
    "pgr_above_floor_low": pl.Float64,
    "pgr_above_floor_high": pl.Float64,
    "smaller_student": pl.String,
    "pgr_change": pl.Float64,
    "pgr_change_low": pl.Float64,
    "pgr_change_high": pl.Float64,
    "verdict": pl.String,
    "finding": pl.String,
}
"""`pgr_change`: PGR of this pair minus that of `smaller_student` under the same supervisor. `verdict`: what the controls allow one
to conclude. `finding`: this row in words. Without any PGR, `finding` says so and the numbers are null."""


def findings_table(
    samples: list[Sample], pgr: pl.DataFrame, methods: pl.DataFrame, *, axis: str = "params"
) -> pl.DataFrame:
    """One row for each task and family. `pgr`: the table of `w2s_ray.analysis.pgr`. `methods`: that of `w2s_ray.analysis.methods`."""
    by_pair = {_pair_of(sample): sample for sample in samples if sample.task is not None and sample.parts}
    verdicts = controls.verdicts(pgr)
    rows = []
    for place, pairs in controls.by_task(pgr):
        row: dict[str, Any] = dict.fromkeys(SCHEMA) | place._asdict() | {"verdict": verdicts[place]}
        spoken = controls.speaking(pairs)
        with_pgr = spoken.filter(pl.col("pgr").is_not_null())
        if with_pgr.is_empty():
            rows.append(row | {"finding": NO_PGR})
            continue
        found = with_pgr.to_dicts()
        sizes = [_sizes(by_pair[tuple(pair[name] for name in PAIR)], axis) for pair in found]
        widest = max(range(len(found)), key=lambda i: (sizes[i][1] / sizes[i][0], found[i]["gap"]))
        row |= {name: value for name, value in found[widest].items() if name in SCHEMA}
        rows.append(row | _change(found, sizes, widest, by_pair))
        rows[-1]["finding"] = _in_words(
            rows[-1],
            found[widest],
            which=f", the widest pair that has one ({len(found)} of {spoken.height} have)" if spoken.height > 1 else "",
            methods=methods,
        )
    return pl.DataFrame(rows, schema=SCHEMA)


def _pair_of(sample: Sample) -> tuple[Any, ...]:
    first = sample.cells.row(0, named=True) | {"task": sample.task}
    return tuple(first[name] for name in PAIR)


def _sizes(sample: Sample, axis: str) -> tuple[float, float]:
    """Sizes of supervisor and student on the axis; equal where they are not known."""
    weak, strong = sized(sample.cells.head(1), axis).select("weak_size", "strong_size").row(0)
    return (weak, strong) if weak and strong else (1.0, 1.0)


def _change(
    found: list[dict[str, Any]], sizes: list[tuple[float, float]], widest: int, by_pair: dict[tuple[Any, ...], Sample]
) -> dict[str, Any]:
    """How PGR changes from the smallest student of the widest pair's supervisor to that pair's."""
    of_supervisor = [
        i for i, pair in enumerate(found) if all(pair[name] == found[widest][name] for name in ("weak", "method"))
    ]
    smallest = min(of_supervisor, key=lambda i: (sizes[i][1], found[i]["gap"]))
    if smallest == widest:
        return {}
    samples = (by_pair[tuple(found[i][name] for name in PAIR)] for i in (smallest, widest))
    ends = dict(zip(("pgr_change", "pgr_change_low", "pgr_change_high"), pgr_difference(*samples), strict=True))
    return {"smaller_student": found[smallest]["strong"]} | ends


def _in_words(row: dict[str, Any], pair: dict[str, Any], *, which: str, methods: pl.DataFrame) -> str:
    """`pair`: the pair's row of pgr.parquet. `which`: which of several pairs it is, and how many have a PGR."""

    def of(name: str) -> Interval:
        return row[name], row[f"{name}_low"], row[f"{name}_high"]

    students = "" if row["method"] == "naive" else f" under {row['method']}"
    replicates = "one replicate" if pair["num_seeds"] == 1 else f"{pair['num_seeds']} replicates"
    if pair["floor"] is None:
        above = "Without controls there is no floor."
    elif row["pgr_above_floor"] is None:
        above = "Above the floor it has no value, since the ceiling is not clearly above it."
    else:
        value, raised = interval_text(of("pgr")), interval_text(of("pgr_above_floor"))
        above = f"Above the floor it is {'the same' if raised == value else raised}."
    return " ".join(
        (
            f"PGR is {interval_text(of('pgr'))} from {row['weak']} to {row['strong']}{students}{which}, "
            f"in {replicates}.",
            above,
            _movement(row, of("pgr_change")),
            _better(row, methods),
        )
    ).rstrip()


def _movement(row: dict[str, Any], change: Interval) -> str:
    if row["smaller_student"] is None:
        return f"No other student of {row['weak']} has one, so nothing tells how it moves with size."
    value, low, high = change
    between = f"From student {row['smaller_student']} to {row['strong']} it"
    if low is not None and low > NO_CHANGE:
        return f"{between} rises by {interval_text(change)}."
    if high is not None and high < -NO_CHANGE:
        return f"{between} falls by {interval_text((-value, -high, None if low is None else -low))}."
    return f"{between} does not clearly change: {interval_text(change, sign='+')}."


def _better(row: dict[str, Any], methods: pl.DataFrame) -> str:
    """Which other methods do clearly better than naive students on this pair."""
    tried = methods.filter(
        *(pl.col(name).eq_missing(row[name]) for name in ("setting", "task", "family", "weak", "strong")),
        pl.col("p_holm").is_not_null(),
    )
    if tried.is_empty():
        return ""
    better = tried.filter((pl.col("p_holm") < SIGNIFICANT) & (pl.col("difference") > 0))["method"].to_list()
    if not better:
        none = f"None of {tried.height} other methods is" if tried.height > 1 else "The other method is not"
        return f"{none} clearly better than naive there."
    others = f"of {tried.height} other methods" if tried.height > 1 else "the other method"
    return f"Clearly better than naive there, {others}: {', '.join(better)}."


def interval_text(interval: Interval, *, sign: str = "") -> str:
    """Such as `0.79 (0.70 to 0.88)`."""
    # adding 0.0 turns -0.0 into 0.0
    value, *ends = (None if number is None else f"{round(number, 2) + 0.0:{sign}.2f}" for number in interval)
    if ends == [None, None]:
        return f"{value} (no interval)"
    low, high = (end or "unknown" for end in ends)
    return f"{value} ({low} to {high})"


def sentences(findings: pl.DataFrame) -> list[tuple[str, list[str]]]:
    """(task, [what its controls allow one to conclude, what was found]), with the family where a task has several."""
    num_families = findings.group_by("task").agg(pl.col("family").n_unique()).rows()
    has_several = {task for task, num in num_families if num > 1}
    return [
        (
            f"{row['task']}, {row['family']}" if row["task"] in has_several else row["task"],
            [row["verdict"], row["finding"]],
        )
        for row in findings.iter_rows(named=True)
    ]


def read_sentences(folder: Path) -> list[tuple[str, list[str]]]:
    """The sentences of a report that was written to this folder."""
    return sentences(tables.read(folder / "findings.parquet", {}))
