"""`w2s doctor`: what it finds on machines of many kinds, by what the driver, torch, cgroups and disks say there."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from w2s_ray import cli, doctor
from w2s_ray.doctor import Check
from w2s_ray.memory import container_memory_gib

CPU = {"version": "2.13.0+cpu", "cuda": None, "gpus": [], "error": ""}
CUDA = {"version": "2.13.0", "cuda": "12.8", "gpus": ["NVIDIA H100"], "error": ""}
H100 = "NVIDIA H100, 81559 MiB"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Check]:
    """What doctor says of the GPUs of a machine with this nvidia-smi, whose torch says this of itself."""

    def look(torch: dict[str, Any], *, said: str | None = None, exit_code: int = 0) -> Check:
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        if said is not None:
            program = programs / "nvidia-smi"
            program.write_text(f"#!/bin/sh\necho '{said}'\nexit {exit_code}\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
        monkeypatch.setattr(doctor, "ASK_TORCH", f"print({json.dumps(json.dumps(torch))})")
        return doctor._gpu()

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return look


@pytest.mark.parametrize(
    ("torch", "said", "exit_code", "state", "words"),
    [
        (CPU, "No devices were found", 6, "ok", "none; studies run on the CPU"),
        (CUDA, H100, 0, "ok", "CUDA 12.8"),
        (CPU, H100, 0, "bad", "is a build for the CPU"),
        (CPU, "Failed to initialize NVML: Driver/library version mismatch", 18, "bad", "Failed to initialize NVML"),
        (CUDA, "Failed to initialize NVML: Unknown Error", 255, "bad", "Failed to initialize NVML"),
        (CUDA | {"gpus": []}, H100, 0, "bad", "sees no GPU"),
        (CUDA | {"gpus": [], "error": "no kernel image is available"}, H100, 0, "bad", "no kernel image"),
    ],
)
def test_gpus(
    machine: Callable[..., Check], torch: dict[str, Any], said: str, exit_code: int, state: str, words: str
) -> None:
    check = machine(torch, said=said, exit_code=exit_code)
    assert check.state == state and words in check.found
    assert bool(check.advice) == (state == "bad")


def test_gpus_that_are_hidden_are_no_fault(machine: Callable[..., Check], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check = machine(CUDA | {"gpus": []}, said=H100)
    assert check.state == "ok" and "hidden by CUDA_VISIBLE_DEVICES" in check.found


def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ASK_TORCH", "raise ImportError('libcudart.so.12: cannot open shared object file')")
    check = doctor._gpu()
    assert check.state == "bad" and "libcudart.so.12" in check.found


@pytest.mark.parametrize(
    ("files", "limit_gib"),
    [
        ({"memory.max": "max", "memory.current": "1073741824"}, None),
        ({"memory.max": str(8 * 2**30), "memory.current": "1073741824"}, 8.0),
        ({"memory/memory.limit_in_bytes": str(2 * 2**30), "memory/memory.usage_in_bytes": "1073741824"}, 2.0),
        ({"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1073741824"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_container(files: dict[str, str], limit_gib: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert container_memory_gib(tmp_path) == (limit_gib, 1.0 if files else 0.0)


def test_a_small_container_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "container_memory_gib", lambda: (2.0, 1.5))
    check = doctor._memory()
    assert check.state == "bad" and "2.0 GiB is this container's limit" in check.found and "0.5 GiB free" in check.found


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("name", "total_gib", "free_gib", "state"),
    [("store", 100, 50, "ok"), ("store", 100, 0.5, "bad"), ("temp", 100, 50, "ok"), ("temp", 1000, 20, "bad")],
)
def test_disks(
    name: str, total_gib: float, free_gib: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Usage(total_gib * 2**30, (total_gib - free_gib) * 2**30, free_gib * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check = doctor._disk(name, tmp_path / "not" / "there" / "yet")
    assert check.state == state and str(tmp_path) in check.found
    assert bool(check.advice) == (state == "bad")


def test_little_shared_memory_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**26, 0, 2**26))
    check = doctor._shared_memory()
    assert check.state == "note" and "--shm-size" in check.advice


# --- the verb -----------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch is not asked, since its import takes seconds."""
    monkeypatch.setattr(doctor, "ASK_TORCH", f"print({json.dumps(json.dumps(CPU))})")
    monkeypatch.setattr(doctor, "gpus_of_the_driver", lambda: ([], ""))
    yield


@pytest.mark.usefixtures("quick")
def test_this_machine_can_run_a_study_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(cli.app, ["doctor", "--store", str(tmp_path / "store"), "--json"])
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and facts["can_run"] is True, facts
    names = [check["name"] for check in facts["checks"]]
    assert {"python", "ray", "gpu", "memory", "/dev/shm", "temp", "store", "chess"} <= set(names)
    assert "hub" not in names and not (tmp_path / "store").exists(), "it asks and writes nothing"


@pytest.mark.usefixtures("quick")
def test_a_run_that_would_fail_is_exit_code_1_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED_PACKAGES", ("ray", "no-such-package"))
    result = CliRunner().invoke(cli.app, ["doctor", "--store", str(tmp_path)])
    assert result.exit_code == 1
    assert "bad  no-such-package not installed\n" in result.output and "-> pip install w2s_ray" in result.output


@pytest.mark.usefixtures("quick")
def test_the_hub_is_asked_when_that_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    result = CliRunner().invoke(cli.app, ["doctor", "--store", str(tmp_path), "--hub"])
    assert result.exit_code == 1 and "http://127.0.0.1:9 can't be reached" in result.output
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = CliRunner().invoke(cli.app, ["doctor", "--store", str(tmp_path), "--hub"])
    assert result.exit_code == 0 and "note hub" in result.output


def test_the_question_to_torch_has_an_answer() -> None:
    """The real one, once."""
    facts, problem = doctor._ask_torch()
    assert not problem and set(facts) == set(CPU) and isinstance(facts["version"], str)
