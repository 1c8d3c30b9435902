"""A study from the command line through Ray Tune, Ray Train and DeepSpeed; killed in every way, it ends in the same bytes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from w2s_ray import cli
from w2s_ray.plan import load_plan
from w2s_ray.results import SCHEMA
from w2s_ray.store import Store, open_store

from driver import Driver
from tiny import save_study

GRID = {
    "methods": ["naive", "confidence"],
    "training": {"epochs": 40, "batch_size": 16, "learning_rate": 0.001, "evals_per_epoch": 1},
    "split": {"num_train": 128, "num_test": 64},
}
"""Ten Fits of a second or two."""


def w2s(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=True)


def predictions(store: Store, study: Path) -> dict[str, bytes]:
    """What every Fit of the study committed, but for its provenance."""
    found = {}
    for fit in load_plan(study).fits:
        for name in store.read_done(fit.folder)["files"]:
            if name != "fit.json":
                found[f"{fit.key}/{name}"] = store.read_file(fit.folder, name)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save_study(folder, grid=GRID, compute={"checkpoint_every_s": 0.5, "fits_per_pack": 4})
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_here: None) -> Store:
    """The study, run to its end in one go."""
    store = open_store(folder / "whole")
    snapshot = folder / "whole" / "ray" / "tiny" / "pack-00001" / "checkpoint_manager_snapshot.json"
    snapshot.parent.mkdir(parents=True)
    snapshot.write_bytes(b"")  # what a kill leaves of Ray's own snapshot
    result = w2s("run", folder / "study.yaml", "--store", store.storage.root, "--out", folder / "out")
    assert result.exit_code == 0, result.output
    assert "10 Fits in" in result.output and "busy" in result.output and "report:" in result.output
    return store


def test_the_tables_and_the_report_are_there(folder: Path, undisturbed: Store) -> None:
    results = pl.read_parquet(folder / "out" / "results.parquet")
    assert dict(results.schema) == SCHEMA
    assert results.height == 6 and set(results["status"]) == {"done"}
    assert (folder / "out" / "report.html").stat().st_size > 1000
    assert pl.read_parquet(folder / "out" / "pgr.parquet").height == 12
    fit = load_plan(folder / "study.yaml").fits[0]
    facts = json.loads(undisturbed.read_file(fit.folder, "fit.json"))
    assert facts["key"] == fit.key and 0 < facts["provenance"]["busy"] <= 1


def test_again_runs_nothing(folder: Path, undisturbed: Store) -> None:
    began_s = time.monotonic()
    result = w2s("run", folder / "study.yaml", "--store", undisturbed.storage.root, "--out", folder / "out")
    assert result.exit_code == 0 and "nothing to run" in result.output
    assert time.monotonic() - began_s < 15
    status = json.loads(w2s("status", folder / "study.yaml", "--store", undisturbed.storage.root, "--json").output)
    assert status["done"] == status["fits"] == 10 and not status["running"]


def test_a_grown_study_runs_only_what_is_new(folder: Path, undisturbed: Store) -> None:
    grown = folder / "grown.yaml"
    grown.write_text(
        (folder / "study.yaml").read_text().replace("max_weight: 0.5", "").replace("name: tiny", "name: grown")
    )
    plan = json.loads(w2s("plan", grown, "--store", undisturbed.storage.root, "--json").output)
    assert plan["to_run"] == 0, "another study shares what is trained already"
    explained = w2s("explain", folder / "study.yaml", "small->big/naive/0", "--store", undisturbed.storage.root)
    assert explained.output.count("in the store") == 3


def test_explain_names_the_field_that_differs(folder: Path, undisturbed: Store) -> None:
    other = folder / "other.yaml"
    other.write_text((folder / "study.yaml").read_text().replace("epochs: 40", "epochs: 41"))
    explained = w2s("explain", other, "small->big/naive/0", "--store", undisturbed.storage.root).output
    assert "training.epochs: 40 there, 41 here" in explained


def test_verify_finds_and_repairs(folder: Path, undisturbed: Store, tmp_path: Path) -> None:
    import shutil

    copy = open_store(shutil.copytree(undisturbed.storage.root, tmp_path / "copy"))
    fit = load_plan(folder / "study.yaml").fits[0]
    path = Path(copy.storage.path("fits", fit.folder, "test.parquet"))
    path.write_bytes(path.read_bytes()[:-10])
    assert w2s("verify", "--store", copy.storage.root).exit_code == 1
    repaired = w2s("verify", folder / "study.yaml", "--store", copy.storage.root, "--repair")
    assert repaired.exit_code == 0 and "10 Fits checked, 1 damaged" in repaired.output
    assert json.loads(w2s("status", folder / "study.yaml", "--store", copy.storage.root, "--json").output)["todo"] == 1


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


# --- killed -------------------------------------------------------------------------------------------------------


def num_done(store: Store) -> int:
    return len(list(Path(store.storage.root).glob("fits/*/done.json")))


def test_kill_9_of_everything_then_the_same_command(folder: Path, undisturbed: Store, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    driver = Driver(folder / "study.yaml", store, out=tmp_path / "out")
    driver.wait_for(lambda: num_done(store) >= 3)
    driver.kill_everything()
    done_before = num_done(store)
    assert 3 <= done_before < 10
    stamps = {path: path.stat().st_mtime_ns for path in Path(store.storage.root).glob("fits/*/done.json")}
    result = w2s("run", folder / "study.yaml", "--store", store.storage.root, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"{10 - done_before} Fits in" in result.output, "only what was missing"
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert predictions(store, folder / "study.yaml") == predictions(undisturbed, folder / "study.yaml")


def test_a_killed_worker_is_replaced(folder: Path, undisturbed: Store, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    driver = Driver(folder / "study.yaml", store, out=tmp_path / "out")
    driver.wait_for(lambda: num_done(store) >= 2 and bool(driver.workers()))
    driver.workers()[0].kill()
    assert driver.wait() == 0, driver.told()
    assert predictions(store, folder / "study.yaml") == predictions(undisturbed, folder / "study.yaml")


def test_ctrl_c_stops_in_good_order(folder: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    driver = Driver(folder / "study.yaml", store, out=tmp_path / "out")
    driver.wait_for(lambda: num_done(store) >= 1)
    driver.interrupt()
    assert driver.wait() == 130, driver.told()
    assert num_done(store) < 10, "it does not go on to the end"
    assert "Go on with the same command" in driver.output and "Traceback" not in driver.output, driver.told()
    assert not list(Path(store.storage.root, "leases").glob("*")), "every lease is given back"


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
