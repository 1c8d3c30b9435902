"""How often what a model gives a probability comes true."""

from __future__ import annotations

import altair as alt
import polars as pl

from w2s_ray.analysis.agreement import TEST
from w2s_ray.analysis.cells import CONTROLS, has_method
from w2s_ray.analysis.charts import parts
from w2s_ray.analysis.charts.parts import CATEGORIES, FEW_TICKS, HEIGHT, WIDTH, Figure

ROLES = {"supervisor": "#8a8a8a", "student": CATEGORIES[1], "ceiling": "black"}
"""Role -> colour."""


def calibration_chart(rows: pl.DataFrame) -> Figure | None:
    """Observed against predicted probability on the test set, with a panel for each method. Controls are left out. A calibrated
    model is on the dashed line."""
    rows = rows.filter(pl.col("part") == TEST)
    if rows.is_empty():
        return None
    order = list(ROLES)
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
    rows = parts.with_panel(rows)
    lines = alt.Chart().mark_line(point=alt.OverlayMarkDef(size=45)).encode(
        x=alt.X("said:Q", title="predicted probability", scale=alt.Scale(domain=[0, 1]), axis=FEW_TICKS),
        y=alt.Y("was:Q", title="observed share", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("role:N", title=None, sort=order, scale=alt.Scale(domain=order, range=list(ROLES.values()))),
        tooltip=["role:N", alt.Tooltip("said:Q", format=".3f", title="predicted"),
                 alt.Tooltip("was:Q", format=".3f", title="observed"), "num_items:Q"],
    )  # fmt: skip
    panels = []
    for (panel,), group in rows.group_by("panel", maintain_order=True):
        panels.append(
            (parts.diagonal(1.0) + lines.properties(data=group)).properties(
                width=WIDTH, height=HEIGHT, title=parts.panel_title(panel)
            )
        )
    return alt.concat(*panels, columns=min(2, len(panels)))
