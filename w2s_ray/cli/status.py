"""`w2s status`, `explain` and `verify`: what the store holds of a study, why a Fit is missing, and whether files are intact."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from w2s_ray.cli.console import MAX_LISTED, err, out, print_json
from w2s_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption, StudyFile
from w2s_ray.cli.suggest import complete_study
from w2s_ray.errors import InputError, nearest

if TYPE_CHECKING:
    from w2s_ray.planning import Cell, Plan
    from w2s_ray.store import Store


# --- status -------------------------------------------------------------------------------------------------------


def status(study: StudyFile, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Compare the Fits that a study needs with those that the store holds.

    Example: w2s status quickstart --json
    """
    from w2s_ray.planning import load_plan
    from w2s_ray.store import open_store

    facts = status_facts(load_plan(study), store=open_store(store))
    if as_json:
        print_json(facts)
    else:
        print_status(facts)


def status_facts(plan: Plan, *, store: Store) -> dict[str, Any]:
    from w2s_ray.status import status

    state = status(plan, store=store)
    folders = {fit.key: fit.folder for fit in plan.fits}
    return {
        "study": plan.study.name,
        "fits": len(plan.fits),
        "done": len(state.done),
        "running": [
            {"fit": folders[key], "host": lease["host"], "heartbeat": lease["beat"]}
            for key, lease in state.running.items()
        ],
        "failed": [
            {"fit": folders[key], "kind": record["kind"], "reason": record["reason"]}
            for key, record in state.failed.items()
        ],
        "blocked": [{"fit": folders[key], "by": folders[cause]} for key, cause in state.blocked.items()],
        "todo": len(state.todo),
    }


def print_status(facts: dict[str, Any]) -> None:
    from w2s_ray.cost import duration

    running, failed, blocked = facts["running"], facts["failed"], facts["blocked"]
    out.print(
        f"[bold]{facts['study']}[/bold]: {facts['fits']:,} Fits: {facts['done']:,} done, {len(running):,} running, "
        f"{len(failed):,} failed, {len(blocked):,} blocked, {facts['todo']:,} to do"
    )
    for entry in running[:MAX_LISTED]:
        silent = duration(max(0.0, time.time() - entry["heartbeat"]))
        out.print(f"  running {entry['fit']} by a driver on {entry['host']}, last heartbeat {silent} ago")
    for entry in failed[:MAX_LISTED]:
        out.print(f"  [red]failed[/red]  {entry['fit']}: {escape(entry['reason'])}")
    for entry in blocked[:MAX_LISTED]:
        out.print(f"  blocked {entry['fit']} by {entry['by']}")


# --- explain ------------------------------------------------------------------------------------------------------


def explain(
    study: StudyFile,
    cell: Annotated[
        str | None, typer.Argument(help="A cell, task/family/weak->strong/method/seed, or a part of its name.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show the three Fits of a cell and the readings they stand on, and field by field why one is not in the store.

    Example: w2s explain quickstart 'xs->m/naive/0'
    """
    from w2s_ray.planning import load_plan
    from w2s_ray.store import open_store

    plan = load_plan(study)
    if cell is None:
        names = [one.name for one in plan.cells]
        if as_json:
            print_json({"cells": names})
        else:
            out.print(f"{len(names):,} cells; give one of them:\n  {escape(_listed(plan.cells))}")
        return
    chosen = find_cell(plan, cell)
    facts = explanation_facts(chosen, plan, store=open_store(store))
    if as_json:
        print_json({"cell": chosen.name, "fits": facts})
    else:
        print_explanation(chosen.name, facts)


def find_cell(plan: Plan, part: str) -> Cell:
    """The one cell whose name contains `part`."""
    matches = [cell for cell in plan.cells if part in cell.name]
    if not matches:
        hint = nearest(part, [cell.name for cell in plan.cells])
        raise InputError(f"CELL '{part}' matches no cell{hint}. Cells:\n  {_listed(plan.cells)}")
    if len(matches) > 1:
        raise InputError(f"CELL '{part}' matches {len(matches):,} cells; give more of a name:\n  {_listed(matches)}")
    return matches[0]


def _listed(cells: Iterable[Cell]) -> str:
    return "\n  ".join([cell.name for cell in cells][:MAX_LISTED])


def explanation_facts(cell: Cell, plan: Plan, *, store: Store) -> list[dict[str, Any]]:
    """For each Fit of the cell and each reading its state, and the committed Fit nearest to it if it is not done."""
    from w2s_ray.status import nearest_committed, status

    state = status(plan, store=store)
    facts = []
    fits = {"supervisor": cell.supervisor, "student": cell.student, "ceiling": cell.ceiling}
    readings = {reading.key: reading for fit in fits.values() for reading in fit.readings}
    for role, fit in (*fits.items(), *(("reading", reading) for reading in readings.values())):
        entry: dict[str, Any] = {"role": role, "fit": fit.folder, "state": "todo"}
        if fit.key in state.done:
            entry["state"] = "done"
        elif fit.key in state.failed:
            entry |= {"state": "failed", "reason": state.failed[fit.key]["reason"]}
        elif fit.key in state.running:
            entry["state"] = "running"
        if entry["state"] != "done":
            entry["nearest"], differences = nearest_committed(fit, store=store)
            keys = ("field", "in_store", "in_study")
            entry["differences"] = [dict(zip(keys, difference, strict=True)) for difference in differences]
        facts.append(entry)
    return facts


def print_explanation(cell: str, facts: list[dict[str, Any]]) -> None:
    indent = " " * 12
    out.print(f"[bold]{escape(cell)}[/bold]")
    for entry in facts:
        out.print(f"{entry['role']:<11} {entry['fit']}")
        if entry["state"] == "done":
            out.print(f"{indent}in the store")
            continue
        if entry["state"] == "failed":
            out.print(f"{indent}failed: {escape(entry['reason'])}")
        elif entry["state"] == "running":
            out.print(f"{indent}running now")
        if entry["nearest"] is None:
            out.print(f"{indent}not in the store, and no Fit of this task and model is")
            continue
        out.print(f"{indent}not in the store; the most similar Fit there is {entry['nearest']}. It differs in:")
        for difference in entry["differences"]:
            stored, wanted = (escape(str(difference[where])) for where in ("in_store", "in_study"))
            out.print(f"{indent}  {escape(difference['field'])}: {stored} there, {wanted} here")


# --- verify -------------------------------------------------------------------------------------------------------


def verify(
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDY]",
            help="Check the Fits of this study only.",
            show_default=False,
            autocompletion=complete_study,
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move damaged Fits aside, so that the next run trains them again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check sizes and hashes of committed Fits and of their ground truth.

    Example: w2s verify --store s3://bucket/w2s --repair
    """
    from rich.progress import track

    from w2s_ray.planning import load_plan
    from w2s_ray.store import open_store

    opened = open_store(store)
    opened.storage.check_exists()
    mend_index(opened)
    folders = list(opened.committed(load_plan(study).fits).values()) if study else opened.committed_folders()
    watched = track(folders, "checking", console=err, transient=True, disable=not err.is_terminal)
    damage = find_damage(watched, store=opened)
    moved = {folder: opened.quarantine(folder) for folder in damage} if repair else {}
    if as_json:
        print_json({"checked": len(folders), "damaged": damage, "moved_aside_to": moved})
    else:
        print_damage(damage, num_checked=len(folders), moved=moved)
    if damage and not repair:
        raise typer.Exit(1)


def mend_index(store: Store) -> None:
    """Rebuild the store's index, and say on standard error what was wrong with it."""
    from w2s_ray.storage import StoreDown

    try:
        num_added, num_removed = store.rebuild_index()
    except StoreDown as error:
        err.print(f"the index of the store is left as it is: {escape(str(error))}")
        return
    if num_added or num_removed:
        err.print(f"index of the store: {num_added:,} Fits added, {num_removed:,} removed")


def find_damage(folders: Iterable[str], *, store: Store) -> dict[str, list[str]]:
    """Folder -> what is wrong with it or its ground truth, for those of the committed folders that are damaged."""
    damage = {folder: store.damage(folder) for folder in folders}
    whole = [folder for folder, problems in damage.items() if not problems]
    for folder, problem in store.damage_of_truths(whole).items():
        damage[folder].append(problem)
    return {folder: problems for folder, problems in damage.items() if problems}


def print_damage(damage: dict[str, list[str]], *, num_checked: int, moved: dict[str, str]) -> None:
    for problems in damage.values():
        for problem in problems:
            out.print(f"[red]damaged[/red] {escape(problem)}")
    out.print(f"{num_checked:,} Fits checked, {len(damage):,} damaged")
    for place in moved.values():
        out.print(f"moved aside to {escape(place)}")
    if damage and not moved:
        out.print("`w2s verify --repair` moves them aside; the next `w2s run` trains them again")
