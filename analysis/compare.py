"""Two studies side by side: `python -m analysis.compare OUT_A OUT_B [--out DIR]`. Writes compare.parquet and compare.html.

Rows of the two meet where setting, task, weak and strong size agree: the same family and method with themselves, or, where
one of them differs, methods (within a family) or families (within a method) with one another. The interval of a
difference is a paired bootstrap's: both studies see the same drawn items and seeds of a task, which sharpens it where they
share their test set and changes nothing where they don't.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from analysis import charts, tables
from analysis.bootstrap import NUM_RESAMPLES, Sample, interval, resample
from analysis.report import downloads, draw, section, write_page

SCHEMA = {
    "setting": pl.String,
    "task": pl.String,
    "weak": pl.String,
    "strong": pl.String,
    "a": pl.String,
    "b": pl.String,
    "score_a": pl.Float64,
    "score_b": pl.Float64,
    "score_difference": pl.Float64,
    "score_difference_low": pl.Float64,
    "score_difference_high": pl.Float64,
    "pgr_a": pl.Float64,
    "pgr_b": pl.Float64,
    "pgr_difference": pl.Float64,
    "pgr_difference_low": pl.Float64,
    "pgr_difference_high": pl.Float64,
    "reason": pl.String,
}
"""Differences are B - A, of students' scores and of PGR. `a`, `b`: family and method."""


def compare(a: list[Sample], b: list[Sample]) -> pl.DataFrame:
    """One row for each meeting of a pair in A with one in B."""
    rows = []
    for other in b:
        for one in _counterparts(other, a):
            rows.append(_row(one, other))
    return pl.DataFrame(rows, schema=SCHEMA)


def _who(sample: Sample) -> dict[str, Any]:
    return sample.cells.row(0, named=True) | {"task": sample.task}


def _counterparts(other: Sample, among: list[Sample]) -> list[Sample]:
    mine = _who(other)
    met = [s for s in among if all(_who(s)[name] == mine[name] for name in ("setting", "task", "weak", "strong"))]
    for wanted in (("family", "method"), ("family",), ("method",), ()):
        found = [s for s in met if all(_who(s)[name] == mine[name] for name in wanted)]
        if found:
            return found
    return []


def _row(one: Sample, other: Sample) -> dict[str, Any]:
    mine, theirs = _who(one), _who(other)
    row: dict[str, Any] = dict.fromkeys(SCHEMA) | {name: mine[name] for name in ("setting", "task", "weak", "strong")}
    row |= {"a": f"{mine['family']}, {mine['method']}", "b": f"{theirs['family']}, {theirs['method']}"}
    if one.scores is None or other.scores is None:
        row["reason"] = f"{'A' if one.scores is None else 'B'}: {one.reason or other.reason}"
        return row
    row["score_a"], row["score_b"] = float(one.scores[1][0]), float(other.scores[1][0])
    row["score_difference"], row["score_difference_low"], row["score_difference_high"] = interval(
        other.scores[1] - one.scores[1]
    )
    for name, sample in (("A", one), ("B", other)):
        if sample.gap_too_small:
            row["reason"] = f"{name}: gap_too_small, so no PGR"
            return row
    row["pgr_a"], row["pgr_b"] = float(one.pgr[0]), float(other.pgr[0])
    with np.errstate(invalid="ignore"):
        difference = other.pgr - one.pgr
    row["pgr_difference"], row["pgr_difference_low"], row["pgr_difference_high"] = interval(difference)
    return row


def difference_chart(table: pl.DataFrame) -> charts.Figure | None:
    """Difference in PGR of every pair, over tasks, with 95 % intervals. Right of the dashed line B recovers more."""
    rows = table.filter(pl.col("task").is_null() & pl.col("pgr_difference").is_not_null()).with_columns(
        pl.format("{}: {} to {}", "setting", "weak", "strong").alias("pair"),
        pl.format("{} against {}", "b", "a").alias("panel"),
    )
    if rows.is_empty():
        return None
    base = alt.Chart(rows).encode(
        y=alt.Y("pair:N", title=None, sort=None), color=alt.Color("panel:N", title="B against A")
    )
    points = base.mark_point(filled=True, size=80).encode(
        x=alt.X("pgr_difference:Q", title="difference in PGR, B - A"),
        tooltip=["a:N", "b:N", *(alt.Tooltip(f"pgr_{end}:Q", format=".3f") for end in ("a", "b", "difference"))],
    )
    bars = base.mark_rule(strokeWidth=2).encode(x="pgr_difference_low:Q", x2="pgr_difference_high:Q")
    zero = alt.Chart().mark_rule(strokeDash=[4, 4], color="grey").encode(x=alt.datum(0))
    return (
        alt.layer(zero, bars, points)
        .properties(width=2 * charts.SMALL, title="Difference in PGR")
        .configure_axis(labelFontSize=14, titleFontSize=15, labelLimit=300)
        .configure_legend(labelFontSize=14, titleFontSize=14, orient="bottom", labelLimit=500, columns=1)
    )


def write_comparison(a: Path, b: Path, *, out: Path, num_resamples: int = NUM_RESAMPLES) -> Path:
    """compare.parquet, its figure and compare.html; returns the path of the page."""
    both = [tables.read_both(each) for each in (a, b)]
    names = [
        str(results["study"][0]) if results.height else each.name
        for (results, _), each in zip(both, (a, b), strict=True)
    ]
    table = compare(*(resample(*each, num_resamples=num_resamples) for each in both))
    tables.write(table, out / "compare.parquet")  # makes the folder too
    chart = difference_chart(table)
    specs = draw({"compare": chart}, folder=out / "figures") if chart is not None else {}
    path = out / "compare.html"
    nothing = "The two have no pair of sizes on a common task, so there is nothing to compare."
    note = "Differences are B - A, with 95 % intervals of a paired bootstrap over test items and seeds."
    write_page(
        path,
        "compare.html.j2",
        specs=specs,
        title=f"{names[1]} (B) against {names[0]} (A)",
        notice=nothing if table.is_empty() else "",
        pairs=section("All pairs", table, note=note, is_open=True),
        downloads=downloads({"compare": table}),
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Two studies' tables side by side, with intervals of the differences.")
    parser.add_argument("a", type=Path, metavar="OUT_A", help="folder of one study's results.parquet")
    parser.add_argument("b", type=Path, metavar="OUT_B", help="folder of the other's")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for compare.html; default the current one")
    parser.add_argument("--resamples", type=int, default=NUM_RESAMPLES, help=f"default {NUM_RESAMPLES}")
    options = parser.parse_args()
    try:
        print(write_comparison(options.a, options.b, out=options.out, num_resamples=options.resamples))
    except (tables.TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
