"""The report of a study: `python -m w2s_ray.analysis.report OUT [--axis compute]`. OUT holds the tables of `w2s report`.

Writes pgr.parquet, findings.parquet, fits.parquet, fit_curves.parquet, tables/*.csv (and, as shown on the page, *.md and *.tex),
figures/*.svg, *.pdf and *.png, report.html, and items.html where items differ. The pages work without a network, on a phone, in
light and dark, and on paper. They say plainly what is missing and why.

From top to bottom the report has: what the study is about; what was found, task by task; the table of pairs; figures; the other
tables; what it cost and where it ran; files to download.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from w2s_ray.analysis import (
    agreement,
    charts,
    columns,
    controls,
    difficulty,
    findings,
    labels,
    provenance,
    sections,
    stopping,
    tables,
)
from w2s_ray.analysis.answers import read_answers
from w2s_ray.analysis.bootstrap import resample
from w2s_ray.analysis.captions import captions
from w2s_ray.analysis.cells import AXES
from w2s_ray.analysis.figure_files import write_figures
from w2s_ray.analysis.items_page import write_items_page
from w2s_ray.analysis.methods import method_table
from w2s_ray.analysis.page import Download, section, write_page
from w2s_ray.analysis.pgr import pgr_table
from w2s_ray.analysis.scaling import fit_scaling
from w2s_ray.analysis.text_tables import write_text_tables

EMBEDDED_BYTES = 2_000_000
EMBEDDED_BYTES_IN_ALL = 8_000_000
"""The page links to a CSV file that is larger than this, and holds smaller ones itself, as long as they do not come to more than
this in all: the smallest first."""


def say_nothing(text: str) -> None:
    """For a report that nobody waits for."""


def write_report(
    out: Path,
    *,
    facts: dict[str, Any] | None = None,
    study_text: str = "",
    description: str = "",
    axis: str = "params",
    say: Callable[[str], object] = say_nothing,
) -> Path:
    """Write the tables, the figures and the page, and return the path of report.html.

    `facts`: what the page says about the run, such as its store. `study_text`: the study file, shown as it is.
    `description`: the study's own, which stands under the title. `say` takes what is being done.
    """
    results, predictions = tables.read_study(out)
    half_b = tables.read_parts(out / "half_b.parquet", optional=True)
    names = ("curves", "runs", "items", "parts", "left_out")
    curves, runs, items, parts, left_out = (tables.read_optional(out / f"{name}.parquet") for name in names)
    samples = resample(results, predictions)
    pgr = pgr_table(samples)
    methods = method_table(samples)
    found = findings.findings_table(samples, pgr, methods, axis=axis)
    fits, fit_curves = fit_scaling(samples, axis=axis)
    answers = read_answers(predictions)
    bare = {
        "fits": fits,
        "fit_curves": fit_curves,
        "methods": methods,
        "scores": agreement.scores_table(results, predictions),
        "agreement": agreement.agreement_table(results, answers),
        "inverse_scaling": agreement.inverse_scaling(results, answers, axis=axis),
        "imitation": agreement.imitation_table(results, answers, read_answers(half_b)),
        "supervisors": agreement.supervisors_table(results, predictions, half_b),
        "misfit": agreement.misfit_table(results, answers),
        "learning": agreement.learning_table(results, curves),
        "calibration": agreement.calibration_table(results, predictions, half_b),
        "labels": labels.label_table(results, runs, answers),
        "stopping": stopping.stopping_table(results, curves, runs, pgr),
        "copying": stopping.copying_table(results, curves, runs),
        "difficulty": difficulty.difficulty_table(results, predictions, items),
    }
    frames = {
        "results": controls.marked(results, pgr),
        "pgr": controls.with_fails(pgr),
        "findings": found,
        **{name: controls.marked(table, pgr) for name, table in bare.items()},
        "runs": runs.with_columns(pl.col(pl.List(pl.String)).list.join(" ")),  # CSV has no lists
        "parts": parts,
        "left_out": left_out,
    }
    for name, table in (("pgr", pgr), ("findings", found), ("fits", fits), ("fit_curves", fit_curves)):
        tables.write(table, out / f"{name}.parquet")
    drawn = charts.with_sizes(frames, axis=axis)
    figures = charts.figures(drawn, axis=axis)
    say(f"drawing {len(figures)} figures")
    specs = write_figures(figures, folder=out / "figures")
    title = str(results["study"][0]) if results.height and "study" in results.columns else "study"
    facts = facts or {}
    pairs, shown = sections.pairs_section(frames["pgr"]), sections.sections(frames)
    write_text_tables([pairs, *shown], folder=out / "tables")
    path = out / "report.html"
    write_page(
        path,
        "report.html.j2",
        specs=specs,
        title=title,
        description=description,
        num_done=results.filter(pl.col("status") == "done").height,
        num_cells=results.height,
        findings=findings.sentences(found),
        notices=[text for text in (_notice(frames, specs), provenance.mixed_versions(runs)) if text],
        pairs=pairs if pairs.rows else None,
        figures=_by_setting(specs),
        titles=charts.TITLES,
        captions=captions(drawn, specs),
        sections=shown,
        has_items=write_items_page(out, results=results, answers=answers, predictions=predictions, title=title),
        cost=provenance.cost_in_words(runs, provenance.remember(out, facts)),
        machines=section("By machine", provenance.machines(runs)) if runs.height else None,
        versions=provenance.versions(runs),
        store=facts.get("store", ""),
        study_text=study_text,
        downloads=write_csv_files(frames, folder=out / "tables"),
    )
    return path


def write_csv_files(frames: dict[str, pl.DataFrame], *, folder: Path) -> list[Download]:
    """Write each table as CSV, with columns.md, which says what their columns hold, and return links to them. `folder` lies beside
    the page."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.csv" for name in frames]
    for path, table in zip(paths, frames.values(), strict=True):
        table.write_csv(path)
    paths.append(folder / "columns.md")
    meanings = columns.as_markdown({name: table.columns for name, table in frames.items()})
    paths[-1].write_text(meanings, encoding="utf-8")
    embedded, num_bytes = set[Path](), 0
    for path in sorted(paths, key=lambda path: path.stat().st_size):
        num_bytes += path.stat().st_size
        if path.stat().st_size <= EMBEDDED_BYTES and num_bytes <= EMBEDDED_BYTES_IN_ALL:
            embedded.add(path)
    return [_download(path, is_embedded=path in embedded) for path in paths]


def _download(path: Path, *, is_embedded: bool) -> Download:
    if not is_embedded:
        return Download(path.name, f"{path.parent.name}/{path.name}")
    kind = "text/csv" if path.suffix == ".csv" else "text/markdown"
    return Download(path.name, f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}")


def _by_setting(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(heading, names of figures) for each setting. A figure's name begins with its setting."""
    return [(key.capitalize(), list(group)) for key, group in groupby(names, key=lambda name: name.split("-")[0])]


def _notice(frames: dict[str, pl.DataFrame], specs: dict[str, dict[str, Any]]) -> str:
    """Why the page shows no curve, or an empty string if it shows one."""
    pgr = frames["pgr"]
    if (frames["results"]["status"] != "done").all():
        if (frames["results"]["status"] == "constant").any():
            return "No cell has a score, since models give every test item the same answer (see the cells without a result)."
        return "Nothing is done yet, so there is no curve to draw."
    if not specs:
        return "No pair of models has a score to draw."
    if pgr.filter(pl.col("weak") != pl.col("strong"))["pgr"].is_null().all():
        return "No PGR curve: there is no pair of different sizes whose ceiling is clearly above its supervisor."
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables, figures and report.html from a study's results.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder with results.parquet and predictions.parquet")
    parser.add_argument("--axis", choices=AXES, default="params", help="what counts as a model's size")
    options = parser.parse_args()
    try:
        print(write_report(options.out, axis=options.axis))
    except (tables.TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
