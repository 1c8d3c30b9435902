"""`w2s new task` and `w2s new study`: a task over one's own data, and a study of it, written for a start.

Promises: what is written was read back and planned; no file is replaced without `--force`. What can't be told from the data
is asked at a terminal; elsewhere it is an error that names the option to pass.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from w2s_ray.cli.console import err, out
from w2s_ray.cli.suggest import Command, complete_family, complete_task
from w2s_ray.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Write a task over your own data, or a study of a task.")

OutFile = Annotated[Path | None, typer.Option("--out", help="The YAML to write.", show_default="beside the data")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


@app.command("task", cls=Command)
def task(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A csv, tsv, jsonl or parquet file.", show_default=False)
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Column with the text, or a template such as '{title}: {body}'. Repeat it for several columns."
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column with the class.")] = None,
    positive: Annotated[
        list[str] | None, typer.Option(help="A value of the label that means 1. Can be repeated.")
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(help="A value that means 0. Can be repeated.", show_default="all that are not positive"),
    ] = None,
    chosen: Annotated[str | None, typer.Option(help="Column with the better of two completions.")] = None,
    rejected: Annotated[str | None, typer.Option(help="Column with the worse one.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Column with the prompt of completions.")] = None,
    completion: Annotated[
        str | None, typer.Option(help="Column with the right completion, for models that write.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Column that rows share which must stay in one part.")] = None,
    out_file: OutFile = None,
    force: Force = False,
) -> None:
    """Look at a data file and write the YAML of a task over it, with a comment at each key.

    Example: w2s new task reviews.csv --label verdict --positive good
    """
    from w2s_ray.tasks.draft import Wishes, draft_task

    wishes = Wishes(
        text=tuple(text or ()),
        label=label,
        positive=tuple(positive or ()),
        negative=tuple(negative or ()),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        completion=completion,
        group=group,
    )
    draft = draft_task(data, wishes, out=out_file, ask=ask if sys.stdin.isatty() else refuse)
    write(draft.path, draft.text, force=force)
    out.print(f"[bold]{escape(str(draft.path))}[/bold]: a {draft.task.setting} of {draft.num_rows:,} rows")
    for reason, count in draft.dropped.items():
        out.print(f"  left out: {count:,} rows: {reason}")
    print_next(draft.path, "tasks", "new study")


@app.command("study", cls=Command)
def study(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="A task YAML, or a task's name.", show_default=False, autocompletion=complete_task
        ),
    ],
    family: Annotated[
        str | None,
        typer.Option(
            help="Family of models (`w2s families`), or a family YAML.",
            show_default="one that needs no hub",
            autocompletion=complete_family,
        ),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(help="Sizes weak to strong: --sizes d1,d2,d4.", show_default="some or all of the family"),
    ] = None,
    out_file: OutFile = None,
    force: Force = False,
) -> None:
    """Write a study of a task, with halves and a test set that its rows are enough for.

    Example: w2s new study reviews.yaml --family minilm --sizes d1,d4
    """
    from w2s_ray.study_draft import draft_study

    wanted = tuple(size.strip() for entry in sizes or () for size in entry.split(",") if size.strip())
    draft = draft_study(task, family=family, sizes=wanted, out=out_file)
    write(draft.path, draft.text, force=force)
    num_cells, num_fits = len(draft.plan.cells), len(draft.plan.fits)
    out.print(f"[bold]{escape(str(draft.path))}[/bold]: {num_cells:,} cells, {num_fits:,} Fits")
    print_next(draft.path, "plan", "run")


def print_next(path: Path, *verbs: str) -> None:
    out.print("Read it, then go on with:")
    for verb in verbs:
        out.print(f"  w2s {verb} {shlex.quote(str(path))}", markup=False)


def ask(question: str, option: str, choices: Sequence[str]) -> str:
    """The answer of who sits at the terminal."""
    from rich.prompt import Prompt

    return Prompt.ask(escape(question), choices=list(choices), console=err)


def refuse(question: str, option: str, choices: Sequence[str]) -> str:
    """Where nobody can be asked, the option that answers it is asked for."""
    raise InputError(f"{question} Pass it with {option}; there are: {', '.join(choices)}")


def write(path: Path, text: str, *, force: bool) -> None:
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(f"{path}: is there already; give another --out, or --force to replace it") from error
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror})") from error
