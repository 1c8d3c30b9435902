"""Several nodes: a cluster of raylets on this machine, to which `w2s run --address` connects."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from w2s_ray import cli
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.store import open_store
from w2s_ray.training.pack import run_pack

from tiny import save_study

CLUSTER = """
import json, subprocess, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
study, store, out, *more = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})

def start():
    command = [sys.executable, "-m", "w2s_ray.cli", "run", study, "--store", store, "--out", out, *more]
    command += ["--address", cluster.address]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

def wait_for(pattern, number=1):
    deadline = time.monotonic() + 120
    while len(list(Path(store).glob(pattern))) < number and time.monotonic() < deadline:
        time.sleep(0.1)

def end(process):
    output, _ = process.communicate(timeout=300)
    print(json.dumps({"rc": process.returncode, "output": output}))
    cluster.shutdown()
"""
TWO_NODES = (
    CLUSTER
    + """
cluster.add_node(num_cpus=1)
end(start())
"""
)


def run_on_cluster(study: Path, folder: Path, *more: str, script: str = TWO_NODES) -> dict[str, object]:
    arguments = [str(study), str(folder / "store"), str(folder / "out"), *more]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_workers_on_two_nodes_give_the_numbers_of_one(stage: int, tmp_path: Path) -> None:
    grid = {"methods": ["confidence"], "pairs": [["small", "big"]]}
    study = save_study(tmp_path, grid=grid, compute={"workers": 2, "zero_stage": stage, "fits_per_pack": 8})
    found = run_on_cluster(study, tmp_path)
    assert found["rc"] == 0 and "3 Fits in" in str(found["output"]), found["output"]
    two, one = open_store(tmp_path / "store"), open_store(tmp_path / "one")
    fits = load_plan(study).fits
    run_pack(list(fits), store_uri=one.uri, execution=Execution(), report=lambda event: None)
    for fit in fits:
        facts = json.loads(two.read_file(fit.folder, "fit.json"))["provenance"]
        assert facts["world_size"] == 2 and facts["execution"]["zero_stage"] == stage
        said = [each.read_table(fit, "test.parquet")["probability"].to_numpy() for each in (one, two)]
        np.testing.assert_allclose(said[1], said[0], atol=1e-4)


@pytest.fixture
def other_network() -> Iterator[str]:
    """The name of a network namespace that reaches this one: 10.77.0.1 here, 10.77.0.2 there, both by `w2s0`."""
    name = f"w2s-{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    steps = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", "w2s0", "type", "veth", "peer", "name", "w2s0", "netns", name],
        ["ip", "address", "add", "10.77.0.1/24", "dev", "w2s0"],
        ["ip", "link", "set", "w2s0", "up"],
        [*inside, "ip", "address", "add", "10.77.0.2/24", "dev", "w2s0"],
        [*inside, "ip", "link", "set", "w2s0", "up"],
        [*inside, "ip", "link", "set", "lo", "up"],
    ]
    try:
        for step in steps:
            subprocess.run(step, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network of its own can be made here: {error}")
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.slow
def test_a_node_in_a_network_of_its_own(tmp_path: Path, other_network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, each on a node that reaches the other by one wire alone."""
    import psutil

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "w2s0")
    ray = str(Path(sys.executable).parent / "ray")
    start = [ray, "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    study = save_study(tmp_path, grid={"pairs": [["small", "small"]]}, compute={"workers": 2, "zero_stage": 2})
    command = [sys.executable, "-m", "w2s_ray.cli", "run", str(study), "--store", str(tmp_path / "store")]
    command += ["--out", str(tmp_path / "out"), "--address", "10.77.0.1:6399", "--wait-for-nodes", "1"]
    nodes = []
    with tempfile.TemporaryDirectory(prefix="ray") as short, (tmp_path / "nodes.txt").open("w") as said:
        head = ["--head", "--node-ip-address=10.77.0.1", "--port=6399", "--include-dashboard=false"]
        far = ["--address=10.77.0.1:6399", "--node-ip-address=10.77.0.2"]
        try:
            for node in ([*start, *head, f"--temp-dir={short}"], ["ip", "netns", "exec", other_network, *start, *far]):
                nodes.append(subprocess.Popen(node, stdout=said, stderr=said))
                time.sleep(10)
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        finally:
            for node in nodes:
                for each in [*psutil.Process(node.pid).children(recursive=True), node]:
                    each.kill()
                node.wait()
    assert done.returncode == 0 and "3 Fits in" in done.stdout, done.stdout + done.stderr
    store = open_store(tmp_path / "store")
    for fit in load_plan(study).fits:
        facts = json.loads(store.read_file(fit.folder, "fit.json"))["provenance"]
        assert facts["world_size"] == 2


COMES_AND_GOES = (
    CLUSTER
    + """
process = start()
wait_for("fits/*/done.json")
second = cluster.add_node(num_cpus=1)
wait_for("fits/*/done.json", 3)
cluster.remove_node(second, allow_graceful=False)
end(process)
"""
)


@pytest.mark.slow
def test_nodes_that_come_are_used_and_nodes_that_go_are_no_fits_fault(tmp_path: Path) -> None:
    grid = {"pairs": [["small", "small"]], "seeds": 2}
    study = save_study(tmp_path, grid=grid, compute={"fits_per_pack": 1})
    found = run_on_cluster(study, tmp_path, script=COMES_AND_GOES)
    print(found["output"])
    assert found["rc"] == 0 and "6 Fits in" in str(found["output"]), found["output"]
    assert "the cluster now has 2 node(s) instead of 1: 2 pack(s) at a time" in str(found["output"])
    assert "the cluster now has 1 node(s) instead of 2: 1 pack(s) at a time" in str(found["output"])


LATE = (
    CLUSTER
    + """
process = start()
print(next(line for line in process.stdout if "waiting for nodes" in line))
cluster.add_node(num_cpus=2)
end(process)
"""
)


@pytest.mark.slow
def test_nodes_may_come_late_if_it_is_said_how_late(tmp_path: Path) -> None:
    study = save_study(
        tmp_path, grid={"pairs": [["small", "small"]]}, compute={"cpus_per_worker": 2, "fits_per_pack": 8}
    )
    found = run_on_cluster(study, tmp_path, "--wait-for-nodes", "3", script=LATE)
    assert found["rc"] == 0 and "3 Fits in" in str(found["output"]), found["output"]


AUTOSCALER = """
cluster_name: fake
max_workers: 2
idle_timeout_minutes: 1
upscaling_speed: 20
provider:
  type: fake_multinode
  gcs_address: ADDRESS
  use_node_id_as_ip: true
  disable_node_updaters: true
  disable_launch_config_check: true
auth: {}
available_node_types:
  ray.head.default: {resources: {CPU: 0}, node_config: {}, max_workers: 0}
  cpu: {resources: {CPU: 1}, node_config: {}, min_workers: 0, max_workers: 2}
head_node_type: ray.head.default
head_node: {}
worker_nodes: {}
file_mounts: {}
cluster_synced_files: []
file_mounts_sync_continuously: false
rsync_exclude: []
rsync_filter: []
initialization_commands: []
setup_commands: []
head_setup_commands: []
worker_setup_commands: []
head_start_ray_commands: []
worker_start_ray_commands: []
"""


@pytest.mark.slow
def test_an_autoscaler_adds_the_nodes_that_a_study_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own stand-in for a cloud, whose nodes are raylets here. There is a head without CPUs to begin with."""
    import psutil

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    monkeypatch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "autoscaler.yaml").write_text(AUTOSCALER.replace("ADDRESS", f"127.0.0.1:{port}"))
    bin_ = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # sockets want short names
        head = subprocess.Popen(
            [bin_ / "ray", "start", "--head", "--block", "--num-cpus=0", f"--port={port}", "--include-dashboard=false",
             f"--autoscaling-config={tmp_path / 'autoscaler.yaml'}", f"--temp-dir={short}"],
            env=os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}"}, stdout=(tmp_path / "head.txt").open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            study = save_study(tmp_path, grid={"pairs": [["small", "small"]], "seeds": 4}, compute={"fits_per_pack": 1})
            command = [sys.executable, "-m", "w2s_ray.cli", "run", str(study), "--store", str(tmp_path / "store")]
            command += ["--out", str(tmp_path / "out"), "--address", f"127.0.0.1:{port}"]
            refused = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
            assert refused.returncode == 2 and "--wait-for-nodes MINUTES" in refused.stderr, refused.stderr
            done = subprocess.run(
                [*command, "--wait-for-nodes", "2"], capture_output=True, text=True, timeout=300, check=False
            )
        finally:
            family = psutil.Process(head.pid).children(recursive=True)
            for each in [head, *family]:
                each.kill()
            head.wait()
    assert done.returncode == 0 and "12 Fits in" in done.stdout, done.stdout + done.stderr
    assert "waiting for nodes" in done.stdout
    assert ": 2 pack(s) at a time" in done.stdout, "as many as there was work for, and the autoscaler allowed"


TAKEN_AWAY = (
    CLUSTER
    + """
second = cluster.add_node(num_cpus=2)
process = start()
wait_for("leases/*.json")
time.sleep(20)  # its worker has started to train
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
accepted, why = GcsClient(cluster.address).drain_node(
    second.node_id, autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "spot",
    time.time_ns() // 1000000 + 20000,
)
assert accepted, why
wait_for("partial/*/step-*/done.json")
cluster.remove_node(second, allow_graceful=False)
cluster.add_node(num_cpus=2)
end(process)
"""
)


@pytest.mark.slow
def test_a_notice_that_a_node_goes_saves_the_fit_in_hand(tmp_path: Path) -> None:
    grid = {"pairs": [["small", "small"]], "training": {"epochs": 1000, "learning_rate": 0.001}}
    compute = {"cpus_per_worker": 2, "fits_per_pack": 8, "checkpoint_every_s": 3600}
    study = save_study(tmp_path, grid=grid, compute=compute)
    found = run_on_cluster(study, tmp_path, script=TAKEN_AWAY)
    assert found["rc"] == 0 and "3 Fits in" in str(found["output"]), found["output"]
    store = open_store(tmp_path / "store")
    facts = [json.loads(store.read_file(fit.folder, "fit.json"))["provenance"] for fit in load_plan(study).fits]
    assert any(each["resumed_from_step"] > 0 for each in facts), "only the notice made it save"


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
from ray.job_submission import JobSubmissionClient
said.append([0, str(JobSubmissionClient(f"http://{context.dashboard_url}").list_jobs())])
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
        env=os.environ
        | {"HF_TOKEN": "hf_planted", "AWS_SECRET_ACCESS_KEY": "aws_planted"}
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},  # of which python a node runs
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (left, first), (joined, second), (refused, third), (_, records) = json.loads(done.stdout.splitlines()[-1])
    assert left == 0 and "is submitted to http://127.0.0.1" in first, first
    assert joined == 0 and "is running already: joined" in second and "3 Fits in" in second and "succeeded" in second, (
        second
    )
    assert refused == 2 and "no job of this study with these options is running" in third
    assert "w2s-tiny" in records and "planted" not in records, "secrets stay out of the job's record"
    assert len(open_store(tmp_path / "store").committed(load_plan(study).fits)) == 3


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
