"""Costs learned from the Fits that ran into a store: what they took, in place of what was assumed."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from w2s_ray import cli
from w2s_ray.cost import costs
from w2s_ray.fit import Execution
from w2s_ray.planning import Plan, load_plan
from w2s_ray.scheduling.packs import Schedule
from w2s_ray.scheduling.progress import Progress
from w2s_ray.scheduling.room import Node, Room
from w2s_ray.scheduling.run import _remember_speeds
from w2s_ray.speeds import OLD_COUNTS_AS, Timed, cpu_name, read_speeds, remember
from w2s_ray.store import Store, open_store
from w2s_ray.training.pack import run_pack

from trained import LEARNING, study_of

HERE = f"CPU {cpu_name()}"


def timed(plan: Plan, *, slower: float = 3.0, load_s: float = 0.5, machine: str = HERE) -> list[Timed]:
    """Every Fit of a plan, as if it had taken so many times what was assumed."""
    cost_of = costs(plan)
    return [
        Timed(
            fit,
            plan.executions[fit.model],
            machine,
            {phase: slower * s for phase, s in cost_of[fit.key].assumed.items()} | {"load": load_s, "commit": 0.0},
            cost_of[fit.key].assumed,
        )
        for fit in plan.fits
    ]


def assumed_s(plan: Plan) -> float:
    return sum(cost.seconds for cost in costs(plan).values())


def expected_s(plan: Plan, store: Store) -> float:
    return sum(cost.seconds for cost in costs(plan, speeds=read_speeds(store, on_gpus=False)).values())


def planned(study: Path, store: Path, *more: str) -> Any:
    result = CliRunner().invoke(cli.app, ["plan", str(study), "--store", str(store), *more])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in more else " ".join(result.stdout.split())


def test_a_plan_says_whether_its_seconds_are_measured(folder: Path, tmp_path: Path) -> None:
    study, store = study_of(folder, "toy.yaml"), tmp_path / "store"
    plan = load_plan(study, deal_rows=True)
    before = planned(study, store, "--json")
    assert before["measured_on"] is None and before["measured_from_fits"] == before["to_run_as_measured"] == 0
    assert "assuming 2e+10 to 1e+11 FLOP/s per core" in planned(study, store)
    supervisor, *others = timed(plan)
    remember(open_store(store), [supervisor])
    partly = planned(study, store)
    assert (
        f"as measured on {HERE}, from 1 Fit(s)" in partly
        and "2 to run are of models or kinds that were not measured" in partly
    )
    remember(open_store(store), others)
    after = planned(study, store, "--json")
    assert (after["measured_on"], after["measured_from_fits"], after["to_run_as_measured"]) == (HERE, 3, 3)
    before_s, after_s = (facts["seconds_to_run_on_one_slot"] for facts in (before, after))
    assert after_s == pytest.approx(3 * before_s + 3 * 0.5, rel=1e-3)
    assert "were not measured" not in planned(study, store)


def test_what_fits_of_a_kind_took_scales_with_their_work(folder: Path, tmp_path: Path) -> None:
    """Twice the rows on another task, and a model that never ran."""
    store = open_store(tmp_path)
    plan = load_plan(study_of(folder, "toy.yaml", split={"num_train": 32, "num_test": 64}))
    remember(store, timed(plan, load_s=0.0))
    larger = load_plan(study_of(folder, "toy.yaml", split={"num_train": 128, "num_test": 64}, seeds=2))
    assert expected_s(larger, store) == pytest.approx(3 * assumed_s(larger), rel=1e-3)
    other_model = load_plan(
        study_of(
            folder, "toy.yaml", models=[{"name": "small", "path": "big", "depth": 1}, {"name": "big", "path": "big"}]
        )
    )
    assert expected_s(other_model, store) == pytest.approx(3 * assumed_s(other_model), rel=1e-3)
    probes = load_plan(study_of(folder, "toy.yaml", training=LEARNING | {"tune": "head"}))
    assert expected_s(probes, store) == assumed_s(probes), "what full fine-tuning took says nothing of a probe"


def test_later_runs_count_for_more_and_bad_files_for_nothing(folder: Path, tmp_path: Path) -> None:
    store, plan = open_store(tmp_path), load_plan(study_of(folder, "toy.yaml", seeds=30))
    remember(store, timed(plan, slower=9.0, load_s=0.0))
    remember(store, timed(plan, slower=1.0, load_s=0.0))
    share_old = OLD_COUNTS_AS / (OLD_COUNTS_AS + 30)
    assert expected_s(plan, store) < assumed_s(plan) * (9 * share_old + (1 - share_old)) * 1.05
    remember(store, timed(plan, machine="CPU another"))
    assert read_speeds(store, on_gpus=False).machine == HERE, "this kind of machine comes first"
    assert not read_speeds(store, on_gpus=True).num_fits
    for path in tmp_path.glob("speeds/*/*.json"):
        path.write_text(path.read_text()[:-20])
    assert expected_s(plan, store) == assumed_s(plan)


def test_fits_tell_what_they_took(folder: Path, tmp_path: Path) -> None:
    """From the worker's events by way of the driver into the store, and back into an estimate of the same Fits."""
    plan, store = load_plan(study_of(folder, "toy.yaml", training=LEARNING | {"tune": "head"})), open_store(tmp_path)
    fits, cost_of = {fit.key: fit for fit in plan.fits}, costs(plan)
    schedule = Schedule(
        fits=fits,
        executions=dict.fromkeys(fits, Execution()),
        seconds={key: cost.seconds for key, cost in cost_of.items()},
        num_slots=1,
        todo=set(fits),
    )
    progress = Progress(schedule, console=Console(file=StringIO()), began_s=0.0)
    pack = schedule.next_pack(Room([Node("here", 1.0, 0.0)]))
    assert pack is not None and len(pack.fits) == len(fits)
    progress.begin_pack("a", pack)
    took: dict[str, float] = {}

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "done":
            schedule.mark_done(event["key"])
            took[event["key"]] = sum(event["seconds"].values())
        progress.take("a", event)

    run_pack(list(pack.fits), store_uri=store.uri, execution=Execution(), report=report)
    run = type("Run", (), {"costs": cost_of, "store": store})()
    _remember_speeds(progress, run)
    assert took.keys() == fits.keys()
    assert expected_s(plan, store) == pytest.approx(sum(took.values()), rel=1e-2), "a plan of what has just run"
    assert read_speeds(store, on_gpus=False).num_fits == len(fits)
