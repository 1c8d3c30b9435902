"""How a run goes: failures that stay alone, several workers, budgets, packs that wait for their place."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from w2s_ray.planning import load_plan
from w2s_ray.store import open_store

from driver import GIVE_UP_S, w2s
from tiny import save_study


def test_a_fit_that_cannot_be_trained_fails_alone(tmp_path: Path, ray_here: None) -> None:
    import yaml

    study = save_study(tmp_path)
    content = yaml.safe_load(study.read_text())
    content["grids"][0]["models"][1]["learning_rate"] = 1e30
    content["grids"][0]["training"]["learning_rate"] = "auto"
    study.write_text(yaml.safe_dump(content))
    arguments = ("run", study, "--store", tmp_path / "store", "--out", tmp_path / "out")
    result = w2s(*arguments)
    assert result.exit_code == 1, result.output
    assert "the loss is nan" in result.output
    results = pl.read_parquet(tmp_path / "out" / "results.parquet").sort("weak", "strong", descending=True)
    assert results.select("weak", "strong", "status").rows() == [
        ("small", "small", "done"),
        ("small", "big", "failed"),
        ("big", "big", "failed"),
    ]
    assert results["pgr"].to_list()[1:] == [None, None]
    status = json.loads(w2s("status", study, "--store", tmp_path / "store", "--json").output)
    assert len(status["failed"]) == 3 and len(status["blocked"]) == 1
    again = w2s(*arguments)
    assert again.exit_code == 1 and "Fits in" not in again.output, "known failures are not tried again by themselves"


def test_two_workers_under_ray(tmp_path: Path, ray_here: None) -> None:
    """They take both CPUs that there are: did Tune's trial hold one for itself, as a trainer in a trial does by default, the
    workers would wait for it and it for them."""
    study = save_study(tmp_path, compute={"workers": 2, "zero_stage": 2, "precision": "bf16"})
    result = w2s("run", study, "--store", tmp_path / "store", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    store = open_store(tmp_path / "store")
    facts = json.loads(store.read_file(load_plan(study).fits[-1].folder, "fit.json"))["provenance"]
    assert facts["world_size"] == 2 and facts["execution"]["zero_stage"] == 2
    deadline_s = time.monotonic() + GIVE_UP_S
    while left := [name for name in actors_here() if "Orders" in name]:
        assert time.monotonic() < deadline_s, f"the run's desk outlives it: {left}"
        time.sleep(0.1)


def actors_here() -> list[str]:
    """The names of this process's Ray actors."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
            found.append(" ".join(child.cmdline()))
    return [name for name in found if name.startswith("ray::")]


def test_a_driver_that_is_slow_to_take_results_is_not_waited_for_forever(
    tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's session had the last result and the function's end wait for one place in a queue, each before the other."""
    from w2s_ray.scheduling.searcher import DagSearcher

    took = DagSearcher.on_trial_result

    def slowly(self: DagSearcher, trial_id: str, result: dict[str, Any]) -> None:
        time.sleep(3)
        took(self, trial_id, result)

    monkeypatch.setattr(DagSearcher, "on_trial_result", slowly)
    save_study(tmp_path, grid={"pairs": [["small", "small"]]}, compute={"fits_per_pack": 8})
    result = w2s("run", tmp_path / "study.yaml", "--store", tmp_path / "store", "--out", tmp_path / "out")
    assert result.exit_code == 0 and "3 Fits in" in result.output, result.output


def test_a_budget_stops_in_good_order_and_the_same_command_goes_on(tmp_path: Path, ray_here: None) -> None:
    save_study(tmp_path, grid={"pairs": [["small", "small"]]}, compute={"fits_per_pack": 1, "usd_per_worker_hour": 2.0})
    arguments = ["run", tmp_path / "study.yaml", "--store", tmp_path / "store", "--out", tmp_path / "out"]
    stopped = w2s(*arguments, "--budget-usd", 0.0002)  # a third of a second
    assert stopped.exit_code == 130 and "the budget is spent" in stopped.output, stopped.output
    assert "of 3 Fits are in the store. Go on with the same command" in stopped.output
    assert not list((tmp_path / "store" / "leases").glob("*")), "every lease is given back"
    free = save_study(tmp_path, grid={"pairs": [["small", "small"]]}, compute={"fits_per_pack": 8})
    assert "names no compute.usd_per_worker_hour" in str(w2s("run", free, "--budget-usd", 1).exception)
    assert w2s(*arguments, "--budget-hours", 1).exit_code == 0


def test_a_pack_that_waits_for_its_place_is_explained(
    tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from w2s_ray.scheduling import watch

    holder = ray.remote(num_cpus=2)(dict).remote()  # takes every CPU for itself
    ray.get(holder.__ray_ready__.remote())
    resources = watch.resources

    def free_once_explained() -> str:
        line = resources()
        if "1 group(s) of workers wait" in line:
            ray.kill(holder)
        return line

    monkeypatch.setattr(watch, "SILENT_S", 2.0)
    monkeypatch.setattr(watch, "resources", free_once_explained)
    save_study(tmp_path, grid={"pairs": [["small", "small"]]}, compute={"fits_per_pack": 8})
    result = w2s("run", tmp_path / "study.yaml", "--store", tmp_path / "store", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "for 1 worker(s) of 1 CPU(s) and 0 GPU(s) each, or for them to start" in result.output
    assert "the cluster has 2 CPU, 0 GPU, of which 0 CPU, 0 GPU are free" in result.output
    assert "1 group(s) of workers wait for resources: 1 CPU, 0 GPU" in result.output
