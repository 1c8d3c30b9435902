"""Scores by how hard the test items are."""

from __future__ import annotations

import altair as alt
import polars as pl

from w2s_ray.analysis.charts import parts
from w2s_ray.analysis.charts.parts import FEW_TICKS, Figure, panels

DASHES = ("dashed", "dash-dotted", "long", "short")
"""Those of the methods."""


def largest_by_difficulty(rows: pl.DataFrame) -> pl.DataFrame:
    """The largest students with the smallest supervisor, and their ceilings, with the floor in each bin of difficulty. Of more
    methods than there are dashes to tell apart, naive alone."""
    largest = (pl.col("strong_size") == pl.col("strong_size").max().over("family")).fill_null(False)
    smallest = (pl.col("weak_size") == pl.col("weak_size").min().over("family", "role")).fill_null(False)
    role, is_pair = pl.col("role"), (pl.col("weak") != pl.col("strong")).fill_null(True)
    of_floor = ((role == "control") & largest) | ((role == "supervisor") & smallest)
    has_controls = (role == "control").any().over("family", "task")
    floors = (
        rows.filter(has_controls & of_floor)
        .group_by("family", "task", "difficulty")
        .agg(pl.col("score").max().alias("floor"))
    )
    drawn = rows.filter(largest & is_pair & ((role == "ceiling") | ((role == "student") & smallest)))
    methods = drawn.filter(role == "student")["method"].unique(maintain_order=True).to_list()
    if len(methods) > len(DASHES):
        kept = ["naive"] if "naive" in methods else methods[: len(DASHES)]
        drawn = drawn.filter((role == "ceiling") | pl.col("method").is_in(kept))
    return drawn.drop("floor").join(floors, on=["family", "task", "difficulty"], how="left", maintain_order="left")


def difficulty_chart(rows: pl.DataFrame) -> Figure | None:
    """Test score by difficulty of the items, with a line for each training set. Shows the largest students on the size axis, with
    the smallest supervisor, and their ceilings."""
    if rows.is_empty():
        return None
    rows = largest_by_difficulty(rows).with_columns(
        pl.when(pl.col("role") == "ceiling").then(pl.lit("ground truth")).otherwise("method").alias("labels"),
        pl.format("{}, {}", "family", "strong").alias("panel"),
    )
    if rows.is_empty():
        return None
    order = rows["task"].unique(maintain_order=True).sort().to_list()
    color = parts.category_color("task", order, title="trained on")
    base = alt.Chart().encode(
        x=alt.X("difficulty:Q", title="difficulty of test items", scale=alt.Scale(zero=False), axis=FEW_TICKS)
    )
    scored = base.encode(
        y=alt.Y("score:Q", title="test score", scale=alt.Scale(zero=False)),
        color=color,
        tooltip=["task:N", "role:N", "labels:N", "bin:N", alt.Tooltip("score:Q", format=".3f"), "num_items:Q"],
    )
    has_floor = rows["floor"].is_not_null().any()
    methods = rows.filter(pl.col("labels") != "ground truth")["labels"].unique(maintain_order=True)
    words = {"ground truth": "solid"} | dict(zip(methods, DASHES, strict=False))
    words |= {"floor": "dotted"} if has_floor else {}
    dash = parts.dash("labels", words, title="labels")
    lines = scored.mark_line().encode(strokeDash=dash)
    layers = [lines, parts.crosses(scored, "score"), parts.points(scored)]
    if has_floor:
        floors = base.transform_filter("isValid(datum.floor)").transform_calculate(labels="'floor'").mark_line()
        layers.insert(0, floors.encode(y="max(floor):Q", color=color, strokeDash=dash))
    return panels(lambda _: alt.layer(*layers), rows)
