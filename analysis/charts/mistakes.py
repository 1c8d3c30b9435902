"""What students make of their supervisor's answers: agreement, repeated mistakes, misfit and gain."""

from __future__ import annotations

import altair as alt
import polars as pl

from w2s_ray.analysis.charts import parts
from w2s_ray.analysis.charts.parts import FEW_TICKS, HEIGHT, SMALL, WIDTH, Figure, panels


def agreement_chart(rows: pl.DataFrame, *, axis: str) -> Figure | None:
    """How often a student's answer equals its supervisor's, where the supervisor is right and where it is wrong, with 95 % intervals."""
    rows = rows.filter(pl.col("agreement").is_not_null() & pl.col("strong_size").is_not_null())
    rows = parts.with_panel(rows.filter(pl.col("weak") != pl.col("strong")))
    if rows.is_empty():
        return None
    missing = [pl.lit(None, pl.Float64).alias(name) for name in ENDS if name not in rows.columns]
    rows = parts.side_by_side(rows.with_columns(missing).rename(ENDS), by="weak_number")
    color = parts.supervisor_color(rows)
    dash = parts.dash("when", {"right": "solid", "wrong": "dashed"}, title="supervisor is")

    def draw(rows: pl.DataFrame) -> alt.LayerChart:
        base = alt.Chart().encode(x=parts.size_axis(rows, axis, field="drawn_size"), color=color)
        shares = base.encode(
            y=alt.Y("agreement:Q", title="agreement with the supervisor", scale=alt.Scale(zero=False)),
            tooltip=parts.tooltip("agreement", "low", "high", extra="when"),
        )
        lines = shares.mark_line().encode(strokeDash=dash)
        return alt.layer(parts.bars(base), lines, parts.crosses(shares, "agreement"), parts.points(shares))

    return panels(draw, rows)


ENDS = {"agreement_low": "low", "agreement_high": "high"}
"""Columns of the table -> the ends of the interval as drawn."""


LEARNED_FROM = {"agreement": "its supervisor", "shuffled": "shuffled labels", "noise": "random errors"}
"""Columns of the imitation table -> what these students learned from."""
LEARNED_DASHES = dict(zip(LEARNED_FROM.values(), ("solid", "dashed", "dash-dotted"), strict=True))


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
    lines = parts.side_by_side(lines, by="weak_number")
    color = parts.supervisor_color(lines)
    order = [name for name in LEARNED_DASHES if (lines["learned_from"] == name).any()]
    dash = parts.dash("learned_from", {name: LEARNED_DASHES[name] for name in order}, title="learned from")
    shape = alt.Shape("learned_from:N", title="learned from", sort=order, scale=alt.Scale(domain=order), legend=None)

    def draw(rows: pl.DataFrame) -> alt.LayerChart:
        base = alt.Chart().encode(x=parts.size_axis(rows, axis, field="drawn_size"), color=color)
        shares = base.encode(
            y=alt.Y("share:Q", title="mistakes repeated", scale=alt.Scale(zero=False)),
            tooltip=parts.tooltip("share", "low", "high", extra="learned_from"),
        )
        return alt.layer(
            parts.bars(base),
            shares.mark_line().encode(strokeDash=dash),
            parts.crosses(shares, "share"),
            shares.mark_point(filled=True, size=60, opacity=1).encode(shape=shape),
        )

    return panels(draw, lines, width=SMALL, height=SMALL)


def misfit_chart(rows: pl.DataFrame) -> Figure | None:
    """Gain over the supervisor against misfit, both in squared error. On the dashed line they are equal. Theory predicts a
    gain of at least the misfit, so points on or above the line (Charikar et al. 2024)."""
    rows = parts.with_panel(rows.filter(pl.col("weak") != pl.col("strong")))
    if rows.is_empty():
        return None
    top = max(0.01, rows.select(pl.col("misfit").max()).item())
    base = alt.Chart().encode(x=alt.X("misfit:Q", title="misfit (squared difference)", axis=FEW_TICKS))
    points = base.mark_point(filled=True, size=70, opacity=0.8).encode(
        y=alt.Y("gain:Q", title="gain in squared error"),
        color=parts.supervisor_color(rows),
        tooltip=[alt.Tooltip("task:N"), *parts.tooltip("misfit", "gain", extra="fails")],
    )
    parts_of = []
    for (panel,), group in rows.group_by("panel", maintain_order=True):
        layers = (layer.properties(data=group) for layer in (parts.crosses(base, "gain"), points))
        parts_of.append(
            alt.layer(parts.diagonal(top), *layers).properties(
                width=WIDTH, height=HEIGHT, title=parts.panel_title(panel)
            )
        )
    return alt.concat(*parts_of, columns=min(2, len(parts_of)), **parts.key(rows)).resolve_scale(y="shared", x="shared")
