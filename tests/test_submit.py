"""`w2s submit` without a cluster: the command that a job runs, and how a job is submitted, joined and stopped."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from w2s_ray import cli
from w2s_ray.run_options import RunOptions
from w2s_ray.scheduling import submit

from tiny import save_study

OPTIONS = RunOptions(
    max_parallel=3,
    retry_failed=True,
    budget_hours=1.5,
    budget_usd=20.0,
    wait_for_nodes_min=5.0,
    track=("tensorboard", "mlflow"),
)


class Status(str):
    @property
    def value(self) -> str:
        return str(self)

    def is_terminal(self) -> bool:
        return self != "RUNNING"


@dataclass
class JobServer:
    """What Ray's job client would say."""

    jobs: dict[str, Status] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)

    def list_jobs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(submission_id=job_id, status=status) for job_id, status in self.jobs.items()]

    def submit_job(self, **job: Any) -> str:
        self.submitted.append(job)
        self.jobs[job["submission_id"]] = Status("RUNNING")
        return str(job["submission_id"])

    def stop_job(self, job_id: str) -> None:
        self.jobs[job_id] = Status("STOPPED")

    def get_job_status(self, job_id: str) -> Status:
        return self.jobs[job_id]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> JobServer:
    server = JobServer()
    monkeypatch.setattr(submit, "_client", lambda address: server)
    return server


def w2s_submit(*more: str) -> Result:
    fixed = ["submit", "study.yaml", "--address", "http://head:8265", "--store", "s3://bucket/w2s", "--no-follow"]
    return CliRunner().invoke(cli.app, [*fixed, *more])


def test_every_option_of_a_run_reaches_the_job() -> None:
    command = typer.main.get_command(cli.app).commands["run"]  # type: ignore[attr-defined]
    given = command.make_context("run", ["study.yaml", *OPTIONS.arguments()]).params
    assert {name: given[name] for name in ("max_parallel", "retry_failed", "budget_hours", "budget_usd")} == {
        "max_parallel": 3,
        "retry_failed": True,
        "budget_hours": 1.5,
        "budget_usd": 20.0,
    }
    assert given["wait_for_nodes"] == 5.0 and list(given["track"]) == ["tensorboard", "mlflow"]
    assert RunOptions().arguments() == []


def test_the_same_command_joins_the_job(server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    first = w2s_submit("--max-parallel", "2")
    assert first.exit_code == 0 and "is submitted to http://head:8265" in first.output
    assert "running already: joined" in w2s_submit("--max-parallel", "2").output
    (job,) = server.submitted
    assert shlex.split(job["entrypoint"]) == [
        *("python", "-m", "w2s_ray.cli", "run", "study.yaml"),
        *("--store", "s3://bucket/w2s", "--address", "auto", "--max-parallel", "2"),
    ]
    assert "is submitted" in w2s_submit().output, "other options are another job"


def test_a_job_that_was_stopped_is_submitted_again(
    server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    w2s_submit()
    stopped = w2s_submit("--stop")
    assert stopped.exit_code == 0 and ": stopped" in stopped.output
    assert "is running at http://head:8265" in str(w2s_submit("--stop").exception)
    w2s_submit()
    assert [job["submission_id"].rpartition("-")[2] for job in server.submitted] == ["1", "2"]


def test_a_ready_made_study_needs_no_file_in_the_folder(
    server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["submit", "quickstart", "--address", "http://head:8265", "--store", "s3://bucket/w2s", "--no-follow"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert shlex.split(server.submitted[0]["entrypoint"])[3:5] == ["run", "quickstart"]


@pytest.mark.parametrize("train", ["data/toy.parquet", "linked.parquet"])
def test_what_lies_in_the_folder_travels(
    server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str
) -> None:
    save_study_with_data(tmp_path / "study", train=train)
    monkeypatch.chdir(tmp_path / "study")
    assert CliRunner().invoke(cli.app, ["plan", "study.yaml"]).exit_code == 0
    assert w2s_submit().exit_code == 0 and len(server.submitted) == 1


@pytest.mark.parametrize("train", ["../toy.parquet", "{folder}/study/data/toy.parquet"])
def test_what_does_not_travel_is_refused_by_submit_alone(
    server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str
) -> None:
    train = train.format(folder=tmp_path)
    save_study_with_data(tmp_path / "study", train=train)
    monkeypatch.chdir(tmp_path / "study")
    assert CliRunner().invoke(cli.app, ["plan", "study.yaml"]).exit_code == 0
    message = str(w2s_submit().exception)
    assert f"grids[0].tasks[0]: toy.yaml: train: '{train}' does not reach the cluster" in message
    assert not server.submitted


def save_study_with_data(folder: Path, *, train: str) -> None:
    """A study with its task's file above the folder, in a folder below it, and behind a link."""
    save_study(folder)
    (folder / "data").mkdir()
    (folder / "toy.parquet").rename(folder.parent / "toy.parquet")
    shutil.copy(folder.parent / "toy.parquet", folder / "data")
    (folder / "linked.parquet").symlink_to(folder.parent / "toy.parquet")
    task = yaml.safe_load((folder / "toy.yaml").read_text())
    (folder / "toy.yaml").write_text(yaml.safe_dump(task | {"train": train}))


def test_a_study_outside_of_the_folder_is_refused(
    server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_study(tmp_path)
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    arguments = ["submit", "../study.yaml", "--address", "http://head:8265", "--store", "s3://bucket/w2s"]
    assert "outside of the current folder" in str(CliRunner().invoke(cli.app, arguments).exception)
    assert not server.submitted
