"""Compares two studies: `python -m w2s_ray.analysis.compare OUT_A OUT_B [--out DIR]`. Writes compare.parquet,
compare.html, and the same as tables/compare.csv and figures/compare.svg.

A pair of A and a pair of B are compared if they agree in setting, task, weak size and strong size. A pair of B meets the pair
of A with the same family and method. If there is none, it meets those of the same family (which compares methods), else
those of the same method (which compares families), else all.

Intervals of the differences are paired: equal seeds and equal groups of test items of a task vary together. That narrows an
interval if the studies share their test set, and changes nothing if they do not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from w2s_ray.analysis import controls, tables
from w2s_ray.analysis.bootstrap import NUM_RESAMPLES, SIDES, Sample, moments, resample
from w2s_ray.analysis.charts import parts
from w2s_ray.analysis.figure_files import write_figures
from w2s_ray.analysis.page import section, write_page
from w2s_ray.analysis.pgr import pgr_difference, pgr_table
from w2s_ray.analysis.report import write_csv_files

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
    "fails": pl.String,
    "reason": pl.String,
}
"""Differences are B - A. `score_*` is the student's. `a` and `b` name the family and the method. `fails`: which controls of A or B
fail (`w2s_ray.analysis.controls`)."""


def compare(a: list[Sample], b: list[Sample]) -> pl.DataFrame:
    """One row for each pair of B and each pair of A that it is compared with."""
    fails_a, fails_b = _fails(a), _fails(b)
    rows = []
    for sample_b in b:
        for sample_a in _counterparts(sample_b, a):
            texts = {"A": fails_a[id(sample_a)], "B": fails_b[id(sample_b)]}
            fails = "; ".join(f"{name}: {text}" for name, text in texts.items() if text)
            rows.append(_row(sample_a, sample_b) | {"fails": fails or None})
    return pl.DataFrame(rows, schema=SCHEMA)


def _fails(samples: list[Sample]) -> dict[int, str | None]:
    """id of a sample -> which controls it fails."""
    return dict(zip(map(id, samples), controls.with_fails(pgr_table(samples))["fails"], strict=True))


def _identity(sample: Sample) -> dict[str, Any]:
    return sample.cells.row(0, named=True) | {"task": sample.task}


def _counterparts(sample: Sample, candidates: list[Sample]) -> list[Sample]:
    """Candidates that agree with a sample in sizes and task, and as far as possible in family and method."""
    identity = _identity(sample)

    def agreeing(samples: list[Sample], names: tuple[str, ...]) -> list[Sample]:
        return [s for s in samples if all(_identity(s)[name] == identity[name] for name in names)]

    comparable = agreeing(candidates, ("setting", "task", "weak", "strong"))
    for names in (("family", "method"), ("family",), ("method",)):
        if counterparts := agreeing(comparable, names):
            return counterparts
    return comparable


def _row(a: Sample, b: Sample) -> dict[str, Any]:
    identity_a, identity_b = _identity(a), _identity(b)
    row: dict[str, Any] = dict.fromkeys(SCHEMA)
    row |= {name: identity_a[name] for name in ("setting", "task", "weak", "strong")}
    row["a"] = f"{identity_a['family']}, {identity_a['method']}"
    row["b"] = f"{identity_b['family']}, {identity_b['method']}"
    if not a.parts or not b.parts:
        row["reason"] = f"{'A' if not a.parts else 'B'}: {a.reason or b.reason}"
        return row
    both = moments([a, b], arms=SIDES)
    mean = dict(zip(both.arms, both.mean.tolist(), strict=True))
    row["score_a"], row["score_b"] = mean["0.student"], mean["1.student"]
    row |= _interval_columns("score_difference", both.interval({"1.student": 1, "0.student": -1}))
    for name, sample in (("A", a), ("B", b)):
        if sample.gap_too_small:
            row["reason"] = f"{name}: gap_too_small, so no PGR"
            return row
    row["pgr_a"], row["pgr_b"] = (
        (mean[f"{i}.student"] - mean[f"{i}.weak"]) / (mean[f"{i}.ceiling"] - mean[f"{i}.weak"]) for i in (0, 1)
    )
    return row | _interval_columns("pgr_difference", pgr_difference(a, b))


def _interval_columns(name: str, values: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def difference_chart(table: pl.DataFrame) -> parts.Figure | None:
    """Difference in PGR of every pair over tasks, with 95 % intervals. To the right of the dashed line, B recovers more."""
    rows = table.filter(pl.col("task").is_null() & pl.col("pgr_difference").is_not_null()).with_columns(
        pl.format("{}: {} to {}", "setting", "weak", "strong").alias("pair"),
        pl.format("{} against {}", "b", "a").alias("panel"),
    )
    if rows.is_empty():
        return None
    y = alt.Y("pair:N", title=None, sort=None)
    base = alt.Chart(rows).encode(y=y, yOffset="panel:N", color=alt.Color("panel:N", title="B against A"))
    points = base.mark_point(filled=True, size=80).encode(
        x=alt.X("pgr_difference:Q", title="difference in PGR, B - A"),
        tooltip=["a:N", "b:N", *(alt.Tooltip(f"pgr_{end}:Q", format=".3f") for end in ("a", "b", "difference"))],
    )
    bars = base.mark_rule(strokeWidth=2).encode(x="pgr_difference_low:Q", x2="pgr_difference_high:Q")
    failing = parts.crosses(base.encode(x="pgr_difference:Q"), "pair").encode(y=y)
    zero = alt.Chart().mark_rule(strokeDash=[4, 4], color="grey").encode(x=alt.datum(0))
    return (
        alt.layer(zero, bars, failing, points)
        .properties(width=2 * parts.SMALL)
        .configure_axis(labelFontSize=14, titleFontSize=15, labelLimit=300)
        .configure_legend(labelFontSize=14, titleFontSize=14, orient="bottom", labelLimit=500, columns=1)
    )


def write_comparison(a: Path, b: Path, *, out: Path, num_resamples: int = NUM_RESAMPLES) -> Path:
    """Write compare.parquet, tables/compare.csv, the figure and compare.html. Returns the path of the page."""
    studies = [tables.read_study(folder) for folder in (a, b)]
    name_a, name_b = (
        str(results["study"][0]) if results.height else folder.name
        for folder, (results, _) in zip((a, b), studies, strict=True)
    )
    table = compare(*(resample(*study, num_resamples=num_resamples) for study in studies))
    tables.write(table, out / "compare.parquet")  # this makes the folder, too
    chart = difference_chart(table)
    specs = write_figures({"compare": chart}, folder=out / "figures") if chart is not None else {}
    path = out / "compare.html"
    nothing = "The two studies share no pair of sizes on a common task, so there is nothing to compare."
    caption = (
        "Each row is a pair of supervisor and student, over tasks. Right of the dashed line B recovers more of its gap, left of it A. "
        "Bars are paired 95 % intervals: one that crosses the line tells no difference. A red cross marks a pair whose PGR fails a "
        "control in A or B."
    )
    note = "Differences are B - A, with paired 95 % intervals over replicates and groups of test items."
    write_page(
        path,
        "compare.html.j2",
        specs=specs,
        title=f"{name_b} (B) against {name_a} (A)",
        caption=caption,
        notice=nothing if table.is_empty() else "",
        pairs=section("All pairs", table, note=note, is_open=True),
        downloads=write_csv_files({"compare": table}, folder=out / "tables"),
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare two studies: their differences in score and PGR, with intervals."
    )
    parser.add_argument("a", type=Path, metavar="OUT_A", help="folder with the results.parquet of one study")
    parser.add_argument("b", type=Path, metavar="OUT_B", help="folder with that of the other study")
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder to write compare.html to; by default the current one"
    )
    parser.add_argument(
        "--resamples", type=int, default=NUM_RESAMPLES, help=f"number of resamples, by default {NUM_RESAMPLES}"
    )
    options = parser.parse_args()
    try:
        print(write_comparison(options.a, options.b, out=options.out, num_resamples=options.resamples))
    except (tables.TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
