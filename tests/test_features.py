"""Features of frozen models: read once, read again where they are damaged, and what a probe makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.store import open_store
from w2s_ray.training import features
from w2s_ray.training.data import prepare
from w2s_ray.training.worker import Worker

from trained import LEARNING, predictions_of, quiet, study_of, train_study


def test_features_are_read_once_and_again_where_they_are_damaged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_cache", {})
    study = study_of(folder, "toy.yaml", training=LEARNING | {"tune": "head"}, seeds=2)
    store, fits = train_study(study, tmp_path / "store")
    kept = {path: path.read_bytes() for path in Path(store.storage.root, "features").iterdir()}
    names = [path.name.split("-")[3] for path in kept]
    assert names.count("test") == 2, "the test set once for each model, whatever the number of Fits and seeds"
    assert names.count("halves") == 4, "the halves once for each model and seed"
    first = next(path for path in kept if "-halves-" in path.name)
    first.write_bytes(first.read_bytes()[:-10])
    features._cache.clear()
    extracted = []
    extract = features._extract_part
    monkeypatch.setattr(features, "_extract_part", lambda *a, **k: extracted.append(1) or extract(*a, **k))
    for fit in fits:
        Path(store.storage.path("fits", fit.folder, "done.json")).unlink()
    before = {fit.key: Path(store.storage.path("fits", fit.folder, "test.parquet")).read_bytes() for fit in fits}
    train_study(study, tmp_path / "store")
    assert len(extracted) == 2, "two halves of one model"
    assert {path: path.read_bytes() for path in kept} == kept
    for fit in fits:
        assert Path(store.storage.path("fits", fit.folder, "test.parquet")).read_bytes() == before[fit.key]


def test_the_driver_is_told_how_much_is_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_cache", {})
    monkeypatch.setattr(features, "TELL_EVERY_S", 0.0)
    fit = load_plan(study_of(folder, "toy.yaml", training=LEARNING | {"tune": "head"})).fits[0]
    told: list[dict[str, Any]] = []
    features.with_features(fit, prepare(fit), Worker(open_store(tmp_path / "store"), Execution(), told.append))
    assert {(event["event"], event["key"]) for event in told} == {("features", fit.key)}
    shares = [event["share_read"] for event in told]
    assert shares.count(1.0) == 2, "the halves and the test set are read apart"
    assert all(0 < share <= 1 for share in shares)


def test_a_probe_is_logistic_regression_on_the_features(folder: Path, tmp_path: Path) -> None:
    """The same score as L-BFGS on the same standardised features, within the noise of 64 items."""
    from scipy.optimize import minimize

    study = study_of(folder, "toy.yaml", training=LEARNING | {"tune": "head", "epochs": 60, "learning_rate": 0.05})
    store, fits = train_study(study, tmp_path / "store")
    fit = next(each for each in fits if each.role == "ceiling")
    prepared = features.with_features(fit, prepare(fit), Worker(store, Execution(), quiet))
    x = {name: np.array([row[0] for row in rows.sequences], np.float64) for name, rows in prepared.parts.items()}
    y = np.asarray(prepared.parts["B"].labels)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x["B"] @ w[:-1] + w[-1]
        slope = (1 / (1 + np.exp(-z)) - y) / len(y)
        return float(np.mean(np.logaddexp(0, z) - y * z)), np.append(x["B"].T @ slope, slope.sum())

    w = minimize(loss, np.zeros(17), jac=True, method="L-BFGS-B").x
    expected = dict(zip(prepared.parts["test"].ids, x["test"] @ w[:-1] + w[-1] > 0, strict=True))
    found = predictions_of(store, fit)
    same = [expected[id_] == (p > 0.5) for id_, p in found.select("id", "probability").iter_rows()]
    assert np.mean(same) > 0.93
