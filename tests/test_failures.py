"""Fits that cannot be trained fail alone, with a reason; rows that no model can read are left out for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from w2s_ray.errors import InputError
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.store import open_store
from w2s_ray.training import train_fit
from w2s_ray.training.engine import Engine
from w2s_ray.training.pack import run_pack

from tiny import save_model, save_study
from trained import fits_of, quiet, study_of, train


def test_a_nan_fails_alone_with_its_step(folder: Path, tmp_path: Path) -> None:
    fits = fits_of(folder)
    supervisor = fits[0]
    sick = replace(supervisor, training=replace(supervisor.training, learning_rate=1e30))
    store = open_store(tmp_path / "store")
    events: list[dict[str, Any]] = []
    run_pack(
        [sick, replace(fits[-1], labels=(sick,)), supervisor],
        store_uri=store.uri,
        execution=Execution(),
        report=events.append,
    )
    failures = store.read_failures()
    assert "step" in failures[sick.key]["reason"]
    assert failures[sick.key]["kind"] == "nan"
    assert [e["event"] for e in events if e["event"] != "step"] == ["start", "failed", "done"]
    [failed] = [e for e in events if e["event"] == "failed"]
    assert failed["detail"].startswith("Traceback") and failed["reason"] in failed["detail"]
    assert store.is_committed(supervisor) and not store.is_committed(sick)


def test_out_of_memory_halves_the_micro_batch(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fits_of(folder)[0]
    tried = []

    def small_engine(model: Any, *, training: Any, execution: Execution) -> Engine:
        tried.append(execution.micro_batch_size)
        if execution.micro_batch_size is None or execution.micro_batch_size > 4:
            raise torch.OutOfMemoryError("no memory left")
        return Engine(model, training=training, execution=execution)

    monkeypatch.setattr(train_fit, "Engine", small_engine)
    store = train([fit], tmp_path / "store")
    assert tried == [16, 8, 4] and store.is_committed(fit)


def test_labels_that_do_not_match_are_refused(folder: Path, tmp_path: Path) -> None:
    fits = fits_of(folder)
    student = next(f for f in fits if f.labels)
    assert student.labels
    store = train(student.labels, tmp_path / "store")
    again = tmp_path / "again"
    again.mkdir()
    table = store.read_table(student.labels[0], "labels.parquet")
    store.quarantine(student.labels[0].folder)
    pq.write_table(table.slice(1), again / "labels.parquet")
    store.commit(student.labels[0], again)
    run_pack([student], store_uri=store.uri, execution=Execution(), report=quiet)
    assert "lacks 1 of the 96 rows" in store.read_failures()[student.key]["reason"]


def test_a_completion_that_its_tokenizer_loses_fails_with_its_name(folder: Path, tmp_path: Path) -> None:
    text = (folder / "writing.yaml").read_text().replace("'{right}'", "'{right} unheard'")
    (folder / "lost.yaml").write_text(text.replace("name: writing", "name: lost"))
    plan = load_plan(study_of(folder, "lost.yaml"))
    store = open_store(tmp_path / "store")
    run_pack([plan.fits[0]], store_uri=store.uri, execution=Execution(), report=quiet)
    [failure] = store.read_failures().values()
    assert "unheard' becomes" in failure["reason"] and "no model could match it" in failure["reason"]


def test_what_cannot_write_is_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"grids\[0\]\.tasks\[0\].*a linear probe cannot learn"):
        load_plan(study_of(folder, "writing.yaml", training={"tune": "head"}))
    save_model(folder / "encoder", "bert")
    with pytest.raises(InputError, match=r"needs a decoder that can generate; family own has encoders only"):
        load_plan(study_of(folder, "writing.yaml", models=[{"name": "e", "path": "encoder"}], pairs="all"))


def test_rows_too_long_for_any_model_are_dropped_for_all(tmp_path: Path) -> None:
    save_study(tmp_path)
    study = save_study(
        tmp_path, grid={"training": {"epochs": 1, "max_tokens": 4}, "split": {"num_train": 40, "num_test": 20}}
    )
    fits = load_plan(study).fits
    store = train(fits, tmp_path / "store")
    assert '"num_too_long": 0' not in store.read_file(fits[0].folder, "fit.json").decode()
    ids = {tuple(store.read_table(fit, "test.parquet").column("id").to_pylist()) for fit in fits}
    assert len(ids) == 1, "one test set for all"
