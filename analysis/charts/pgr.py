"""PGR: against size, as a grid of all pairs, and method beside method. All on one scale from 0 to 1 at least."""

from __future__ import annotations

from functools import partial

import altair as alt
import polars as pl

from w2s_ray.analysis.cells import CONTROLS, has_method
from w2s_ray.analysis.charts import parts
from w2s_ray.analysis.charts.parts import SMALL, WIDTH, Figure, panels

PGR_EDGES = (-0.5, 1.6)
KINDS = ["other method", "naive", "control"]


def pgr_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """PGR against student size with 95 % intervals. The dashed line is full recovery."""
    rows = parts.with_panel(_with_pgr(rows))
    if rows.is_empty():
        return None
    rows = parts.side_by_side(rows, by="weak_number")
    return panels(partial(_layers, axis=axis, color=parts.supervisor_color(rows), scale=_scale(rows)), rows)


def _layers(rows: pl.DataFrame, *, axis: str, color: alt.Color, scale: alt.Scale) -> alt.LayerChart:
    base = alt.Chart().encode(x=parts.size_axis(rows, axis, field="drawn_size"), color=color)
    found = base.encode(
        y=alt.Y("pgr:Q", title="PGR", scale=scale),
        tooltip=parts.tooltip("pgr", "pgr_low", "pgr_high", extra="fails"),
    )
    full = alt.Chart().mark_rule(strokeDash=[4, 4], color="grey").encode(y=alt.datum(1))
    return alt.layer(full, parts.bars(base), found.mark_line(), parts.crosses(base, "pgr"), parts.points(found))


def pair_map(rows: pl.DataFrame) -> Figure | None:
    """PGR of every pair as a grid of supervisors and students. Pairs without a clear gap stay white."""
    rows = parts.with_panel(_with_pgr(rows))
    if rows.height < 3:
        return None
    texts = [f"{pgr:.2f}{' ×' if fails else ''}" for pgr, fails in rows.select("pgr", "fails").iter_rows()]
    return panels(_grid, rows.with_columns(pl.Series("text", texts)), width=SMALL, height=SMALL).resolve_scale(
        x="independent", y="independent"
    )


def _grid(rows: pl.DataFrame) -> alt.LayerChart:
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
        tooltip=parts.tooltip("pgr", "pgr_low", "pgr_high", extra="fails"),
    )
    text = base.mark_text(fontSize=14).encode(
        text=alt.Text("text:N"),
        color=alt.condition(alt.datum.pgr > 0.6, alt.value("black"), alt.value("white")),
    )
    return alt.layer(cells, text)


def methods_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """PGR against student size with a line for each method and a panel for each supervisor."""
    rows = _with_pgr(rows)
    order = rows["method"].unique(maintain_order=True).to_list()
    if len(order) < 2:
        return None
    has_families = rows["family"].n_unique() > 1
    rows = rows.sort("family", "weak_size", maintain_order=True).with_columns(
        (pl.format("{}, from {}", "family", "weak") if has_families else pl.format("from {}", "weak")).alias("panel"),
        pl.col("method").replace_strict(order, range(len(order))).alias("number"),
    )
    rows = parts.side_by_side(rows, by="number")
    draw = partial(_layers, axis=axis, color=parts.category_color("method", order, title="method"), scale=_scale(rows))
    return panels(draw, rows, width=SMALL, height=SMALL, columns=3)


def methods_list(rows: pl.DataFrame) -> Figure | None:
    """PGR with its interval for many methods, one a row, with a panel for each pair on each task. Naive students and controls
    have colours of their own. Values far below 0 or above 1 are drawn at the edge, as triangles that point beyond it."""
    rows = _with_kind(_with_pgr(rows))
    if rows.is_empty():
        return None
    by_task = rows.with_columns(pl.format("{}: {} to {}", "task", "weak", "strong").alias("panel"))
    scale = _scale(rows)
    kinds = [kind for kind in KINDS if kind in rows["kind"].unique()]
    lists = []
    for (panel,), group in by_task.group_by("panel", maintain_order=True):
        order = group.sort("pgr", descending=True)["method"].unique(maintain_order=True).to_list()
        y = alt.Y("method:N", title=None, sort=order, axis=alt.Axis(labelLimit=220, labelPadding=10))
        base = alt.Chart(group).encode(y=y)
        bars = base.mark_rule(strokeWidth=2, opacity=0.6).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
        points = base.mark_point(filled=True, size=70, opacity=1).encode(
            x=alt.X("pgr:Q", title="PGR", scale=scale, axis=parts.FEW_TICKS),
            color=parts.category_color("kind", kinds, title=None),
            shape=alt.Shape("shape:N", scale=None),
            tooltip=parts.tooltip("pgr", "pgr_low", "pgr_high", extra="fails"),
        )
        failing = parts.crosses(base.encode(x=alt.X("pgr:Q", scale=scale)), "method").encode(y=y)
        bounds = [alt.Chart().mark_rule(strokeDash=[4, 4], color="grey").encode(x=alt.datum(bound)) for bound in (0, 1)]
        lists.append(
            alt.layer(*bounds, bars, failing, points).properties(
                width=0.6 * WIDTH, height=alt.Step(18), title=parts.panel_title(panel)
            )
        )
    return alt.concat(*lists, columns=2, **parts.key(rows))


def _with_kind(rows: pl.DataFrame) -> pl.DataFrame:
    """Add `kind`, one of KINDS, and `shape`, that of the point."""
    least, most = PGR_EDGES
    return rows.with_columns(
        pl.when(has_method("naive")).then(pl.lit("naive")).when(has_method(*CONTROLS)).then(pl.lit("control"))
        .otherwise(pl.lit("other method")).alias("kind"),
        pl.when(pl.col("pgr") < least).then(pl.lit("triangle-left")).when(pl.col("pgr") > most)
        .then(pl.lit("triangle-right")).otherwise(pl.lit("circle")).alias("shape"),
    )  # fmt: skip


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


def _scale(rows: pl.DataFrame) -> alt.Scale:
    """From 0 to 1 at least, and no further than PGR_EDGES: what lies beyond is drawn at the edge."""
    least, most = PGR_EDGES
    lowest, highest = rows.select(
        pl.min_horizontal("pgr", "low").min().alias("lowest"), pl.max_horizontal("pgr", "high").max().alias("highest")
    ).row(0)
    domain = [max(least, min(0.0, lowest)), min(most, max(1.1, highest))]
    return alt.Scale(domain=domain, clamp=True, nice=False)  # a nicer domain would end beyond the intervals
