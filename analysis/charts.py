"""The paper's two figures for each setting: score and PGR against the student's size, supervisors as coloured lines."""

from __future__ import annotations

import altair as alt
import polars as pl

WIDTH, HEIGHT = 320, 260


def pgr_chart(pgr: pl.DataFrame, *, setting: str) -> alt.Chart | alt.FacetChart:
    """PGR against student size with 95 % intervals, a panel for each family and method. The dashed line is full recovery."""
    rows = _over_tasks(pgr, setting).filter(pl.col("pgr").is_not_null() & (pl.col("weak") != pl.col("strong")))
    base = alt.Chart().encode(x=_size_axis(), color=_supervisors(rows))
    lines = base.mark_line(point=alt.OverlayMarkDef(size=55)).encode(
        y=alt.Y("pgr:Q", title="PGR"), tooltip=_tooltip("pgr", "pgr_low", "pgr_high")
    )
    bars = base.mark_rule(opacity=0.55, strokeWidth=2).encode(y="pgr_low:Q", y2="pgr_high:Q")
    full = alt.Chart().mark_rule(strokeDash=[4, 4], color="grey").encode(y=alt.datum(1))
    return _panels(alt.layer(full, bars, lines), rows, title=f"{setting}: performance gap recovered")


def score_chart(pgr: pl.DataFrame, *, setting: str) -> alt.Chart | alt.FacetChart:
    """Score against student size: students by supervisor in colour, ceilings in black (Burns et al. 2023, figure 3)."""
    rows = _over_tasks(pgr, setting).filter(pl.col("student_score").is_not_null())
    base = alt.Chart().encode(x=_size_axis())
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
    return _panels(alt.layer(ceiling, spread, students), rows, title=f"{setting}: score (ceiling in black)")


def _over_tasks(pgr: pl.DataFrame, setting: str) -> pl.DataFrame:
    """One row a point, with the panel that it belongs to: its method, and its family where there are several."""
    rows = pgr.filter(pl.col("task").is_null() & (pl.col("setting") == setting))
    method = pl.col("method")
    return rows.with_columns(
        pl.format("{}, {}", "family", method).alias("panel") if rows["family"].n_unique() > 1 else method.alias("panel")
    )


def _size_axis() -> alt.X:
    return alt.X(
        "strong_params:Q", title="student's parameters", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s")
    )


def _supervisors(rows: pl.DataFrame) -> alt.Color:
    order = rows.sort("weak_params")["weak"].unique(maintain_order=True).to_list()
    return alt.Color("weak:N", title="supervisor", sort=order, scale=alt.Scale(domain=order, scheme="viridis"))


def _tooltip(*scores: str) -> list[alt.Tooltip]:
    named = [alt.Tooltip(f"{name}:N") for name in ("family", "weak", "strong", "method")]
    return named + [alt.Tooltip(f"{name}:Q", format=".3f") for name in scores] + [alt.Tooltip("num_seeds:Q")]


def _panels(layers: alt.LayerChart, rows: pl.DataFrame, *, title: str) -> alt.FacetChart:
    order = rows["panel"].unique(maintain_order=True).to_list()
    panels = layers.properties(width=WIDTH, height=HEIGHT).facet(
        facet=alt.Facet("panel:N", title=None, sort=order, header=alt.Header(labelFontSize=15)),
        columns=2,
        data=rows,
        title=title,
    )
    return (
        panels.configure_axis(labelFontSize=14, titleFontSize=15)
        .configure_legend(labelFontSize=14, titleFontSize=14)
        .configure_title(fontSize=17)
    )
