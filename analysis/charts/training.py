"""Scores along training, and what another stopping rule would have given."""

from __future__ import annotations

import altair as alt
import polars as pl

from w2s_ray.analysis.charts import parts
from w2s_ray.analysis.charts.parts import FEW_TICKS, SMALL, Figure, panels

MAX_CURVE_POINTS = 40
"""A learning curve is thinned to at most this many points."""


def drawn_curves(rows: pl.DataFrame) -> pl.DataFrame:
    """The learning curves that are drawn, as means over seeds: all of them where there is one method, else those of the largest
    students, with a panel for each method. The last point of a curve keeps its mark."""
    is_pair = (pl.col("weak") != pl.col("strong")).fill_null(True)
    rows = rows.filter(pl.col("test_accuracy").is_not_null() & is_pair)
    methods = rows.filter(pl.col("role") == "student")["method"].unique(maintain_order=True).to_list()
    family = pl.format("{}, ", "family") if rows["family"].n_unique() > 1 else pl.lit("")
    panel = pl.format("{}, {}{}", "task", family, "strong")
    if len(methods) > 1:
        rows = rows.filter((pl.col("strong_number") == pl.col("strong_number").max().over("family")).fill_null(True))
        students = rows.filter(pl.col("role") == "student")
        ceilings = rows.filter(pl.col("role") == "ceiling").drop("method")
        places = students.select("family", "task", "strong", "method").unique(maintain_order=True)
        columns = students.columns
        rows = pl.concat([students, ceilings.join(places, on=["family", "task", "strong"]).select(columns)])
        panel = pl.format("{}, {}{}: {}", "task", family, "strong", "method")
    line = ["family", "task", "strong", "strong_number", "role", "weak", "weak_number", "method", "line"]
    means = rows.group_by(*line, "epoch", maintain_order=True).agg(
        pl.col("test_accuracy").mean(), pl.col("floor").mean(), pl.col("fails").first()
    )
    is_last = pl.col("epoch") == pl.col("epoch").max().over(line)
    return means.with_columns(pl.when(is_last).then("fails").alias("fails"), panel.alias("panel")).sort(
        "task", "strong_number", "epoch", maintain_order=True
    )


def learning_chart(rows: pl.DataFrame) -> Figure | None:
    """Test score during training. A student whose line falls at the end overfits to its labels."""
    rows = drawn_curves(rows)
    line = ["panel", "family", "role", "line"]
    num_points = pl.len().over(line)
    if rows.is_empty() or rows.select(num_points.max()).item() < 2:
        return None
    position = pl.col("epoch").rank("ordinal").over(line)
    stride = (num_points / MAX_CURVE_POINTS).ceil().cast(pl.Int64)
    rows = rows.filter((num_points - position) % stride == 0)  # counted from the end, so the last point stays
    base = alt.Chart().encode(
        x=alt.X("epoch:Q", axis=FEW_TICKS),
        y=alt.Y("test_accuracy:Q", title="test score", scale=alt.Scale(zero=False)),
        color=parts.supervisor_color(rows, name="line", black="ceiling"),
        tooltip=["line:N", "method:N", "epoch:Q", alt.Tooltip("test_accuracy:Q", format=".3f")],
    )
    has_floor = rows["floor"].is_not_null().any()
    dash = parts.dash("what", {"score": "solid"} | ({"floor": "dotted"} if has_floor else {}), title="line")
    layers = [
        base.transform_calculate(what="'score'").mark_line().encode(strokeDash=dash),
        parts.crosses(base, "test_accuracy"),
        base.mark_point(filled=True, size=25, opacity=1),
    ]
    if has_floor:
        floors = alt.Chart().transform_filter("isValid(datum.floor)").transform_calculate(what="'floor'")
        color = parts.supervisor_color(rows, name="line", black="ceiling")
        layers.insert(0, floors.mark_rule(strokeWidth=2).encode(y="mean(floor):Q", color=color, strokeDash=dash))
    return panels(lambda _: alt.layer(*layers), rows, width=SMALL, height=SMALL, columns=3)


RULE_TEXTS = {
    "final": "at the last step",
    "stopped": "at the best step by its own labels",
    "oracle": "student and ceiling at their best steps by ground truth (oracle)",
}


def stopping_chart(rows: pl.DataFrame) -> Figure | None:
    """PGR at the last step, where the student's own labels would have stopped it, and with both the student and the ceiling at
    their best steps by ground truth."""
    has_stopped = (pl.col("rule") == "stopped").any().over("task", "weak", "strong", "method")
    rows = rows.filter(pl.col("pgr").is_not_null() & (pl.col("weak") != pl.col("strong")) & has_stopped)
    if rows.is_empty():
        return None
    rows = rows.with_columns(
        pl.col("rule").replace(RULE_TEXTS).alias("rule"),
        pl.format("{}, {} to {}", "task", "weak", "strong").alias("panel"),
    )
    y = alt.Y("method:N", title=None, sort=rows["method"].unique(maintain_order=True).to_list())
    rules = list(RULE_TEXTS.values())
    legend = alt.Legend(labelLimit=420, columns=1)
    base = alt.Chart().encode(x=alt.X("pgr:Q", title="PGR", axis=FEW_TICKS))
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        y=y,
        color=parts.category_color("rule", rules, title="stopped"),
        shape=alt.Shape("rule:N", title="stopped", sort=rules, scale=alt.Scale(domain=rules), legend=legend),
        tooltip=["task:N", "method:N", "rule:N", *(alt.Tooltip(f"{n}:Q", format=".3f") for n in ("score", "pgr"))],
    )
    failing = parts.crosses(base, "method").encode(y=y).transform_filter("datum.is_result")
    return panels(lambda _: alt.layer(failing, points), rows, width=SMALL, height=alt.Step(18))
