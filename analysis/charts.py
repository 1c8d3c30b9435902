"""The figures: each a function of tables to an Altair chart, or None where there is nothing to draw.

The paper's colours throughout: students by their supervisor, ceilings in black (Burns et al. 2023, figure 3). The size
axis is one of AXES. Fonts are large enough for a column of a paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import altair as alt
import polars as pl

WIDTH, HEIGHT = 320, 260
SMALL = 200
DASHES = alt.Legend(symbolType="stroke", symbolSize=400)
MANY = 5
"""Methods beyond which they are listed rather than drawn as lines."""
MOST_POINTS = 40
"""On a learning curve."""
AXES = {
    "params": "student's parameters",
    "compute": "student's pretraining compute (6ND FLOP)",
    "fraction": "student's size as a fraction of the largest",
}

Figure: TypeAlias = alt.TopLevelMixin
alt.data_transformers.disable_max_rows()  # a large study has many points, and its report must not fail for them


def figures(tables: dict[str, pl.DataFrame], *, axis: str = "params") -> dict[str, Figure]:
    """Name -> chart, setting by setting, of all that there is something to draw of. Many methods are listed; what has a
    panel or a line for each method is then left out."""
    pgr = _sized(tables["pgr"], tables["results"], axis)
    found: dict[str, Figure] = {}
    for setting in pgr["setting"].unique(maintain_order=True):
        rows = pgr.filter(pl.col("setting") == setting)
        over, by_task = rows.filter(pl.col("task").is_null()), rows.filter(pl.col("task").is_not_null())
        many = rows["method"].n_unique() > MANY
        drawn: dict[str, Figure | None]
        if many:
            drawn = {"methods": methods_list(by_task)}
        else:
            drawn = {
                "score": score_chart(over, axis=axis),
                "pgr": pgr_chart(over, axis=axis),
                "pairs": pair_map(over),
                "methods": methods_chart(over, axis=axis),
                "tasks": tasks_chart(by_task, axis=axis),
            }
        for kind, draw in OTHERS.items():
            if kind in tables and tables[kind].height and not (many and kind in BY_METHOD):
                drawn[kind] = draw(tables[kind].filter(pl.col("setting") == setting))
        found |= {f"{setting}-{kind}": _styled(chart) for kind, chart in drawn.items() if chart is not None}
    return found


def _sized(pgr: pl.DataFrame, results: pl.DataFrame, axis: str) -> pl.DataFrame:
    """`size`: the student's place on the axis."""
    if axis == "params":
        return pgr.with_columns(pl.col("strong_params").cast(pl.Float64).alias("size"))
    if axis == "fraction":
        return pgr.with_columns((pl.col("strong_params") / pl.col("strong_params").max().over("family")).alias("size"))
    if "strong_flops" not in results.columns:
        return pgr.with_columns(pl.lit(None, pl.Float64).alias("size"))
    flops = results.group_by("family", "strong").agg(pl.col("strong_flops").first().alias("size"))
    return pgr.join(flops, on=["family", "strong"], how="left")


# --- scores and PGR -----------------------------------------------------------------------------------------------


def score_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """Score against student size: students by supervisor in colour, ceilings in black, with 95 % intervals."""
    rows = _panelled(rows.filter(pl.col("student_score").is_not_null() & pl.col("size").is_not_null()))
    if rows.is_empty():
        return None
    base = alt.Chart().encode(x=_size_axis(axis))
    students = base.mark_line(point=alt.OverlayMarkDef(size=55)).encode(
        y=alt.Y("student_score:Q", title="score on test", scale=alt.Scale(zero=False)),
        color=_supervisors(rows),
        tooltip=_tooltip("student_score", "weak_score", "ceiling_score"),
    )
    spread = base.mark_rule(opacity=0.55, strokeWidth=2).encode(
        y="student_score_low:Q", y2="student_score_high:Q", color=_supervisors(rows)
    )
    ceiling = base.mark_line(point=alt.OverlayMarkDef(color="black", size=55), color="black").encode(
        y=alt.Y("mean(ceiling_score):Q"), tooltip=[alt.Tooltip("mean(ceiling_score):Q", format=".3f", title="ceiling")]
    )
    return _panels(alt.layer(ceiling, spread, students), rows, title="Score (ceiling in black)")


def pgr_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """PGR against student size with 95 % intervals. The dashed line is full recovery."""
    rows = _panelled(_with_pgr(rows))
    if rows.is_empty():
        return None
    return _panels(_pgr_layers(axis, _supervisors(rows)), rows, title="Performance gap recovered")


def _pgr_layers(axis: str, color: alt.Color) -> alt.LayerChart:
    base = alt.Chart().encode(x=_size_axis(axis), color=color)
    lines = base.mark_line(point=alt.OverlayMarkDef(size=55)).encode(
        y=alt.Y("pgr:Q", title="PGR"), tooltip=_tooltip("pgr", "pgr_low", "pgr_high")
    )
    bars = base.mark_rule(opacity=0.55, strokeWidth=2).encode(y="pgr_low:Q", y2="pgr_high:Q")
    full = alt.Chart().mark_rule(strokeDash=[4, 4], color="grey").encode(y=alt.datum(1))
    return alt.layer(full, bars, lines)


def pair_map(rows: pl.DataFrame) -> Figure | None:
    """PGR of every pair, weak by strong. Pairs without a clear gap stay white."""
    rows = _panelled(_with_pgr(rows))
    if rows.height < 3:
        return None
    weak, strong = (
        rows.sort(f"{side}_params")[side].unique(maintain_order=True).to_list() for side in ("weak", "strong")
    )
    base = alt.Chart().encode(
        x=alt.X("strong:N", title="student", sort=strong, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("weak:N", title="supervisor", sort=weak[::-1]),
    )
    cells = base.mark_rect().encode(
        color=alt.Color("pgr:Q", title="PGR", scale=alt.Scale(scheme="viridis", domain=[0, 1], clamp=True)),
        tooltip=_tooltip("pgr", "pgr_low", "pgr_high"),
    )
    text = base.mark_text(fontSize=14).encode(
        text=alt.Text("pgr:Q", format=".2f"),
        color=alt.condition(alt.datum.pgr > 0.6, alt.value("black"), alt.value("white")),
    )
    return _panels(alt.layer(cells, text), rows, title="PGR of every pair", width=SMALL, height=SMALL)


def methods_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """Methods side by side: PGR against student size, a panel for each supervisor."""
    rows = _with_pgr(rows)
    order = rows["method"].unique(maintain_order=True).to_list()
    if len(order) < 2:
        return None
    many = rows["family"].n_unique() > 1
    rows = rows.sort("family", "weak_params").with_columns(
        (pl.format("{}, from {}", "family", "weak") if many else pl.format("from {}", "weak")).alias("panel")
    )
    color = alt.Color("method:N", sort=order, scale=alt.Scale(domain=order, scheme="dark2"))
    return _panels(_pgr_layers(axis, color), rows, title="Methods compared", width=SMALL, height=SMALL, columns=3)


def methods_list(rows: pl.DataFrame) -> Figure | None:
    """Many methods: PGR with its interval, a line each, a panel for each pair on each task. What is far below 0 or above 1
    stands at the edge."""
    rows = _with_pgr(rows)
    if rows.is_empty():
        return None
    by_task = rows.with_columns(pl.format("{}: {} to {}", "task", "weak", "strong").alias("panel"))
    low, high = rows.select(pl.col("pgr_low").min(), pl.col("pgr_high").max()).row(0)
    low, high = max(-0.5, min(0.0, low or 0.0)), min(1.6, max(1.1, high or 0.0))  # no interval may have a finite end
    x = alt.Scale(domain=[low, high], clamp=True)
    panels = []
    for (panel,), group in by_task.group_by("panel", maintain_order=True):
        order = group.sort("pgr", descending=True)["method"].unique(maintain_order=True).to_list()
        y = alt.Y("method:N", title=None, sort=order, axis=alt.Axis(labelLimit=300))
        base = alt.Chart(group).encode(y=y)
        bars = base.mark_rule(strokeWidth=2, opacity=0.6).encode(x=alt.X("pgr_low:Q", scale=x), x2="pgr_high:Q")
        points = base.mark_point(filled=True, size=70).encode(
            x=alt.X("pgr:Q", title="PGR", scale=x), tooltip=_tooltip("pgr", "pgr_low", "pgr_high")
        )
        ends = [alt.Chart().mark_rule(strokeDash=[4, 4], color="grey").encode(x=alt.datum(end)) for end in (0, 1)]
        panels.append(alt.layer(*ends, bars, points).properties(width=WIDTH, height=alt.Step(18), title=str(panel)))
    return alt.concat(*panels, columns=2, title="Methods compared")


def tasks_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """Score of every task by itself, a row of panels for each method."""
    rows = rows.filter(pl.col("student_score").is_not_null() & pl.col("size").is_not_null())
    if rows["task"].n_unique() < 2:
        return None
    rows = rows.with_columns(pl.format("{}: {}", "method", "task").alias("panel"))
    base = alt.Chart().encode(x=_size_axis(axis))
    students = base.mark_line(point=True).encode(
        y=alt.Y("student_score:Q", title="score on test", scale=alt.Scale(zero=False)),
        color=_supervisors(rows),
        tooltip=[alt.Tooltip("task:N"), *_tooltip("student_score", "weak_score", "ceiling_score")],
    )
    ceiling = base.mark_line(point=alt.OverlayMarkDef(color="black"), color="black").encode(y="mean(ceiling_score):Q")
    return _panels(alt.layer(ceiling, students), rows, title="Task by task", width=SMALL, height=SMALL, columns=3)


# --- what students do with their labels ---------------------------------------------------------------------------


def agreement_chart(rows: pl.DataFrame) -> Figure | None:
    """How often a student says what its supervisor says, where the supervisor is right and where it is wrong."""
    rows = _panelled(rows.filter(pl.col("agreement").is_not_null() & (pl.col("weak") != pl.col("strong"))))
    if rows.is_empty():
        return None
    lines = alt.Chart().mark_line(point=alt.OverlayMarkDef(size=55)).encode(
        x=_size_axis("params", field="strong_params"),
        y=alt.Y("agreement:Q", title="agreement", scale=alt.Scale(zero=False)),
        color=_supervisors(rows),
        strokeDash=alt.StrokeDash("when:N", title="supervisor is", sort=["right", "wrong"], legend=DASHES),
        tooltip=_tooltip("agreement", extra="when"),
    )  # fmt: skip
    return _panels(alt.layer(lines), rows, title="Agreement with the supervisor")


def misfit_chart(rows: pl.DataFrame) -> Figure | None:
    """Gain over the supervisor against disagreement with it; theory puts the gain on the line (Charikar et al. 2024)."""
    rows = _panelled(rows.filter(pl.col("gain").is_not_null() & (pl.col("weak") != pl.col("strong"))))
    if rows.is_empty():
        return None
    top = max(0.01, rows.select(pl.col("misfit").max()).item())
    points = alt.Chart().mark_point(filled=True, size=70, opacity=0.8).encode(
        x=alt.X("misfit:Q", title="misfit: share of items that differ"),
        y=alt.Y("gain:Q", title="gain over the supervisor"),
        color=_supervisors(rows),
        tooltip=[alt.Tooltip("task:N"), *_tooltip("misfit", "gain")],
    )  # fmt: skip
    line = (
        alt.Chart(pl.DataFrame({"x": [0.0, top]})).mark_line(strokeDash=[4, 4], color="grey").encode(x="x:Q", y="x:Q")
    )
    panels = []
    for (panel,), group in rows.group_by("panel", maintain_order=True):
        panels.append((line + points.properties(data=group)).properties(width=WIDTH, height=HEIGHT, title=str(panel)))
    return alt.concat(*panels, columns=2, title="Misfit and gain")


def learning_chart(rows: pl.DataFrame) -> Figure | None:
    """Test scores along training; a line that falls at its end is a student that overfits to its labels."""
    rows = rows.filter(pl.col("test_accuracy").is_not_null())
    points = rows.group_by("family", "task", "strong", "role", "weak", "method").agg(pl.col("epoch").n_unique())
    if rows.is_empty() or (points["epoch"] < 2).all():
        return None
    line = ["family", "task", "strong", "strong_params", "role", "weak", "weak_params", "method", "line"]
    rows = rows.group_by(*line, "epoch").agg(pl.col("test_accuracy").mean())
    place = pl.col("epoch").rank("ordinal").over(line)
    every = (pl.len().over(line) / MOST_POINTS).ceil().cast(pl.Int64)
    rows = rows.filter((pl.len().over(line) - place) % every == 0)  # the last point stays
    rows = rows.sort("task", "strong_params", "epoch").with_columns(pl.format("{} {}", "task", "strong").alias("panel"))
    order = [
        "ceiling",
        *rows.filter(pl.col("role") == "student").sort("weak_params")["line"].unique(maintain_order=True),
    ]
    lines = alt.Chart().mark_line(point=True).encode(
        x=alt.X("epoch:Q", axis=alt.Axis(format="~g")),
        y=alt.Y("test_accuracy:Q", title="score on test", scale=alt.Scale(zero=False)),
        color=alt.Color("line:N", title="labels", sort=order, scale=_scheme(order, black="ceiling")),
        strokeDash=alt.StrokeDash("method:N", legend=DASHES),
        tooltip=["line:N", "method:N", "epoch:Q", alt.Tooltip("test_accuracy:Q", format=".3f")],
    )  # fmt: skip
    return _panels(alt.layer(lines), rows, title="Along training", width=SMALL, height=SMALL, columns=3)


def calibration_chart(rows: pl.DataFrame) -> Figure | None:
    """How often what a model says with a probability is so. On the line it is calibrated."""
    if rows.is_empty():
        return None
    order = ["supervisor", "student", "ceiling"]
    rows = _panelled(rows.with_columns(pl.col("task").alias("method")))
    lines = alt.Chart().mark_line(point=alt.OverlayMarkDef(size=45)).encode(
        x=alt.X("said:Q", title="probability that was said", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("was:Q", title="share that was so", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("role:N", sort=order, scale=alt.Scale(domain=order, scheme="dark2")),
        tooltip=["role:N", alt.Tooltip("said:Q", format=".3f"), alt.Tooltip("was:Q", format=".3f"), "num_items:Q"],
    )  # fmt: skip
    line = (
        alt.Chart(pl.DataFrame({"x": [0.0, 1.0]})).mark_line(strokeDash=[4, 4], color="grey").encode(x="x:Q", y="x:Q")
    )
    panels = []
    for (panel,), group in rows.group_by("panel", maintain_order=True):
        panels.append((line + lines.properties(data=group)).properties(width=WIDTH, height=HEIGHT, title=str(panel)))
    return alt.concat(*panels, columns=2, title="Calibration on test")


def fit_chart(rows: pl.DataFrame) -> Figure | None:
    """The chosen scaling fit of PGR with its interval; dashed beyond the largest student that was run."""
    rows = _panelled(rows.filter(pl.col("target") == "pgr"))
    if rows.is_empty():
        return None
    seam = rows.filter(~pl.col("extrapolated")).group_by("panel", "weak").agg(pl.all().sort_by("strong_params").last())
    rows = pl.concat([rows, seam.with_columns(pl.lit(True).alias("extrapolated")).select(rows.columns)])
    base = alt.Chart().encode(x=_size_axis("params", field="strong_params"), color=_supervisors(rows))
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title="PGR"), y2="high:Q")
    dash = alt.StrokeDash("extrapolated:N", title="beyond the data", scale=alt.Scale(range=[[1, 0], [5, 4]]))
    tooltip = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high")]
    line = base.mark_line().encode(y="value:Q", strokeDash=dash, tooltip=["weak:N", "form:N", *tooltip])
    return _panels(alt.layer(band, line), rows, title="Scaling fit of PGR, dashed where it is extrapolated")


def difficulty_chart(rows: pl.DataFrame) -> Figure | None:
    """Score by difficulty of the test items, for the largest model of each role: easy-to-hard, by what was learned from."""
    if rows.is_empty():
        return None
    largest = pl.col("strong_params") == pl.col("strong_params").max().over("family")
    rows = rows.filter(
        largest & pl.col("role").is_in(["student", "ceiling"]) & (pl.col("weak") != pl.col("strong")).fill_null(True)
    )
    least = pl.col("weak_params") == pl.col("weak_params").min().over("family", "role")
    rows = rows.filter((pl.col("role") == "ceiling") | least).with_columns(
        pl.when(pl.col("role") == "ceiling").then(pl.lit("ground truth")).otherwise("method").alias("labels"),
        pl.format("{}, {}", "family", "strong").alias("panel"),
    )
    order = rows["task"].unique(maintain_order=True).sort().to_list()
    lines = alt.Chart().mark_line(point=alt.OverlayMarkDef(size=45)).encode(
        x=alt.X("difficulty:Q", title="difficulty of test items", scale=alt.Scale(zero=False)),
        y=alt.Y("score:Q", title="score on test", scale=alt.Scale(zero=False)),
        color=alt.Color("task:N", title="learned from", sort=order, scale=alt.Scale(scheme="dark2")),
        strokeDash=alt.StrokeDash("labels:N", legend=DASHES),
        tooltip=["task:N", "role:N", "labels:N", "bin:N", alt.Tooltip("score:Q", format=".3f"), "num_items:Q"],
    )  # fmt: skip
    return _panels(alt.layer(lines), rows, title="Easy to hard")


STOPPED = {
    "final": "at the end",
    "stopped": "by its own labels",
    "oracle": "at its best by ground truth (an oracle)",
}


def stopping_chart(rows: pl.DataFrame) -> Figure | None:
    """PGR at the end of training, where the student's own labels would have stopped it, and at its best by ground truth."""
    told = (pl.col("rule") == "stopped").any().over("task", "weak", "strong", "method")
    rows = rows.filter(pl.col("pgr").is_not_null() & (pl.col("weak") != pl.col("strong")) & told)
    if rows.is_empty():
        return None
    rows = rows.with_columns(
        pl.col("rule").replace(STOPPED).alias("rule"),
        pl.format("{}, {} to {}", "task", "weak", "strong").alias("panel"),
    )
    points = alt.Chart().mark_point(filled=True, size=80).encode(
        x=alt.X("pgr:Q", title="PGR"),
        y=alt.Y("method:N", title=None, sort=rows["method"].unique(maintain_order=True).to_list()),
        color=alt.Color("rule:N", title="stopped", scale=alt.Scale(scheme="dark2"), legend=alt.Legend(labelLimit=300)),
        shape=alt.Shape("rule:N", title="stopped"),
        tooltip=["task:N", "method:N", "rule:N", *(alt.Tooltip(f"{n}:Q", format=".3f") for n in ("score", "pgr"))],
    )  # fmt: skip
    return _panels(alt.layer(points), rows, title="When to stop", height=alt.Step(18))


OTHERS: dict[str, Callable[[pl.DataFrame], Figure | None]] = {
    "agreement": agreement_chart,
    "misfit": misfit_chart,
    "learning": learning_chart,
    "calibration": calibration_chart,
    "fit_curves": fit_chart,
    "difficulty": difficulty_chart,
    "stopping": stopping_chart,
}

BY_METHOD = ("agreement", "misfit", "learning", "fit_curves")

# --- parts --------------------------------------------------------------------------------------------------------


def _with_pgr(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(
        pl.col("pgr").is_not_null() & pl.col("size").is_not_null() & (pl.col("weak") != pl.col("strong"))
    )


def _panelled(rows: pl.DataFrame) -> pl.DataFrame:
    """The panel that a row belongs to: its method, and its family where there are several."""
    method = pl.col("method")
    several = rows["family"].n_unique() > 1
    return rows.with_columns((pl.format("{}, {}", "family", method) if several else method).alias("panel"))


def _size_axis(axis: str, *, field: str = "size") -> alt.X:
    return alt.X(
        f"{field}:Q",
        title=AXES[axis],
        scale=alt.Scale(type="log", nice=False, padding=14),
        axis=alt.Axis(format=".2~s", tickCount=4),
    )


def _supervisors(rows: pl.DataFrame) -> alt.Color:
    order = rows.sort("weak_params")["weak"].unique(maintain_order=True).to_list()
    return alt.Color("weak:N", title="supervisor", sort=order, scale=alt.Scale(domain=order, scheme="viridis"))


def _scheme(order: list[str], *, black: str) -> alt.Scale:
    colours = ["#440154", "#3b528b", "#21918c", "#5ec962", "#b5a000", "#d95f02", "#e7298a", "#66a61e"]
    return alt.Scale(domain=order, range=["black" if o == black else colours[i % 8] for i, o in enumerate(order, -1)])


def _tooltip(*scores: str, extra: str | None = None) -> list[alt.Tooltip]:
    named = [alt.Tooltip(f"{name}:N") for name in ("family", "weak", "strong", "method", *([extra] if extra else []))]
    return named + [alt.Tooltip(f"{name}:Q", format=".3f") for name in scores]


def _panels(
    layers: alt.LayerChart,
    rows: pl.DataFrame,
    *,
    title: str,
    width: int = WIDTH,
    height: int | alt.Step = HEIGHT,
    columns: int = 2,
) -> Figure:
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
