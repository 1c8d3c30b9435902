"""What a change of the code must not move by accident: the keys of the shipped studies, the files of a small one.

`golden.json` holds digests of the keys and of every parquet file of a study with all three settings, a warm start, a chain, a
linear probe, LoRA and transforms of labels. Bytes are compared on the kind of machine that recorded them, numbers anywhere.
A change that is meant to move them raises SEMANTICS and records anew: `python tests/test_same_bytes.py`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from w2s_ray.fit import Execution, Fit
from w2s_ray.planning import load_plan
from w2s_ray.store import open_store
from w2s_ray.training.pack import run_pack

from tiny import save_model, save_rewriting, save_task

GOLDEN = Path(__file__).with_name("golden.json")
STUDIES = Path(__file__).parents[1] / "studies"
PINNED = ("quickstart", "embedded", "methods", "easy-to-hard", "english")


def digest_of_keys(study: Path) -> str:
    return digest(fit.key for fit in load_plan(study).fits if fit.role != "reading")


def digest_of_readings(study: Path) -> str:
    """Apart from the others: where features are kept changes no other Fit."""
    return digest(fit.key for fit in load_plan(study).fits if fit.role == "reading")


def digest(keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def machine() -> dict[str, str]:
    """What the last bits of a prediction depend on besides the code."""
    wanted = ("vendor_id", "cpu family", "model", "stepping")
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    cpu = {name.strip(): value.strip() for name, _, value in lines if name.strip() in wanted}
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "deepspeed", "numpy", "pyarrow")}
    return cpu | versions | {"capability": torch.backends.cpu.get_cpu_capability()}


def small_study(folder: Path) -> list[Fit]:
    for seed, name in enumerate("sml"):
        save_model(folder / name, "llama", seed=seed)
    save_task(folder)
    save_rewriting(folder)
    training = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01}
    common = {
        "models": [{"name": name, "path": name} for name in "sml"],
        "pairs": [["s", "l"]],
        "controls": False,
        "split": {"num_train": 96, "num_test": 64},
        "training": training,
    }
    transforms = ["filter", "combined", "ensemble", "noise", "shuffled"]
    few_shot = {"name": "few_shot", "shots": 2}
    grids: list[dict[str, Any]] = [
        {
            "tasks": ["toy.yaml"],
            "methods": ["naive", "confidence", "bootstrap", "relabel", "told", "generative", few_shot, *transforms],
        },
        {"tasks": ["toy.yaml"], "label": "probe", "training": training | {"tune": "head", "validation": 0.25}},
        {"tasks": ["toy.yaml"], "label": "lora", "training": training | {"tune": "lora", "lora_rank": 4}},
        {
            "tasks": ["writing.yaml"],
            "methods": ["naive", "confidence", "generative", "zero_shot", few_shot, *transforms],
        },
        {"tasks": ["choosing.yaml"], "methods": ["naive", "iterate", "sieve", "generative", "zero_shot", "entropy"]},
    ]
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "golden", "grids": [common | grid for grid in grids]}))
    return list(load_plan(path).fits)


def trained(folder: Path) -> dict[str, Any]:
    """Name of a Fit (without its hash, which goes with the version of transformers) -> digests and predictions."""
    store, fits = open_store(folder / "store"), small_study(folder)
    run_pack(fits, store_uri=store.uri, execution=Execution(), report=lambda event: None)
    assert store.read_failures() == {}
    found: dict[str, Any] = {}
    for number, fit in enumerate(fit for fit in fits if fit.role != "reading"):
        names = [name for name in store.read_done(fit.folder)["files"] if name.endswith(".parquet")]
        digests = {name: hashlib.sha256(store.read_file(fit.folder, name)).hexdigest() for name in names}
        probabilities: list[float] = []
        if "test.parquet" in names:
            table = store.read_table(fit, "test.parquet")
            probabilities = [round(each, 4) for each in table.column("probability").to_pylist()]
        found[f"{number:03d} {fit.folder[:-13]}"] = {"files": digests, "probabilities": probabilities}
    return found


@pytest.mark.parametrize("name", PINNED)
def test_the_keys_of_a_shipped_study_are_those_that_filled_stores_hold(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert digest_of_keys(STUDIES / f"{name}.yaml") == golden["keys"][name]
    assert digest_of_readings(STUDIES / f"{name}.yaml") == golden["readings"][name]


def test_a_small_study_ends_in_the_same_bytes(tmp_path: Path) -> None:
    golden, now = json.loads(GOLDEN.read_text()), trained(tmp_path)
    assert now.keys() == golden["fits"].keys()
    for name, fit in golden["fits"].items():
        assert now[name]["files"].keys() == fit["files"].keys(), name
        if golden["machine"] == machine():
            assert now[name]["files"] == fit["files"], name
        elif fit["probabilities"]:
            assert np.abs(np.subtract(now[name]["probabilities"], fit["probabilities"])).mean() < 0.02, name


def record() -> None:
    with tempfile.TemporaryDirectory() as folder:
        golden = {
            "machine": machine(),
            "keys": {name: digest_of_keys(STUDIES / f"{name}.yaml") for name in PINNED},
            "readings": {name: digest_of_readings(STUDIES / f"{name}.yaml") for name in PINNED},
            "fits": trained(Path(folder)),
        }
    lines = [f"  {json.dumps(name)}: {json.dumps(fit)}" for name, fit in golden["fits"].items()]
    head = json.dumps({name: golden[name] for name in ("machine", "keys", "readings")}, indent=1)
    GOLDEN.write_text(head.removesuffix("\n}") + ',\n "fits": {\n' + ",\n".join(lines) + "\n }\n}\n")


if __name__ == "__main__":
    record()
