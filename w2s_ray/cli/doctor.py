"""`w2s doctor`: whether this machine can run a study."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from w2s_ray.cli.console import out, print_json
from w2s_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption

MARKS = {"ok": "[green]ok[/green]  ", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red] "}


def doctor(
    store: StoreOption = DEFAULT_STORE,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to look at: whether all nodes see the store.", show_default="this machine alone"
        ),
    ] = None,
    hub: Annotated[
        bool, typer.Option("--hub", help="Ask the Hugging Face hub, and whether it takes the token.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check whether this machine can run a study, and say what to do if it can't. Exit code 1 if a run would fail.

    Example: w2s doctor --store /shared/w2s --hub
    """
    from w2s_ray.doctor import check_machine

    checks = []
    for check in check_machine(store_uri=store, address=address, hub=hub):
        checks.append(check)
        if not as_json:
            advice = f"\n{' ' * 18}-> {escape(check.advice)}" if check.advice else ""
            out.print(f"{MARKS[check.state]} {check.name:<12} {escape(check.found)}{advice}")
    can_run = all(check.state != "bad" for check in checks)
    if as_json:
        print_json({"can_run": can_run, "checks": [check._asdict() for check in checks]})
    if not can_run:
        raise typer.Exit(1)
