"""The report of a study: `python -m analysis.report OUT [--axis compute]`. OUT holds the tables of `w2s report`.

Writes pgr.parquet, findings.parquet, fits.parquet, fit_curves.parquet, tables/*.csv, figures/*.svg and *.png, and
report.html. The page is one file that works without a network, on a phone, in light and dark. It says plainly what is missing
and why.

Here the page's content is computed as plain data; `templates/` lays it out. Every name in a study's files is untrusted: the
templates escape text, and the script of the page gets names as JSON only.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import polars as pl
import vl_convert as vlc

from analysis import agreement, charts, controls, difficulty, findings, labels, stopping, tables
from analysis.answers import read_answers
from analysis.bootstrap import resample
from analysis.captions import captions
from analysis.cells import AXES, done, on_plain_truth
from analysis.methods import method_table
from analysis.pgr import pgr_table
from analysis.scaling import fit_scaling

PNG_SCALE = 2.0
EMBEDDED_BYTES = 2_000_000
"""The page links to a CSV file that is larger than this, and holds a smaller one itself."""


def say_nothing(text: str) -> None:
    """For a report that nobody waits for."""


def write_report(
    out: Path,
    *,
    facts: dict[str, Any] | None = None,
    study_text: str = "",
    axis: str = "params",
    say: Callable[[str], object] = say_nothing,
) -> Path:
    """Write the tables, the figures and the page, and return the path of report.html.

    `facts`: what the page says about the run, such as its store. `study_text`: the study file, shown as it is. `say` takes
    what is being done.
    """
    results, predictions = tables.read_study(out)
    names = ("curves", "runs", "items", "parts", "left_out", "half_b")
    curves, runs, items, parts, left_out, half_b = (tables.read_optional(out / f"{name}.parquet") for name in names)
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
        "agreement": agreement.agreement_table(results),
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
    specs = draw(figures, folder=out / "figures")
    path = out / "report.html"
    write_page(
        path,
        "report.html.j2",
        specs=specs,
        title=str(results["study"][0]) if results.height and "study" in results.columns else "study",
        num_done=results.filter(pl.col("status") == "done").height,
        num_cells=results.height,
        facts=facts or {},
        study_text=study_text,
        findings=findings.sentences(found),
        notices=[text for text in (_notice(frames, specs), _mixed_versions(runs)) if text],
        figures=_by_setting(specs),
        captions=captions(drawn, specs),
        sections=_sections(frames),
        downloads=write_csv_files(frames, folder=out / "tables"),
    )
    return path


def draw(figures: dict[str, charts.Figure], *, folder: Path) -> dict[str, dict[str, Any]]:
    """Write each figure as SVG and PNG. Returns name -> Vega-Lite specification."""
    folder.mkdir(exist_ok=True)
    specs = {}
    for name, figure in figures.items():
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name)  # names come from tables, and must not lead out of the folder
        spec = figure.to_dict()
        (folder / f"{stem}.svg").write_text(vlc.vegalite_to_svg(spec), encoding="utf-8")
        (folder / f"{stem}.png").write_bytes(vlc.vegalite_to_png(spec, scale=PNG_SCALE))
        specs[stem] = spec
    return specs


# --- the page -------------------------------------------------------------------------------------------------------

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("analysis"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.policies["json.dumps_kwargs"] = {}  # not sorted: the order of keys may matter to Vega

DRAW = """
for (const [name, spec] of Object.entries(JSON.parse(document.getElementById("specs").textContent)))
  vegaEmbed(document.getElementById(`fig-${name}`), spec, {actions: false, renderer: "svg"}).then(() => {
    const drawing = document.querySelector(`#fig-${name} svg`);
    drawing.style = `max-width: 100%; min-width: ${0.65 * drawing.width.baseVal.value}px; height: auto`;
  });
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((table) => (table.open = true)));
"""
"""Draws every figure in its place, a third smaller where the window is narrow, and opens the tables for printing. The specifications are read as JSON, so no name becomes a
part of the script."""


class TableCell(NamedTuple):
    text: str
    is_number: bool


@dataclass(frozen=True)
class Section:
    """A table with its title, formatted for the page. It opens and closes by a click on the title."""

    title: str
    columns: list[str]
    rows: list[list[TableCell]]
    note: str
    is_open: bool


@dataclass(frozen=True)
class Download:
    name: str
    address: str
    """The whole content as a data URL, or a path beside the page."""


def write_page(path: Path, template: str, *, specs: dict[str, dict[str, Any]], **content: Any) -> None:
    """Fill in a template and write the page, whole or not at all. `specs`: name -> specification of the figures to draw."""
    script = _drawing_script() if specs else ""
    page = TEMPLATES.get_template(template).render(specs=specs, script=script, **content)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def _drawing_script() -> str:
    """Vega and DRAW, bundled into one module that needs no network."""
    # strings of the bundle hold tags such as </script>, which would end the element; JavaScript reads the escapes as the same
    escapes = {"</": "<\\/", "<": "\\x3c"}
    bundle = vlc.javascript_bundle(DRAW)
    return re.sub("</(?=script)|<(?=!--)", lambda match: escapes[match[0]], bundle, flags=re.IGNORECASE)


def section(title: str, table: pl.DataFrame, *, note: str = "", is_open: bool = False) -> Section:
    """Format a table for the page."""
    rows = [[_table_cell(value) for value in row] for row in table.iter_rows()]
    return Section(title, table.columns, rows, note, is_open)


def _table_cell(value: Any) -> TableCell:
    if value is None:
        return TableCell("–", is_number=False)
    if isinstance(value, float):
        is_plain = value == 0 or 1e-3 <= abs(value) < 1e5
        return TableCell(f"{value:.3f}" if is_plain else f"{value:.2g}", is_number=True)
    return TableCell(str(value), is_number=isinstance(value, int))


def write_csv_files(frames: dict[str, pl.DataFrame], *, folder: Path) -> list[Download]:
    """Write each table as CSV, and return links to them. `folder` lies beside the page."""
    folder.mkdir(exist_ok=True)
    links = []
    for name, table in frames.items():
        path = folder / f"{name}.csv"
        table.write_csv(path)
        is_large = path.stat().st_size > EMBEDDED_BYTES
        content = "" if is_large else base64.b64encode(path.read_bytes()).decode()
        address = f"{folder.name}/{path.name}" if is_large else f"data:text/csv;base64,{content}"
        links.append(Download(path.name, address))
    return links


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


VERSIONS = ("w2s_ray", "torch", "transformers", "deepspeed", "ray")
"""Columns of runs.parquet that name what a Fit ran under."""


def _mixed_versions(runs: pl.DataFrame) -> str:
    """Which versions the Fits of this study mix, or an empty string if they don't."""
    mixed = []
    for name in VERSIONS:
        if name not in runs.columns:
            continue
        counts = runs.group_by(pl.col(name).fill_null("not recorded")).len().sort(name)
        if counts.height > 1:
            mixed.append(f"{name} {', '.join(f'{version} ({count} Fits)' for version, count in counts.iter_rows())}")
    return f"The Fits of this study mix versions: {'; '.join(mixed)}." if mixed else ""


# --- sections of the page -------------------------------------------------------------------------------------------


def _sections(frames: dict[str, pl.DataFrame]) -> list[Section]:
    """The tables of the page, in order, without empty ones."""
    results = frames["results"]
    sections = (
        _ladder(results),
        _pgr(frames["pgr"]),
        _methods(frames["methods"]),
        _scores(frames["scores"]),
        _fits(frames["fits"]),
        _inverse(frames["inverse_scaling"]),
        _supervisors(frames["supervisors"]),
        _labels(frames["labels"]),
        _imitation(frames["imitation"]),
        _misfit(frames["misfit"]),
        _stopping(frames["stopping"]),
        _copying(frames["copying"]),
        _parts(frames["parts"]),
        _left_out(frames["left_out"]),
        _runs(frames["runs"]),
        _without_result(results),
    )
    return [section for section in sections if section is not None]


def _ladder(results: pl.DataFrame) -> Section | None:
    """Scores of models trained on ground truth: what each size reaches as a supervisor and as a ceiling."""
    cells = done(results)
    if cells.is_empty():
        return None
    sides = []
    for side, size, column in (("weak", "weak", "as supervisor"), ("ceiling", "strong", "as ceiling")):
        place = ["task", "family", pl.col(size).alias("size"), pl.col(f"{size}_params").alias("params")]
        sides.append(on_plain_truth(cells, side).group_by(place).agg(pl.col(f"{side}_score").mean().alias(column)))
    weak, strong = sides
    ladder = weak.join(strong, on=["task", "family", "size", "params"], how="full", coalesce=True).sort(
        "task", "family", "params"
    )
    note = ""
    if any(on_plain_truth(cells, side).height < cells.height for side in ("weak", "ceiling")):
        note = "Without the supervisors and ceilings of `generative`, which learned to write the task's texts first."
    return section("Models trained on ground truth", ladder, note=note, is_open=True)


def _pgr(pgr: pl.DataFrame) -> Section:
    is_double = pl.col("task").is_null() & (pl.col("num_tasks") < 2)
    rows = pgr.filter(~is_double)

    def interval(name: str, *, title: str) -> pl.Series:
        texts = [
            None
            if low is None and high is None
            else " to ".join("–" if end is None else f"{end:.2f}" for end in (low, high))
            for low, high in rows.select(f"{name}_low", f"{name}_high").iter_rows()
        ]
        return pl.Series(f"{title} 95 %", texts, dtype=pl.String)

    flags = [pl.col(name) for name in ("no_headroom", "label_sensitive")]
    untested = pl.when(pl.all_horizontal(flag.is_null() for flag in flags)).then(pl.lit("not tested"))
    shown = rows.select(
        pl.col("task").fill_null("all tasks"),
        "family",
        "weak",
        "strong",
        "method",
        pl.col("weak_score").alias("supervisor"),
        pl.col("student_score").alias("student"),
        pl.col("ceiling_score").alias("ceiling"),
        "floor",
        pl.col("pgr").alias("PGR"),
        interval("pgr", title="PGR"),
        pl.col("pgr_above_floor").alias("PGR above floor"),
        interval("pgr_above_floor", title="PGR above floor"),
        "gain",
        interval("gain", title="gain"),
        pl.col("pgr_median").alias("median"),
        interval("pgr_median", title="median"),
        pl.col("num_left_out").alias("left out of the median"),
        pl.col("num_seeds").alias("seeds"),
        pl.col("num_dropped").alias("dropped"),
        pl.coalesce("fails", untested).fill_null("").alias("fails a control"),
        pl.concat_str("reason", "controls_reason", separator="; ", ignore_nulls=True).alias("reason"),
    )
    note = (
        "PGR = (student - supervisor) / (ceiling - supervisor): the share of the gap between supervisor and ceiling that the "
        "student recovers, a ratio of means over seeds and tasks. The floor is the best of the supervisor, the untrained model and "
        "a student of shuffled labels, as far as the study has them; PGR above floor puts the floor in the supervisor's place, "
        "and gain is student - supervisor. The median is over cells in the row of a task and over tasks in the row of all. "
        "Intervals are 95 %, over replicates and groups of test items. A dash is an end that no data can give, or a value whose "
        "reason is at the end of the row."
    )
    if pgr.filter(pl.col("num_cells") > 0)["num_seeds"].max() == 1:
        note += (
            " There is one seed only, so the intervals hold the noise of the test set but not the noise between seeds."
        )
    return section("PGR", shown, note=note, is_open=True)


def _fits(fits: pl.DataFrame) -> Section | None:
    if fits.is_empty():
        return None
    is_fitted = pl.col("value").is_not_null()
    form = ["setting", "family", "method", "target", "axis", "form"]
    shown = fits.filter(is_fitted | (pl.int_range(pl.len()).over(form) == 0)).with_columns(
        pl.when(is_fitted).then("parameter").alias("parameter"),  # one row for all of a form that could not be fitted
        pl.col("reason").fill_null(""),
    )
    shown = shown.drop("num_points")
    note = (
        "Student score and PGR as functions of the size of both models (axis), fitted in four forms. Intervals are 95 %, from "
        "refits to the bootstrap's resamples. The chosen form is the one that predicts the largest student best when it is "
        "fitted without it (held_out_rmse), or a simpler one that does nearly as well. The curves mix all forms by their "
        "weights, which fall with the squared held-out error, so their bands don't depend on one form. num_failing counts "
        "the pairs that fail a control."
    )
    return section("Scaling fits", shown, note=note)


def _inverse(steps: pl.DataFrame) -> Section | None:
    if steps.is_empty():
        return None
    note = (
        "How often agreement with the supervisor falls and rises from one student to the next larger, where the supervisor "
        "is right and where it is wrong. Each step is the mean over replicates. The p-value is that of a two-sided sign test. "
        "The slope is the change of agreement when the student's size grows tenfold, with its 95 % interval over replicates "
        "and test items; with one replicate it holds the noise of the test items only. num_failing counts the pairs that fail "
        "a control."
    )
    return section("Inverse scaling of agreement", steps, note=note)


def _scores(scores: pl.DataFrame) -> Section | None:
    if scores.is_empty():
        return None
    note = (
        "Mean test scores over seeds. AUROC is how often an item of label 1 gets a higher probability than one of label 0; it "
        "asks nothing of the threshold. Supervisors and ceilings learned from the truth alone, or are generative's own. Controls "
        "are the untrained strong model (zero_shot) and the strong model trained on shuffled labels (shuffled)."
    )
    return section("Scores of all models", scores, note=note)


def _methods(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty():
        return None
    note = (
        "Scores of each method's students minus those of naive students, over the replicates that both have, with paired 95 % "
        "intervals. Whoever tries many methods finds one that seems better by chance: p_holm is adjusted for the num_methods "
        "methods that were tried on the same pair and task (Holm 1979). Controls are left out."
    )
    num_tasks = pl.col("task").drop_nulls().n_unique().over("setting", "family", "weak", "strong", "method")
    shown = rows.filter(pl.col("task").is_not_null() | (num_tasks > 1)).with_columns(
        pl.col("task").fill_null("all tasks"), pl.col("reason").fill_null("")
    )
    return section("Methods against naive", shown, note=note)


def _supervisors(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty():
        return None
    note = (
        "The supervisors' answers on the test set and on half B, where they are the students' labels, over seeds. The event is label "
        "1, the first completion being the better one, or the written completion being right. brier is the mean squared error of "
        "its probability; ece is the mean distance of predicted and observed probability over ten bins. Without intervals."
    )
    return section("Supervisors and their labels", rows, note=note)


def _labels(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty():
        return None
    note = (
        "labels_right is the share of right labels among the rows that a student learned from, after its method chose or changed "
        "them. labeller_score is the test score of the model that gave the labels, or the mean of several, with the best of "
        "them beside it. ensemble_score is what several label right together on the test set: where it is not above its best "
        "member, nothing is gained by taking several. All are means over replicates."
    )
    return section("The labels that students learned from", rows, note=note)


def _imitation(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty():
        return None
    note = (
        "How often students repeat their supervisor's mistakes, beside models of the same size that could not learn them from it: "
        "shuffled learned from shuffled labels, noise from the truth with as many random errors. Half B are the rows that the "
        "student learned from: a student that agrees with the mistakes there no more than the others do could not fit them. On "
        "the test set it could, but did not take them over. The labels of noise are hard, so its match is `harden`. Intervals are "
        "95 %, over replicates and items."
    )
    return section("Imitated mistakes", rows, note=note)


def _misfit(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty():
        return None
    note = (
        "Misfit is the mean squared difference of the student's and the supervisor's probabilities, and gain is by how much the "
        "student's squared error is below its supervisor's. For students trained by squared loss, from a convex class that holds "
        "the truth, the gain is at least the misfit (Charikar et al. 2024). Students here are networks trained by other losses, "
        "so a gain below the misfit contradicts nothing but the hope that the theorem carries over."
    )
    return section("Misfit and gain", rows.drop("weak_params", "strong_params"), note=note)


def _parts(parts: pl.DataFrame) -> Section | None:
    """How many rows and groups the halves and the test set of each task have: the fewest over replicates."""
    if parts.is_empty():
        return None
    counts = ("num_rows", "num_groups", "effective_groups")
    shown = (
        parts.group_by("task", "part")
        .agg(
            *(pl.col(name).min() for name in counts if name in parts.columns),
            *(pl.col(name).max() for name in ("largest_group",) if name in parts.columns),
        )
        .sort("task", "part")
    )
    note = (
        "Half A teaches supervisors, half B students and ceilings. Where replicates have halves of their own, the counts are the "
        "fewest of all, and the largest group is the largest of all. Rows of one group are not independent: effective_groups "
        "says how many groups of equal size would be as good."
    )
    return section("Rows and groups of each part", shown, note=note)


def _left_out(rows: pl.DataFrame) -> Section | None:
    """Rows of each task that no part has, and why."""
    if rows.is_empty():
        return None
    note = (
        "Rows of the tasks' files that no model sees. share is of all rows of the task. Where replicates or grids deal a task in "
        "several ways, the counts are the fewest of all."
    )
    return section("Rows left out", rows, note=note)


def _stopping(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty() or "stopped" not in rows["rule"]:
        return None
    note = (
        "Scores of student and ceiling, both at their last step (final), at the best step by their own labels on held-out rows "
        "(stopped), or at the best step by the test set itself (oracle), which nobody has in practice and which flatters. "
        "is_result marks the rule by which these models predict, so that all other tables and figures hold for it. No PGR where "
        "the gap is too small for one. Without intervals."
    )
    return section("When to stop training", rows.drop("weak_params", "strong_params"), note=note)


def _copying(rows: pl.DataFrame) -> Section | None:
    if rows.is_empty() or rows["truth_loss"].is_null().all():
        return None
    note = (
        "How often students repeat their supervisor's mistakes, beside their losses on the supervisor's labels and on "
        "rows whose true label they were given, at the step whose weights predict. A loss on the labels far below the loss on the truth means that the student "
        "learned to imitate its supervisor rather than the task."
    )
    return section("Copied mistakes", rows, note=note)


def _runs(runs: pl.DataFrame) -> Section | None:
    """On which machines the Fits ran, and what they cost."""
    if runs.is_empty():
        return None
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
    note = "A Fit is one fine-tuned model. The counts include Fits that another study trained and this one uses."
    return section("Where Fits ran", shown, note=note)


def _without_result(results: pl.DataFrame) -> Section | None:
    without_result = results.filter(pl.col("status") != "done")
    if without_result.is_empty():
        return None
    counts = without_result.group_by("status", "reason").len("cells").sort("cells", descending=True)
    return section("Cells without a result", counts, is_open=True)


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
