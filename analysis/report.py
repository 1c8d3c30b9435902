"""The report of a study: `python -m analysis.report OUT`. Reads results.parquet and predictions.parquet in OUT.

Writes pgr.parquet, fits.parquet, tables/*.csv, figures/*.svg and *.png, and report.html: one file that needs no network,
reads on a phone, in light and dark, and says plainly what is missing and why.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import polars as pl
import vl_convert as vlc

from analysis import charts, tables
from analysis.pgr import pgr_table
from analysis.scaling import fit_scaling

PNG_SCALE = 2.0


def write_report(out: Path, *, facts: dict[str, Any] | None = None) -> Path:
    """All of it; returns the path of report.html."""
    results, predictions = tables.read_both(out)
    pgr = pgr_table(results, predictions)
    fits = fit_scaling(pgr)
    tables.write(pgr, out / "pgr.parquet")
    tables.write(fits, out / "fits.parquet")
    (out / "tables").mkdir(exist_ok=True)
    named = {"results": results, "pgr": pgr, "fits": fits}
    for name, table in named.items():
        table.write_csv(out / "tables" / f"{name}.csv")
    specs = _figures(pgr, folder=out / "figures")
    path = out / "report.html"
    temporary = path.with_name(".report.html.tmp")
    temporary.write_text(_page(results, pgr, named=named, specs=specs, facts=facts or {}), encoding="utf-8")
    temporary.replace(path)
    return path


def _figures(pgr: pl.DataFrame, *, folder: Path) -> dict[str, dict[str, Any]]:
    """Write each chart as SVG and PNG; name -> Vega-Lite specification."""
    folder.mkdir(exist_ok=True)
    specs = {}
    for setting in pgr["setting"].unique(maintain_order=True):
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", setting)  # a foreign table's name must not lead out of the folder
        for kind, draw, column in (("score", charts.score_chart, "student_score"), ("pgr", charts.pgr_chart, "pgr")):
            rows = pgr.filter(
                (pl.col("setting") == setting)
                & pl.col("task").is_null()
                & pl.col(column).is_not_null()
                & ((pl.col("weak") != pl.col("strong")) if kind == "pgr" else True)
            )
            if rows.is_empty():
                continue
            spec = draw(pgr, setting=setting).to_dict()
            (folder / f"{stem}-{kind}.svg").write_text(vlc.vegalite_to_svg(spec), encoding="utf-8")
            (folder / f"{stem}-{kind}.png").write_bytes(vlc.vegalite_to_png(spec, scale=PNG_SCALE))
            specs[f"{stem}-{kind}"] = spec
    return specs


# --- the page -----------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; } .figure { background: #fff; border-radius: 6px; padding: .5rem; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.n, th.n { text-align: right; } .note { background: var(--soft); padding: .6rem 1rem; border-radius: 6px; }
"""

# names stay data: they reach the script as JSON, never as a part of it; the bundle holds vega itself, so needs no network
DRAW = """
for (const [name, spec] of Object.entries(JSON.parse(document.getElementById("specs").textContent)))
  vegaEmbed(document.getElementById(`fig-${name}`), spec, {actions: false});
"""


def _page(
    results: pl.DataFrame,
    pgr: pl.DataFrame,
    *,
    named: dict[str, pl.DataFrame],
    specs: dict[str, dict[str, Any]],
    facts: dict[str, Any],
) -> str:
    name = results["study"][0] if results.height and "study" in results.columns else "study"
    done = results.filter(pl.col("status") == "done")
    parts = [
        f"<h1>{html.escape(str(name))}</h1>",
        f"<p>{done.height} of {results.height} cells have a result.</p>",
        _facts(facts),
    ]
    if done.is_empty():
        parts.append("<p class=note>Nothing is done yet, so there is no curve to draw.</p>")
    elif not specs:
        parts.append("<p class=note>No pair has a score to draw.</p>")
    elif not any(key.endswith("-pgr") for key in specs):
        parts.append(
            "<p class=note>No PGR curve: there is no pair of different sizes whose ceiling is clearly above its "
            "supervisor.</p>"
        )
    for key in specs:
        parts.append(f'<h2>{html.escape(key)}</h2><div class=figure id="fig-{html.escape(key)}"></div>')
    parts += [_ladder(done), _pgr(pgr), _fits(named["fits"]), _troubles(results), _downloads(named)]
    script = ""
    if specs:
        bundle = re.sub("</(?=script)|<(?=!--)", _break_tag, vlc.javascript_bundle(DRAW), flags=re.IGNORECASE)
        script = (
            f'<script type="application/json" id="specs">{_json(specs)}</script><script type="module">{bundle}</script>'
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(str(name))}</title><style>{STYLE}</style></head><body>{''.join(parts)}{script}</body></html>"
    )


def _break_tag(found: re.Match[str]) -> str:
    """The same text to JavaScript's strings, and no tag to HTML."""
    return {"</": "<\\/", "<": "\\x3c"}[found[0]]


def _json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever names it carries."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _table(table: pl.DataFrame) -> str:
    def cell(value: Any) -> str:
        if value is None:
            return "<td>–</td>"
        if isinstance(value, float):
            return f"<td class=n>{value:.3f}</td>"
        return f"<td{' class=n' if isinstance(value, int) else ''}>{html.escape(str(value))}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table.iter_rows())
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _facts(facts: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<div class=wide><table>{rows}</table></div>" if rows else ""


def _ladder(done: pl.DataFrame) -> str:
    """Ground-truth scores by size: what each rung reaches as a supervisor and as a ceiling."""
    if done.is_empty():
        return ""
    weak = done.group_by("task", "family", pl.col("weak").alias("size"), pl.col("weak_params").alias("params")).agg(
        pl.col("weak_score").mean().alias("as supervisor")
    )
    strong = done.group_by(
        "task", "family", pl.col("strong").alias("size"), pl.col("strong_params").alias("params")
    ).agg(pl.col("ceiling_score").mean().alias("as ceiling"))
    ladder = weak.join(strong, on=["task", "family", "size", "params"], how="full", coalesce=True).sort(
        "task", "family", "params"
    )
    return f"<h2>Ground truth</h2>{_table(ladder)}"


def _pgr(pgr: pl.DataFrame) -> str:
    def interval(name: str) -> pl.Expr:
        texts = [pl.col(f"{name}{end}").round(2).cast(pl.String) for end in ("_low", "_high")]
        return pl.format("{} to {}", *texts).alias(f"{name} 95 %")

    shown = pgr.select(
        pl.col("task").fill_null("all tasks"),
        "family",
        "weak",
        "strong",
        "method",
        pl.col("weak_score").alias("supervisor"),
        pl.col("student_score").alias("student"),
        pl.col("ceiling_score").alias("ceiling"),
        "pgr",
        interval("pgr"),
        pl.col("pgr_median").alias("median of cells"),
        pl.col("num_seeds").alias("seeds"),
        pl.col("num_dropped").alias("dropped"),
        pl.col("reason").fill_null(""),
    )
    note = "PGR is a ratio of sums over seeds and tasks; intervals by a paired bootstrap over test items and seeds."
    if pgr.filter(pl.col("num_cells") > 0)["num_seeds"].max() == 1:
        note += " There is one seed only, so the intervals hold test noise and no noise between seeds."
    return f"<h2>PGR</h2><p>{note}</p>{_table(shown)}"


def _fits(fits: pl.DataFrame) -> str:
    if fits.is_empty():
        return ""
    shown = fits.select(
        "family", "method", "parameter", "value", "low", "high", "num_points", pl.col("reason").fill_null("")
    )
    return f"<h2>Scaling fits</h2><p>{html.escape(fits['form'][0])}; intervals of 95 %.</p>{_table(shown)}"


def _troubles(results: pl.DataFrame) -> str:
    bad = results.filter(pl.col("status") != "done")
    if bad.is_empty():
        return ""
    counts = bad.group_by("status", "reason").len("cells").sort("cells", descending=True)
    return f"<h2>Cells without a result</h2>{_table(counts)}"


def _downloads(named: dict[str, pl.DataFrame]) -> str:
    links = " · ".join(
        f'<a download="{name}.csv" href="data:text/csv;base64,'
        f'{base64.b64encode(table.write_csv().encode()).decode()}">{name}.csv</a>'
        for name, table in named.items()
    )
    return f"<h2>Tables</h2><p>{links}</p>"


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables, figures and report.html from a study's results.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder with results.parquet and predictions.parquet")
    options = parser.parse_args()
    try:
        print(write_report(options.out))
    except (tables.TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
