"""A study as a Ray job: the current folder is sent to the cluster, `w2s run` runs there, and its output is printed here.

Promises: a study whose files do not lie in that folder is refused before anything is sent. The same command joins the running
job instead of starting another. Ctrl-C leaves the job running. No environment variable of this machine goes into the job's
record.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from w2s_ray.errors import InputError
from w2s_ray.families import load_family
from w2s_ray.run_options import RunOptions
from w2s_ray.study import Study, find_study, load_study
from w2s_ray.tasks import load_task

EXCLUDES = (
    ".git",
    ".venv",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "**/__pycache__",
    "**/*.egg-info",
    "w2s-store",
    "w2s-out",
)
"""What of the folder is not sent: history, environments, caches, results."""
YAML = (".yaml", ".yml")
MAX_AGENT_WAIT_S = 60.0
MAX_FOLDER_BYTES = 500 * 2**20
"""Ray takes no larger working directory."""


@dataclass(frozen=True)
class Submission:
    """A study to run as a job, and where."""

    study: Path
    """As it was given: a file, or the name of a ready-made study, which every node has."""
    name: str
    """The study's."""
    address: str
    """Of the cluster's job server."""
    store_uri: str
    options: RunOptions

    def entrypoint(self, folder: Path) -> str:
        """The command that the job runs in its copy of `folder`."""
        command = ["python", "-m", "w2s_ray.cli", "run", self._study_there(folder)]
        return shlex.join([*command, "--store", self.store_uri, "--address", "auto", *self.options.arguments()])

    def _study_there(self, folder: Path) -> str:
        """What names the study in the job: its path in `folder`, or a ready-made study's name."""
        path = find_study(self.study)
        if path != self.study:
            return str(self.study)
        if not path.resolve().is_relative_to(folder):
            raise InputError(
                f"{path}: is outside of the current folder {folder}, and only that folder is sent to the cluster; "
                "change to a folder that contains the study"
            )
        return str(path.resolve().relative_to(folder))


@dataclass(frozen=True)
class Job:
    id: str
    status: str
    """Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""


def submit(submission: Submission, *, follow: bool, console: Console) -> Job:
    """Submit the job, or join it if it is running. With `follow`, print its output until it ends."""
    client = _client(submission.address)
    folder = Path.cwd()
    entrypoint = submission.entrypoint(folder)
    job_id, num_before = _find_job(client, submission, entrypoint)
    if job_id is not None:
        console.print(f"job {job_id} is running already: joined")
    else:
        _check_places(submission, folder)
        _check_size(folder)
        job_id = _submit_job(
            client,
            entrypoint=entrypoint,
            submission_id=f"{_id_stem(submission, entrypoint)}-{num_before + 1}",
            runtime_env={"working_dir": str(folder), "excludes": list(EXCLUDES)},
            metadata={"study": submission.name},
        )
        console.print(f"job {job_id} is submitted to {submission.address}")
    if follow:
        try:
            asyncio.run(_print_output(client, job_id, console))
        except KeyboardInterrupt:
            console.print(f"left job {job_id} running; the same command joins it again, --stop stops it")
    return Job(job_id, str(client.get_job_status(job_id).value))


def stop(submission: Submission, *, console: Console) -> Job:
    """Stop the running job of this study."""
    client = _client(submission.address)
    job_id, _ = _find_job(client, submission, submission.entrypoint(Path.cwd()))
    if job_id is None:
        raise InputError(f"--stop: no job of this study with these options is running at {submission.address}")
    client.stop_job(job_id)
    console.print(f"stopping job {job_id}; the Fits that it has finished are in the store")
    return Job(job_id, "STOPPED")


def _id_stem(submission: Submission, entrypoint: str) -> str:
    """The same for the same command, whichever machine it is given on."""
    return f"w2s-{submission.name}-{hashlib.sha256(entrypoint.encode()).hexdigest()[:8]}"


def _find_job(client: Any, submission: Submission, entrypoint: str) -> tuple[str | None, int]:
    """The running job of this command, and how many jobs of it there have been."""
    stem = _id_stem(submission, entrypoint)
    jobs = {job.submission_id: job for job in client.list_jobs() if (job.submission_id or "").startswith(stem)}
    running = next((job_id for job_id, job in jobs.items() if not job.status.is_terminal()), None)
    return running, len(jobs)


def _client(address: str) -> Any:
    try:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(address)
    except (ImportError, RuntimeError) as error:
        if "ray[default]" in str(error) or isinstance(error, ImportError):
            raise InputError("submit: Ray's job client is not installed; pip install 'w2s_ray[cluster]'") from error
        raise InputError(f"--address {address}: no job server answers there ({error})") from error
    except ConnectionError as error:
        raise InputError(f"--address {address}: no job server answers there ({error})") from error


def _submit_job(client: Any, **job: Any) -> str:
    """Submit, and return the job's id. A cluster that has just started may need a while until an agent takes jobs."""
    deadline_s = time.monotonic() + MAX_AGENT_WAIT_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "agent" not in str(error) or time.monotonic() > deadline_s:
                raise InputError(f"submit: the cluster refused the job: {str(error).strip()[:500]}") from error
            time.sleep(3)


def _check_places(submission: Submission, folder: Path) -> None:
    """Refuse a study of files that the job will not find in its copy of `folder`."""
    path = find_study(submission.study)
    if path != submission.study:
        return  # a ready-made one, which names no files
    for where, base, name in _files_named(load_study(path), path.absolute().parent):
        place = Path(os.path.normpath(base / name))  # a link in the folder is sent as the file that it leads to
        if Path(name).is_absolute() or not place.is_relative_to(folder):
            raise InputError(
                f"{path}: {where}: '{name}' does not reach the cluster: only the current folder is sent, {folder}. Give a path "
                "below it, relative to the file that names it; or, where all nodes see the file, run on one of them: w2s run "
                "STUDY --address auto"
            )


def _files_named(study: Study, base: Path) -> Iterator[tuple[str, Path, str]]:
    """(where it is named, the folder it is seen from, its path) of each file that a study's grids name. Absolute paths of
    weights are left out: these are too large to send, and lie on storage that all nodes share."""
    for i, grid in enumerate(study.grids):
        for model in grid.models or ():
            if model.path is not None and not Path(model.path).is_absolute():
                yield f"grids[{i}].models '{model.name}'", base, model.path
        if grid.family is not None and grid.family.endswith(YAML):
            yield f"grids[{i}].family", base, grid.family
            family = load_family(grid.family, base=base)
            local = [size.source for size in family.sizes if size.source.startswith("./")]
            yield from ((f"grids[{i}].family", (base / grid.family).parent, source) for source in local)
        for j, name in enumerate(grid.tasks):
            yield from _files_of_task(f"grids[{i}].tasks[{j}]", base, name)


def _files_of_task(where: str, base: Path, name: str) -> Iterator[tuple[str, Path, str]]:
    if not name.endswith(YAML):
        return
    yield where, base, name
    task, folder = load_task(name, base=base), (base / name).parent
    for part, source in task.sources.items() if task.hub is None else ():
        if not source.startswith("https://"):
            yield f"{where}: {name}: {part}", folder, source
    if task.test_of is not None:
        yield from _files_of_task(f"{where}: {name}: test_of", folder, task.test_of)


def _check_size(folder: Path) -> None:
    """Refuse a folder that Ray would refuse, before Ray packs it, and name what is large in it."""
    sizes: dict[str, int] = {}
    for top in folder.iterdir():
        if top.name not in EXCLUDES:
            files = [top] if top.is_file() else (path for path in top.rglob("*") if path.is_file())
            sizes[top.name] = sum(path.stat().st_size for path in files)
    if sum(sizes.values()) > MAX_FOLDER_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        shown = ", ".join(f"{name} ({sizes[name] / 2**20:,.0f} MiB)" for name in largest)
        raise InputError(
            f"submit: {folder} has {sum(sizes.values()) / 2**20:,.0f} MiB, which is too large to send; allowed are "
            f"{MAX_FOLDER_BYTES // 2**20} MiB. The largest: {shown}. Submit from a smaller folder"
        )


async def _print_output(client: Any, job_id: str, console: Console) -> None:
    async for lines in client.tail_job_logs(job_id):
        console.print(lines, end="", markup=False, soft_wrap=True)
