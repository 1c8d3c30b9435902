"""The report of a study: `python -m analysis.report OUT [--axis compute]`. Reads the tables of `w2s_ray.results` in OUT.

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

from analysis import agreement, charts, difficulty, stopping, tables
from analysis.bootstrap import resample
from analysis.pgr import pgr_table
from analysis.scaling import fit_scaling

PNG_SCALE = 2.0
EMBEDDED_BYTES = 2_000_000
"""A table whose CSV is larger than this lies beside the page rather than in it."""


def write_report(out: Path, *, facts: dict[str, Any] | None = None, study_text: str = "", axis: str = "params") -> Path:
    """All of it; returns the path of report.html. `study_text` is the study file's, to be shown."""
    results, predictions = tables.read_both(out)
    curves, runs, items = (tables.read_if_there(out / f"{name}.parquet") for name in ("curves", "runs", "items"))
    samples = resample(results, predictions)
    fits, fit_curves = fit_scaling(samples)
    named = {
        "results": results,
        "pgr": pgr_table(samples),
        "fits": fits,
        "fit_curves": fit_curves,
        "agreement": agreement.agreement_table(results),
        "inverse_scaling": agreement.inverse_scaling(results),
        "misfit": agreement.misfit_table(results),
        "learning": agreement.learning_table(results, curves),
        "calibration": agreement.calibration_table(results, predictions),
        "stopping": stopping.stopping_table(results, curves),
        "copying": stopping.copying_table(results, curves),
        "difficulty": difficulty.difficulty_table(results, predictions, items),
        "runs": runs,
    }
    for name in ("pgr", "fits", "fit_curves"):
        tables.write(named[name], out / f"{name}.parquet")
    (out / "tables").mkdir(exist_ok=True)
    for name, table in named.items():
        table.write_csv(out / "tables" / f"{name}.csv")
    specs = draw(charts.figures(named, axis=axis), folder=out / "figures")
    path = out / "report.html"
    name = results["study"][0] if results.height and "study" in results.columns else "study"
    write_page(
        path,
        title=str(name),
        body=_body(str(name), named, specs=specs, facts=facts or {}, study_text=study_text),
        specs=specs,
    )
    return path


def draw(figures: dict[str, charts.Figure], *, folder: Path) -> dict[str, dict[str, Any]]:
    """Write each figure as SVG and PNG; name -> Vega-Lite specification."""
    folder.mkdir(exist_ok=True)
    specs = {}
    for name, figure in figures.items():
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name)  # a foreign table's name must not lead out of the folder
        spec = figure.to_dict()
        (folder / f"{stem}.svg").write_text(vlc.vegalite_to_svg(spec), encoding="utf-8")
        (folder / f"{stem}.png").write_bytes(vlc.vegalite_to_png(spec, scale=PNG_SCALE))
        specs[stem] = spec
    return specs


# --- the page -----------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2rem; } summary { cursor: pointer; font-weight: 600; }
.wide, pre { overflow-x: auto; max-height: 32rem; } .figure { background: #fff; border-radius: 6px; padding: .5rem; margin: .7rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.n, th.n { text-align: right; } .note { background: var(--soft); padding: .6rem 1rem; border-radius: 6px; }
"""

# names stay data: they reach the script as JSON, never as a part of it; the bundle holds vega itself, so needs no network
DRAW = """
for (const [name, spec] of Object.entries(JSON.parse(document.getElementById("specs").textContent)))
  vegaEmbed(document.getElementById(`fig-${name}`), spec, {actions: false});
"""


def write_page(path: Path, *, title: str, body: str, specs: dict[str, dict[str, Any]]) -> None:
    """One HTML file, whole or not at all."""
    script = ""
    if specs:
        bundle = re.sub("</(?=script)|<(?=!--)", _break_tag, vlc.javascript_bundle(DRAW), flags=re.IGNORECASE)
        script = (
            f'<script type="application/json" id="specs">{_json(specs)}</script><script type="module">{bundle}</script>'
        )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>{body}{script}</body></html>"
    )
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def _body(
    name: str,
    named: dict[str, pl.DataFrame],
    *,
    specs: dict[str, dict[str, Any]],
    facts: dict[str, Any],
    study_text: str,
) -> str:
    results, pgr = named["results"], named["pgr"]
    done = results.filter(pl.col("status") == "done")
    parts = [
        f"<h1>{html.escape(name)}</h1>",
        f"<p>{done.height} of {results.height} cells have a result.</p>",
        _facts(facts),
        f"<details><summary>The study</summary><pre>{html.escape(study_text)}</pre></details>" if study_text else "",
    ]
    if done.is_empty():
        parts.append("<p class=note>Nothing is done yet, so there is no curve to draw.</p>")
    elif not specs:
        parts.append("<p class=note>No pair has a score to draw.</p>")
    elif pgr.filter(pl.col("weak") != pl.col("strong"))["pgr"].is_null().all():
        parts.append(
            "<p class=note>No PGR curve: there is no pair of different sizes whose ceiling is clearly above its "
            "supervisor.</p>"
        )
    setting = None
    for key in specs:
        if key.split("-")[0] != setting:
            setting = key.split("-")[0]
            parts.append(f"<h2>{html.escape(setting.capitalize())}</h2>")
        parts.append(figure(key))
    parts += [_ladder(done), _pgr(pgr), _fits(named["fits"]), _inverse(named["inverse_scaling"])]
    parts += [_stopping(named["stopping"]), _copying(named["copying"])]
    parts += [_runs(named["runs"]), _troubles(results), downloads(named)]
    return "".join(parts)


def figure(key: str) -> str:
    return f'<div class=figure id="fig-{html.escape(key)}"></div>'


def _break_tag(found: re.Match[str]) -> str:
    """The same text to JavaScript's strings, and no tag to HTML."""
    return {"</": "<\\/", "<": "\\x3c"}[found[0]]


def _json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever names it carries."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def section(title: str, table: pl.DataFrame, *, note: str = "", is_open: bool = False) -> str:
    def cell(value: Any) -> str:
        if value is None:
            return "<td>–</td>"
        if isinstance(value, float):
            return (
                f"<td class=n>{value:.3f}</td>"
                if 1e-3 <= abs(value) < 1e5 or value == 0
                else f"<td class=n>{value:.2g}</td>"
            )
        return f"<td{' class=n' if isinstance(value, int) else ''}>{html.escape(str(value))}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table.iter_rows())
    says = f"<p>{html.escape(note)}</p>" if note else ""
    return (
        f"<details{' open' if is_open else ''}><summary>{html.escape(title)}</summary>{says}"
        f"<div class=wide><table><tr>{head}</tr>{body}</table></div></details>"
    )


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
    return f"<h2>Tables</h2>{section('Ground truth', ladder, is_open=True)}"


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
    return section("PGR", shown, note=note, is_open=True)


def _fits(fits: pl.DataFrame) -> str:
    if fits.is_empty():
        return ""
    shown = fits.drop("num_points").with_columns(pl.col("reason").fill_null(""))
    note = (
        "Forms as in analysis/scaling.py, intervals by refitting the bootstrap; the chosen form is the one that predicts "
        "the largest students best when it is fitted without them (held_out_rmse)."
    )
    return section("Scaling fits", shown, note=note)


def _inverse(steps: pl.DataFrame) -> str:
    if steps.is_empty():
        return ""
    note = "Of the steps to the next larger student, how many lower its agreement with the supervisor; sign test."
    return section("Inverse scaling of agreement", steps, note=note)


def _stopping(rows: pl.DataFrame) -> str:
    if rows.is_empty() or "stopped" not in rows["rule"]:
        return ""
    note = (
        "Scores of students at their last step, where their own labels on held-out rows would have stopped them, and at "
        "their best by ground truth: an oracle, which nobody has in earnest. Without intervals."
    )
    return section("When to stop", rows.drop("weak_params", "strong_params"), note=note)


def _copying(rows: pl.DataFrame) -> str:
    if rows.is_empty() or rows["truth_loss"].is_null().all():
        return ""
    note = (
        "How often students repeat their supervisor's mistakes, beside their last losses on its labels and on rows whose "
        "truth they were given. A loss on labels far below that on the truth is a student that learned its supervisor."
    )
    return section("Copied mistakes", rows, note=note)


def _runs(runs: pl.DataFrame) -> str:
    """What ran where, and what it cost."""
    if runs.is_empty():
        return ""
    seconds = [name for name in runs.columns if name.endswith("_s")]
    shown = (
        runs.group_by("machine", "host", "workers", "zero_stage")
        .agg(
            pl.len().alias("fits"),
            (pl.sum_horizontal(*seconds) * pl.col("workers") / 3600).sum().alias("worker hours"),
            *(pl.col(name).sum().round(1) for name in seconds),
            pl.col("tokens").sum(),
            pl.col("flops").sum().cast(pl.Float64),
        )
        .sort("fits", descending=True)
    )
    return section(
        "What ran where", shown, note="Of the Fits that this study stands on; those of other studies included."
    )


def _troubles(results: pl.DataFrame) -> str:
    bad = results.filter(pl.col("status") != "done")
    if bad.is_empty():
        return ""
    counts = bad.group_by("status", "reason").len("cells").sort("cells", descending=True)
    return section("Cells without a result", counts, is_open=True)


def downloads(named: dict[str, pl.DataFrame]) -> str:
    links = []
    for name, table in named.items():
        content = table.write_csv().encode()
        inside = f"data:text/csv;base64,{base64.b64encode(content).decode()}"
        target = inside if len(content) <= EMBEDDED_BYTES else f"tables/{name}.csv"
        links.append(f'<a download="{name}.csv" href="{target}">{name}.csv</a>')
    return f"<h2>Downloads</h2><p>{' · '.join(links)}</p>"


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables, figures and report.html from a study's results.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder with results.parquet and predictions.parquet")
    parser.add_argument("--axis", choices=charts.AXES, default="params", help="what the size axis shows")
    options = parser.parse_args()
    try:
        print(write_report(options.out, axis=options.axis))
    except (tables.TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
