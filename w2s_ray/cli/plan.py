"""`w2s plan`: what a study will run, what that costs, and how precise its PGR can be."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from w2s_ray.cli.catalogue import part_in_words
from w2s_ray.cli.console import out, print_json, print_table
from w2s_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption, StudyFile
from w2s_ray.errors import InputError

if TYPE_CHECKING:
    from w2s_ray.planning import Plan
    from w2s_ray.store import Store

LARGE_LOSS = 0.1
"""A share of left out rows above this is marked."""
PLURALS = {
    "supervisor": "supervisors",
    "ceiling": "ceilings",
    "student": "students",
    "start": "starts",
    "untrained": "untrained",
    "control": "controls",
    "reading": "readings",
}


def plan(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    gap: Annotated[
        float, typer.Option(help="Difference between ceiling and supervisor to assume for the precision of PGR.")
    ] = 0.1,
    usd: Annotated[
        float | None,
        typer.Option(
            "--usd-per-hour",
            help="Price of one worker (its GPUs or CPUs) per hour.",
            min=0,
            show_default="compute.usd_per_worker_hour",
        ),
    ] = None,
) -> None:
    """Show what a study will run and what that costs. Starts nothing and writes nothing.

    Example: w2s plan quickstart
    """
    from w2s_ray.planning import load_plan
    from w2s_ray.store import open_store

    if not 0 < gap < 1:
        raise InputError(f"--gap: given {gap}; allowed is a difference of two scores, between 0 and 1")
    facts = plan_facts(load_plan(study, deal_rows=True), store=open_store(store), gap=gap, usd_per_worker_hour=usd)
    if as_json:
        print_json(facts)
    else:
        print_plan(facts)


def plan_facts(plan: Plan, *, store: Store, gap: float, usd_per_worker_hour: float | None) -> dict[str, Any]:
    from w2s_ray.cost import (
        assumed_speed,
        costs,
        measured_noise,
        measured_speeds,
        num_tests,
        pgr_half_width,
    )
    from w2s_ray.memory import GIB, largest_needs
    from w2s_ray.status import status

    state = status(plan, store=store)
    speeds = measured_speeds(plan, store=store)
    cost_of = costs(plan, speeds=speeds)
    missing = [fit for fit in plan.fits if fit.key not in state.done]
    roles = Counter(fit.role for fit in plan.fits)
    worker_hours = sum(cost_of[fit.key].seconds * plan.executions[fit.model].workers for fit in missing) / 3600
    needs = largest_needs((fit, plan.executions[fit.model]) for fit in plan.fits)
    execution, largest = max(needs.items(), key=lambda each: each[1].gpu_bytes + each[1].host_bytes)
    num_seeds = len({cell.seed for cell in plan.cells})
    num_test_items = num_tests(plan)
    noise = measured_noise(plan, store=store, done=state.done)
    half_widths = {
        task: round(
            pgr_half_width(
                num,
                gap=gap,
                num_seeds=num_seeds,
                num_groups=plan.parts[task]["test"].effective_groups if task in plan.parts else None,
                noise=noise.get(task),
            ),
            3,
        )
        for task, num in num_test_items.items()
    }
    facts: dict[str, Any] = {
        "study": plan.study.name,
        "description": plan.study.description,
        "cells": len(plan.cells),
        "fits": len(plan.fits),
        "supervisors": roles["supervisor"],
        "ceilings": roles["ceiling"],
        "students": roles["student"],
        "fits_by_role": dict(roles),
        "in_store": len(state.done),
        "to_run": len(missing),
        "failed_before": len(state.failed),
        "flops_to_run": sum(cost_of[fit.key].flops for fit in missing),
        "seconds_to_run_on_one_slot": sum(cost_of[fit.key].seconds for fit in missing),
        "worker_hours_to_run": worker_hours,
        "assumed_speed": assumed_speed(plan),
        "measured_on": speeds.machine or None,
        "measured_from_fits": speeds.num_fits,
        "to_run_as_measured": sum(cost_of[fit.key].is_measured for fit in missing),
        "largest_model": largest.model,
        "largest_gpu_gib_per_worker": largest.gpu_bytes / GIB,
        "largest_host_gib_per_worker": largest.host_bytes / GIB,
        "largest_workers": execution.workers,
        "largest_zero_stage": execution.zero_stage,
        "assumed_gap": gap,
        "pgr_half_width_95": half_widths,
        "pgr_noise": {task: "measured" if task in noise else "assumed" for task in half_widths},
        "num_test_items": num_test_items,
        "num_seeds": num_seeds,
        "rows": {
            task: {
                "num_read": counts.num_read,
                "num_usable": counts.num_usable,
                "left_out": [
                    {"reason": reason, "num_rows": num, "first": counts.dropped.first[reason]}
                    for reason, num in counts.dropped.items()
                ],
            }
            for task, counts in plan.rows.items()
        },
        "parts": {task: {name: asdict(part) for name, part in parts.items()} for task, parts in plan.parts.items()},
        "tokens": [
            {
                "task": task,
                "model": model,
                "share_unknown": facts.share_unknown,
                "unknown": facts.unknown,
                "share_too_long": facts.share_too_long,
                "num_too_long": None if facts.too_long is None else len(facts.too_long),
            }
            for (task, model), facts in plan.tokens.items()
        ],
    }
    if usd_per_worker_hour is None:
        usd_per_worker_hour = plan.study.compute.usd_per_worker_hour
    if usd_per_worker_hour is not None:
        facts["usd_per_worker_hour"] = usd_per_worker_hour
        facts["usd_to_run"] = round(usd_per_worker_hour * worker_hours, 2)
    return facts


def print_plan(facts: dict[str, Any]) -> None:
    from w2s_ray.cost import assumed_precision, duration

    roles = ", ".join(f"{count:,} {PLURALS[role]}" for role, count in facts["fits_by_role"].items())
    seconds = facts["seconds_to_run_on_one_slot"]
    table = Table.grid(padding=(0, 2))
    table.add_row("cells", f"{facts['cells']:,}")
    table.add_row("Fits", f"{facts['fits']:,} ({roles})")
    table.add_row("in the store", f"{facts['in_store']:,} of them; {facts['to_run']:,} to run")
    if facts["failed_before"]:
        table.add_row("failed before", f"{facts['failed_before']:,}; `w2s run --retry-failed` tries them again")
    table.add_row("compute", f"{facts['flops_to_run']:.2g} FLOPs, about {duration(seconds)} on one slot")
    table.add_row("", f"[dim]{_speed_in_words(facts)}, without start-up[/dim]")
    if "usd_to_run" in facts:
        hours, price = facts["worker_hours_to_run"], facts["usd_per_worker_hour"]
        table.add_row("price", f"about ${facts['usd_to_run']:,.2f}: {hours:,.1f} worker hours at ${price:g}")
    table.add_row("largest model", _memory_in_words(facts))
    for task, counts in facts["rows"].items():
        for line in _row_lines(task, counts, facts["parts"].get(task)):
            table.add_row("rows", line)
    for task, parts in facts["parts"].items():
        for line in _part_lines(task, parts):
            table.add_row("parts", line)
    for row in facts["tokens"]:
        for line in _token_lines(row):
            table.add_row("tokens", line)
    for task, half_width in facts["pgr_half_width_95"].items():
        num_items = facts["num_test_items"][task]
        table.add_row(
            "PGR precision",
            f"{task}: +-{half_width:.2f} with {num_items:,} test items and {facts['num_seeds']} seed(s), if the gap is "
            f"{facts['assumed_gap']:g}; its noise is {facts['pgr_noise'][task]}",
        )
    if "assumed" in facts["pgr_noise"].values():
        table.add_row("", f"[dim]assuming that {assumed_precision()}[/dim]")
    out.print(f"[bold]{facts['study']}[/bold]  {escape(facts['description'])}".rstrip())
    print_table(table)


def _memory_in_words(facts: dict[str, Any]) -> str:
    zero = f"ZeRO {facts['largest_zero_stage']}" if facts["largest_zero_stage"] else "no ZeRO"
    on_gpu, on_host = facts["largest_gpu_gib_per_worker"], facts["largest_host_gib_per_worker"]
    where = f"{on_gpu:.2g} GiB on its GPU and {on_host:.2g} GiB" if on_gpu else f"{on_host:.2g} GiB"
    return (
        f"{facts['largest_model']}: {where} of its node's memory for each of {facts['largest_workers']} worker(s), {zero}; "
        "activations come on top"
    )


def _speed_in_words(facts: dict[str, Any]) -> str:
    """Whether the seconds are measured, and from how many Fits."""
    if not facts["measured_from_fits"]:
        return f"assuming {facts['assumed_speed']}"
    where = f"on {escape(facts['measured_on'])}, from {facts['measured_from_fits']:,} Fit(s) that ran into this store"
    num_others = facts["to_run"] - facts["to_run_as_measured"]
    others = f"; {num_others:,} to run are of models or kinds that were not measured" if num_others else ""
    return f"as measured {where}{others}"


def _part_lines(task: str, parts: dict[str, Any]) -> list[str]:
    """What is worth saying about a task's parts: their groups, and that these are few."""
    from w2s_ray.tasks import MIN_EFFECTIVE_GROUPS

    lines = []
    for name, part in parts.items():
        if part["num_groups"] == part["num_rows"]:
            continue
        part_name = "test set" if name == "test" else f"fresh part {name}" if name.startswith("F") else f"half {name}"
        line = f"{escape(task)}, {part_name}: {part_in_words(part)}"
        if part["effective_groups"] < MIN_EFFECTIVE_GROUPS:
            line = f"[yellow]{line}. Fewer than {MIN_EFFECTIVE_GROUPS}: no interval over groups can be trusted[/yellow]"
        lines.append(line)
    return lines


def _row_lines(task: str, counts: dict[str, Any], parts: dict[str, Any] | None) -> list[str]:
    """How many rows can be used, and why others can't. A large loss is marked: it is seldom meant."""
    num_read, num_usable = counts["num_read"], counts["num_usable"]
    used = (
        ""
        if parts is None
        else f", and one replicate takes {sum(part['num_rows'] for part in parts.values()):,} of them"
    )
    lines = [f"{escape(task)}: {num_usable:,} of {num_read:,} can be used{used}"]
    for row in counts["left_out"]:
        line = f"{escape(task)}: {row['num_rows']:,} left out, {escape(row['reason'])} (first: {escape(row['first'].rpartition('/')[2])})"
        lines.append(f"[yellow]{line}[/yellow]" if row["num_rows"] > LARGE_LOSS * num_read else line)
    return lines


def _token_lines(row: dict[str, Any]) -> list[str]:
    """What a tokenizer makes of a task, where it does not know many of its words or finds rows too long."""
    from w2s_ray.families import WARN_UNKNOWN

    task, model, lines = escape(row["task"]), escape(row["model"]), []
    if row["share_unknown"] > WARN_UNKNOWN:
        lines.append(
            f"[yellow]{task}: {row['share_unknown']:.0%} of its tokens are unknown to the tokenizer of {model}, such as "
            f"{escape(repr(row['unknown']))}; it reads all of them alike[/yellow]"
        )
    if share := row["share_too_long"]:
        rows = f"about {share:.0%} of its" if row["num_too_long"] is None else f"{row['num_too_long']:,}"
        line = f"{task}: {rows} rows are longer than training.max_tokens for {model}; they are left out for all models"
        lines.append(f"[yellow]{line}[/yellow]" if share > LARGE_LOSS else line)
    return lines
