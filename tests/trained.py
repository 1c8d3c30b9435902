"""Tiny studies trained in this process, without Ray, and what they leave in the store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from w2s_ray import families
from w2s_ray.fit import Execution, Fit
from w2s_ray.planning import load_plan
from w2s_ray.store import Store, open_store
from w2s_ray.study import ModelEntry
from w2s_ray.training.model import ModelSpec
from w2s_ray.training.pack import run_pack

from tiny import save_study

LEARNING = {"epochs": 12, "batch_size": 16, "learning_rate": 0.02, "evals_per_epoch": 1}
ODD_BATCHES = {"epochs": 1, "batch_size": 20, "learning_rate": 0.01, "warmup_fraction": 0.1, "max_grad_norm": 1.0}
"""96 rows in batches of 20: the last batch is not full."""


class Killed(BaseException):
    """As when the process goes away: nothing catches it."""


def quiet(event: dict[str, Any]) -> None:
    pass


def study_of(folder: Path, task: str, **grid: Any) -> Path:
    """A study of one task and the pair (small, big)."""
    return save_study(folder, grid={"tasks": [task], "pairs": [["small", "big"]]} | grid)


def fits_of(folder: Path, **grid: Any) -> list[Fit]:
    return list(load_plan(save_study(folder, grid=grid)).fits)


def train(fits: Iterable[Fit], where: Path, execution: Execution = Execution()) -> Store:  # noqa: B008
    """Train Fits into a store. None may fail."""
    store = open_store(where)
    run_pack(list(fits), store_uri=store.uri, execution=execution, report=quiet)
    failures = store.read_failures()
    assert failures == {}, [record["reason"] for record in failures.values()]
    return store


def train_study(study: Path, where: Path, execution: Execution = Execution()) -> tuple[Store, tuple[Fit, ...]]:  # noqa: B008
    fits = load_plan(study).fits
    return train(fits, where, execution), fits


def files_of(store: Store, fit: Fit) -> dict[str, bytes]:
    """A Fit's files without its provenance."""
    names = store.read_done(fit.folder)["files"]
    return {name: store.read_file(fit.folder, name) for name in names if name != "fit.json"}


def predictions_of(store: Store, fit: Fit) -> pl.DataFrame:
    table = pl.from_arrow(store.read_table(fit, "test.parquet"))
    assert isinstance(table, pl.DataFrame)
    return table


def probabilities(store: Store, fit: Fit) -> np.ndarray:
    return predictions_of(store, fit)["probability"].to_numpy()


def spec_of(folder: Path, *, depth: int | None = None, **more: Any) -> ModelSpec:
    """What a model is built from that lies in a folder."""
    family = families.from_models([ModelEntry(name="m", path=str(folder), depth=depth)], base=folder)
    return ModelSpec(families.model(family, "m"), **more)


def torchrun(script: str, *arguments: str, folder: Path, num_ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script as several ranks."""
    path = folder / "ranks.py"
    path.write_text(script)
    ranks = [f"--nproc-per-node={num_ranks}", "--master-port=0", "--standalone"]
    command = [sys.executable, "-m", "torch.distributed.run", *ranks]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if torch.cuda.device_count() < num_ranks:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(
        [*command, str(path), *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
