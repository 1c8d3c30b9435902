"""`w2s report`: tables, figures and the report, from the Fits that are in the store now."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from w2s_ray import __version__
from w2s_ray.cli.console import err, out, print_json, print_table
from w2s_ray.cli.options import (
    DEFAULT_OUT,
    DEFAULT_STORE,
    Axis,
    JsonOption,
    OutOption,
    StoreOption,
    StudyFile,
    out_folder,
)
from w2s_ray.cli.pgr import pgr_facts, print_pgr
from w2s_ray.cli.suggest import complete_study
from w2s_ray.errors import InputError
from w2s_ray.scheduling.progress import phase

if TYPE_CHECKING:
    from w2s_ray.planning import Plan
    from w2s_ray.store import Store


def report(
    study: StudyFile,
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OTHER]", help="A second study to compare with the first.", autocompletion=complete_study
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    other_store: Annotated[
        str | None,
        typer.Option(help="Store of the second study.", metavar="URI", show_default="the store of the first"),
    ] = None,
    out_dir: OutOption = None,
    axis: Annotated[Axis, typer.Option(help="What the size axis of the figures shows.")] = "params",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a report even if it had Fits that the store does not hold.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write results.parquet, PGR tables, figures and a self-contained report.html from the Fits that are done. Given a
    second study, also write compare.html: both studies side by side, with their differences and intervals.

    Example: w2s report quickstart --out paper --axis compute
    """
    from w2s_ray.planning import load_plan

    first = load_plan(study)
    if other is None:
        facts = _report_from_store(first, store, out_folder(out_dir, study=first.study.name), axis=axis, force=force)
        print_json(facts) if as_json else print_report(facts)
        return
    from w2s_ray.analysis.compare import write_comparison

    second = load_plan(other)
    names = [first.study.name, second.study.name]
    if names[0] == names[1]:
        names[1] += "-b"
    folders = [out_folder(out_dir / name if out_dir else None, study=name) for name in names]
    studies = [
        _report_from_store(plan, uri, folder, axis=axis, force=force)
        for plan, uri, folder in zip((first, second), (store, other_store or store), folders, strict=True)
    ]
    comparison = write_comparison(*folders, out=out_dir or DEFAULT_OUT / f"{names[1]}-against-{names[0]}")
    if as_json:
        print_json({"studies": studies, "comparison": str(comparison)})
        return
    for facts in studies:
        print_report(facts)
    out.print(f"comparison: {comparison}")


def _report_from_store(plan: Plan, store_uri: str, folder: Path, *, axis: Axis, force: bool) -> dict[str, Any]:
    from w2s_ray.results import fits_in_tables
    from w2s_ray.store import open_store

    store = open_store(store_uri)
    store.storage.check_exists()
    committed = store.committed(plan.fits)
    num_lost = len((fits_in_tables(folder) & {fit.key for fit in plan.fits}) - set(committed))
    if num_lost and not force:
        raise InputError(
            f"--out {folder}: the report there has {num_lost:,} Fit(s) of this study that the store {store_uri} does not "
            "hold. Give the store that holds them, another --out, or --force to replace the report"
        )
    facts = {"fits_done": len(committed), "store": store_uri, "version": __version__}
    return write_tables_and_report(plan, store, folder, facts=facts, axis=axis)


def write_tables_and_report(
    plan: Plan, store: Store, folder: Path, *, facts: dict[str, Any], axis: Axis = "params"
) -> dict[str, Any]:
    """Write everything that belongs into a study's folder, and return what was found."""
    from w2s_ray.analysis.findings import read_sentences
    from w2s_ray.analysis.report import write_report
    from w2s_ray.results import write_results

    facts = facts | {"fits": len(plan.fits), "cells": len(plan.cells)}
    with phase("writing the tables", console=err) as say:
        results = write_results(plan.cells, study=plan.study.name, store=store, out=folder, rows=plan.rows)
        text = plan.path.read_text(encoding="utf-8")
        path = write_report(
            folder, facts=facts, study_text=text, description=plan.study.description, axis=axis, say=say
        )
    return {
        "study": plan.study.name,
        **facts,
        "cells_by_status": dict(Counter(results["status"].to_list())),
        "pgr": pgr_facts(folder),
        "findings": [{"task": task, "sentences": sentences} for task, sentences in read_sentences(folder)],
        "report": str(path),
    }


def print_report(facts: dict[str, Any]) -> None:
    """The PGR table, and for each task what was found."""
    print_pgr(facts["pgr"])
    if num_constant := facts["cells_by_status"].get("constant", 0):
        out.print(
            f"[yellow]{num_constant:,} cell(s) have no PGR, since a model gives every test item the same answer[/yellow]"
        )
    for finding in facts["findings"]:
        out.print(f"  {escape(finding['task'])}")
        indented = Table.grid(padding=(0, 0, 0, 4), pad_edge=True)
        for sentence in finding["sentences"]:
            indented.add_row(escape(sentence))
        print_table(indented, names=0)
    out.print(f"report: {facts['report']}")
