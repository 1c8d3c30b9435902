"""`w2s run` and `w2s submit`: run a study here or on a cluster that this machine belongs to, or send it to one as a job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from w2s_ray import __version__
from w2s_ray.cli.console import MAX_LISTED, err, out
from w2s_ray.cli.options import (
    DEFAULT_STORE,
    BudgetHoursOption,
    BudgetUsdOption,
    MaxParallelOption,
    OutOption,
    RetryOption,
    StoreOption,
    StudyFile,
    TrackOption,
    WaitOption,
    out_folder,
)
from w2s_ray.cli.report import print_report, write_tables_and_report
from w2s_ray.errors import InputError
from w2s_ray.run_log import LOG, run_log

if TYPE_CHECKING:
    from w2s_ray.planning import Plan
    from w2s_ray.run_log import RunLog
    from w2s_ray.run_options import RunOptions
    from w2s_ray.scheduling.run import Outcome
    from w2s_ray.store import Store


def run(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    out_dir: OutOption = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to run on: 'auto' or host:port.", show_default="this machine alone")
    ] = None,
    max_parallel: MaxParallelOption = None,
    retry_failed: RetryOption = False,
    budget_hours: BudgetHoursOption = None,
    budget_usd: BudgetUsdOption = None,
    wait_for_nodes: WaitOption = 0.0,
    track: TrackOption = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run the code that models of the hub bring. Only for code that you have read."
        ),
    ] = False,
) -> None:
    """Run what is missing of a study, then write its tables and report. The same command again resumes.

    Example: w2s run quickstart --store s3://bucket/w2s --address auto
    """
    from w2s_ray.planning import load_plan
    from w2s_ray.run_options import RunOptions
    from w2s_ray.store import open_store

    if address is not None and address.startswith("ray://"):
        raise InputError(
            f"--address {address}: allowed are 'auto' and host:port. A run asks the cluster about its nodes, which Ray's "
            "client (ray://) does not pass on. Run on a node of the cluster with --address auto, or send the study there "
            "with: w2s submit STUDY --address http://HEAD:8265"
        )
    options = RunOptions(
        max_parallel=max_parallel,
        retry_failed=retry_failed,
        budget_hours=budget_hours,
        budget_usd=budget_usd,
        wait_for_nodes_min=wait_for_nodes,
        track=tuple(track or ()),
    )
    plan = load_plan(study, trust_remote_code=trust_remote_code, deal_rows=True)
    opened = open_store(store)
    folder = out_folder(out_dir, study=plan.study.name)
    with run_log(folder / LOG) as log:
        out.print(f"[bold]{plan.study.name}[/bold]: {len(plan.cells):,} cells, {len(plan.fits):,} Fits; store {store}")
        exit_code = run_and_report(plan, options, study=study, store=opened, store_uri=store, address=address, log=log)
    if exit_code:
        raise typer.Exit(exit_code)


def run_and_report(
    plan: Plan, options: RunOptions, *, study: Path, store: Store, store_uri: str, address: str | None, log: RunLog
) -> int:
    """Run, write the tables and the report beside the log, and return the exit code. `store_uri`: as the user gave it."""
    from w2s_ray.scheduling.run import run_plan

    folder = log.path.parent
    outcome = run_plan(plan, options, store=store, address=address, log=log, console=out)
    print_outcome(outcome, num_fits=len(plan.fits), folder=folder)
    if outcome.trouble:
        return 1
    if outcome.interrupted:
        return 130
    print_report(write_tables_and_report(plan, store, folder, facts=run_facts(outcome, store_uri=store_uri)))
    if outcome.failed or outcome.num_blocked:
        print_failures(outcome, plan, study=study, store_uri=store_uri, folder=folder)
        return 1
    return 0


def run_facts(outcome: Outcome, *, store_uri: str) -> dict[str, Any]:
    """What the report says about the run."""
    return {
        "wall_s": round(outcome.wall_s, 1),
        "startup_s": round(outcome.startup_s, 1),
        "busy_share": round(outcome.busy_share, 3),
        "fits_done": outcome.num_done,
        "fits_new": outcome.num_new,
        "fits_failed": len(outcome.failed),
        "store": store_uri,
        "version": __version__,
    }


def print_outcome(outcome: Outcome, *, num_fits: int, folder: Path) -> None:
    from w2s_ray.cost import duration

    if outcome.num_new:
        phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in outcome.phase_s.items() if seconds >= 0.5)
        out.print(
            f"{outcome.num_new:,} Fits in {duration(outcome.wall_s)}: busy {outcome.busy_share:.0%}, "
            f"first Fit after {duration(outcome.startup_s)}; summed over all slots: {phases}"
        )
    elif not outcome.interrupted and not outcome.failed:
        out.print("nothing to run: every Fit is in the store")
    done = f"{outcome.num_done:,} of {num_fits:,} Fits are in the store"
    if outcome.trouble:
        err.print(
            f"[red]stopped:[/red] {escape(outcome.trouble)}\n{done} and intact. When the cause is fixed, go on with the "
            f"same command; log: {folder / LOG}"
        )
    elif outcome.interrupted:
        spent = f", since the budget is spent ({outcome.worker_hours:.3g} worker hours)" if outcome.budget_spent else ""
        out.print(f"stopped cleanly{spent}: {done}. Go on with the same command:")
        out.print(f"  {shlex.join(['w2s', *sys.argv[1:]])}", markup=False, soft_wrap=True)


def print_failures(outcome: Outcome, plan: Plan, *, study: Path, store_uri: str, folder: Path) -> None:
    folders = {fit.key: fit.folder for fit in plan.fits}
    err.print(f"[red]{len(outcome.failed)} Fit(s) failed, {outcome.num_blocked} are blocked by them:[/red]")
    for key, reason in list(outcome.failed.items())[:MAX_LISTED]:
        err.print(f"  {folders[key]}: {escape(reason)}")
    err.print(
        f"For details, run w2s status {study} --store {store_uri}, or read {folder / LOG}. "
        "To try these Fits again, add --retry-failed."
    )


def submit(
    study: StudyFile,
    address: Annotated[str, typer.Option(help="Job server of the cluster, such as http://127.0.0.1:8265.")],
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
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Print the job's output until it ends.")] = True,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the running job of this study.")] = False,
) -> None:
    """Run a study as a Ray job; the current folder is sent to the cluster. The same command again joins the job.

    Example: w2s submit nlp --address http://127.0.0.1:8265 --store s3://bucket/w2s
    """
    from w2s_ray.planning import check_splits
    from w2s_ray.run_options import RunOptions
    from w2s_ray.scheduling import submit as jobs
    from w2s_ray.study import load_study

    study_name = load_study(study).name
    if "://" not in store and not Path(store).is_absolute():
        raise InputError(
            f"--store {store}: is a relative path, which would lie in the job's own folder and be lost with it; give a "
            "bucket or an absolute path"
        )
    options = RunOptions(
        max_parallel=max_parallel,
        retry_failed=retry_failed,
        budget_hours=budget_hours,
        budget_usd=budget_usd,
        wait_for_nodes_min=wait_for_nodes,
        track=tuple(track or ()),
    )
    submission = jobs.Submission(study, name=study_name, address=address, store_uri=store, options=options)
    if not stop:
        check_splits(study)
    job = jobs.stop(submission, console=out) if stop else jobs.submit(submission, follow=follow, console=out)
    out.print(f"job {job.id}: {job.status.lower()}")
    if job.status == "FAILED":
        raise typer.Exit(1)
