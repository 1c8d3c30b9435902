"""Replicates deal their own halves, twins exchange them, and every cell has its controls."""

from __future__ import annotations

from pathlib import Path

import pytest

from w2s_ray.fit import Execution
from w2s_ray.planning import Plan, load_plan
from w2s_ray.results import write_results
from w2s_ray.store import open_store
from w2s_ray.training.data import prepare
from w2s_ray.training.pack import run_pack
from w2s_ray.training.training_set import build_training_set

from tiny import save_model, save_study
from trained import quiet, train

GRID = {"pairs": [["small", "small"], ["small", "big"]], "controls": True}


def plan_of(folder: Path, **grid: object) -> Plan:
    return load_plan(save_study(folder, grid=GRID | grid))


def test_each_seed_deals_its_own_halves_and_the_test_set_is_common(folder: Path) -> None:
    first, second = (prepare(fit) for fit in plan_of(folder, seeds=2, controls=False).fits if fit.role == "supervisor")
    assert set(first.parts["A"].ids) != set(second.parts["A"].ids)
    assert first.parts["test"].ids == second.parts["test"].ids
    shared = plan_of(folder, seeds=2, controls=False, split={"num_train": 96, "num_test": 64, "per_seed": False})
    halves = [set(prepare(fit).parts["A"].ids) for fit in shared.fits if fit.role == "supervisor"]
    assert halves[0] == halves[1]


def test_a_twin_has_the_halves_exchanged(folder: Path) -> None:
    plan = plan_of(folder, controls=False, split={"num_train": 96, "num_test": 64, "swap": True})
    cell, twin = (cell for cell in plan.cells if cell.student.model.size == "big")
    assert twin.name == f"{cell.name}-swapped" and (cell.is_swapped, twin.is_swapped) == (False, True)
    one, other = prepare(cell.student), prepare(twin.student)
    assert (one.parts["A"].ids, one.parts["B"].ids) == (other.parts["B"].ids, other.parts["A"].ids)
    assert one.parts["test"].ids == other.parts["test"].ids


def test_controls_are_shared_and_give_every_cell_its_floor(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder, seeds=2)
    roles = [fit.role for fit in plan.fits]
    assert roles.count("untrained") == 2, "one for each strong size, whatever the seeds"
    assert roles.count("control") == 4, "one for each strong size and seed, whatever the pairs"
    store = train(plan.fits, tmp_path / "store")
    results = write_results(plan.cells, study="s", store=store, out=tmp_path / "out")
    assert results["controls"].all() and results["status"].unique().to_list() == ["done"]
    for row in results.to_dicts():
        assert row["floor_score"] == max(row["weak_score"], row["zero_shot_score"], row["shuffled_score"])
        assert row["zero_shot_key"] and row["shuffled_key"]
    control = next(fit for fit in plan.fits if fit.role == "control")
    targets = build_training_set(control, prepare(control), None, store).rows
    truth = prepare(control).parts["B"]
    assert sorted(targets.labels) == sorted(truth.labels), "the marginals are kept"
    assert 0.2 < (targets.labels != truth.in_order_of(targets.ids).labels).mean() < 0.8


def test_a_floor_waits_for_its_controls(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder)
    store = open_store(tmp_path / "store")
    others = [fit for fit in plan.fits if fit.role != "control"]
    run_pack(others, store_uri=store.uri, execution=Execution(), report=quiet)
    results = write_results(plan.cells, study="s", store=store, out=tmp_path / "out")
    assert results["zero_shot_score"].is_not_null().all() and results["floor_score"].is_null().all()


def test_controls_can_be_left_out_and_are_left_out_where_a_model_cannot_answer(folder: Path) -> None:
    assert all(cell.controls is None for cell in plan_of(folder, controls=False).cells)
    save_model(folder / "encoder", "bert")
    encoders = plan_of(folder, models=[{"name": "e", "path": "encoder"}], pairs="all")
    assert {
        (cell.controls.zero_shot is None, cell.controls.shuffled is None) for cell in encoders.cells if cell.controls
    } == {(True, False)}


@pytest.mark.parametrize("task", ["writing.yaml", "choosing.yaml"])
def test_every_setting_has_controls(folder: Path, tmp_path: Path, task: str) -> None:
    plan = plan_of(folder, tasks=[task], pairs=[["small", "big"]])
    results = write_results(plan.cells, study="s", store=train(plan.fits, tmp_path / "s"), out=tmp_path / "out")
    assert results["floor_score"].is_not_null().all()
