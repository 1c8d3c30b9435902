"""Readings of frozen models: what they read, that nothing is read twice, what a kill costs, and what probes make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from w2s_ray import cli
from w2s_ray.cost import costs
from w2s_ray.fit import Execution, Fit
from w2s_ray.planning import Plan, load_plan
from w2s_ray.readings import MOST_SHARES, _readings_of_halves, _readings_of_test
from w2s_ray.results import write_results
from w2s_ray.status import done_keys, status
from w2s_ray.store import Store, open_store
from w2s_ray.training import features
from w2s_ray.training.batches import eval_batches, pad
from w2s_ray.training.data import prepare
from w2s_ray.training.distributed import device
from w2s_ray.training.model import FrozenNetwork, ModelSpec, load_base
from w2s_ray.training.rows import Rows
from w2s_ray.training.settings import setting_of
from w2s_ray.training.worker import Worker

from tiny import CONFIGS, save_model, save_study
from trained import LEARNING, Killed, predictions_of, probabilities, quiet, spec_of, study_of, train, train_study

PROBE = LEARNING | {"tune": "head"}
CUT = [{"name": "shallow", "path": "big", "depth": 1}, {"name": "deep", "path": "big"}]
"""One network, cut at two depths."""


@pytest.fixture(autouse=True)
def nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_cache", {})


@pytest.fixture
def read_rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """(task, model, id) of every row that is read, in order."""
    read: list[tuple[str, str, str]] = []
    features_of = features.Reader._features_of

    def watched(reader: features.Reader, batch: features.Batch) -> list[np.ndarray]:
        task, model = reader.fit.data.task, reader.fit.model.name
        read.extend((task, model, batch.rows.ids[i]) for i in batch.chosen)
        return features_of(reader, batch)

    monkeypatch.setattr(features.Reader, "_features_of", watched)
    return read


def readings(plan: Plan) -> list[Fit]:
    return [fit for fit in plan.fits if fit.role == "reading"]


def raw_features(fit: Fit, rows: Rows, store: Store) -> np.ndarray:
    """[row, sequence, width] as the store holds them."""
    return features._features(fit, Worker(store, Execution(), quiet)).of(rows)


@torch.no_grad()
def features_of_cut_model(fit: Fit, rows: Rows) -> np.ndarray:
    """The same of a model that has no more layers than the Fit's."""
    spec, found = ModelSpec.of(fit, execution=Execution()), None
    scorer = FrozenNetwork(ModelSpec(fit.model), (None,)).scorer
    scorer.backbone = load_base(spec).backbone.to(device())
    for chosen in eval_batches(rows):
        flat = scorer.features(*setting_of(fit).collate(rows, chosen, pad_id=0)[0])
        by_row = flat.view(-1, len(chosen), flat.shape[-1]).transpose(0, 1).cpu().numpy()
        found = np.zeros((len(rows), *by_row.shape[1:]), np.float32) if found is None else found
        found[chosen] = by_row
    assert found is not None
    return found


# --- one pass, every depth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "bf16"), [*((kind, False) for kind in CONFIGS), ("llama", True)])
def test_one_pass_reads_at_every_depth_what_cut_models_read(kind: str, bf16: bool, tmp_path: Path) -> None:
    save_model(tmp_path, kind)
    inputs = pad([[5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 5]], pad_id=0)
    with torch.no_grad():
        for depths in ((1, 2) if kind == "bert" else (0, 1, 2), (1, None), (1,), (None,)):
            found = FrozenNetwork(spec_of(tmp_path, depth=depths[-1], bf16=bf16), depths).features(*inputs)
            for depth, values in zip(depths, found, strict=True):
                alone = FrozenNetwork(spec_of(tmp_path, bf16=bf16), (None,)).scorer
                alone.backbone = load_base(spec_of(tmp_path, depth=depth)).backbone.to(device())
                assert torch.equal(values, alone.features(*inputs)), depth


def test_models_that_are_one_network_are_one_reading(
    folder: Path, tmp_path: Path, read_rows: list[tuple[str, str, str]]
) -> None:
    grid: dict[str, Any] = {"models": CUT, "pairs": [["shallow", "deep"]], "training": PROBE, "seeds": 2}
    plan = load_plan(save_study(folder, grid=grid | {"tasks": ["choosing.yaml"]}))
    store = train(plan.fits, tmp_path / "store")
    found = sorted((fit.half, fit.seed, fit.model.size) for fit in readings(plan))
    assert found == [("halves", 0, "deep"), ("halves", 1, "deep"), ("test", 0, "deep")]
    assert len(read_rows) == len(set(read_rows)), "no row twice, though both replicates have it"
    dealt = {id_ for fit in plan.fits if fit.seed == 1 and fit.labels for id_ in prepare(fit).parts["A"].ids}
    assert dealt & {id_ for fit in plan.fits if fit.seed == 0 and fit.labels for id_ in prepare(fit).parts["A"].ids}
    for fit in (fit for fit in plan.fits if fit.seed == 0 and fit.role != "reading"):
        for name, rows in prepare(fit).parts.items():
            assert np.array_equal(raw_features(fit, rows, store), features_of_cut_model(fit, rows)), name
    later = next(fit for fit in plan.fits if fit.seed == 1 and fit.role == "ceiling")
    rows = prepare(later).parts["B"]
    # batches are cut from the rows that are left to read, so the order of sums may differ
    np.testing.assert_allclose(raw_features(later, rows, store), features_of_cut_model(later, rows), atol=1e-6)


def test_more_seeds_and_swapped_twins_stand_on_the_readings_that_are_there(folder: Path) -> None:
    training = {"training": PROBE}
    few, more, swapped = (
        {fit.key for fit in readings(load_plan(study_of(folder, "toy.yaml", **training, **grid)))}
        for grid in ({"seeds": 2}, {"seeds": 3}, {"seeds": 2, "split": {"num_train": 96, "num_test": 64, "swap": True}})
    )
    assert few < more and len(more - few) == 2, "the halves of one more replicate, for each of two models"
    assert swapped == few
    tuned = load_plan(study_of(folder, "toy.yaml", training=PROBE | {"learning_rate": 0.5}, seeds=2))
    assert {fit.key for fit in readings(tuned)} == few, "hyper-parameters are no part of a reading"


def test_a_long_reading_is_shared_by_slots(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_rows: list[tuple[str, str, str]]
) -> None:
    def plan() -> Plan:
        for of_part in (_readings_of_halves, _readings_of_test):
            of_part.cache_clear()
        return load_plan(study_of(folder, "choosing.yaml", training=PROBE, seeds=2))

    whole = plan()
    alone = train(whole.fits, tmp_path / "whole")
    once = sorted(read_rows)
    read_rows.clear()
    with monkeypatch.context() as changed:
        changed.setattr("w2s_ray.readings.SHARE_FLOPS", 1.0)
        shared = plan()
    plan()  # nothing of this stays in the caches
    assert len(readings(shared)) == MOST_SHARES * len(readings(whole))
    assert "-halves3of8-features-s1-" in " ".join(fit.folder for fit in readings(shared))
    assert sum(cost.flops for cost in costs(shared).values()) == pytest.approx(
        sum(cost.flops for cost in costs(whole).values())
    )
    by_share = train(shared.fits, tmp_path / "shared")
    assert sorted(read_rows) == once, "each row once"
    for fit, of_whole in zip(probes(shared), probes(whole), strict=True):
        assert fit.key == of_whole.key
        # batches are of other rows, so the order of sums may differ
        np.testing.assert_allclose(probabilities(by_share, fit), probabilities(alone, fit), atol=1e-4)


def probes(plan: Plan) -> list[Fit]:
    return [fit for fit in plan.fits if fit.role != "reading"]


def test_labels_in_the_texts_are_read_for_each_fit_by_itself(folder: Path, tmp_path: Path) -> None:
    plan = load_plan(study_of(folder, "toy.yaml", training=PROBE, methods=["told"]))
    [told] = [fit for fit in plan.fits if fit.method.name == "told"]
    assert [(reading.half, reading.labels) for reading in told.readings] == [("told", told.labels)]
    store = train(plan.fits, tmp_path / "store")
    assert len(predictions_of(store, told)) == 64


def test_a_transform_that_looks_at_features_reads_no_test_set(folder: Path, tmp_path: Path) -> None:
    plan = load_plan(study_of(folder, "toy.yaml", training=LEARNING | {"epochs": 1}, methods=["naive", "relabel"]))
    assert [(fit.half, fit.model.size) for fit in readings(plan)] == [("halves", "big")]
    assert not next(fit for fit in plan.fits if fit.labels and fit.method.name == "naive").readings
    train(plan.fits, tmp_path / "store")


# --- the store ------------------------------------------------------------------------------------------------------


def test_a_kill_costs_what_is_not_yet_in_a_part(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_rows: list[tuple[str, str, str]]
) -> None:
    monkeypatch.setattr(features, "PART_EVERY_S", 0.0)
    monkeypatch.setattr(features, "TELL_EVERY_S", 0.0)
    monkeypatch.setattr("w2s_ray.training.batches.EVAL_BATCH_TOKENS", 64)
    [reading, *_] = readings(load_plan(study_of(folder, "choosing.yaml", training=PROBE)))
    whole = train([reading], tmp_path / "whole")
    num_rows, told = len(read_rows), list[dict[str, Any]]()

    def killed_in_the_middle(event: dict[str, Any]) -> None:
        told.append(event)
        if event["share_read"] > 0.5:
            raise Killed

    scratch = tmp_path / "scratch"
    store = open_store(tmp_path / "store")
    with pytest.raises(Killed):
        features.read_features(reading, Worker(store, Execution(), killed_in_the_middle), scratch=scratch)
    assert {(event["event"], event["key"]) for event in told} == {("features", reading.key)}
    partial = Path(store.storage.path("partial", reading.folder))
    parts = sorted(partial.iterdir())
    assert len(parts) > 3
    parts[1].write_bytes(parts[1].read_bytes()[:-9])
    num_before = len(read_rows)
    train([reading], tmp_path / "store")
    # the rest, the damaged part and the batch in hand
    assert len(read_rows) - num_before < num_rows * 2 / 3
    for name in ("rows.parquet", "features.safetensors"):
        assert store.read_file(reading.folder, name) == whole.read_file(reading.folder, name)
    assert not partial.exists()


def test_a_reading_runs_only_where_a_fit_needs_it(folder: Path, tmp_path: Path) -> None:
    """A store of an earlier version has the Fits and no readings."""
    study = study_of(folder, "toy.yaml", training=PROBE)
    store, fits = train_study(study, tmp_path / "store")
    plan = load_plan(study)
    assert {fit.role for fit in fits} >= {"reading", "student"} and not status(plan, store=store).todo
    for reading in readings(plan):
        store.quarantine(reading.folder)
    assert not status(plan, store=store).todo and done_keys(plan, store=store) == {fit.key for fit in plan.fits}
    student = next(fit for fit in plan.fits if fit.role == "student")
    store.quarantine(student.folder)
    assert status(plan, store=store).todo == {student.key, *(reading.key for reading in student.readings)}


def test_plan_status_and_explain_show_readings(folder: Path, tmp_path: Path) -> None:
    study, store = study_of(folder, "toy.yaml", training=PROBE), tmp_path / "store"
    store.mkdir()

    def shown(*arguments: object) -> Any:
        return json.loads(CliRunner().invoke(cli.app, [*map(str, arguments), "--store", str(store), "--json"]).stdout)

    planned = shown("plan", study)
    assert planned["fits_by_role"]["reading"] == 4 and planned["fits"] == 7, "halves and test set of two models"
    assert planned["flops_to_run"] > 0, "only readings have FLOPs"
    assert shown("status", study)["todo"] == 7
    roles = [fit["role"] for fit in shown("explain", study, "small->big")["fits"]]
    assert roles == ["supervisor", "student", "ceiling"] + 4 * ["reading"]


def test_readings_have_a_cost_and_a_run_and_no_score(folder: Path, tmp_path: Path) -> None:
    study = study_of(folder, "toy.yaml", training=PROBE, seeds=2)
    store, fits = train_study(study, tmp_path / "store")
    plan = load_plan(study)
    cost_of = costs(plan)
    of_halves = [cost_of[fit.key].flops for fit in readings(plan) if fit.half == "halves" and fit.model.size == "big"]
    assert of_halves[0] > of_halves[1] > 0, "the second replicate has rows that the first one has read"
    assert all(cost_of[fit.key].flops == 0 for fit in fits if fit.role != "reading")
    results = write_results(plan.cells, study="s", store=store, out=tmp_path / "out")
    assert set(results["status"]) == {"done"}
    runs = json.loads(store.read_file(readings(plan)[0].folder, "fit.json"))["provenance"]
    assert runs["tokens"] > 0 and runs["seconds"]["features"] > 0
    assert store.damage_of_truths(store.committed_folders()) == {}, "a reading needs no ground truth"


# --- probes ---------------------------------------------------------------------------------------------------------


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
