"""Several nodes: a cluster of raylets on this machine, to which `w2s run --address` connects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from w2s_ray import cli, store
from w2s_ray.fit import Execution
from w2s_ray.plan import load_plan
from w2s_ray.training.pack import run_pack

from tiny import save_study

CLUSTER = """
import json, os, subprocess, sys
import ray
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
command = [sys.executable, "-m", "w2s_ray.cli", "run", sys.argv[1], "--store", sys.argv[2], "--out", sys.argv[3]]
process = subprocess.Popen([*command, "--address", cluster.address], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
output, _ = process.communicate(timeout=300)
print(json.dumps({"rc": process.returncode, "output": output}))
cluster.shutdown()
"""


def run_on_cluster(study: Path, folder: Path) -> dict[str, object]:
    arguments = [str(study), str(folder / "store"), str(folder / "out")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CLUSTER), *arguments], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_workers_on_two_nodes_give_the_numbers_of_one(stage: int, tmp_path: Path) -> None:
    grid = {"methods": ["confidence"], "pairs": [["small", "big"]]}
    study = save_study(tmp_path, grid=grid, compute={"workers": 2, "zero_stage": stage, "fits_per_pack": 8})
    found = run_on_cluster(study, tmp_path)
    assert found["rc"] == 0 and "3 Fits in" in str(found["output"]), found["output"]
    two, one = store.open_store(tmp_path / "store"), store.open_store(tmp_path / "one")
    fits = load_plan(study).fits
    run_pack(list(fits), store_uri=one.uri, execution=Execution(), report=lambda event: None)
    for fit in fits:
        facts = json.loads(store.read_file(two, fit.folder, "fit.json"))["provenance"]
        assert facts["world_size"] == 2 and facts["execution"]["zero_stage"] == stage
        said = [store.read_table(each, fit.folder, "test.parquet")["probability"].to_numpy() for each in (one, two)]
        np.testing.assert_allclose(said[1], said[0], atol=1e-4)


def test_what_fits_no_cluster_of_this_shape_is_refused_with_what_would(tmp_path: Path) -> None:
    study = save_study(tmp_path, compute={"workers": 2, "cpus_per_worker": 2})
    found = run_on_cluster(study, tmp_path)
    assert found["rc"] == 2 and "needs 2 worker(s) of 2 CPU(s)" in str(found["output"])
    assert "room for 0" in str(found["output"]) and not (tmp_path / "store" / "fits").exists()


JOB = """
import json, subprocess, sys
import ray
context = ray.init("local", num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", log_to_driver=False)
command = [sys.executable, "-m", "w2s_ray.cli", "submit", "study.yaml", "--address", f"http://{context.dashboard_url}"]
command += ["--store", sys.argv[1]]
said = []
for more in (["--no-follow"], [], ["--stop"]):
    done = subprocess.run([*command, *more], text=True, capture_output=True, timeout=240)
    said.append([done.returncode, done.stdout + done.stderr[-500:]])
print(json.dumps(said))
"""


@pytest.mark.slow
def test_a_job_is_submitted_joined_and_leaves_the_study_done(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="pip install '.[cluster]'")
    study = save_study(tmp_path, grid={"pairs": [["small", "small"]]}, compute={"fits_per_pack": 8})
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},  # of which python a node runs
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (left, first), (joined, second), (refused, third) = json.loads(done.stdout.splitlines()[-1])
    assert left == 0 and "is submitted to http://127.0.0.1" in first, first
    assert joined == 0 and "runs already: joined" in second and "3 Fits in" in second and "succeeded" in second, second
    assert refused == 2 and "no job of this study runs" in third
    assert len(store.committed(store.open_store(tmp_path / "store"), load_plan(study).fits)) == 3


@pytest.mark.slow
def test_what_cannot_travel_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="pip install '.[cluster]'")
    study = save_study(tmp_path)
    command = [sys.executable, "-m", "w2s_ray.cli", "submit", str(study), "--address", "http://127.0.0.1:1"]
    for more, message in (
        (["--store", "here"], "would lie in the job's own folder"),
        (["--store", "/tmp/there"], "no job server answers there"),
    ):
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and message in done.stdout + done.stderr, done.stderr


def test_a_store_that_the_job_would_lose_is_refused(tmp_path: Path) -> None:
    study = save_study(tmp_path)
    result = CliRunner().invoke(cli.app, ["submit", str(study), "--address", "http://127.0.0.1:1", "--store", "here"])
    assert "would lie in the job's own folder" in str(result.exception)
