"""A study from the command line through Ray Tune, Ray Train and DeepSpeed; killed in every way, it ends in the same bytes."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import polars as pl
import pytest
import yaml

from w2s_ray.leases import Leases
from w2s_ray.planning import load_plan
from w2s_ray.results import SCHEMA
from w2s_ray.scratch import PREFIX
from w2s_ray.store import Store, open_store

from driver import Driver, w2s
from tiny import save_study

GRID = {
    "methods": ["naive", "confidence"],
    "training": {"epochs": 15, "batch_size": 16, "learning_rate": 0.001, "evals_per_epoch": 1},
    "split": {"num_train": 128, "num_test": 64},
}
"""Ten Fits of about a second."""


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


def test_the_log_and_the_table_tell_what_the_run_did(folder: Path, undisturbed: Store) -> None:
    written = (folder / "out" / "run.log").read_text()
    for fit in load_plan(folder / "study.yaml").fits:
        assert f"starts {fit.folder}" in written and f"done {fit.folder} in" in written
    assert "10 Fits in" in written and "PGR of toy, " in written and "report: " in written


def test_a_run_leaves_what_its_fits_took(folder: Path, undisturbed: Store) -> None:
    content = yaml.safe_load((folder / "study.yaml").read_text())
    content["grids"][0]["seeds"] = 2
    grown = folder / "more.yaml"
    grown.write_text(yaml.safe_dump(content))
    facts = json.loads(w2s("plan", grown, "--store", undisturbed.storage.root, "--json").stdout)
    assert facts["measured_from_fits"] == 10 and facts["to_run"] == facts["to_run_as_measured"] == 10


def test_again_runs_nothing(folder: Path, undisturbed: Store) -> None:
    result = w2s("run", folder / "study.yaml", "--store", undisturbed.storage.root, "--out", folder / "out")
    assert result.exit_code == 0 and "nothing to run" in result.output
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
    other.write_text((folder / "study.yaml").read_text().replace("epochs: 15", "epochs: 16"))
    explained = w2s("explain", other, "small->big/naive/0", "--store", undisturbed.storage.root).output
    assert "training.epochs: 15 there, 16 here" in explained


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


@pytest.mark.slow
def test_a_killed_worker_is_replaced(folder: Path, undisturbed: Store, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    driver = Driver(folder / "study.yaml", store, out=tmp_path / "out")
    driver.wait_for(lambda: num_done(store) >= 2 and bool(driver.workers()))
    driver.workers()[0].kill()
    assert driver.wait() == 0, driver.told()
    assert predictions(store, folder / "study.yaml") == predictions(undisturbed, folder / "study.yaml")


def test_a_killed_trial_leaves_no_cpus_reserved(tmp_path: Path) -> None:
    """Its workers had every CPU. Ray keeps a placement group as long as the job lives, so the desk has to give it back."""
    study = save_study(
        tmp_path,
        grid=GRID | {"pairs": [["small", "small"]], "methods": ["naive"]},
        compute={"cpus_per_worker": os.cpu_count(), "fits_per_pack": 1},
    )
    store = open_store(tmp_path / "store")
    driver = Driver(study, store, out=tmp_path / "out")
    driver.wait_for(lambda: num_done(store) >= 1)
    driver.trials()[0].kill()
    assert driver.wait() == 0, driver.told()
    assert num_done(store) == len(load_plan(study).fits)


def test_ctrl_c_stops_in_good_order(folder: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    driver = Driver(folder / "study.yaml", store, out=tmp_path / "out")
    leases, owners = Leases(store.storage), set[str]()

    def has_begun() -> bool:
        owners.update(lease["owner"] for lease in leases.read().values())
        return num_done(store) >= 1 and bool(owners)

    driver.wait_for(has_begun)
    driver.interrupt()
    assert driver.wait() == 130, driver.told()
    [owner] = owners
    assert not list(Path(tempfile.gettempdir()).glob(f"{PREFIX}{owner}*")), "temporary folders are gone"
    assert num_done(store) < 10, "it does not go on to the end"
    assert "Go on with the same command" in driver.output and "Traceback" not in driver.output, driver.told()
    assert not list(Path(store.storage.root, "leases").glob("*")), "every lease is given back"
