"""The files of cluster/, as far as they can be checked without a cloud; and that secrets end up nowhere."""

from __future__ import annotations

import http.server
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import kubernetes_validate
import pytest
import typer
import yaml

from w2s_ray import cli
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.store import open_store
from w2s_ray.training.pack import run_pack

from tiny import save_study

FOLDER = Path(__file__).parent.parent / "cluster"


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_ray_takes_the_autoscalers_files(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))
    validate_config(config)
    head, gpu = (config["available_node_types"][kind] for kind in ("head", "gpu"))
    assert head["resources"]["CPU"] == 0 and "spot" in str(gpu["node_config"]).lower()
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])


def ray_cluster(name: str) -> dict[str, Any]:
    """The part of a manifest that describes the cluster."""
    manifest = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert manifest["apiVersion"] == "ray.io/v1"
    assert (manifest["kind"] == "RayJob") == ("rayClusterSpec" in manifest["spec"])
    return dict(manifest["spec"].get("rayClusterSpec", manifest["spec"]))


@pytest.mark.parametrize("name", ["kuberay-job", "kuberay-cluster"])
def test_a_clusters_manifest_is_whole_and_guarded(name: str) -> None:
    cluster = ray_cluster(name)
    known = "rayVersion authOptions enableInTreeAutoscaling autoscalerOptions headGroupSpec workerGroupSpecs"
    assert set(cluster) <= set(known.split()), "fields of KubeRay's resource definition"
    assert cluster["authOptions"] == {"mode": "token"} and cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert set(head) <= {"serviceType", "rayStartParams", "template"} and head["rayStartParams"]["num-cpus"] == "0"
    for group in workers:
        fields = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert set(group) == fields and group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for template in (head["template"], *(group["template"] for group in workers)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)
        for container in template["spec"]["containers"]:
            assert container["image"] == "IMAGE" and "limits" in container["resources"]
            assert not any("value" in variable for variable in container.get("env", [])), "no secret in a manifest"


def test_the_ray_job_comes_to_an_end() -> None:
    spec = yaml.safe_load((FOLDER / "kuberay-job.yaml").read_text())["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0 and spec["backoffLimit"] > 0


def test_the_recipes_commands_are_ours() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    texts = [path.read_text() for path in FOLDER.iterdir()]
    found = [match for text in texts for match in re.findall(r"w2s (run|submit) ([^'#\n]*)", text)]
    assert len(found) >= 5
    for verb, arguments in found:
        commands[verb].make_context(verb, shlex.split(arguments.replace("&", "")))  # refuses what it does not know


@pytest.mark.parametrize("name", ["slurm.sh", "spot_notice.sh"])
def test_a_script_is_sound(name: str) -> None:
    checked = [str(Path(sys.executable).with_name("shellcheck")), FOLDER / name]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_slurm_script_is_queued_again_and_guarded() -> None:
    text = (FOLDER / "slurm.sh").read_text()
    assert "--requeue" in text and "RAY_AUTH_MODE=token" in text


class Metadata(http.server.BaseHTTPRequestHandler):
    """What a cloud says to its machines: twice nothing, then that this one will go."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        known = len(self.asked) > 2
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(b"TRUE" if known else b"")

    def do_PUT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"token")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(shutil.which("curl") is None, reason="the script asks by curl")
@pytest.mark.parametrize("cloud, seconds", [("AWS", "110"), ("GCP", "25")])
def test_a_clouds_notice_reaches_ray(cloud: str, seconds: str, tmp_path: Path) -> None:
    Metadata.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "ray").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    nowhere = "http://127.0.0.1:1"
    addresses = {"AWS_METADATA": nowhere, "GCP_METADATA": nowhere}
    addresses[f"{cloud}_METADATA"] = f"http://127.0.0.1:{server.server_port}"
    done = subprocess.run(
        [FOLDER / "spot_notice.sh", "head:6379"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=os.environ | addresses | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EVERY_S": "0.1"},
    )
    server.shutdown()
    assert len(Metadata.asked) == 3
    assert done.stdout.startswith("drain-node --address head:6379 --reason DRAIN_NODE_REASON_PREEMPTION")
    assert done.stdout.split()[-2:] == ["--deadline-remaining-seconds", seconds]


def test_the_image_copies_what_the_package_needs() -> None:
    copied = [line.split() for line in (FOLDER / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    sources = {source for _, *words in copied for source in words[:-1] if not source.startswith("--")}
    assert all((FOLDER.parent / source).exists() for source in sources)
    assert {"pyproject.toml", "w2s_ray", "analysis"} <= sources


def test_secrets_are_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {"HF_TOKEN": "hf_planted", "AWS_SECRET_ACCESS_KEY": "aws_planted", "RAY_AUTH_TOKEN": "ray_planted"}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    store = open_store(tmp_path / "store")

    said: list[Any] = []
    plan = load_plan(save_study(tmp_path, grid={"pairs": [["small", "small"]]}))
    run_pack(list(plan.fits), store_uri=store.uri, execution=Execution(), report=said.append)
    written = b"".join(path.read_bytes() for path in Path(store.storage.root).rglob("*") if path.is_file())
    assert len(store.committed(plan.fits)) == 3
    assert not any(value.encode() in written or value in str(said) for value in planted.values())


def test_a_ray_that_is_slow_to_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from w2s_ray.errors import InputError
    from w2s_ray.scheduling import cluster

    tries: list[str] = []

    def slow(*_: object, **__: object) -> None:
        tries.append("init")
        if len(tries) < 3:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster.connected(None):
        assert len(tries) == 3
    monkeypatch.setattr(cluster, "NUM_START_ATTEMPTS", 1)
    tries.clear()
    with pytest.raises(InputError, match=r"can't start on this machine .*within 30 s"), cluster.connected(None):
        pass
