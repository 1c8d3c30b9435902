"""Trackers: one run a Fit in their own local files; what fails there is no Fit's business."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner

from w2s_ray import cli
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.store import Store, open_store
from w2s_ray.tracking import Tracking, tracking
from w2s_ray.training.pack import run_pack

from tiny import save_study

GRID = {
    "pairs": [["small", "small"]],
    "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "evals_per_epoch": 2},
}


def run(folder: Path, *trackers: str) -> tuple[Store, Tracking]:
    """A study of three Fits, tracked."""
    store = open_store(folder / "store")
    wanted = tracking(list(trackers), study="tiny", folder=folder / "out")
    assert wanted is not None
    fits = list(load_plan(save_study(folder, grid=GRID)).fits)
    run_pack(fits, store_uri=store.uri, execution=Execution(), report=lambda event: None, tracking=wanted)
    assert len(store.committed(fits)) == 3
    return store, wanted


def scalars(file: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of TensorBoard's records: length, checksum, an event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    content = file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
        content = content[16 + length :]
    return found


def test_tensorboard_gets_the_learning_curve_of_each_fit(tmp_path: Path) -> None:
    store, wanted = run(tmp_path, "tensorboard")
    for fit in load_plan(tmp_path / "study.yaml").fits:
        (file,) = Path(wanted.folder, "tensorboard", "tiny", fit.folder).iterdir()
        curve = store.read_table(fit, "curve.parquet").to_pylist()
        said = scalars(file)
        assert [step for step, _ in said["test_accuracy"]] == [point["step"] for point in curve] == [3, 6, 9, 12]
        assert [value for _, value in said["test_accuracy"]] == pytest.approx([p["test_accuracy"] for p in curve])
        assert "verified_loss" not in said, "nothing is said of what there is not"


def test_mlflow_gets_a_run_for_each_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store, wanted = run(tmp_path, "mlflow")
    fits = {fit.folder: fit for fit in load_plan(tmp_path / "study.yaml").fits}
    client = MlflowClient(tracking_uri=Path(wanted.folder, "mlflow").as_uri())
    group = client.get_experiment_by_name("tiny")
    assert group is not None
    runs = client.search_runs([group.experiment_id])
    assert {run.info.run_name for run in runs} == set(fits)
    for run_ in runs:
        fit = fits[run_.info.run_name]
        assert run_.info.status == "FINISHED"
        assert run_.data.params["role"] == fit.role and run_.data.params["training.epochs"] == "2"
        said = client.get_metric_history(run_.info.run_id, "test_loss")
        curve = store.read_table(fit, "curve.parquet").to_pylist()
        assert {metric.step: metric.value for metric in said} == pytest.approx(
            {point["step"]: point["test_loss"] for point in curve}
        )


def test_a_fit_that_is_begun_again_goes_on_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store, wanted = run(tmp_path, "mlflow")
    first = load_plan(tmp_path / "study.yaml").fits[0]
    store.quarantine(first.folder)
    run(tmp_path, "mlflow")
    client = MlflowClient(tracking_uri=Path(wanted.folder, "mlflow").as_uri())
    group = client.get_experiment_by_name("tiny")
    assert group is not None and len(client.search_runs([group.experiment_id])) == 3


def test_wandb_is_offline_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install '.[trackers]'")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    _, wanted = run(tmp_path, "wandb")
    assert len(list(Path(wanted.folder, "wandb", "wandb").glob("offline-run-*/run-*.wandb"))) == 3


def test_a_tracker_that_fails_costs_no_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tensorboard").write_text("in the way")
    run(tmp_path, "tensorboard")
    assert "tensorboard does not track" in caplog.text


def test_no_secret_reaches_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "planted-and-looked-for")
    _, wanted = run(tmp_path, "tensorboard", "mlflow")
    files = [path for path in Path(wanted.folder).rglob("*") if path.is_file()]
    assert files and not any(b"planted-and-looked-for" in path.read_bytes() for path in files)
    os.environ.pop("MLFLOW_ALLOW_FILE_STORE", None)


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app, ["run", str(save_study(tmp_path)), "--store", str(tmp_path / "store"), "--track", "tensorbord"]
    )
    said = str(result.exception)
    assert "--track: given 'tensorbord', allowed are tensorboard, mlflow, wandb" in said and "did you mean" in said
    assert not (tmp_path / "store").exists()
