"""Benchmarks run: what a GPU does, at sizes for a CPU, and the race against plain PyTorch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_what_a_gpu_does_is_measured_in_every_way_of_tuning() -> None:
    gpu = load("gpu")
    cases = [case for case in gpu.cases("tiny", with_variants=True) if case.way != "compiled"]
    assert {case.tune for case in cases} == {"all", "lora", "head"}
    for case in cases:
        figures = gpu.measure(case, gpu.Size(num_steps=1, num_tokens=8, precision="fp32"))
        assert figures["tokens_per_s"] > 0 and figures["params"] > 0, case
        assert torch.cuda.is_available() or figures["utilisation"] is None, "no share of a peak that is not known"


@pytest.mark.slow
def test_a_race_ends_with_both_sides_scores(tmp_path: Path) -> None:
    sizes = ["--sizes", "xs", "s", "--num-train", "200", "--num-test", "200", "--seeds", "1"]
    command = [sys.executable, str(BENCHMARKS / "race.py"), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "3 trainings: w2s run" in done.stdout and "times as long" in done.stdout


@pytest.mark.slow
def test_probes_read_each_row_once_for_all_depths(tmp_path: Path) -> None:
    sizes = ["--width", "64", "--depths", "1", "2", "--rows", "100", "--seeds", "1"]
    command = [sys.executable, str(BENCHMARKS / "probes.py"), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reading    ┆ 2" in done.stdout and "loading a Fit" in done.stdout
