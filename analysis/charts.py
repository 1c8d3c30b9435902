"""The figures of the report. Each function turns a table into an Altair chart, or into None if there is nothing to draw.

Colours follow the paper: students by their supervisor, ceilings in black (Burns et al. 2023, figure 3). A dotted line is the
floor: the best of the supervisor, the untrained model and a student of shuffled labels. A red cross marks what fails a control
(`analysis.controls`). The size axis is one of AXES. Fonts are large enough for a column of a paper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import altair as alt
import numpy as np
import polars as pl

from analysis.agreement import TEST
from analysis.cells import AXES, CONTROLS, has_method, sized

WIDTH, HEIGHT = 420, 300
SMALL = 210
COLOURS = ("#3b528b", "#21918c", "#5ec962", "#b5a000", "#d95f02", "#e7298a", "#7b3294", "#8c564b")
"""Of supervisors, from the smallest size of a family on: the same in all figures."""
DODGE = 0.018
"""What has one size is drawn side by side, at this share of the axis apart."""
MARGIN = 0.08
"""Of the size axis on each side, as a share of its length."""
RED = "#d40000"
CROSS = "M-1,-1L1,1M1,-1L-1,1"
"""An SVG path."""
DOTTED = [2, 3]
DASHES = alt.Legend(symbolType="stroke", symbolSize=400)
"""Lines with dashes get their points from a layer of their own: with points on the lines, this legend would draw no strokes."""
FEW_TICKS = alt.Axis(tickCount=5, format="~g")
AXIS_FORMATS = {"params": ".2~s", "compute": ".0e", "fraction": "~g"}
PGR_EDGES = (-0.5, 1.6)
MAX_METHODS = 5
"""With more methods than this, a study's methods are listed rather than drawn as lines."""
MAX_CURVE_POINTS = 40
"""A learning curve is thinned to at most this many points."""
Figure: TypeAlias = alt.TopLevelMixin
alt.data_transformers.disable_max_rows()  # a large study has more rows than the default allows


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
        charts |= {f"{setting}-{kind}": _styled(chart) for kind, chart in drawn.items() if chart is not None}
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


# --- scores and PGR -------------------------------------------------------------------------------------------------


def score_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """Test score against student size with 95 % intervals: students coloured by supervisor, ceilings in black, floors dotted."""
    rows = _with_panel(rows.filter(pl.col("student_score").is_not_null() & pl.col("strong_size").is_not_null()))
    if rows.is_empty():
        return None
    rows = _side_by_side(rows, by="weak_number").with_columns(
        pl.col("student_score_low", "student_score_high").clip(0, 1)
    )
    return _panels(_score_layers(rows, axis=axis, has_bars=True), rows, title=_score_title("Test score", rows))


def _score_layers(rows: pl.DataFrame, *, axis: str, has_bars: bool) -> alt.LayerChart:
    """Ceilings, floors and students, with their intervals if `has_bars`."""
    color = _supervisor_color(rows)
    base = alt.Chart().encode(x=_size_axis(rows, axis, field="drawn_size"))
    students = base.mark_line(point=alt.OverlayMarkDef(size=55)).encode(
        y=alt.Y("student_score:Q", title="test score", scale=alt.Scale(zero=False)),
        color=color,
        tooltip=[
            alt.Tooltip("task:N"),
            *_tooltip("student_score", "weak_score", "ceiling_score", "floor", extra="fails"),
        ],
    )
    ceiling = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(color="black", size=55), color="black")
        .encode(
            x=_size_axis(rows, axis),
            y=alt.Y("mean(ceiling_score):Q"),
            tooltip=[alt.Tooltip("mean(ceiling_score):Q", format=".3f", title="ceiling")],
        )
    )
    layers = [ceiling, crosses(base, "student_score"), students]
    if has_bars:
        has_ends = "isValid(datum.student_score_low) && isValid(datum.student_score_high)"
        bars = base.mark_rule(opacity=0.55, strokeWidth=2).transform_filter(has_ends)
        layers.insert(1, bars.encode(y="student_score_low:Q", y2="student_score_high:Q", color=color))
    if rows["floor"].is_not_null().any():
        stroke = alt.OverlayMarkDef(shape="stroke", size=180, strokeWidth=2, filled=False)
        layers.insert(0, base.mark_line(strokeDash=DOTTED, point=stroke).encode(y="floor:Q", color=color))
    return alt.layer(*layers)


def _score_title(text: str, rows: pl.DataFrame) -> alt.TitleParams:
    legend = "ceiling in black, floor dotted" if rows["floor"].is_not_null().any() else "ceiling in black"
    return _title(text, rows, legend=legend)


def _points(base: alt.Chart) -> alt.Chart:
    return base.mark_point(filled=True, size=45, opacity=1)


def crosses(base: alt.Chart, field: str) -> alt.Chart:
    """A red cross behind every point that fails a control. The point itself, which lies above it, keeps its colour and shape."""
    crosses = base.mark_point(shape=CROSS, filled=False, size=170, strokeWidth=2, opacity=1).encode(
        y=f"{field}:Q", color=alt.value(RED), tooltip=["fails:N"]
    )
    return crosses.transform_filter("isValid(datum.fails)")


def _title(text: str, rows: pl.DataFrame, *, legend: str = "") -> alt.TitleParams:
    """A title, with what the marks mean below it."""
    marks = [legend, "× fails a control" if rows["fails"].is_not_null().any() else ""]
    return alt.TitleParams(text, subtitle="; ".join(filter(None, marks)), anchor="start")


def _panel_title(panel: object) -> alt.TitleParams:
    return alt.TitleParams(str(panel), fontSize=15, fontWeight="normal")


def pgr_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """PGR against student size with 95 % intervals. The dashed line is full recovery."""
    rows = _with_panel(_with_pgr(rows))
    if rows.is_empty():
        return None
    rows = _side_by_side(rows, by="weak_number")
    title = _title("Performance gap recovered", rows)
    return _panels(_pgr_layers(rows, axis, _supervisor_color(rows)), rows, title=title)


def _pgr_layers(rows: pl.DataFrame, axis: str, color: alt.Color) -> alt.LayerChart:
    base = alt.Chart().encode(x=_size_axis(rows, axis, field="drawn_size"), color=color)
    lines = base.mark_line(point=alt.OverlayMarkDef(size=55)).encode(
        y=alt.Y("pgr:Q", title="PGR", scale=_pgr_scale(rows)),
        tooltip=_tooltip("pgr", "pgr_low", "pgr_high", extra="fails"),
    )
    bars = base.mark_rule(opacity=0.55, strokeWidth=2).encode(y="low:Q", y2="high:Q")
    full = alt.Chart().mark_rule(strokeDash=[4, 4], color="grey").encode(y=alt.datum(1))
    return alt.layer(full, bars, crosses(base, "pgr"), lines)


def pair_map(rows: pl.DataFrame) -> Figure | None:
    """PGR of every pair as a grid of supervisors and students. Pairs without a clear gap stay white."""
    rows = _with_panel(_with_pgr(rows))
    if rows.height < 3:
        return None
    weak, strong = (
        rows.sort(f"{side}_size", maintain_order=True)[side].unique(maintain_order=True).to_list()
        for side in ("weak", "strong")
    )
    base = alt.Chart().encode(
        x=alt.X("strong:N", title="student", sort=strong, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("weak:N", title="supervisor", sort=weak[::-1]),
    )
    cells = base.mark_rect().encode(
        color=alt.Color("pgr:Q", title="PGR", scale=alt.Scale(scheme="viridis", domain=[0, 1], clamp=True)),
        tooltip=_tooltip("pgr", "pgr_low", "pgr_high", extra="fails"),
    )
    text = base.mark_text(fontSize=14).encode(
        text=alt.Text("text:N"),
        color=alt.condition(alt.datum.pgr > 0.6, alt.value("black"), alt.value("white")),
    )
    texts = [f"{pgr:.2f}{' ×' if fails else ''}" for pgr, fails in rows.select("pgr", "fails").iter_rows()]
    rows = rows.with_columns(pl.Series("text", texts))
    title = _title("PGR of every pair", rows)
    return _panels(alt.layer(cells, text), rows, title=title, width=SMALL, height=SMALL)


def methods_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """PGR against student size with a line for each method and a panel for each supervisor."""
    rows = _with_pgr(rows)
    order = rows["method"].unique(maintain_order=True).to_list()
    if len(order) < 2:
        return None
    has_families = rows["family"].n_unique() > 1
    rows = rows.sort("family", "weak_size", maintain_order=True).with_columns(
        (pl.format("{}, from {}", "family", "weak") if has_families else pl.format("from {}", "weak")).alias("panel")
    )
    color = alt.Color("method:N", sort=order, scale=alt.Scale(domain=order, scheme="dark2"))
    rows = _side_by_side(
        rows.with_columns(pl.col("method").replace_strict(order, range(len(order))).alias("number")), by="number"
    )
    title = _title("Methods compared", rows)
    return _panels(_pgr_layers(rows, axis, color), rows, title=title, width=SMALL, height=SMALL, columns=3)


def methods_list(rows: pl.DataFrame) -> Figure | None:
    """PGR with its interval for many methods, one a row, with a panel for each pair on each task. Values far below 0 or above
    1 are drawn at the edge."""
    rows = _with_pgr(rows)
    if rows.is_empty():
        return None
    by_task = rows.with_columns(pl.format("{}: {} to {}", "task", "weak", "strong").alias("panel"))
    scale = _pgr_scale(rows)
    panels = []
    for (panel,), group in by_task.group_by("panel", maintain_order=True):
        order = group.sort("pgr", descending=True)["method"].unique(maintain_order=True).to_list()
        y = alt.Y("method:N", title=None, sort=order, axis=alt.Axis(labelLimit=300))
        base = alt.Chart(group).encode(y=y)
        bars = base.mark_rule(strokeWidth=2, opacity=0.6).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
        points = base.mark_point(filled=True, size=70).encode(
            x=alt.X("pgr:Q", title="PGR", scale=scale), tooltip=_tooltip("pgr", "pgr_low", "pgr_high", extra="fails")
        )
        failing = crosses(base.encode(x=alt.X("pgr:Q", scale=scale)), "method").encode(y=y)
        bounds = [alt.Chart().mark_rule(strokeDash=[4, 4], color="grey").encode(x=alt.datum(bound)) for bound in (0, 1)]
        panels.append(
            alt.layer(*bounds, bars, failing, points).properties(
                width=WIDTH, height=alt.Step(18), title=_panel_title(panel)
            )
        )
    return alt.concat(*panels, columns=2, title=_title("Methods compared", rows))


def tasks_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """Test score for each task by itself, with a panel for each method and task."""
    rows = rows.filter(pl.col("student_score").is_not_null() & pl.col("strong_size").is_not_null())
    if rows["task"].n_unique() < 2:
        return None
    rows = rows.with_columns(pl.format("{}: {}", "method", "task").alias("panel"))
    rows = _side_by_side(rows, by="weak_number")
    layers = _score_layers(rows, axis=axis, has_bars=False)
    return _panels(layers, rows, title=_score_title("Task by task", rows), width=SMALL, height=SMALL, columns=3)


# --- what students make of their labels -----------------------------------------------------------------------------


def agreement_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """How often a student's answer equals its supervisor's, where the supervisor is right and where it is wrong."""
    rows = rows.filter(pl.col("agreement").is_not_null() & pl.col("strong_size").is_not_null())
    rows = _with_panel(rows.filter(pl.col("weak") != pl.col("strong")))
    if rows.is_empty():
        return None
    rows = _side_by_side(rows, by="weak_number")
    base = alt.Chart().encode(x=_size_axis(rows, axis, field="drawn_size"))
    base = base.encode(
        y=alt.Y("agreement:Q", title="agreement with the supervisor", scale=alt.Scale(zero=False)),
        color=_supervisor_color(rows),
        tooltip=_tooltip("agreement", extra="when"),
    )
    dash = alt.StrokeDash("when:N", title="supervisor is", sort=["right", "wrong"], legend=DASHES)
    layers = alt.layer(base.mark_line().encode(strokeDash=dash), crosses(base, "agreement"), _points(base))
    return _panels(layers, rows, title=_title("Agreement with the supervisor", rows))


LEARNED_FROM = {"agreement": "its supervisor", "shuffled": "shuffled labels", "noise": "random errors"}
"""Columns of the imitation table -> what these students learned from."""


def imitation_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """How often students repeat their supervisor's mistakes on the test set and on half B, with 95 % intervals, beside students of
    other labels."""
    rows = rows.filter(pl.col("strong_size").is_not_null())
    if rows.is_empty():
        return None
    place = ["family", "weak", "strong", "weak_number", "weak_size", "strong_size", "method"]
    of_own_labels = {
        name: pl.when(pl.col("learned_from") == "agreement").then(name) for name in ("low", "high", "fails")
    }
    lines = (
        rows.with_columns(pl.format("{}: {}, {}", "task", "method", "part").alias("panel"))
        .rename({"agreement_low": "low", "agreement_high": "high"})
        .unpivot(
            list(LEARNED_FROM),
            index=["panel", *place, *of_own_labels],
            variable_name="learned_from",
            value_name="share",
        )
        .filter(pl.col("share").is_not_null())
        .with_columns(**of_own_labels)
        .with_columns(pl.col("learned_from").replace(LEARNED_FROM))
    )
    base = alt.Chart().encode(x=_size_axis(lines, axis), color=_supervisor_color(lines))
    shares = base.encode(
        y=alt.Y("share:Q", title="mistakes repeated", scale=alt.Scale(zero=False)),
        tooltip=_tooltip("share", "low", "high", extra="learned_from"),
    )
    order = list(LEARNED_FROM.values())
    dash = alt.StrokeDash("learned_from:N", sort=order, legend=None)
    shape = alt.Shape("learned_from:N", title="learned from", sort=order)
    bars = base.mark_rule(opacity=0.55, strokeWidth=2).encode(y="low:Q", y2="high:Q").transform_filter(
        "isValid(datum.low) && isValid(datum.high)"
    )  # fmt: skip
    layers = alt.layer(
        bars,
        shares.mark_line().encode(strokeDash=dash),
        crosses(shares, "share"),
        shares.mark_point(filled=True, size=70, opacity=1).encode(shape=shape),
    )
    title = _title("Mistakes of the supervisor that are repeated", lines)
    return _panels(layers, lines, title=title, width=SMALL, height=SMALL)


def misfit_chart(rows: pl.DataFrame) -> Figure | None:
    """Gain over the supervisor against misfit, both in squared error. On the dashed line they are equal. Theory predicts a
    gain of at least the misfit, so points on or above the line (Charikar et al. 2024)."""
    rows = _with_panel(rows.filter(pl.col("weak") != pl.col("strong")))
    if rows.is_empty():
        return None
    top = max(0.01, rows.select(pl.col("misfit").max()).item())
    base = alt.Chart().encode(x=alt.X("misfit:Q", title="misfit (squared difference)", axis=FEW_TICKS))
    points = base.mark_point(filled=True, size=70, opacity=0.8).encode(
        y=alt.Y("gain:Q", title="gain in squared error"),
        color=_supervisor_color(rows),
        tooltip=[alt.Tooltip("task:N"), *_tooltip("misfit", "gain", extra="fails")],
    )
    line = (
        alt.Chart(pl.DataFrame({"x": [0.0, top]})).mark_line(strokeDash=[4, 4], color="grey").encode(x="x:Q", y="x:Q")
    )
    panels = []
    for (panel,), group in rows.group_by("panel", maintain_order=True):
        layers = (layer.properties(data=group) for layer in (crosses(base, "gain"), points))
        panels.append(alt.layer(line, *layers).properties(width=WIDTH, height=HEIGHT, title=_panel_title(panel)))
    return alt.concat(*panels, columns=2, title=_title("Misfit and gain", rows, legend="theory: above the dashed line"))


def drawn_curves(rows: pl.DataFrame) -> pl.DataFrame:
    """The learning curves that are drawn, as means over seeds: all of them where there is one method, else those of the largest
    students, with a panel for each method. The last point of a curve keeps its mark."""
    rows = rows.filter(pl.col("test_accuracy").is_not_null())
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
        color=_supervisor_color(rows, name="line", black="ceiling"),
        tooltip=["line:N", "method:N", "epoch:Q", alt.Tooltip("test_accuracy:Q", format=".3f")],
    )
    layers = [base.mark_line(), crosses(base, "test_accuracy"), base.mark_point(filled=True, size=25, opacity=1)]
    if rows["floor"].is_not_null().any():
        floors = alt.Chart().transform_filter("isValid(datum.floor)").mark_rule(strokeDash=DOTTED, strokeWidth=2)
        color = _supervisor_color(rows, name="line", black="ceiling")
        layers.insert(0, floors.encode(y="mean(floor):Q", color=color))
    title = _score_title("Learning curves", rows)
    return _panels(alt.layer(*layers), rows, title=title, width=SMALL, height=SMALL, columns=3)


def calibration_chart(rows: pl.DataFrame) -> Figure | None:
    """Observed against predicted probability on the test set, with a panel for each method. Controls are left out. A calibrated
    model is on the dashed line."""
    rows = rows.filter(pl.col("part") == TEST)
    if rows.is_empty():
        return None
    order = ["supervisor", "student", "ceiling"]
    students = rows.filter((pl.col("role") == "student") & ~has_method(*CONTROLS))
    place = ["setting", "family", "task"]
    is_own, is_plain = has_method("generative"), pl.col("method").str.contains("supervisor=plain", literal=True)
    panels_of = pl.concat(
        students.select(
            *place,
            pl.lit(role).alias("role"),
            pl.col("method").alias("of"),
            pl.when(has_own).then(pl.lit("generative")).otherwise(pl.lit("truth")).alias("method"),
        ).unique(maintain_order=True)
        for role, has_own in (("supervisor", is_own & ~is_plain), ("ceiling", is_own))
    )
    truth = rows.join(panels_of, on=[*place, "role", "method"], how="inner")
    rows = pl.concat([students.with_columns(pl.col("method").alias("of")), truth]).with_columns(
        pl.format("{}: {}", "task", "of").alias("method")
    )
    if rows.is_empty():
        return None
    rows = _with_panel(rows)
    lines = alt.Chart().mark_line(point=alt.OverlayMarkDef(size=45)).encode(
        x=alt.X("said:Q", title="predicted probability", scale=alt.Scale(domain=[0, 1]), axis=FEW_TICKS),
        y=alt.Y("was:Q", title="observed share", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("role:N", sort=order, scale=alt.Scale(domain=order, scheme="dark2")),
        tooltip=["role:N", alt.Tooltip("said:Q", format=".3f", title="predicted"),
                 alt.Tooltip("was:Q", format=".3f", title="observed"), "num_items:Q"],
    )  # fmt: skip
    line = (
        alt.Chart(pl.DataFrame({"x": [0.0, 1.0]})).mark_line(strokeDash=[4, 4], color="grey").encode(x="x:Q", y="x:Q")
    )
    panels = []
    for (panel,), group in rows.group_by("panel", maintain_order=True):
        panels.append(
            (line + lines.properties(data=group)).properties(width=WIDTH, height=HEIGHT, title=_panel_title(panel))
        )
    return alt.concat(*panels, columns=2, title=alt.TitleParams("Calibration on the test set", anchor="start"))


def _fit_axis(axis: str) -> alt.X:
    """Students' sizes and beyond."""
    scale, ticks = alt.Scale(type="log", nice=False), alt.Axis(format=AXIS_FORMATS[axis], tickCount=4)
    return alt.X("strong_size:Q", title=AXES[axis], scale=scale, axis=ticks)


def fit_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """The scaling fits of PGR, weighted, with their band. The line is dashed beyond the largest student in the data."""
    rows = _with_panel(rows.filter(pl.col("target") == "pgr"))
    if rows.is_empty():
        return None
    seam = rows.filter(~pl.col("extrapolated")).group_by("panel", "weak").agg(pl.all().sort_by("strong_size").last())
    rows = pl.concat([rows, seam.with_columns(pl.lit(True).alias("extrapolated")).select(rows.columns)])
    base = alt.Chart().encode(x=_fit_axis(axis), color=_supervisor_color(rows))
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title="PGR"), y2="high:Q")
    dash = alt.StrokeDash("extrapolated:N", title="beyond the data", scale=alt.Scale(range=[[1, 0], [5, 4]]))
    tooltip = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high")]
    line = base.mark_line().encode(y="value:Q", strokeDash=dash, tooltip=["weak:N", *tooltip])
    return _panels(
        alt.layer(band, line),
        rows,
        title=_title("Scaling of PGR, all forms weighted", rows, legend="dashed: extrapolated"),
    )


def largest_by_difficulty(rows: pl.DataFrame) -> pl.DataFrame:
    """The largest students with the smallest supervisor, and their ceilings, with the floor in each bin of difficulty."""
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
    color = alt.Color("task:N", title="trained on", sort=order, scale=alt.Scale(scheme="dark2"))
    base = alt.Chart().encode(
        x=alt.X("difficulty:Q", title="difficulty of test items", scale=alt.Scale(zero=False), axis=FEW_TICKS)
    )
    scored = base.encode(
        y=alt.Y("score:Q", title="test score", scale=alt.Scale(zero=False)),
        color=color,
        tooltip=["task:N", "role:N", "labels:N", "bin:N", alt.Tooltip("score:Q", format=".3f"), "num_items:Q"],
    )
    lines = scored.mark_line().encode(strokeDash=alt.StrokeDash("labels:N", legend=DASHES))
    layers = [lines, crosses(scored, "score"), _points(scored)]
    has_floor = rows["floor"].is_not_null().any()
    if has_floor:
        layers.insert(0, base.mark_line(strokeDash=DOTTED).encode(y="max(floor):Q", color=color))
    title = _title("Score by difficulty", rows, legend="floor dotted" if has_floor else "")
    return _panels(alt.layer(*layers), rows, title=title)


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
    rules, legend = list(RULE_TEXTS.values()), alt.Legend(labelLimit=400)
    base = alt.Chart().encode(x=alt.X("pgr:Q", title="PGR", axis=FEW_TICKS))
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        y=y,
        color=alt.Color("rule:N", title="stopped", sort=rules, scale=alt.Scale(scheme="dark2"), legend=legend),
        shape=alt.Shape("rule:N", title="stopped", sort=rules),
        tooltip=["task:N", "method:N", "rule:N", *(alt.Tooltip(f"{n}:Q", format=".3f") for n in ("score", "pgr"))],
    )
    failing = crosses(base, "method").encode(y=y).transform_filter("datum.is_result")
    return _panels(alt.layer(failing, points), rows, title=_title("When to stop training", rows), height=alt.Step(18))


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

# --- parts of charts ------------------------------------------------------------------------------------------------


def _with_pgr(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of pairs of different sizes that have a PGR and a position on the size axis. `low` and `high` are the ends of the
    interval as they are drawn: at the edge of the figure if they are beyond it, or if the interval has no such end."""
    least, most = PGR_EDGES
    return rows.filter(
        pl.col("pgr").is_not_null() & pl.col("strong_size").is_not_null() & (pl.col("weak") != pl.col("strong"))
    ).with_columns(
        pl.col("pgr_low").fill_null(least).clip(least, most).alias("low"),
        pl.col("pgr_high").fill_null(most).clip(least, most).alias("high"),
    )


def _pgr_scale(rows: pl.DataFrame) -> alt.Scale:
    """From 0 to 1 at least, and no further than PGR_EDGES: what lies beyond is drawn at the edge."""
    least, most = PGR_EDGES
    lowest, highest = rows.select(
        pl.min_horizontal("pgr", "low").min().alias("lowest"), pl.max_horizontal("pgr", "high").max().alias("highest")
    ).row(0)
    return alt.Scale(domain=[max(least, min(0.0, lowest)), min(most, max(1.1, highest))], clamp=True)


def _with_panel(rows: pl.DataFrame) -> pl.DataFrame:
    """Add `panel`: the method, and the family if there are several."""
    method = pl.col("method")
    has_families = rows["family"].n_unique() > 1
    return rows.with_columns((pl.format("{}, {}", "family", method) if has_families else method).alias("panel"))


def _size_axis(rows: pl.DataFrame, axis: str, *, field: str = "strong_size") -> alt.X:
    """The axis of students' sizes, with a tick at each size. Families have axes of their own, with ticks at round numbers."""
    ticks: dict[str, Any] = {"tickCount": 4}
    scale = alt.Scale(type="log", nice=False, padding=20)
    if rows["family"].n_unique() == 1:
        sizes = rows["strong_size"].unique().sort()
        margin = 10 ** (_decades(sizes) * MARGIN)
        scale = alt.Scale(type="log", nice=False, domain=[sizes[0] / margin, sizes[-1] * margin])
        ticks = {"values": sizes.to_list(), "labelOverlap": "greedy"}
    return alt.X(f"{field}:Q", title=AXES[axis], scale=scale, axis=alt.Axis(format=AXIS_FORMATS[axis], **ticks))


def _decades(sizes: pl.Series) -> float:
    """How many powers of ten these sizes span, or half a one if it is less."""
    values = sizes.to_numpy()
    return max(0.5, float(np.log10(values.max() / values.min())))


def _side_by_side(rows: pl.DataFrame, *, by: str) -> pl.DataFrame:
    """Add `drawn_size`: the student's size, moved a little so that the marks of several supervisors or methods do not hide each
    other."""
    place, num = pl.col(by).rank("dense") - 1, rows[by].n_unique()
    step = min(DODGE, MARGIN / num) * _decades(rows["strong_size"])
    return rows.with_columns((pl.col("strong_size") * 10.0 ** ((place - (num - 1) / 2) * step)).alias("drawn_size"))


def _supervisor_color(rows: pl.DataFrame, *, name: str = "weak", black: str | None = None) -> alt.Color:
    """A colour for each supervisor by its number, and black for the line of this name."""
    numbered = rows.sort("weak_number", maintain_order=True).unique(name, keep="first", maintain_order=True)
    colours = {
        line: COLOURS[(number or 0) % len(COLOURS)] for line, number in numbered.select(name, "weak_number").iter_rows()
    }
    if black in colours:
        colours = {black: "black"} | {line: colour for line, colour in colours.items() if line != black}
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color(
        f"{name}:N", title="supervisor", sort=list(colours), scale=scale, legend=alt.Legend(symbolOpacity=1)
    )


def _tooltip(*scores: str, extra: str | None = None) -> list[alt.Tooltip]:
    names = [alt.Tooltip(f"{name}:N") for name in ("family", "weak", "strong", "method", *([extra] if extra else []))]
    return names + [alt.Tooltip(f"{name}:Q", format=".3f") for name in scores]


def _panels(
    layers: alt.LayerChart,
    rows: pl.DataFrame,
    *,
    title: alt.TitleParams,
    width: int = WIDTH,
    height: int | alt.Step = HEIGHT,
    columns: int = 2,
) -> Figure:
    """The layers once for each panel. Families have size axes of their own."""
    order = rows["panel"].unique(maintain_order=True).to_list()
    return (
        layers.properties(width=width, height=height)
        .facet(
            facet=alt.Facet("panel:N", title=None, sort=order, header=alt.Header(labelFontSize=15)),
            columns=columns,
            data=rows,
            title=title,
        )
        .resolve_scale(x="independent" if rows["family"].n_unique() > 1 else "shared")
    )


def _styled(chart: Any) -> Figure:
    return (
        chart.configure_axis(labelFontSize=14, titleFontSize=15)
        .configure_legend(labelFontSize=14, titleFontSize=14, orient="bottom", labelLimit=300)
        .configure_title(fontSize=17, subtitleFontSize=14)
    )
