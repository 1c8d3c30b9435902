"""The verbs of `w2s`: thin. Each reads a study, asks the rooms, prints.

Exit codes: 0 all well; 1 some Fits failed or are damaged; 2 the input was wrong (one message, no traceback, nothing
written); 130 stopped by Ctrl-C or SIGTERM, in good order.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from w2s_ray import __version__
from w2s_ray.errors import InputError, nearest

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Scaling studies of weak-to-strong generalization.\n\n"
    "A study is a YAML file. [bold]w2s plan[/bold] says what it takes, [bold]w2s run[/bold] runs what is missing and may "
    "be killed at any moment, [bold]w2s report[/bold] draws the curves.\n\n"
    "Example: [cyan]w2s run studies/quickstart.yaml[/cyan]",
)
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study's YAML file.", show_default=False)]
StoreOption = Annotated[
    str, typer.Option("--store", envvar="W2S_STORE", help="Folder or URI (s3://, gs://) that keeps the Fits.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder for tables, figures and report.", show_default="w2s-out/<study>")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let models bring their own code. Only for code you have read.")
]
MaxParallelOption = Annotated[
    int | None, typer.Option("--max-parallel", help="Packs at a time.", show_default="as many as fit")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Try Fits again that failed before.")]
BudgetHoursOption = Annotated[
    float | None,
    typer.Option(
        "--budget-hours", help="Stop in good order after so many worker hours.", min=0, show_default="no limit"
    ),
]
BudgetUsdOption = Annotated[
    float | None,
    typer.Option(
        "--budget-usd", help="The same in dollars, at compute.usd_per_worker_hour.", min=0, show_default="no limit"
    ),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait-for-nodes", help="Minutes to wait for nodes, where a Fit fits on none yet.", min=0, metavar="MINUTES"
    ),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--track", help="Copy learning curves to tensorboard, mlflow or wandb; may be given again.", show_default="no"
    ),
]
Axis = Literal["params", "compute", "fraction"]
DEFAULT_STORE = "./w2s-store"
PLURALS = {
    "supervisor": "supervisors",
    "ceiling": "ceilings",
    "student": "students",
    "start": "starts",
    "untrained": "untrained",
}


@app.command()
def plan(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    gap: Annotated[float, typer.Option(help="Ceiling minus supervisor to assume for the precision of PGR.")] = 0.1,
    usd: Annotated[
        float | None,
        typer.Option(
            "--usd-per-hour",
            help="Price of a worker (a GPU, or CPUs) for an hour.",
            min=0,
            show_default="compute.usd_per_worker_hour",
        ),
    ] = None,
) -> None:
    """Say what a study will run and what that costs. Starts nothing, writes nothing.

    Example: w2s plan studies/quickstart.yaml
    """
    from w2s_ray import plan as plans
    from w2s_ray.store import open_store

    if not 0 < gap < 1:
        raise InputError(f"--gap: given {gap}, allowed is a difference of scores between 0 and 1")
    planned = plans.load_plan(study)
    state = plans.status(planned, store=open_store(store))
    costs = plans.costs(planned)
    missing = [fit for fit in planned.fits if fit.key not in state.done]
    roles = Counter(fit.role for fit in planned.fits)
    seconds = sum(costs[fit.key].seconds for fit in missing)
    worker_s = sum(costs[fit.key].seconds * planned.executions[fit.model].workers for fit in missing)
    largest = max(planned.fits, key=lambda fit: plans.state_bytes(fit, planned.executions[fit.model]))
    execution = planned.executions[largest.model]
    num_seeds = len({cell.seed for cell in planned.cells})
    num_tests = plans.num_tests(planned)
    widths = {name: plans.pgr_half_width(num, gap=gap, num_seeds=num_seeds) for name, num in num_tests.items()}
    facts: dict[str, Any] = {
        "study": planned.study.name,
        "cells": len(planned.cells),
        "fits": len(planned.fits),
        "supervisors": roles["supervisor"],
        "ceilings": roles["ceiling"],
        "students": roles["student"],
        "in_store": len(state.done),
        "to_run": len(missing),
        "failed_before": len(state.failed),
        "flops_to_run": sum(costs[fit.key].flops for fit in missing),
        "worker_hours_to_run": worker_s / 3600,
        "largest_model": largest.model.name,
        "largest_state_gib_per_worker": plans.state_bytes(largest, execution) / 2**30,
        "largest_workers": execution.workers,
        "largest_zero_stage": execution.zero_stage,
        "assumed_gap": gap,
        "pgr_half_width_95": {task: round(width, 3) for task, width in widths.items()},
        "num_seeds": num_seeds,
    }
    usd = planned.study.compute.usd_per_worker_hour if usd is None else usd
    if usd is not None:
        facts["usd_to_run"] = round(usd * facts["worker_hours_to_run"], 2)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    table = Table.grid(padding=(0, 2))
    table.add_row("cells", f"{facts['cells']:,}")
    table.add_row(
        "Fits",
        f"{facts['fits']:,} (" + ", ".join(f"{count:,} {PLURALS[role]}" for role, count in roles.items()) + ")",
    )
    table.add_row("in the store", f"{facts['in_store']:,} of them; {facts['to_run']:,} to run")
    if state.failed:
        table.add_row("failed before", f"{len(state.failed):,}; `w2s run --retry-failed` tries them again")
    table.add_row("compute", f"{facts['flops_to_run']:.2g} FLOPs, about {_duration(seconds)} on one slot")
    table.add_row("", f"[dim]assuming {plans.assumed_speed(planned)}; start-up comes on top[/dim]")
    if usd is not None:
        table.add_row("price", f"about ${facts['usd_to_run']:,.2f}: {worker_s / 3600:,.1f} worker hours at ${usd:g}")
    table.add_row(
        "largest model",
        f"{largest.model.name}: {facts['largest_state_gib_per_worker']:.2g} GiB of weights, gradients and optimizer "
        f"states on each of {execution.workers} worker(s), ZeRO {execution.zero_stage}",
    )
    for task, width in widths.items():
        table.add_row(
            "PGR precision",
            f"{task}: +-{width:.2f} with {num_tests[task]:,} test items and {num_seeds} seed(s), if the gap is {gap:g}; "
            f"{4 * num_tests[task]:,} items would halve it, more seeds hardly narrow it",
        )
    out.print(f"[bold]{planned.study.name}[/bold]  {escape(planned.study.description)}")
    out.print(table)


@app.command()
def run(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    out_dir: OutOption = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to run on: 'auto' or host:port", show_default="this machine alone"),
    ] = None,
    max_parallel: MaxParallelOption = None,
    retry_failed: RetryOption = False,
    budget_hours: BudgetHoursOption = None,
    budget_usd: BudgetUsdOption = None,
    wait_for_nodes: WaitOption = 0.0,
    track: TrackOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Run what is missing of a study, then write its tables and report. The same command again resumes.

    Example: w2s run studies/quickstart.yaml --store s3://bucket/w2s --address auto
    """
    from w2s_ray import plan as plans
    from w2s_ray.store import open_store
    from w2s_ray.tracking import tracking

    if address is not None and address.startswith("ray://"):
        raise InputError(
            f"--address {address}: the run has to see the cluster itself, which Ray's client hides; run it on a node of the "
            "cluster (--address auto), or send it there: w2s submit STUDY --address http://HEAD:8265"
        )
    planned = plans.load_plan(study, trust_remote_code=trust_remote_code)
    opened = open_store(store)
    folder = out_dir or Path("w2s-out") / planned.study.name
    followed = tracking(track or [], study=planned.study.name, folder=folder)
    log_file = folder / "run.log"
    out.print(
        f"[bold]{planned.study.name}[/bold]: {len(planned.cells):,} cells, {len(planned.fits):,} Fits; store {store}"
    )

    from w2s_ray.scheduling.run import run_plan

    if budget_usd is not None:
        price = planned.study.compute.usd_per_worker_hour
        if not price:
            raise InputError(f"--budget-usd: {study} names no compute.usd_per_worker_hour to count with")
        budget_hours = min(budget_usd / price, budget_hours if budget_hours is not None else float("inf"))
    outcome = run_plan(
        planned,
        store=opened,
        address=address,
        max_parallel=max_parallel,
        retry_failed=retry_failed,
        log_file=log_file,
        console=out,
        budget_worker_hours=budget_hours,
        wait_for_nodes_min=wait_for_nodes,
        tracking=followed,
    )
    facts = {
        "wall_s": round(outcome.wall_s, 1),
        "startup_s": round(outcome.startup_s, 1),
        "busy_share": round(outcome.busy_share, 3),
        "fits_done": outcome.num_done,
        "fits_new": outcome.num_new,
        "fits_failed": len(outcome.failed),
        "store": store,
        "version": __version__,
    }
    if outcome.num_new:
        phases = ", ".join(f"{name} {_duration(s)}" for name, s in outcome.phase_s.items() if s >= 0.5)
        out.print(
            f"{outcome.num_new:,} Fits in {_duration(outcome.wall_s)}: busy {outcome.busy_share:.0%}, "
            f"first Fit after {_duration(outcome.startup_s)}; over all slots {phases}"
        )
    elif not outcome.interrupted and not outcome.failed:
        out.print("nothing to run: every Fit is in the store")
    if outcome.trouble:
        err.print(
            f"[red]stopped:[/red] {escape(outcome.trouble)}\n{outcome.num_done:,} of {len(planned.fits):,} Fits are in the "
            f"store, whole. When this is mended, go on with the same command; log: {log_file}"
        )
        raise typer.Exit(1)
    if outcome.interrupted:
        why = f"the budget is spent ({outcome.worker_hours:.3g} worker hours): " if outcome.budget_spent else ""
        out.print(
            f"{why}stopped in good order: {outcome.num_done:,} of {len(planned.fits):,} Fits are in the store. "
            f"Go on with the same command:\n  {' '.join(['w2s', *sys.argv[1:]])}"
        )
        raise typer.Exit(130)
    _report(planned, opened, folder, facts=facts)
    if outcome.failed or outcome.num_blocked:
        by_key = {fit.key: fit for fit in planned.fits}
        err.print(f"[red]{len(outcome.failed)} Fit(s) failed, {outcome.num_blocked} blocked by them:[/red]")
        for key, reason in list(outcome.failed.items())[:20]:
            err.print(f"  {by_key[key].folder}: {escape(reason)}")
        err.print(f"details: w2s status {study} --store {store}; log: {log_file}; again: add --retry-failed")
        raise typer.Exit(1)


@app.command()
def submit(
    study: StudyFile,
    address: Annotated[str, typer.Option(help="The cluster's job server, such as http://127.0.0.1:8265.")],
    store: Annotated[
        str,
        typer.Option("--store", envvar="W2S_STORE", help="Bucket, or folder that all nodes share.", show_default=False),
    ],
    max_parallel: MaxParallelOption = None,
    retry_failed: RetryOption = False,
    budget_hours: BudgetHoursOption = None,
    budget_usd: BudgetUsdOption = None,
    wait_for_nodes: WaitOption = 0.0,
    track: TrackOption = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show the job's lines until it ends.")] = True,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the job that runs this study.")] = False,
) -> None:
    """Run a study as a Ray job: the working folder travels to the cluster. The same command again joins the job.

    Example: w2s submit studies/nlp.yaml --address http://127.0.0.1:8265 --store s3://bucket/w2s
    """
    from w2s_ray.scheduling.submit import submit as submit_job
    from w2s_ray.study import load_study

    study_name = load_study(study).name
    if "://" not in store and not Path(store).is_absolute():
        raise InputError(
            f"--store {store}: would lie in the job's own folder and be lost; give a bucket or a whole path"
        )
    options = {
        "--max-parallel": max_parallel,
        "--budget-hours": budget_hours,
        "--budget-usd": budget_usd,
        "--wait-for-nodes": wait_for_nodes or None,
    }
    given = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    given += [word for name in track or [] for word in ("--track", name)]
    arguments = ["--store", store, "--address", "auto", *given, *(["--retry-failed"] if retry_failed else [])]
    job = submit_job(
        study, name=study_name, address=address, arguments=arguments, follow=follow, stop=stop, console=out
    )
    out.print(f"job {job.id}: {job.status.lower()}")
    if job.status == "FAILED":
        raise typer.Exit(1)


@app.command()
def status(study: StudyFile, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Compare what a study expects with what the store holds.

    Example: w2s status studies/quickstart.yaml --json
    """
    from w2s_ray import plan as plans
    from w2s_ray.store import open_store

    planned = plans.load_plan(study)
    state = plans.status(planned, store=open_store(store))
    folders = {fit.key: fit.folder for fit in planned.fits}
    facts = {
        "study": planned.study.name,
        "fits": len(planned.fits),
        "done": len(state.done),
        "running": [{"fit": folders[k], "host": v["host"], "heartbeat": v["beat"]} for k, v in state.running.items()],
        "failed": [{"fit": folders[k], "kind": v["kind"], "reason": v["reason"]} for k, v in state.failed.items()],
        "blocked": [{"fit": folders[k], "by": folders[v]} for k, v in state.blocked.items()],
        "todo": len(state.todo),
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    out.print(
        f"[bold]{planned.study.name}[/bold]: {len(planned.fits):,} Fits: {len(state.done):,} done, "
        f"{len(state.running):,} running, {len(state.failed):,} failed, {len(state.blocked):,} blocked, "
        f"{len(state.todo):,} to do"
    )
    for key, lease in list(state.running.items())[:20]:
        out.print(f"  running {folders[key]} by a driver on {lease['host']}, last heard {_ago(lease['beat'])}")
    for key, record in list(state.failed.items())[:20]:
        out.print(f"  [red]failed[/red]  {folders[key]}: {escape(record['reason'])}")
    for key, cause in list(state.blocked.items())[:20]:
        out.print(f"  blocked {folders[key]} by {folders[cause]}")


@app.command()
def report(
    study: StudyFile,
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="A second study file, to put beside the first.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    other_store: Annotated[
        str | None, typer.Option(help="The second study's store; default the same.", metavar="URI")
    ] = None,
    out_dir: OutOption = None,
    axis: Annotated[Axis, typer.Option(help="What the size axis of the figures shows.")] = "params",
) -> None:
    """Write results.parquet, PGR tables, figures and one self-contained report.html from what is done so far. With a
    second study also compare.html: both side by side, with the differences and their intervals.

    Example: w2s report studies/quickstart.yaml --out paper --axis compute
    """
    from w2s_ray import plan as plans
    from w2s_ray.store import open_store

    folders: list[Path] = []
    for path, uri in ((study, store), *([(other, other_store or store)] if other else [])):
        planned = plans.load_plan(path)
        opened = open_store(uri)
        done = len(plans.status(planned, store=opened).done)
        name = planned.study.name
        if not other:
            folder = out_dir or Path("w2s-out") / name
        else:  # two studies may have one name
            folder = (out_dir or Path("w2s-out")) / (f"{name}-b" if name in [each.name for each in folders] else name)
        folders.append(folder)
        _report(
            planned, opened, folders[-1], facts={"fits_done": done, "store": uri, "version": __version__}, axis=axis
        )
    if other:
        from analysis.compare import write_comparison

        where = out_dir or Path("w2s-out") / "-against-".join(each.name for each in reversed(folders))
        out.print(f"comparison: {write_comparison(*folders, out=where)}")


def _report(planned: Any, store: Any, folder: Path, *, facts: dict[str, Any], axis: Axis = "params") -> None:
    from analysis.report import write_report
    from w2s_ray.results import write_results

    write_results(planned.cells, study=planned.study.name, store=store, out=folder)
    facts |= {"fits": len(planned.fits), "cells": len(planned.cells)}
    path = write_report(folder, facts=facts, study_text=planned.path.read_text(encoding="utf-8"), axis=axis)
    out.print(f"report: {path}")


@app.command()
def explain(
    study: StudyFile,
    cell: Annotated[str | None, typer.Argument(help="task/family/weak->strong/method/seed, or a part of it.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Say which Fits a cell stands on, and field by field why one isn't in the store.

    Example: w2s explain studies/quickstart.yaml 'xs->m/naive/0'
    """
    from w2s_ray import plan as plans
    from w2s_ray.store import open_store

    planned = plans.load_plan(study)
    names = [c.name for c in planned.cells]
    chosen = [c for c in planned.cells if cell is None or cell in c.name]
    if cell is None or not chosen or len(chosen) > 1:
        some = "\n  ".join((names if not chosen or cell is None else [c.name for c in chosen])[:20])
        if cell is None:
            out.print(f"{len(names):,} cells; give one of them:\n  {escape(some)}")
            return
        problem = "matches no cell" if not chosen else f"matches {len(chosen):,} cells; say more"
        raise InputError(f"CELL '{cell}' {problem}{nearest(cell, names)}. Cells:\n  {some}")
    opened = open_store(store)
    state = plans.status(planned, store=opened)
    out.print(f"[bold]{escape(chosen[0].name)}[/bold]")
    for role in ("supervisor", "student", "ceiling"):
        fit = getattr(chosen[0], role)
        out.print(f"{role:<11} {fit.folder}")
        if fit.key in state.done:
            out.print("            in the store")
            continue
        if fit.key in state.failed:
            out.print(f"            failed: {escape(state.failed[fit.key]['reason'])}")
        elif fit.key in state.running:
            out.print("            running now")
        near, differences = plans.nearest_committed(fit, store=opened)
        if near is None:
            out.print("            not in the store, and nothing like it is")
        else:
            out.print(f"            not in the store; the nearest there is {near}, which differs in:")
            for where, there, here in differences:
                out.print(f"              {escape(where)}: {escape(str(there))} there, {escape(str(here))} here")


@app.command()
def verify(
    study: Annotated[Path | None, typer.Argument(metavar="[STUDY]", help="Only this study's Fits.")] = None,
    store: StoreOption = DEFAULT_STORE,
    repair: Annotated[bool, typer.Option("--repair", help="Move damaged Fits aside, so that they run again.")] = False,
) -> None:
    """Check sizes and hashes of committed Fits.

    Example: w2s verify --store s3://bucket/w2s --repair
    """
    from rich.progress import track

    from w2s_ray import plan as plans
    from w2s_ray.store import open_store

    opened = open_store(store)
    if study is None:
        folders = opened.committed_folders()
    else:
        folders = list(opened.committed(plans.load_plan(study).fits).values())
    damaged = {}
    for folder in track(folders, "checking", console=err, transient=True, disable=not err.is_terminal):
        if problems := opened.damage(folder):
            damaged[folder] = problems
    for problems in damaged.values():
        for problem in problems:
            out.print(f"[red]damaged[/red] {escape(problem)}")
    out.print(f"{len(folders):,} Fits checked, {len(damaged):,} damaged")
    if repair:
        for folder in damaged:
            out.print(f"moved aside to {opened.quarantine(folder)}")
    elif damaged:
        out.print("`w2s verify --repair` moves them aside; the next `w2s run` makes them again")
        raise typer.Exit(1)


@app.command("tasks")
def tasks_(name: Annotated[str | None, typer.Argument(help="A task's name, or a path to a task YAML.")] = None) -> None:
    """List the tasks, or show one: its source, shape, rows and first examples.

    Example: w2s tasks chess-mate
    """
    from w2s_ray import tasks

    if name is None:
        table = Table("task", "setting", "rows", "licence", "about", box=None)
        for each in tasks.task_names():
            task = tasks.load_task(each)
            rows = tasks.num_rows(task)
            table.add_row(
                each,
                task.setting,
                "on the hub" if rows is None else f"{rows:,}",
                task.licence,
                escape(task.description),
            )
        out.print(table)
        return
    task = tasks.load_task(name, base=Path.cwd())
    rows = tasks.read_rows(task)
    out.print(f"[bold]{task.name}[/bold]  {task.setting}; {rows.num_rows:,} items; licence {escape(task.licence)}")
    out.print(escape(task.description))
    table = Table.grid(padding=(0, 2))
    for part, place in tasks.files(task).items():
        table.add_row(part, escape(", ".join(map(str, place[:3])) + (" ..." if len(place) > 3 else "")))
    table.add_row("groups", f"{len(set(rows['group'].to_pylist())):,}")
    labels = Counter(rows["label"].to_pylist())
    if None not in labels:
        table.add_row("label 1", f"{labels[1] / rows.num_rows:.1%} of items, before halves and test set are balanced")
    for reason, count in tasks.dropped(task).items():
        table.add_row("left out", f"{count:,} rows: {reason}")
    dealt = tasks.deal(rows, split_seed=0, num_train=None, num_test=None)
    table.add_row("at most", f"{dealt['A'].num_rows:,} in each half, {dealt['test'].num_rows:,} in test")
    out.print(table)
    for row in rows.slice(0, 5).to_pylist():
        if row["label"] is not None:
            out.print(f"  [bold]{row['label']}[/bold]  ", end="")
        out.print(escape(" | ".join(text[:300] for text in (row["text"], *row["completions"]) if text)))


@app.command("families")
def families_(
    name: Annotated[str | None, typer.Argument(help="A family's name, or a path to its YAML.")] = None,
) -> None:
    """List the model families, or show the sizes of one.

    Example: w2s families pythia
    """
    from w2s_ray import families

    if name is None:
        table = Table("family", "sizes", "licence", "about", box=None)
        for each in families.family_names():
            family = families.load_family(each)
            sizes = ", ".join(size.size for size in family.sizes)
            table.add_row(each, sizes, family.licence, escape(family.description))
        out.print(table)
        return
    family = families.load_family(name, base=Path.cwd())
    table = Table(
        "size", "source", "params", "pretraining tokens", "6ND", "learning rate", "80 GB GPUs", "ZeRO", box=None
    )
    for size in family.sizes:
        tokens = size.pretraining_tokens
        table.add_row(
            size.size,
            size.source,
            f"{size.params:,}",
            f"{tokens:,}" if tokens else "?",
            f"{6 * size.params * tokens:.2g}" if tokens else "?",
            f"{size.learning_rate:g}",
            str(size.gpus),
            str(size.zero_stage),
        )
    out.print(f"[bold]{family.name}[/bold]  {escape(family.description)} Licence: {family.licence}")
    out.print(table)


@app.command("methods")
def methods_(name: Annotated[str | None, typer.Argument(help="A method's name.")] = None) -> None:
    """List the training methods, or show one with its parameters.

    Example: w2s methods confidence
    """
    from w2s_ray import methods
    from w2s_ray.fit import Method

    if name is None:
        kinds: dict[str, Any] = {
            "losses: how a student learns from labels": methods.LOSSES,
            "transforms: other labels, with any loss": methods.TRANSFORMS,
            "chains: other Fits to learn from or start from": methods.CHAINS,
        }
        for kind, words in kinds.items():
            table = Table("method", "about", "parameters", box=None, title=kind, title_justify="left")
            for word, params in words.items():
                fields = (f"{field}={info.default}" for field, info in params.model_fields.items())
                table.add_row(word, params.__doc__, escape(", ".join(fields)))
            out.print(table)
        return
    if name not in methods.PARAMS:
        allowed = ", ".join(methods.PARAMS)
        raise InputError(f"unknown method '{name}'{nearest(name, methods.PARAMS)}; allowed: {allowed}")
    out.print(f"[bold]{name}[/bold]  {escape(methods.PARAMS[name].__doc__ or '')}")
    if why_not := methods.refusal(Method(name), ["generation"]):
        out.print(f"Not for generation: {why_not}")
    table = Table("parameter", "default", "allowed", "about", box=None)
    properties: dict[str, Any] = methods.PARAMS[name].model_json_schema().get("properties", {})
    for field, about in properties.items():
        table.add_row(field, str(about.get("default")), escape(_bounds(about)), escape(about.get("description", "")))
    if table.row_count:
        out.print(table)
    out.print(f"In a study: [cyan]methods: \\[{name}][/cyan]", soft_wrap=True)


def _bounds(about: dict[str, Any]) -> str:
    """What a parameter's JSON Schema allows, in words."""
    if "enum" in about:
        return ", ".join(map(str, about["enum"]))
    if "anyOf" in about:
        return " or ".join(each.get("const") or "a list" for each in about["anyOf"])
    low, high = about.get("minimum"), about.get("maximum")
    more_than, less_than = about.get("exclusiveMinimum"), about.get("exclusiveMaximum")
    words = [f"{word} {value}" for word, value in (("from", low), ("above", more_than)) if value is not None]
    words += [f"{word} {value}" for word, value in (("to", high), ("below", less_than)) if value is not None]
    return " ".join(words)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a study file, for editors.

    Example: w2s schema > studies/study.schema.json
    """
    from w2s_ray import study

    print(json.dumps(study.schema(), indent=1))


@app.command()
def doctor() -> None:
    """Say whether this machine can run a study, and if not, what to do."""
    from w2s_ray.doctor import check_machine

    problems = 0
    for name, ok, detail in check_machine():
        problems += not ok
        out.print(f"{'[green]ok[/green] ' if ok else '[red]bad[/red]'} {name:<12} {escape(detail)}")
    if problems:
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _duration(seconds: float) -> str:
    from w2s_ray.plan import duration

    return duration(seconds)


def _ago(at: float) -> str:
    import time

    return f"{_duration(max(0.0, time.time() - at))} ago"


def main() -> None:
    """Console entry: wrong input becomes its message and exit code 2, a damaged or absent store 1."""
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
        err.print("stopped; the same command goes on where this one ended")
        sys.exit(130)


if __name__ == "__main__":
    main()
