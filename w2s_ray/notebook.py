"""The door for notebooks and scripts: what a study found as Polars frames, and `w2s plan` and `w2s run` as functions.

    import w2s_ray as w2s

    s = w2s.load("w2s-out/quickstart")
    s.pgr                            # PGR of each pair, with intervals and flags
    s.cells                          # a row for each cell: its scores, or why it has none
    s.predictions(with_text=True)    # a row for each answer to a test item, beside the item's text
    s.figure("score")                # an Altair chart, as in the report

Promises: `import w2s_ray` and `load` import neither Ray nor torch, and nothing is written but by `run`. What the command line
refuses raises `InputError` with the same message.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2s_ray.errors import InputError, nearest

if TYPE_CHECKING:
    import altair as alt
    import polars as pl

TEXT_COLUMNS = ("text", "completions")
SPECS = re.compile(r'<script[^>]*\bid="specs"[^>]*>(.*?)</script>', re.DOTALL)
"""Where report.html keeps the Vega-Lite specifications of its figures, as name -> specification."""


class RunStopped(Exception):
    """A run that ended before all of its Fits were done: some failed, the store went away, or it was interrupted.

    What is done is in the store, and the same call goes on from there. `exit_code` is that of `w2s run`.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# --- what a study found ---------------------------------------------------------------------------------------------


def load(folder: str | Path, *, study: str | Path | None = None) -> Report:
    """What a study found: the folder that `w2s run` or `w2s report` wrote, such as `w2s-out/quickstart`.

    `study`, its YAML, is needed only for the texts of tasks that do not ship with the package.
    """
    path = Path(folder)
    if not (path / "results.parquet").is_file():
        beside = [str(found.parent) for found in path.parent.glob("*/results.parquet")]
        raise InputError(f"{path}: no results.parquet there{nearest(str(path), beside)}; `w2s report STUDY` writes it")
    return Report(path, None if study is None else Path(study))


@dataclass(frozen=True)
class Report:
    """The tables and figures of a study. Each table is read from its file when it is first asked for.

    A file that is damaged, or that no `w2s report` wrote, raises `w2s_ray.analysis.tables.TableError`.
    """

    folder: Path
    study: Path | None = None
    """The study's YAML, beside which its own tasks are found."""

    @cached_property
    def cells(self) -> pl.DataFrame:
        """A row for each cell: scores of supervisor, student, ceiling and controls, PGR, agreement; or a status and a reason."""
        return self._table("results")

    @cached_property
    def pgr(self) -> pl.DataFrame:
        """A row for each pair and method on a task, and one over tasks (`task` is null): scores, PGR, intervals, flags."""
        return self._table("pgr")

    @cached_property
    def findings(self) -> pl.DataFrame:
        """A row for each task: what its controls allow one to conclude (`verdict`), and what was found (`finding`)."""
        return self._table("findings")

    @cached_property
    def fits(self) -> pl.DataFrame:
        """The parameters of the scaling fits."""
        return self._table("fits")

    @cached_property
    def runs(self) -> pl.DataFrame:
        """A row for each Fit: where it ran, with which versions, and what it cost."""
        return self._table("runs")

    @cached_property
    def curves(self) -> pl.DataFrame:
        """The points of each Fit's learning curve."""
        return self._table("curves")

    @cached_property
    def parts(self) -> pl.DataFrame:
        """How many rows and groups each part of each replicate has."""
        return self._table("parts")

    @cached_property
    def left_out(self) -> pl.DataFrame:
        """How many rows of each task no model sees, and why."""
        return self._table("left_out")

    def predictions(self, part: Literal["test", "B"] = "test", *, with_text: bool = False) -> pl.DataFrame:
        """A row for each answer of a Fit to an item of the test set, or of half B (a supervisor's labels there, and what its
        students answer to the rows that they learned from).

        `with_text` adds the item's `text` and `completions`. They are read from the tasks' own files, so these must be there
        and be what they were when the Fits were trained.
        """
        rows = self._table("predictions" if part == "test" else "half_b")
        return self._with_text(rows) if with_text else rows

    @property
    def figures(self) -> list[str]:
        """The names of the figures: a setting and a kind each, such as `generation-score`."""
        return list(self._specs)

    def figure(self, kind: str) -> alt.TopLevelMixin:
        """A figure of the report as an Altair chart: `score`, or `generation-score` where a study has several settings."""
        import altair as alt

        matches = [kind] if kind in self._specs else [name for name in self._specs if name.endswith(f"-{kind}")]
        if len(matches) != 1:
            problem = f"{len(matches)} figures" if matches else "no figure"
            kinds = [name.partition("-")[2] for name in self._specs]
            hint = "" if matches else nearest(kind, [*self._specs, *kinds])
            names = ", ".join(matches or self._specs)
            raise InputError(f"{self.folder}: {problem} of the name '{kind}'{hint}; there are: {names}")
        spec = self._specs[matches[0]]
        kinds_of_chart = {
            "facet": alt.FacetChart,
            "layer": alt.LayerChart,
            "concat": alt.ConcatChart,
            "hconcat": alt.HConcatChart,
            "vconcat": alt.VConcatChart,
        }
        chart = next((kinds_of_chart[key] for key in kinds_of_chart if key in spec), alt.Chart)
        legend = spec.get("config", {}).get("legend", {})
        legend.pop("layout", None)  # Vega knows it and Altair does not
        figure: alt.TopLevelMixin = chart.from_dict(spec, validate=False)
        return figure

    @cached_property
    def _specs(self) -> dict[str, Any]:
        page = self.folder / "report.html"
        found = SPECS.search(page.read_text(encoding="utf-8")) if page.is_file() else None
        if found is None:
            raise InputError(f"{page}: no figures there; `w2s report STUDY` draws them")
        specs: dict[str, Any] = json.loads(found[1])
        return specs

    def _table(self, name: str) -> pl.DataFrame:
        from w2s_ray.analysis import tables

        return tables.read(self.folder / f"{name}.parquet", {})

    def _with_text(self, rows: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        names = rows["task"].cast(pl.String).unique(maintain_order=True).to_list()
        texts = [self._texts(name) for name in names]
        named = rows.with_columns(pl.col("task").cast(pl.String))
        joined = named.join(pl.concat(texts), on=["task", "id"], how="left", maintain_order="left") if texts else named
        for name in names:
            of_task = joined.filter(pl.col("task") == name)
            if num_unknown := of_task.filter(pl.col("text").is_null())["id"].n_unique():
                raise InputError(
                    f"{self.folder}: {num_unknown:,} items of the task {name} are not in its files, so these have changed "
                    "since; run the study again for their texts, or ask without with_text"
                )
        return joined.with_columns(pl.col("task").cast(rows.schema["task"]))

    def _texts(self, name: str) -> pl.DataFrame:
        """task, id and TEXT_COLUMNS of each row of a task."""
        import polars as pl

        from w2s_ray.tasks import read_rows

        rows = pl.DataFrame(read_rows(self._task(name)))
        return rows.select(pl.lit(name).alias("task"), "id", *TEXT_COLUMNS)

    def _task(self, name: str) -> Any:
        from w2s_ray.study import find_study, load_study
        from w2s_ray.tasks import load_task, task_names

        if self.study is not None:
            path = find_study(self.study)
            entries = dict.fromkeys(entry for grid in load_study(path).grids for entry in grid.tasks)
            for task in (load_task(entry, base=path.absolute().parent) for entry in entries):
                if task.name == name:
                    return task
        if name in task_names():
            return load_task(name)
        raise InputError(
            f"{self.folder}: the task {name} does not ship with the package; name the study that has it: "
            f'load("{self.folder}", study="STUDY.yaml")'
        )


# --- the command line as functions ----------------------------------------------------------------------------------


def plan(study: str | Path, *, store: str | None = None, usd_per_hour: float | None = None) -> dict[str, Any]:
    """What a study will run, what that costs and how precise its PGR can be: the facts that `w2s plan --json` prints.

    Starts nothing and writes nothing. `store` is $W2S_STORE or ./w2s-store if it is not given.
    """
    from w2s_ray.cli.plan import plan_facts
    from w2s_ray.planning import load_plan
    from w2s_ray.store import open_store

    opened = open_store(store or _default_store())
    return plan_facts(load_plan(study, deal_rows=True), store=opened, gap=0.1, usd_per_worker_hour=usd_per_hour)


def run(
    study: str | Path,
    *,
    store: str | None = None,
    out: str | Path | None = None,
    address: str | None = None,
    max_parallel: int | None = None,
    retry_failed: bool = False,
    budget_hours: float | None = None,
) -> Report:
    """Run what is missing of a study, write its tables and report, and return them. The arguments are the options of `w2s run`.

    Raises `RunStopped` if not all Fits are done at the end.
    """
    from typer.main import get_command

    from w2s_ray.cli import app
    from w2s_ray.cli.options import DEFAULT_OUT
    from w2s_ray.study import load_study

    folder = Path(out) if out is not None else DEFAULT_OUT / load_study(study).name
    options = {
        "--store": store or _default_store(),
        "--out": folder,
        "--address": address,
        "--max-parallel": max_parallel,
        "--budget-hours": budget_hours,
    }
    words = [word for option, value in options.items() if value is not None for word in (option, str(value))]
    words += ["--retry-failed"] if retry_failed else []
    exit_code = get_command(app)(["run", str(study), *words], standalone_mode=False)
    if exit_code:
        raise RunStopped(
            f"{study}: not all Fits are done, as the lines above say; call run again to go on. What is done so far: "
            f'load("{folder}")',
            exit_code=exit_code,
        )
    return load(folder, study=study)


def _default_store() -> str:
    from w2s_ray.cli.options import DEFAULT_STORE

    return os.environ.get("W2S_STORE") or DEFAULT_STORE
