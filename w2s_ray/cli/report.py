"""`w2s report`: tables, figures and the report, from the Fits that are in the store now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from w2s_ray import __version__
from w2s_ray.cli.console import out
from w2s_ray.cli.options import DEFAULT_OUT, DEFAULT_STORE, Axis, OutOption, StoreOption, StudyFile, out_folder
from w2s_ray.cli.suggest import complete_study
from w2s_ray.errors import InputError

if TYPE_CHECKING:
    from w2s_ray.plan import Plan
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
) -> None:
    """Write results.parquet, PGR tables, figures and a self-contained report.html from the Fits that are done. Given a
    second study, also write compare.html: both studies side by side, with their differences and intervals.

    Example: w2s report quickstart --out paper --axis compute
    """
    from w2s_ray.plan import load_plan

    first = load_plan(study)
    if other is None:
        _report_from_store(first, store, out_folder(out_dir, study=first.study.name), axis=axis, force=force)
        return
    from analysis.compare import write_comparison

    second = load_plan(other)
    names = [first.study.name, second.study.name]
    if names[0] == names[1]:
        names[1] += "-b"
    folders = [out_folder(out_dir / name if out_dir else None, study=name) for name in names]
    _report_from_store(first, store, folders[0], axis=axis, force=force)
    _report_from_store(second, other_store or store, folders[1], axis=axis, force=force)
    comparison = write_comparison(*folders, out=out_dir or DEFAULT_OUT / f"{names[1]}-against-{names[0]}")
    out.print(f"comparison: {comparison}")


def _report_from_store(plan: Plan, store_uri: str, folder: Path, *, axis: Axis, force: bool) -> None:
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
    write_tables_and_report(plan, store, folder, facts=facts, axis=axis)


def write_tables_and_report(
    plan: Plan, store: Store, folder: Path, *, facts: dict[str, Any], axis: Axis = "params"
) -> None:
    """Write everything that belongs into a study's folder, and say for each task what was found."""
    from analysis.findings import read_sentences
    from analysis.report import write_report
    from w2s_ray.results import write_results

    facts = facts | {"fits": len(plan.fits), "cells": len(plan.cells)}
    results = write_results(plan.cells, study=plan.study.name, store=store, out=folder, rows=plan.rows)
    if num_constant := (results["status"] == "constant").sum():
        out.print(
            f"[yellow]{num_constant:,} cell(s) have no PGR, since a model gives every test item the same answer[/yellow]"
        )
    path = write_report(folder, facts=facts, study_text=plan.path.read_text(encoding="utf-8"), axis=axis)
    for task, sentences in read_sentences(folder):
        out.print(f"  {escape(task)}")
        for sentence in sentences:
            out.print(f"    {escape(sentence)}")
    out.print(f"report: {path}")
