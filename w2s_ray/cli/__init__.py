"""The command line: the verbs of `w2s`, and how the process exits.

In a verb's file one function computes facts and returns them as plain data, and another prints them; `--json` prints the
facts as they are. Ray, torch and everything else that is slow to import is imported inside functions, so that every verb
starts fast. `w2s`, `python -m w2s_ray` and `python -m w2s_ray.cli` are the same command.

Exit codes:
    0    all is well
    1    Fits failed, or the store is damaged or out of reach
    2    the input was wrong: one message, no traceback, and nothing was written
    130  stopped by Ctrl-C, SIGTERM or a spent budget; the same command goes on
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

from w2s_ray import __version__
from w2s_ray.cli import catalogue, doctor, new, plan, report, run, status
from w2s_ray.cli.console import err
from w2s_ray.cli.suggest import Command
from w2s_ray.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Scaling studies of weak-to-strong generalization.\n\n"
    "A study is a YAML file. [bold]w2s plan[/bold] shows what it will run and what that costs. [bold]w2s run[/bold] runs "
    "what is missing; stop it at any moment and start it again. [bold]w2s report[/bold] draws the curves. [bold]w2s new task[/bold] "
    "starts from a data file of your own.\n\n"
    "Example: [cyan]w2s run quickstart[/cyan]",
)
app.command("plan", cls=Command)(plan.plan)
app.command("run", cls=Command)(run.run)
app.command("submit", cls=Command)(run.submit)
app.command("status", cls=Command)(status.status)
app.command("report", cls=Command)(report.report)
app.command("explain", cls=Command)(status.explain)
app.command("verify", cls=Command)(status.verify)
app.add_typer(new.app, name="new")
app.command("tasks", cls=Command)(catalogue.tasks)
app.command("families", cls=Command)(catalogue.families)
app.command("methods", cls=Command)(catalogue.methods)
app.command("schema", cls=Command)(catalogue.schema)
app.command("doctor", cls=Command)(doctor.doctor)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; errors that a user can do something about end it with their message and an exit code."""
    from w2s_ray.storage import StoreDown
    from w2s_ray.store import StoreError

    try:
        app(standalone_mode=True)
    except InputError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(2)
    except (StoreError, StoreDown) as error:
        err.print(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("stopped; run the same command again to go on")
        sys.exit(130)
