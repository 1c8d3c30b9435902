"""Test scores of students beside their supervisor, their ceiling and the floor, against size.

A light column reaches from the supervisor's score to the ceiling's: the gap. How far up in it the student lies is its PGR.
"""

from __future__ import annotations

from functools import partial

import altair as alt
import polars as pl

from w2s_ray.analysis.charts import parts
from w2s_ray.analysis.charts.parts import SMALL, Figure, panels

CEILING = "ceiling"
LINES = {"student": "solid", "supervisor": "dashed", "floor": "dotted"}
"""What a line shows -> its dash."""
SAME = 1e-9
MARK = {
    "panel": pl.String, "task": pl.String, "family": pl.String, "weak": pl.String, "strong": pl.String, "method": pl.String,
    "weak_number": pl.UInt32, "weak_size": pl.Float64, "strong_size": pl.Float64, "drawn_size": pl.Float64, "is_own": pl.Boolean,
    "what": pl.String, "line": pl.String, "score": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "weak_score": pl.Float64, "ceiling_score": pl.Float64, "floor": pl.Float64, "pgr": pl.Float64, "fails": pl.String,
}  # fmt: skip
"""A mark of the figure. `what`: student, supervisor, floor or ceiling. `line`: what has its colour. `is_own`: a supervisor at its own
size."""


def score_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """Test score against size with 95 % intervals, with a panel for each method. `rows`: of pgr.parquet over tasks."""
    rows = _drawable(rows)
    if rows.is_empty():
        return None
    marks = score_marks(parts.with_panel(rows))
    return panels(partial(_layers, axis=axis, color=_color(marks)), marks)


def tasks_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """The same for each task by itself, with a panel for each method and task."""
    rows = _drawable(rows)
    if rows["task"].n_unique() < 2:
        return None
    marks = score_marks(rows.with_columns(pl.format("{}: {}", "method", "task").alias("panel")))
    return panels(partial(_layers, axis=axis, color=_color(marks)), marks, width=SMALL, height=SMALL, columns=3)


def _drawable(rows: pl.DataFrame) -> pl.DataFrame:
    """Pairs of different sizes with scores."""
    return rows.filter(
        pl.col("student_score").is_not_null()
        & pl.col("strong_size").is_not_null()
        & (pl.col("weak") != pl.col("strong"))
    )


def score_marks(rows: pl.DataFrame) -> pl.DataFrame:
    """What is drawn, one mark a row (MARK): each student once, each ceiling once for its size, and the lines of supervisors and
    floors. A floor that is the supervisor's own score is not drawn again."""
    students = parts.side_by_side(rows, by="weak_number", with_supervisors=True, num_before=1).with_columns(
        pl.col("weak").alias("line")
    )
    leftmost = -students["weak_number"].n_unique() / 2
    ceilings = students.unique(["panel", "family", "strong"], keep="first", maintain_order=True).with_columns(
        pl.lit(None, pl.String).alias("fails"),
        pl.lit(CEILING).alias("line"),
        (pl.col("strong_size") * 10.0 ** (leftmost * pl.col("step"))).alias("drawn_size"),
    )
    shift = pl.col("drawn_size") / pl.col("strong_size")
    own = (
        students.filter(pl.col("weak_size").is_not_null())
        .unique(["panel", "family", "weak"], keep="first", maintain_order=True)
        .with_columns((pl.col("weak_size") * shift).alias("drawn_size"), pl.lit(True).alias("is_own"))
    )
    is_raised = (pl.col("floor") > pl.col("weak_score") + SAME).fill_null(False)
    layers = [
        _marks(students, "student", "student_score"),
        _marks(students, "supervisor", "weak_score", has_ends=False),
        _marks(own, "supervisor", "weak_score"),
        _marks(students.filter(is_raised), "floor", "floor", has_ends=False),
        _marks(ceilings, CEILING, "ceiling_score"),
    ]
    return pl.concat(layers).sort("panel", "drawn_size", maintain_order=True).pipe(_in_order, rows["panel"])


def _in_order(marks: pl.DataFrame, panel: pl.Series) -> pl.DataFrame:
    order = pl.DataFrame({"panel": panel.unique(maintain_order=True)}).with_row_index("place")
    return marks.join(order, on="panel", how="left").sort("place", maintain_order=True).drop("place")


def _marks(rows: pl.DataFrame, what: str, column: str, *, has_ends: bool = True) -> pl.DataFrame:
    """Rows of MARK. Their interval is that of the column, if the table has one."""
    ends = {end: f"{column}_{end}" for end in ("low", "high")}
    marks = rows.with_columns(
        pl.lit(what).alias("what"),
        pl.col(column).alias("score"),
        *(
            pl.col(name).clip(0, 1).alias(end) if has_ends and name in rows.columns else pl.lit(None).alias(end)
            for end, name in ends.items()
        ),
    )
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in MARK.items() if name not in marks.columns]
    return marks.with_columns(missing).select(pl.col(name).cast(dtype) for name, dtype in MARK.items())


def _color(marks: pl.DataFrame) -> alt.Color:
    return parts.supervisor_color(marks, name="line", black=CEILING)


def _layers(marks: pl.DataFrame, *, axis: str, color: alt.Color) -> alt.LayerChart:
    names = {name: word for name, word in LINES.items() if (marks["what"] == name).any()}
    every = alt.Chart().encode(x=parts.size_axis(marks, axis, field="drawn_size", with_supervisors=True), color=color)
    scored = every.encode(
        y=alt.Y("score:Q", title="test score", scale=alt.Scale(zero=False)),
        tooltip=[
            alt.Tooltip("task:N"),
            *parts.tooltip("score", "low", "high", "weak_score", "ceiling_score", "floor", extra="fails"),
        ],
    )
    students = scored.transform_filter("datum.what === 'student'")
    ceilings = scored.transform_filter(f"datum.what === '{CEILING}'")
    own = scored.transform_filter("datum.is_own")
    gaps = (
        every.transform_filter("datum.what === 'student'")
        .mark_rule(opacity=0.16, strokeWidth=7)
        .encode(y="weak_score:Q", y2="ceiling_score:Q")
    )
    lines = scored.transform_filter(f"datum.what !== '{CEILING}'").mark_line(strokeWidth=2)
    return alt.layer(
        gaps,
        parts.bars(every),
        ceilings.mark_line(),
        lines.encode(strokeDash=parts.dash("what", names, title="line")),
        parts.crosses(students, "score"),
        parts.points(ceilings),
        own.mark_point(filled=False, size=45, strokeWidth=2, opacity=1),
        parts.points(students),
    )
