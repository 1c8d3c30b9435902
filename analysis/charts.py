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
import polars as pl

from analysis.cells import AXES, CONTROLS, has_method, sized

WIDTH, HEIGHT = 320, 260
SMALL = 200
RED = "#d40000"
CROSS = "M-1,-1L1,1M1,-1L-1,1"
"""An SVG path."""
DOTTED = [2, 3]
DASHES = alt.Legend(symbolType="stroke", symbolSize=400)
"""Lines with dashes get their points from a layer of their own: with points on the lines, this legend would draw no strokes."""
AXIS_FORMATS = {"params": ".2~s", "compute": ".0e", "fraction": "~g"}
PGR_EDGES = (-0.5, 1.6)
MAX_METHODS = 5
"""With more methods than this, a study's methods are listed rather than drawn as lines."""
MAX_CURVE_POINTS = 40
"""A learning curve is thinned to at most this many points."""
Figure: TypeAlias = alt.TopLevelMixin
alt.data_transformers.disable_max_rows()  # a large study has more rows than the default allows


def figures(tables: dict[str, pl.DataFrame], *, axis: str = "params") -> dict[str, Figure]:
    """Name -> chart, setting by setting. With many methods the charts with a panel or line for each method are left out, and a
    list of the methods takes their place."""
    sizes = _sizes(tables["results"], axis)
    pgr = _with_sizes(_with_marks(tables["pgr"]), sizes)
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
        by_table = {kind: partial(draw, axis=axis) for kind, draw in CHARTS_WITH_SIZES.items()} | CHARTS_BY_TABLE
        for kind, draw in by_table.items():
            if kind in tables and tables[kind].height and not (has_many_methods and kind in DRAWN_BY_METHOD):
                table = tables[kind].filter(pl.col("setting") == setting)
                drawn[kind] = draw(_with_sizes(_with_marks(table), sizes))
        charts |= {f"{setting}-{kind}": _styled(chart) for kind, chart in drawn.items() if chart is not None}
    return charts


def _with_marks(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with the columns `fails` and `floor`, null if the study had no controls."""
    columns = {"fails": pl.String, "floor": pl.Float64}
    return rows.with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in columns.items() if name not in rows.columns
    )


def _sizes(results: pl.DataFrame, axis: str) -> pl.DataFrame:
    """family, name, size: where each model is on the size axis."""
    cells = sized(results, axis)
    sides = (
        cells.select("family", pl.col(side).alias("name"), pl.col(f"{side}_size").alias("size"))
        for side in ("weak", "strong")
    )
    return pl.concat(sides).unique(["family", "name"], keep="first", maintain_order=True)


def _with_sizes(rows: pl.DataFrame, sizes: pl.DataFrame) -> pl.DataFrame:
    """Add `weak_size` and `strong_size` to rows of pairs."""
    for side in ("weak", "strong"):
        if side in rows.columns and f"{side}_size" not in rows.columns:
            named = sizes.rename({"name": side, "size": f"{side}_size"})
            rows = rows.join(named, on=["family", side], how="left", maintain_order="left")
    return rows


# --- scores and PGR -------------------------------------------------------------------------------------------------


def score_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """Test score against student size with 95 % intervals: students coloured by supervisor, ceilings in black, floors dotted."""
    rows = _with_panel(rows.filter(pl.col("student_score").is_not_null() & pl.col("strong_size").is_not_null()))
    if rows.is_empty():
        return None
    base = alt.Chart().encode(x=_size_axis(axis))
    has_ends = "isValid(datum.student_score_low) && isValid(datum.student_score_high)"
    spread = base.mark_rule(opacity=0.55, strokeWidth=2).transform_filter(has_ends).encode(
        y="student_score_low:Q", y2="student_score_high:Q", color=_supervisor_color(rows)
    )  # fmt: skip
    return _panels(_score_layers(base, rows, spread), rows, title=_score_title("Test score", rows))


def _score_layers(base: alt.Chart, rows: pl.DataFrame, *below: alt.Chart) -> alt.LayerChart:
    """Ceilings, floors and students. `below`: what is drawn under the students."""
    color = _supervisor_color(rows)
    students = base.mark_line(point=alt.OverlayMarkDef(size=55)).encode(
        y=alt.Y("student_score:Q", title="test score", scale=alt.Scale(zero=False)),
        color=color,
        tooltip=[
            alt.Tooltip("task:N"),
            *_tooltip("student_score", "weak_score", "ceiling_score", "floor", extra="fails"),
        ],
    )
    ceiling = base.mark_line(point=alt.OverlayMarkDef(color="black", size=55), color="black").encode(
        y=alt.Y("mean(ceiling_score):Q"), tooltip=[alt.Tooltip("mean(ceiling_score):Q", format=".3f", title="ceiling")]
    )
    layers = [ceiling, *below, crosses(base, "student_score"), students]
    if rows["floor"].is_not_null().any():
        stroke = alt.OverlayMarkDef(shape="stroke", size=120, filled=False)
        layers.insert(0, base.mark_line(strokeDash=DOTTED, point=stroke).encode(y="floor:Q", color=color))
    return alt.layer(*layers)


def _score_title(title: str, rows: pl.DataFrame) -> str:
    legend = "ceiling in black, floor dotted" if rows["floor"].is_not_null().any() else "ceiling in black"
    return _title(f"{title} ({legend})", rows)


def _points(base: alt.Chart) -> alt.Chart:
    return base.mark_point(filled=True, size=45, opacity=1)


def crosses(base: alt.Chart, field: str) -> alt.Chart:
    """A red cross behind every point that fails a control. The point itself, which lies above it, keeps its colour and shape."""
    crosses = base.mark_point(shape=CROSS, filled=False, size=280, strokeWidth=2.5, opacity=1).encode(
        y=f"{field}:Q", color=alt.value(RED), tooltip=["fails:N"]
    )
    return crosses.transform_filter("isValid(datum.fails)")


def _title(title: str, rows: pl.DataFrame) -> str:
    return f"{title}; × fails a control" if rows["fails"].is_not_null().any() else title


def pgr_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """PGR against student size with 95 % intervals. The dashed line is full recovery."""
    rows = _with_panel(_with_pgr(rows))
    if rows.is_empty():
        return None
    title = _title("Performance gap recovered", rows)
    return _panels(_pgr_layers(rows, axis, _supervisor_color(rows)), rows, title=title)


def _pgr_layers(rows: pl.DataFrame, axis: str, color: alt.Color) -> alt.LayerChart:
    base = alt.Chart().encode(x=_size_axis(axis), color=color)
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
    rows = rows.with_columns(
        pl.format("{}{}", pl.col("pgr").round(2), pl.when(pl.col("fails").is_null()).then(pl.lit("")).otherwise(pl.lit(" ×"))).alias("text")
    )  # fmt: skip
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
            alt.layer(*bounds, bars, failing, points).properties(width=WIDTH, height=alt.Step(18), title=str(panel))
        )
    return alt.concat(*panels, columns=2, title=_title("Methods compared", rows))


def tasks_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """Test score for each task by itself, with a panel for each method and task."""
    rows = rows.filter(pl.col("student_score").is_not_null() & pl.col("strong_size").is_not_null())
    if rows["task"].n_unique() < 2:
        return None
    rows = rows.with_columns(pl.format("{}: {}", "method", "task").alias("panel"))
    layers = _score_layers(alt.Chart().encode(x=_size_axis(axis)), rows)
    return _panels(layers, rows, title=_score_title("Task by task", rows), width=SMALL, height=SMALL, columns=3)


# --- what students make of their labels -----------------------------------------------------------------------------


def agreement_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """How often a student's answer equals its supervisor's, where the supervisor is right and where it is wrong."""
    rows = rows.filter(pl.col("agreement").is_not_null() & pl.col("strong_size").is_not_null())
    rows = _with_panel(rows.filter(pl.col("weak") != pl.col("strong")))
    if rows.is_empty():
        return None
    base = alt.Chart().encode(x=_size_axis(axis))
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
    place = ["family", "weak", "strong", "weak_size", "strong_size", "method"]
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
    base = alt.Chart().encode(x=_size_axis(axis), color=_supervisor_color(lines))
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
    base = alt.Chart().encode(x=alt.X("misfit:Q", title="misfit (squared difference)"))
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
        panels.append(alt.layer(line, *layers).properties(width=WIDTH, height=HEIGHT, title=str(panel)))
    return alt.concat(*panels, columns=2, title=_title("Misfit and gain (theory: above the dashed line)", rows))


def learning_chart(rows: pl.DataFrame) -> Figure | None:
    """Test score during training. A student whose line falls at the end overfits to its labels."""
    rows = _with_marks(rows)
    rows = rows.filter(pl.col("test_accuracy").is_not_null())
    points = rows.group_by("family", "task", "strong", "role", "weak", "method").agg(pl.col("epoch").n_unique())
    if rows.is_empty() or (points["epoch"] < 2).all():
        return None
    line = ["family", "task", "strong", "strong_params", "role", "weak", "weak_params", "method", "line"]
    rows = rows.group_by(*line, "epoch", maintain_order=True).agg(
        pl.col("test_accuracy").mean(), pl.col("floor").mean(), pl.col("fails").first()
    )
    is_last = pl.col("epoch") == pl.col("epoch").max().over(line)
    rows = rows.with_columns(pl.when(is_last).then("fails").alias("fails"))
    position = pl.col("epoch").rank("ordinal").over(line)
    stride = (pl.len().over(line) / MAX_CURVE_POINTS).ceil().cast(pl.Int64)
    rows = rows.filter((pl.len().over(line) - position) % stride == 0)  # counted from the end, so the last point stays
    rows = rows.sort("task", "strong_params", "epoch").with_columns(pl.format("{} {}", "task", "strong").alias("panel"))
    order = [
        "ceiling",
        *rows.filter(pl.col("role") == "student").sort("weak_params")["line"].unique(maintain_order=True),
    ]
    base = alt.Chart().encode(x=alt.X("epoch:Q", axis=alt.Axis(format="~g")))
    color = alt.Color("line:N", title="supervisor", sort=order, scale=_scheme(order, black="ceiling"))
    base = base.encode(
        y=alt.Y("test_accuracy:Q", title="test score", scale=alt.Scale(zero=False)),
        color=color,
        tooltip=["line:N", "method:N", "epoch:Q", alt.Tooltip("test_accuracy:Q", format=".3f")],
    )
    lines = base.mark_line().encode(strokeDash=alt.StrokeDash("method:N", legend=DASHES))
    layers = [lines, crosses(base, "test_accuracy"), _points(base)]
    if rows["floor"].is_not_null().any():
        students = alt.Chart().transform_filter("isValid(datum.floor)")
        layers.insert(0, students.mark_rule(strokeDash=DOTTED).encode(y="mean(floor):Q", color=color))
    title = _score_title("Learning curves", rows)
    return _panels(alt.layer(*layers), rows, title=title, width=SMALL, height=SMALL, columns=3)


def calibration_chart(rows: pl.DataFrame) -> Figure | None:
    """Observed against predicted probability on the test set, with a panel for each method. Controls are left out. A calibrated
    model is on the dashed line."""
    rows = rows.filter(pl.col("part") == "test set")
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
        x=alt.X("said:Q", title="predicted probability", scale=alt.Scale(domain=[0, 1])),
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
        panels.append((line + lines.properties(data=group)).properties(width=WIDTH, height=HEIGHT, title=str(panel)))
    return alt.concat(*panels, columns=2, title="Calibration on the test set")


def fit_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """The scaling fits of PGR, weighted, with their band. The line is dashed beyond the largest student in the data."""
    rows = _with_panel(rows.filter(pl.col("target") == "pgr"))
    if rows.is_empty():
        return None
    seam = rows.filter(~pl.col("extrapolated")).group_by("panel", "weak").agg(pl.all().sort_by("strong_size").last())
    rows = pl.concat([rows, seam.with_columns(pl.lit(True).alias("extrapolated")).select(rows.columns)])
    base = alt.Chart().encode(x=_size_axis(axis), color=_supervisor_color(rows))
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title="PGR"), y2="high:Q")
    dash = alt.StrokeDash("extrapolated:N", title="beyond the data", scale=alt.Scale(range=[[1, 0], [5, 4]]))
    tooltip = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high")]
    line = base.mark_line().encode(y="value:Q", strokeDash=dash, tooltip=["weak:N", *tooltip])
    return _panels(alt.layer(band, line), rows, title="Scaling of PGR, all forms weighted (dashed: extrapolated)")


def difficulty_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """Test score by difficulty of the items, with a line for each training set. Shows the largest students on the size axis, with
    the smallest supervisor, and their ceilings."""
    if rows.is_empty():
        return None
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
    rows = rows.filter(largest & is_pair & ((role == "ceiling") | ((role == "student") & smallest)))
    rows = rows.join(floors, on=["family", "task", "difficulty"], how="left", maintain_order="left").with_columns(
        pl.when(role == "ceiling").then(pl.lit("ground truth")).otherwise("method").alias("labels"),
        pl.format("{}, {}", "family", "strong").alias("panel"),
    )
    order = rows["task"].unique(maintain_order=True).sort().to_list()
    color = alt.Color("task:N", title="trained on", sort=order, scale=alt.Scale(scheme="dark2"))
    base = alt.Chart().encode(x=alt.X("difficulty:Q", title="difficulty of test items", scale=alt.Scale(zero=False)))
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
    title = "Score by difficulty (floor dotted)" if has_floor else "Score by difficulty"
    return _panels(alt.layer(*layers), rows, title=_title(title, rows))


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
    base = alt.Chart().encode(x=alt.X("pgr:Q", title="PGR"))
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        y=y,
        color=alt.Color("rule:N", title="stopped", scale=alt.Scale(scheme="dark2"), legend=alt.Legend(labelLimit=400)),
        shape=alt.Shape("rule:N", title="stopped"),
        tooltip=["task:N", "method:N", "rule:N", *(alt.Tooltip(f"{n}:Q", format=".3f") for n in ("score", "pgr"))],
    )
    layers = alt.layer(crosses(base, "method").encode(y=y), points)
    return _panels(layers, rows, title=_title("When to stop training", rows), height=alt.Step(18))


CHARTS_WITH_SIZES = {
    "agreement": agreement_chart,
    "imitation": imitation_chart,
    "fit_curves": fit_chart,
    "difficulty": difficulty_chart,
}
"""Name of a table -> the function that draws it with sizes of the chosen axis, given the rows of one setting."""

CHARTS_BY_TABLE: dict[str, Callable[[pl.DataFrame], Figure | None]] = {
    "misfit": misfit_chart,
    "learning": learning_chart,
    "calibration": calibration_chart,
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


def _size_axis(axis: str) -> alt.X:
    return alt.X(
        "strong_size:Q",
        title=AXES[axis],
        scale=alt.Scale(type="log", nice=False, padding=14),
        axis=alt.Axis(format=AXIS_FORMATS[axis], tickCount=4),
    )


def _supervisor_color(rows: pl.DataFrame) -> alt.Color:
    size = "weak_size" if "weak_size" in rows.columns else "weak_params"
    order = rows.sort(size, maintain_order=True)["weak"].unique(maintain_order=True).to_list()
    legend, scale = alt.Legend(symbolOpacity=1), alt.Scale(domain=order, scheme="viridis")
    return alt.Color("weak:N", title="supervisor", sort=order, scale=scale, legend=legend)


def _scheme(order: list[str], *, black: str) -> alt.Scale:
    """A colour for each name, and black for one of them."""
    colours = ["#440154", "#3b528b", "#21918c", "#5ec962", "#b5a000", "#d95f02", "#e7298a", "#66a61e"]
    return alt.Scale(
        domain=order, range=["black" if name == black else colours[i % 8] for i, name in enumerate(order, -1)]
    )


def _tooltip(*scores: str, extra: str | None = None) -> list[alt.Tooltip]:
    names = [alt.Tooltip(f"{name}:N") for name in ("family", "weak", "strong", "method", *([extra] if extra else []))]
    return names + [alt.Tooltip(f"{name}:Q", format=".3f") for name in scores]


def _panels(
    layers: alt.LayerChart,
    rows: pl.DataFrame,
    *,
    title: str,
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
        .configure_legend(labelFontSize=14, titleFontSize=14)
        .configure_title(fontSize=17)
    )
