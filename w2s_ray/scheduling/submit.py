"""A study as a Ray job: the working tree travels to the cluster, `w2s run` runs there, its lines come back.

Promises: the same command joins the job that is running rather than starting another; leaving (Ctrl-C) leaves the job
alone; nothing of this machine's environment goes into the job's record.
"""

from __future__ import annotations

import asyncio
import hashlib
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from w2s_ray.errors import InputError

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
"""What of the working tree stays here: history, environments, caches, results."""
AGENT_S = 60.0
LARGEST_BYTES = 500 * 2**20
"""Ray takes a working directory of at most so much."""


@dataclass(frozen=True)
class Job:
    id: str
    status: str
    """Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""


def submit(
    study: Path, *, name: str, address: str, arguments: list[str], follow: bool, stop: bool, console: Console
) -> Job:
    """Submit or join; with `stop`, stop the job that is running."""
    client = _client(address)
    folder = Path.cwd()
    if not study.resolve().is_relative_to(folder):
        raise InputError(f"{study}: lies outside of {folder}, which is what travels; submit from a folder above it")
    entrypoint = shlex.join(
        ["python", "-m", "w2s_ray.cli", "run", str(study.resolve().relative_to(folder)), *arguments]
    )
    stem = f"w2s-{name}-{hashlib.sha256(entrypoint.encode()).hexdigest()[:8]}"
    known = {job.submission_id: job for job in client.list_jobs() if (job.submission_id or "").startswith(stem)}
    running = next((id_ for id_, job in known.items() if not job.status.is_terminal()), None)
    if stop:
        if running is None:
            raise InputError(f"--stop: no job of this study runs at {address}")
        client.stop_job(running)
        console.print(f"job {running} is told to stop; what it has finished is in the store")
        return Job(running, "STOPPED")
    if running is not None:
        job_id = running
        console.print(f"job {job_id} runs already: joined")
    else:
        _check_size(folder)
        job_id = _submitted(
            client,
            entrypoint=entrypoint,
            submission_id=f"{stem}-{len(known) + 1}",
            runtime_env={"working_dir": str(folder), "excludes": list(EXCLUDES)},
            metadata={"study": name},
        )
        console.print(f"job {job_id} is submitted to {address}")
    if follow:
        try:
            asyncio.run(_follow(client, job_id, console))
        except KeyboardInterrupt:
            console.print(f"left job {job_id}, which goes on; the same command joins it again, --stop stops it")
    return Job(job_id, str(client.get_job_status(job_id).value))


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


def _submitted(client: Any, **job: Any) -> str:
    """The job's id. A cluster that has just started has no agent yet to take a job."""
    deadline_s = time.monotonic() + AGENT_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "agent" not in str(error) or time.monotonic() > deadline_s:
                raise InputError(f"submit: the cluster did not take the job: {str(error).strip()[:500]}") from error
            time.sleep(3)


def _check_size(folder: Path) -> None:
    """Say what is too large before Ray packs it."""
    sizes: dict[str, int] = {}
    tops = [path for path in folder.iterdir() if path.name not in EXCLUDES]
    for top in tops:
        files = [top] if top.is_file() else (path for path in top.rglob("*") if path.is_file())
        sizes[top.name] = sum(path.stat().st_size for path in files)
    if sum(sizes.values()) > LARGEST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        shown = ", ".join(f"{name} ({sizes[name] / 2**20:,.0f} MiB)" for name in largest)
        raise InputError(
            f"submit: {folder} is too large to travel ({sum(sizes.values()) / 2**20:,.0f} MiB; at most "
            f"{LARGEST_BYTES // 2**20}); the largest: {shown}. Submit from a smaller folder"
        )


async def _follow(client: Any, job_id: str, console: Console) -> None:
    async for lines in client.tail_job_logs(job_id):
        console.print(lines, end="", markup=False)
