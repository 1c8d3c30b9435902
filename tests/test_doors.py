"""What may import what: the doors start fast, and each library lives in its room."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import save_study

ROOT = Path(__file__).parents[1]
DOORS = (
    "study",
    "fit",
    "planning",
    "cost",
    "status",
    "run_options",
    "store",
    "leases",
    "tracking",
    "results",
    "cli",
    "families",
    "tasks",
    "methods",
    "notebook",
    "analysis.report",
)


@pytest.mark.parametrize("door", DOORS)
def test_a_door_imports_neither_ray_nor_torch(door: str) -> None:
    code = f"import sys, w2s_ray.{door}; print([m for m in ('ray', 'torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("modules", "kept_out"),
    [
        (
            "ray.train.v2.api.data_parallel_trainer, w2s_ray.scheduling.process_group, w2s_ray.scheduling.trainable",
            "torch",
        ),
        ("w2s_ray.training.engine", "mlflow"),
    ],
)
def test_a_process_of_a_run_imports_only_what_it_uses(modules: str, kept_out: str) -> None:
    """Each process of Ray's imports for itself, and the first Fit waits for all of them."""
    code = f"import sys, {modules}; print('{kept_out}' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py"))


def uses(path: Path, *libraries: str) -> bool:
    return any(name == lib or name.startswith(f"{lib}.") for name in imports_of(path) for lib in libraries)


def test_each_library_lives_in_its_room() -> None:
    for path in modules("w2s_ray"):
        room = path.relative_to(ROOT / "w2s_ray").parts[0]
        if uses(path, "ray"):
            assert room == "scheduling", f"{path} imports ray"
        if uses(path, "deepspeed"):
            assert room == "training", f"{path} imports deepspeed"
        if uses(path, "torch"):
            assert room in ("training", "methods", "recipes"), f"{path} imports torch"
    for path in modules("analysis"):
        assert not uses(path, "ray", "torch"), f"{path} reaches out of its room"
        ours = {name for name in imports_of(path) if name.startswith("w2s_ray")}
        assert all(name.startswith("w2s_ray.analysis") for name in ours), f"{path} reaches out of its room"


def test_nothing_is_unpickled() -> None:
    for path in [*modules("w2s_ray"), *modules("analysis")]:
        text = path.read_text()
        assert not uses(path, "pickle", "cloudpickle", "dill", "joblib"), path
        assert "torch.load(" not in text and "yaml.load(" not in text.replace("yaml.load(text, Loader=_Loader)", ""), (
            path
        )


def test_plan_is_quick(tmp_path: Path) -> None:
    """Seconds of CPU of the best of three whole processes, since the machine may be busy."""
    study = save_study(tmp_path)
    took_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "w2s_ray.cli", "plan", str(study)], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took_s) < 2.5, took_s


def test_a_plan_of_a_hundred_thousand_cells(tmp_path: Path) -> None:
    save_study(tmp_path)
    study = save_study(tmp_path, grid={"seeds": 16_700, "methods": ["naive", "confidence"]})
    code = (
        "import resource; from typer.testing import CliRunner; from w2s_ray import cli;"
        f"r = CliRunner().invoke(cli.app, ['plan', {str(study)!r}, '--json']); print(r.output);"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'));"  # maxrss has the parent's too
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, int(peak.split()[1]) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert '"cells": 100200' in done.stdout
    seconds, mebibytes = done.stdout.split()[-2:]
    assert float(seconds) < 15 and int(mebibytes) < 1024
