"""Arguments and options that several verbs share: their names, types and help texts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from w2s_ray.cli.suggest import complete_study
from w2s_ray.errors import InputError

DEFAULT_STORE = "./w2s-store"
DEFAULT_OUT = Path("w2s-out")

StudyFile = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY",
        help="The study's YAML file, or the name of a ready-made one, such as quickstart.",
        show_default=False,
        autocompletion=complete_study,
    ),
]
StoreOption = Annotated[
    str, typer.Option("--store", envvar="W2S_STORE", help="Folder or bucket (s3://, gs://) that holds the Fits.")
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for tables, figures and the report.", show_default=f"{DEFAULT_OUT}/<study>"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# --- `run` and `submit`: the fields of `RunOptions` ---

MaxParallelOption = Annotated[
    int | None,
    typer.Option("--max-parallel", help="Number of packs to run at the same time.", show_default="as many as fit"),
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Try Fits again that failed in an earlier run.")]
BudgetHoursOption = Annotated[
    float | None,
    typer.Option("--budget-hours", help="Stop after this many worker hours.", min=0, show_default="no limit"),
]
BudgetUsdOption = Annotated[
    float | None,
    typer.Option(
        "--budget-usd",
        help="Stop after this many dollars, at the study's compute.usd_per_worker_hour.",
        min=0,
        show_default="no limit",
    ),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait-for-nodes",
        help="Minutes to wait for more nodes if a Fit fits on none that the cluster has now.",
        min=0,
        metavar="MINUTES",
    ),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        help="Copy learning curves to tensorboard, mlflow or wandb. Repeat the option for several.",
        show_default="no",
    ),
]

Axis = Literal["params", "compute", "fraction"]
"""What the size axis of the report's figures shows."""


def out_folder(given: Path | None, *, study: str) -> Path:
    """The folder for a study's tables and report. One that can't be written is refused before anything is done."""
    folder = given or DEFAULT_OUT / study
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=there, prefix=".w2s-").cleanup()
    except OSError as error:
        raise InputError(f"--out {folder}: nothing can be written to {there} ({error.strerror})") from error
    return folder
