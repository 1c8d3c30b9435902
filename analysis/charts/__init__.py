"""The figures of the report: which there are, of which tables, and in which order.

Each function of this room turns a table into an Altair chart, or into None if there is nothing to draw. A figure shows pairs of
different sizes only. A red cross marks what fails a control (`w2s_ray.analysis.controls`). What figures share is in `parts`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import polars as pl

from w2s_ray.analysis.cells import sized
from w2s_ray.analysis.charts.calibration import calibration_chart
from w2s_ray.analysis.charts.difficulty import difficulty_chart
from w2s_ray.analysis.charts.mistakes import agreement_chart, imitation_chart, misfit_chart
from w2s_ray.analysis.charts.parts import Figure, styled
from w2s_ray.analysis.charts.pgr import methods_chart, methods_list, pair_map, pgr_chart
from w2s_ray.analysis.charts.scaling import fit_chart
from w2s_ray.analysis.charts.scores import score_chart, tasks_chart
from w2s_ray.analysis.charts.training import learning_chart, stopping_chart

MAX_METHODS = 5
"""With more methods than this, a study's methods are listed rather than drawn as lines."""

TITLES = {
    "score": "Test score",
    "pgr": "Performance gap recovered",
    "pairs": "PGR of every pair",
    "methods": "Methods compared",
    "tasks": "Task by task",
    "agreement": "Agreement with the supervisor",
    "imitation": "Mistakes of the supervisor that are repeated",
    "misfit": "Misfit and gain",
    "learning": "Learning curves",
    "calibration": "Calibration on the test set",
    "fit_curves": "Scaling of PGR, all forms weighted",
    "difficulty": "Score by difficulty",
    "stopping": "When to stop training",
}
"""Kind of a figure -> the title above it. It is no part of the picture."""

CHARTS_WITH_AXIS = {"agreement": agreement_chart, "imitation": imitation_chart, "fit_curves": fit_chart}
"""Name of a table -> the function that draws it on the size axis, given the rows of one setting."""

CHARTS_BY_TABLE: dict[str, Callable[[pl.DataFrame], Figure | None]] = {
    "misfit": misfit_chart,
    "learning": learning_chart,
    "calibration": calibration_chart,
    "difficulty": difficulty_chart,
    "stopping": stopping_chart,
}
"""The same for tables without a size axis."""

DRAWN_BY_METHOD = ("agreement", "imitation", "misfit", "learning", "calibration", "fit_curves")
"""Charts with a panel or line for each method."""


def with_sizes(frames: dict[str, pl.DataFrame], *, axis: str) -> dict[str, pl.DataFrame]:
    """The tables as they are drawn: with `weak_size` and `strong_size` on the axis, `weak_number` and `strong_number`, which count a
    family's sizes, and with `fails` and `floor`, null if unknown."""
    sizes = _sizes(frames["results"], axis)
    return {
        name: _with_sizes(_with_marks(table), sizes) for name, table in frames.items() if "setting" in table.columns
    }


def figures(tables: dict[str, pl.DataFrame], *, axis: str = "params") -> dict[str, Figure]:
    """Name -> chart, setting by setting. `tables`: those of `with_sizes`. With many methods the charts with a panel or line for
    each method are left out, and a list of the methods takes their place."""
    pgr = tables["pgr"]
    charts: dict[str, Figure] = {}
    for setting in pgr["setting"].unique(maintain_order=True):
        rows = pgr.filter(pl.col("setting") == setting)
        over_tasks, by_task = rows.filter(pl.col("task").is_null()), rows.filter(pl.col("task").is_not_null())
        has_many_methods = rows["method"].n_unique() > MAX_METHODS
        drawn: dict[str, Figure | None]
        if has_many_methods:
            drawn = {"methods": methods_list(by_task)}
        else:
            drawn = {
                "score": score_chart(over_tasks, axis=axis),
                "pgr": pgr_chart(over_tasks, axis=axis),
                "pairs": pair_map(over_tasks),
                "methods": methods_chart(over_tasks, axis=axis),
                "tasks": tasks_chart(by_task, axis=axis),
            }
        by_table = {kind: partial(draw, axis=axis) for kind, draw in CHARTS_WITH_AXIS.items()} | CHARTS_BY_TABLE
        for kind, draw in by_table.items():
            if kind in tables and not (has_many_methods and kind in DRAWN_BY_METHOD):
                drawn[kind] = draw(tables[kind].filter(pl.col("setting") == setting))
        charts |= {f"{setting}-{kind}": styled(chart) for kind, chart in drawn.items() if chart is not None}
    return charts


def _with_marks(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with the columns `fails` and `floor`, null if the study had no controls."""
    columns = {"fails": pl.String, "floor": pl.Float64}
    return rows.with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in columns.items() if name not in rows.columns
    )


def _sizes(results: pl.DataFrame, axis: str) -> pl.DataFrame:
    """family, name, size, number: where each model is on the size axis, and how many of its family are smaller."""
    cells = sized(results, axis)
    sides = (
        cells.select("family", pl.col(side).alias("name"), pl.col(f"{side}_size").alias("size"))
        for side in ("weak", "strong")
    )
    sizes = pl.concat(sides).unique(["family", "name"], keep="first", maintain_order=True)
    return sizes.sort("size", nulls_last=True, maintain_order=True).with_columns(
        pl.int_range(pl.len()).over("family").alias("number")
    )


def _with_sizes(rows: pl.DataFrame, sizes: pl.DataFrame) -> pl.DataFrame:
    """Add each side's size and number to rows of pairs. What has a size already, such as a point of a curve, keeps it."""
    for side in ("weak", "strong"):
        if side in rows.columns:
            named = sizes.rename({"name": side, "size": f"{side}_size", "number": f"{side}_number"})
            named = named.drop(name for name in named.columns if name.endswith("_size") and name in rows.columns)
            rows = rows.join(named, on=["family", side], how="left", maintain_order="left")
    return rows
