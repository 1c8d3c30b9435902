"""The scaling fits of PGR as curves with their bands."""

from __future__ import annotations

import altair as alt
import polars as pl

from w2s_ray.analysis.cells import AXES
from w2s_ray.analysis.charts import parts
from w2s_ray.analysis.charts.parts import AXIS_FORMATS, Figure, panels


def _fit_axis(axis: str) -> alt.X:
    """Students' sizes and beyond."""
    scale = alt.Scale(type="log", nice=False)
    ticks = alt.Axis(format=AXIS_FORMATS[axis], tickCount=4, grid=False)
    return alt.X("strong_size:Q", title=AXES[axis], scale=scale, axis=ticks)


def fit_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """The scaling fits of PGR, weighted, with their band. The line is dashed beyond the largest student in the data."""
    rows = parts.with_panel(rows.filter(pl.col("target") == "pgr"))
    if rows.is_empty():
        return None
    seam = rows.filter(~pl.col("extrapolated")).group_by("panel", "weak").agg(pl.all().sort_by("strong_size").last())
    rows = pl.concat([rows, seam.with_columns(pl.lit(True).alias("extrapolated")).select(rows.columns)])
    is_larger = pl.when("extrapolated").then(pl.lit("larger")).otherwise(pl.lit("as large as in the data"))
    rows = rows.with_columns(is_larger.alias("students"))
    base = alt.Chart().encode(x=_fit_axis(axis), color=parts.supervisor_color(rows))
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title="PGR"), y2="high:Q")
    dash = parts.dash("students", {"as large as in the data": "solid", "larger": "dashed"}, title="students")
    tooltip = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high")]
    line = base.mark_line().encode(y="value:Q", strokeDash=dash, tooltip=["weak:N", *tooltip])
    return panels(lambda _: alt.layer(band, line), rows)
