"""Workers, micro-batches, ZeRO stages and activation checkpointing do not change the numbers, in any setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from w2s_ray.fit import Execution
from w2s_ray.store import open_store
from w2s_ray.training.loss import BatchLoss, MicroBatch

from trained import ODD_BATCHES, fits_of, predictions_of, probabilities, study_of, torchrun, train, train_study

SHORT = {"epochs": 1, "batch_size": 20, "learning_rate": 0.01}
STOPPING = SHORT | {"epochs": 2, "validation": 0.25, "stop": "validation", "evals_per_epoch": 4}


@pytest.mark.parametrize("method", ["naive", "confidence"])
def test_execution_knobs_do_not_change_the_numbers(method: str, folder: Path, tmp_path: Path) -> None:
    fits = fits_of(folder, methods=[method], pairs=[["small", "big"]], training=ODD_BATCHES)
    student = next(fit for fit in fits if fit.labels)
    plain = probabilities(train([*student.labels, student], tmp_path / "plain"), student)
    for name, execution in {
        "micro-batches": Execution(micro_batch_size=5),
        "zero-0": Execution(zero_stage=0),
        "zero-2": Execution(zero_stage=2, micro_batch_size=7),
        "zero-3": Execution(zero_stage=3),
        "activation checkpointing": Execution(activation_checkpointing=True),
    }.items():
        store = train([*student.labels, student], tmp_path / name, execution)
        np.testing.assert_allclose(probabilities(store, student), plain, atol=1e-4, err_msg=name)


@pytest.mark.slow  # a minute of compilation
def test_nor_does_the_compiler(folder: Path, tmp_path: Path) -> None:
    fits = fits_of(folder, pairs=[["small", "big"]], training=ODD_BATCHES)
    student = next(fit for fit in fits if fit.labels)
    plain, compiled = (
        probabilities(train([*student.labels, student], tmp_path / str(compile), Execution(compile=compile)), student)
        for compile in (False, True)
    )
    np.testing.assert_allclose(compiled, plain, atol=1e-4)
    assert (compiled != plain).any(), "the kernels are others"


def test_rows_of_similar_length_share_a_micro_batch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest come first. The rows of a step stay the same, as the numbers above show."""
    steps: list[list[int]] = []
    cut = BatchLoss._micro_batches

    def recorded(self: BatchLoss, *arguments: Any) -> list[MicroBatch]:
        micro_batches = cut(self, *arguments)
        steps.append([micro_batch.inputs[0].shape[1] for micro_batch in micro_batches if micro_batch.rows])
        return micro_batches

    monkeypatch.setattr(BatchLoss, "_micro_batches", recorded)
    train(fits_of(folder, training=ODD_BATCHES)[:1], tmp_path / "store", Execution(micro_batch_size=4))
    assert [len(widths) for widths in steps] == [5, 5, 5, 5, 4]
    assert all(widths == sorted(widths, reverse=True) for widths in steps), steps
    assert any(widths[0] > widths[-1] for widths in steps), "the texts are not of one length"


@pytest.mark.parametrize("task", ["writing.yaml", "choosing.yaml"])
def test_nor_completions_and_comparisons(task: str, folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, task, training=SHORT, methods=["confidence"])
    plain, fits = train_study(study, tmp_path / "plain")
    for name, execution in {
        "micro-batches": Execution(micro_batch_size=5),
        "zero-2": Execution(zero_stage=2, micro_batch_size=7),
        "zero-3": Execution(zero_stage=3),
    }.items():
        store = train(fits, tmp_path / name, execution)
        for fit in fits:
            expected, actual = predictions_of(plain, fit), predictions_of(store, fit)
            np.testing.assert_allclose(actual["probability"], expected["probability"], atol=1e-4, err_msg=name)
            if "completion" in expected.columns:
                assert actual["completion"].to_list() == expected["completion"].to_list()


TWO_WORKERS = """
import json, sys
import torch.distributed as dist
dist.init_process_group("gloo")
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.training.pack import run_pack
for study, store, zero_stage in json.loads(sys.argv[1]):
    execution = Execution(workers=2, zero_stage=zero_stage)
    run_pack(list(load_plan(study).fits), store_uri=store, execution=execution, report=lambda event: None)
dist.destroy_process_group()
"""


CASES = {
    "methods-1": ("toy.yaml", 1, {"methods": ["combined", "reliability", "sieve"], "training": ODD_BATCHES}),
    "methods-3": ("toy.yaml", 3, {"methods": ["confidence"], "training": ODD_BATCHES}),
    "writing": ("writing.yaml", 3, {"training": SHORT}),
    "choosing": ("choosing.yaml", 3, {"training": SHORT}),
    "probe": ("choosing.yaml", 3, {"training": SHORT | {"tune": "head"}}),
    "stopping-1": ("toy.yaml", 1, {"training": STOPPING}),
    "stopping-3": ("toy.yaml", 3, {"training": STOPPING}),
    "untrained": ("toy.yaml", 3, {"methods": [{"name": "zero_shot", "calibrate": True}], "training": SHORT}),
}


@pytest.mark.parametrize(
    "cases", [("methods-1", "writing", "probe", "stopping-3"), pytest.param(tuple(CASES), marks=pytest.mark.slow)]
)
def test_two_workers_give_the_numbers_of_one(cases: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """Several methods and the best point's weights under ZeRO-1 and 3; the other settings, probes and untrained models under
    ZeRO-3."""
    expected, runs = {}, []
    for name in cases:
        task, zero_stage, grid = CASES[name]
        study = study_of(folder, task, **grid).rename(folder / f"two-{name}.yaml")
        expected[name] = train_study(study, tmp_path / f"{name}-one")
        runs.append((str(study), str(tmp_path / f"{name}-two"), zero_stage))
    done = torchrun(TWO_WORKERS, json.dumps(runs), folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (one, fits) in expected.items():
        two = open_store(tmp_path / f"{name}-two")
        assert two.read_failures() == {}, name
        for fit in (fit for fit in fits if fit.role != "reading"):
            np.testing.assert_allclose(probabilities(two, fit), probabilities(one, fit), atol=1e-4, err_msg=name)


ONE_WORKER_FAILS = """
import sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.training import pack, train_fit
from w2s_ray.training.loop import TrainingLoop
plan, rank = load_plan(sys.argv[1]), dist.get_rank()
prepare, step = train_fit.prepare, TrainingLoop.step
def fails_to_read(fit):
    if rank == 1 and fit.seed == 1:
        raise OSError("the disk of worker 1 is gone")
    return prepare(fit)
def runs_out(self, batch):
    if rank == 1 and self.fit == plan.fits[0] and self.engine.micro_batch_size > 5:
        raise torch.OutOfMemoryError("out of memory")
    return step(self, batch)
train_fit.prepare = fails_to_read
TrainingLoop.step = runs_out
pack.run_pack(list(plan.fits), store_uri=sys.argv[2], execution=Execution(workers=2), report=lambda event: None)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_what_one_worker_meets_the_others_learn(folder: Path, tmp_path: Path) -> None:
    """A file that one worker can't read fails the Fit on all of them, and the next Fit runs. One worker out of memory ends the
    group, and the next group takes smaller micro-batches."""
    grid = {"models": [{"name": "small", "path": "small"}], "seeds": 2, "training": ODD_BATCHES}
    fits = fits_of(folder, **grid)
    store, study = open_store(tmp_path / "store"), str(folder / "study.yaml")
    assert torchrun(ONE_WORKER_FAILS, study, store.uri, folder=tmp_path).returncode == 1, "ten rows don't fit"
    assert store.advised_micro_batch(fits[0]) == 5
    assert not store.read_failures(), "that another worker went away is no failure of the Fit"
    done = torchrun(ONE_WORKER_FAILS, study, store.uri, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    failures = store.read_failures()
    for fit in fits:
        reason = failures.get(fit.key, {}).get("reason")
        assert reason == ("the disk of worker 1 is gone" if fit.seed == 1 and not fit.labels else None)
        assert store.is_committed(fit) == (fit.seed == 0)
    record = store.read_file(fits[0].folder, "fit.json").decode()
    assert '"micro_batch_size": 5' in record
    assert not Path(store.storage.root, "partial", fits[0].folder).exists(), "forgotten with the commit"
