"""Fits that are interrupted end in the same bytes, and so do Fits in another order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from w2s_ray.fit import Execution, Fit
from w2s_ray.store import open_store
from w2s_ray.training import checkpoint, loop
from w2s_ray.training.pack import run_pack
from w2s_ray.training.worker import Report

from trained import Killed, files_of, fits_of, predictions_of, probabilities, quiet, torchrun, train


def kill_at(step: int) -> Report:
    """A report that kills its process at a step."""

    def report(event: dict[str, Any]) -> None:
        if event.get("step") == step:
            raise Killed

    return report


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_an_interrupted_fit_ends_in_the_same_bytes(
    zero_stage: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 0.0)  # a report, and so a checkpoint, at every step
    fit = next(f for f in fits_of(folder) if f.half == "A")
    execution = Execution(zero_stage=zero_stage, checkpoint_every_s=0.0)
    whole = train([fit], tmp_path / "whole", replace(execution, checkpoint_every_s=1e9))
    broken = open_store(tmp_path / "broken")

    for step in (4, 5):
        with pytest.raises(Killed):
            run_pack([fit], store_uri=broken.uri, execution=execution, report=kill_at(step))
    assert not broken.is_committed(fit)
    weights = Path(broken.storage.root, "partial", fit.folder, "step-000000004", "model.safetensors")
    assert weights.exists(), "the checkpoint of the first run carried the second one on"
    run_pack([fit], store_uri=broken.uri, execution=execution, report=quiet)
    assert files_of(whole, fit) == files_of(broken, fit)
    assert '"resumed_from_step": 4' in broken.read_file(fit.folder, "fit.json").decode()
    assert not Path(broken.storage.root, "partial", fit.folder).exists()


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_the_best_point_on_the_rows_held_out_predicts(
    zero_stage: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if training had ended there, however often it was interrupted on the way."""
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 0.0)
    training = {"epochs": 4, "batch_size": 16, "learning_rate": 0.02, "schedule": "constant", "validation": 0.25}
    execution = Execution(zero_stage=zero_stage, checkpoint_every_s=1e9)

    def supervisor(**more: Any) -> Fit:
        return next(fit for fit in fits_of(folder, training=training | more) if fit.half == "A" and not fit.labels)

    stopped = supervisor(stop="validation")
    store = train([stopped], tmp_path / "stopped", execution)
    curve = store.read_table(stopped, "curve.parquet").to_pydict()
    best = int(np.argmax(curve["validation_accuracy"]))
    assert best < len(curve["step"]) - 1, "the last point is not the best"
    accuracy = curve["test_accuracy"][best]
    truth = pl.DataFrame(store.read_truth(stopped)).filter(half="test")
    joined = predictions_of(store, stopped).join(truth, on="id")
    assert ((joined["probability"] > 0.5) == (joined["label"] == 1)).mean() == pytest.approx(accuracy)
    assert f'"best_step": {curve["step"][best]}' in store.read_file(stopped.folder, "fit.json").decode()
    last = train([supervisor()], tmp_path / "last", execution)
    assert last.read_table(supervisor(), "curve.parquet").to_pydict() == curve, "training itself is the same"
    assert not np.allclose(probabilities(last, supervisor()), probabilities(store, stopped))

    broken = open_store(tmp_path / "broken")
    report = kill_at(curve["step"][-1] - 1)
    with pytest.raises(Killed):
        run_pack([stopped], store_uri=broken.uri, execution=replace(execution, checkpoint_every_s=0.0), report=report)
    run_pack([stopped], store_uri=broken.uri, execution=execution, report=quiet)
    assert files_of(store, stopped) == files_of(broken, stopped)


def test_a_truncated_checkpoint_is_passed_over(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 0.0)
    fit = fits_of(folder)[0]
    store = open_store(tmp_path / "store")
    execution = Execution(checkpoint_every_s=0.0)
    with pytest.raises(Killed):
        run_pack([fit], store_uri=store.uri, execution=execution, report=kill_at(5))
    weights = Path(store.storage.root, "partial", fit.folder, "step-000000004", "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    run_pack([fit], store_uri=store.uri, execution=execution, report=quiet)
    assert files_of(store, fit) == files_of(train([fit], tmp_path / "whole", execution), fit)


def test_a_checkpoint_of_another_layout_is_passed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 0.0)
    fit = fits_of(folder)[0]
    store = open_store(tmp_path / "store")
    execution = Execution(checkpoint_every_s=0.0)
    with monkeypatch.context() as before, pytest.raises(Killed):
        before.setattr(checkpoint, "LAYOUT", 1)
        run_pack([fit], store_uri=store.uri, execution=execution, report=kill_at(5))
    run_pack([fit], store_uri=store.uri, execution=execution, report=quiet)
    assert '"resumed_from_step": 0' in store.read_file(fit.folder, "fit.json").decode()
    assert files_of(store, fit) == files_of(train([fit], tmp_path / "whole", execution), fit)


IN_PARTS = """
import sys
import torch.distributed as dist
dist.init_process_group("gloo")
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.training import checkpoint, loop
from w2s_ray.training.pack import run_pack
loop.REPORT_EVERY_S = 0.0

def kill(event):
    if event.get("step") == 4:
        raise KeyboardInterrupt

study, whole, broken = sys.argv[1:]
fits = [load_plan(study).fits[0]]
execution = Execution(workers=2, zero_stage=3, checkpoint_every_s=0.0)
run_pack(fits, store_uri=whole, execution=execution, report=lambda event: None)
try:
    run_pack(fits, store_uri=broken, execution=execution, report=kill)
except KeyboardInterrupt:
    pass
run_pack(fits, store_uri=broken, execution=execution, report=lambda event: None)
dist.destroy_process_group()
"""


def test_workers_that_have_a_part_of_the_weights_resume_with_their_parts(folder: Path, tmp_path: Path) -> None:
    fit = fits_of(folder)[0]
    stores = [open_store(tmp_path / name) for name in ("whole", "broken")]
    done = torchrun(IN_PARTS, str(folder / "study.yaml"), *(store.uri for store in stores), folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, broken = stores
    assert '"resumed_from_step": 3' in broken.read_file(fit.folder, "fit.json").decode()
    assert files_of(whole, fit) == files_of(broken, fit)


def test_the_order_of_fits_in_a_process_does_not_show(folder: Path, tmp_path: Path) -> None:
    fits = fits_of(folder)
    forwards = train(fits, tmp_path / "forwards")
    for _ in range(2):  # the first time round, students come before their supervisors and are left
        backwards = train(reversed(fits), tmp_path / "backwards")
    for fit in fits:
        assert files_of(forwards, fit) == files_of(backwards, fit)
