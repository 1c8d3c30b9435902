"""What all figures share: colours, axes, panels, legends, and the marks that lie side by side.

Every size has one colour in all figures: that of its place on its family's ladder, from the smallest on. Ceilings are black.
What is no size (a task, a method, a rule) takes its colour from CATEGORIES, which has none of these. A figure has no title of
its own, so that it can go into a paper; `w2s_ray.analysis.charts.TITLES` has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import altair as alt
import numpy as np
import polars as pl

from w2s_ray.analysis.cells import AXES

WIDTH, HEIGHT = 420, 300
SMALL = 210
COLOURS = ("#3b528b", "#21918c", "#5ec962", "#b5a000", "#d95f02", "#e7298a", "#7b3294", "#8c564b")
"""Of sizes, from the smallest of a family on."""
CATEGORIES = ("#1f78b4", "#c2571a", "#6a3d9a", "#666666", "#a6761d", "#b2006d", "#4d9221", "#00777f")
DODGE = 0.02
"""What has one size is drawn side by side, at this share of the axis apart."""
MARGIN = 0.08
"""Of the size axis on each side, as a share of its length."""
RED = "#d40000"
CROSS = "M-1,-1L1,1M1,-1L-1,1"
"""An SVG path."""
DOTTED = [2, 3]
DASHES = {
    "solid": [1, 0],
    "dashed": [6, 4],
    "dotted": DOTTED,
    "dash-dotted": [7, 3, 2, 3],
    "long": [12, 4],
    "short": [3, 3],
}
STROKES = alt.Legend(
    symbolType="stroke", symbolSize=400, symbolStrokeWidth=2, symbolStrokeColor="black", titlePadding=0
)
"""For dashes. Lines with dashes get their points from a layer of their own: with points on the lines, this legend would draw no
strokes."""
FEW_TICKS = alt.Axis(tickCount=5, format="~g")
AXIS_FORMATS = {"params": ".2~s", "compute": ".0e", "fraction": "~g"}
IS_INTERVAL = "isValid(datum.low) && isValid(datum.high)"
Figure: TypeAlias = alt.TopLevelMixin
alt.data_transformers.disable_max_rows()  # a large study has more rows than the default allows


# --- panels ---------------------------------------------------------------------------------------------------------


def panels(
    draw: Callable[[pl.DataFrame], alt.LayerChart],
    rows: pl.DataFrame,
    *,
    width: int = WIDTH,
    height: int | alt.Step = HEIGHT,
    columns: int = 2,
) -> Figure:
    """The layers once for each `panel` of the rows, on one y axis. Families have size axes of their own: for them, `draw` is called
    panel by panel with its rows."""
    order = rows["panel"].unique(maintain_order=True).to_list()
    if rows["family"].n_unique() == 1:
        facet = alt.Facet("panel:N", title=None, sort=order, header=alt.Header(labelFontSize=15, labelLimit=width + 60))
        layers = draw(rows).properties(width=width, height=height)
        return layers.facet(facet=facet, columns=min(columns, len(order)), data=rows, **key(rows))
    parts = [
        draw(group).properties(data=group, width=width, height=height, title=panel_title(panel))
        for (panel,), group in rows.group_by("panel", maintain_order=True)
    ]
    return alt.concat(*parts, columns=min(columns, len(parts)), **key(rows)).resolve_scale(y="shared")


def panel_title(panel: object) -> alt.TitleParams:
    return alt.TitleParams(str(panel), fontSize=15, fontWeight="normal")


def key(rows: pl.DataFrame) -> dict[str, alt.TitleParams]:
    """What the red crosses mean, as the last line of a figure that has some."""
    if "fails" not in rows.columns or rows["fails"].is_null().all():
        return {}
    text = "× fails a control"
    return {
        "title": alt.TitleParams(text, orient="bottom", anchor="start", color=RED, fontSize=14, fontWeight="normal")
    }


def with_panel(rows: pl.DataFrame) -> pl.DataFrame:
    """Add `panel`: the method, and the family if there are several."""
    method = pl.col("method")
    has_families = rows["family"].n_unique() > 1
    return rows.with_columns((pl.format("{}, {}", "family", method) if has_families else method).alias("panel"))


def styled(chart: Any) -> Figure:
    """Fonts that are large enough in a column of a paper, and legends below the picture."""
    return (
        chart.configure_axis(labelFontSize=14, titleFontSize=15)
        .configure_legend(labelFontSize=14, titleFontSize=14, orient="bottom", labelLimit=300, columns=8)
        .configure_concat(spacing=16)
    )


def specification(figure: Figure) -> dict[str, Any]:
    """What Vega-Lite draws. Legends stand one under the other, which Vega can do but Altair does not know."""
    spec: dict[str, Any] = figure.to_dict()
    legend = spec.setdefault("config", {}).setdefault("legend", {})
    legend["layout"] = {"bottom": {"anchor": "start", "direction": "vertical", "margin": 6}}
    return spec


# --- axes -----------------------------------------------------------------------------------------------------------


def size_axis(rows: pl.DataFrame, axis: str, *, field: str = "strong_size", with_supervisors: bool = False) -> alt.X:
    """The axis of students' sizes, with a tick at each size. `with_supervisors`: of supervisors' sizes too."""
    sizes = sizes_of(rows, with_supervisors=with_supervisors)
    ticks: dict[str, Any] = {"tickCount": 4}
    scale = alt.Scale(type="log", nice=False, padding=20)
    if rows["family"].n_unique() == 1:
        margin = 10 ** (decades(sizes) * MARGIN)
        scale = alt.Scale(type="log", nice=False, domain=[sizes[0] / margin, sizes[-1] * margin])
        ticks = {"values": sizes.to_list(), "labelOverlap": "greedy"}
    title = AXES[axis].removeprefix("student's ") if with_supervisors else AXES[axis]
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(format=AXIS_FORMATS[axis], **ticks))


def sizes_of(rows: pl.DataFrame, *, with_supervisors: bool = False) -> pl.Series:
    """The sizes in these rows, from the smallest on."""
    names = ["strong_size", *(["weak_size"] if with_supervisors else [])]
    return pl.concat([rows[name].drop_nulls().rename("size") for name in names]).unique().sort()


def decades(sizes: pl.Series) -> float:
    """How many powers of ten these sizes span, or half a one if it is less."""
    values = sizes.to_numpy()
    return max(0.5, float(np.log10(values.max() / values.min())))


def side_by_side(rows: pl.DataFrame, *, by: str, with_supervisors: bool = False, num_before: int = 0) -> pl.DataFrame:
    """Add `drawn_size`: the student's size, moved a little so that the marks of several supervisors or methods do not hide each
    other, and `step`, by how much they are apart in powers of ten. `with_supervisors`: as in `size_axis`. `num_before`: places
    that are kept free at the left."""
    num = rows[by].n_unique() + num_before
    spans = {
        family: decades(sizes_of(own, with_supervisors=with_supervisors))
        for (family,), own in rows.group_by("family", maintain_order=True)
    }
    step = pl.col("family").replace_strict(spans, return_dtype=pl.Float64) * min(DODGE, MARGIN * 2 / num)
    place = pl.col(by).rank("dense") - 1 + num_before - (num - 1) / 2
    return rows.with_columns(step.alias("step"), (pl.col("strong_size") * 10.0 ** (place * step)).alias("drawn_size"))


# --- colours and marks ----------------------------------------------------------------------------------------------


def supervisor_color(rows: pl.DataFrame, *, name: str = "weak", black: str | None = None) -> alt.Color:
    """A colour for each supervisor by its number, and black for the line of this name."""
    numbered = rows.sort("weak_number", maintain_order=True).unique(name, keep="first", maintain_order=True)
    colours = {
        line: COLOURS[(number or 0) % len(COLOURS)] for line, number in numbered.select(name, "weak_number").iter_rows()
    }
    if black in colours:
        colours = {line: colour for line, colour in colours.items() if line != black} | {black: "black"}
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    legend = alt.Legend(symbolOpacity=1, symbolType="circle", symbolStrokeWidth=0)
    return alt.Color(f"{name}:N", title="supervisor", sort=list(colours), scale=scale, legend=legend)


def category_color(field: str, order: list[str], *, title: str | None) -> alt.Color:
    """Colours for what is no size."""
    colours = [CATEGORIES[i % len(CATEGORIES)] for i in range(len(order))]
    return alt.Color(f"{field}:N", title=title, sort=order, scale=alt.Scale(domain=order, range=colours))


def dash(field: str, names: dict[str, str], *, title: str | None) -> alt.StrokeDash:
    """A dash for each value of a field, drawn in the legend. `names`: value -> a word of DASHES."""
    scale = alt.Scale(domain=list(names), range=[DASHES[word] for word in names.values()])
    return alt.StrokeDash(f"{field}:N", title=title, sort=list(names), scale=scale, legend=STROKES)


def points(base: alt.Chart) -> alt.Chart:
    return base.mark_point(filled=True, size=55, opacity=1)


def bars(base: alt.Chart) -> alt.Chart:
    """95 % intervals from `low` to `high`, where both are known."""
    return base.mark_rule(opacity=0.55, strokeWidth=2).transform_filter(IS_INTERVAL).encode(y="low:Q", y2="high:Q")


def crosses(base: alt.Chart, field: str) -> alt.Chart:
    """A red cross behind every point that fails a control. The point itself, which lies above it, keeps its colour and shape."""
    crosses = base.mark_point(shape=CROSS, filled=False, size=170, strokeWidth=2, opacity=1).encode(
        y=f"{field}:Q", color=alt.value(RED), tooltip=["fails:N"]
    )
    return crosses.transform_filter("isValid(datum.fails)")


def tooltip(*scores: str, extra: str | None = None) -> list[alt.Tooltip]:
    names = [alt.Tooltip(f"{name}:N") for name in ("family", "weak", "strong", "method", *([extra] if extra else []))]
    return names + [alt.Tooltip(f"{name}:Q", format=".3f") for name in scores]


def diagonal(top: float) -> alt.Chart:
    """A dashed line on which x and y are equal."""
    ends = pl.DataFrame({"x": [0.0, top]})
    return alt.Chart(ends).mark_line(strokeDash=[4, 4], color="grey").encode(x="x:Q", y="x:Q")
