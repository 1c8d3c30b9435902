"""`w2s doctor`: whether this machine can run a study."""

from __future__ import annotations

import typer
from rich.markup import escape

from w2s_ray.cli.console import out


def doctor() -> None:
    """Check whether this machine can run a study, and say what to do if it can't."""
    from w2s_ray.doctor import check_machine

    checks = list(check_machine())
    for check in checks:
        mark = "[green]ok[/green] " if check.ok else "[red]bad[/red]"
        out.print(f"{mark} {check.name:<12} {escape(check.detail)}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
