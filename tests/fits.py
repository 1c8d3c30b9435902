"""Fits made by hand, for tests that train nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from w2s_ray.fit import Data, Fit, Method, Model, Training
from w2s_ray.plan import Cell
from w2s_ray.store import Store

DATA = Data(
    fingerprint="d" * 64,
    setting="classification",
    split_seed=0,
    num_train=100,
    num_test=50,
    max_tokens=64,
    tokenizers=("t" * 64,),
    task="toy",
    source="toy.yaml",
    tokenizer_sources=(("somewhere", None),),
)
TRAINING = Training(
    epochs=2,
    batch_size=32,
    learning_rate=1e-3,
    optimizer="adam",
    weight_decay=0.0,
    warmup_fraction=0.0,
    schedule="cosine",
    max_grad_norm=0.0,
    precision="fp32",
    evals_per_epoch=2,
    tune="all",
)


def model(size: str = "s", **changes: Any) -> Model:
    whole: dict[str, Any] = {
        "fingerprint": f"weights of {size}",
        "tokenizer": "t" * 64,
        "pooling": "last",
        "depth": None,
        "family": "toy",
        "size": size,
        "source": "somewhere",
        "revision": None,
        "num_params": {"s": 1000, "m": 10_000, "l": 100_000}[size],
        "pretraining_tokens": 1_000_000,
    }
    return Model(**whole | changes)


def fit(size: str = "s", half: Any = "B", labels: Fit | None = None, seed: int = 0, **changes: Any) -> Fit:
    whole: dict[str, Any] = {
        "model": model(size),
        "data": DATA,
        "half": half,
        "labels": (labels,) if labels else (),
        "method": Method("naive"),
        "training": TRAINING,
        "seed": seed,
    }
    return Fit(**whole | changes)


def commit(
    store: Store, each: Fit, probabilities: list[float], folder: Path, provenance: dict[str, Any] | None = None
) -> None:
    folder = folder / each.key[:8]
    folder.mkdir()
    if provenance is not None:
        (folder / "fit.json").write_text(json.dumps({"provenance": provenance}))
    ids = [f"i{i}" for i in range(len(probabilities))]
    pq.write_table(pa.table({"id": ids, "probability": pa.array(probabilities, pa.float32())}), folder / "test.parquet")
    pq.write_table(pa.table({"step": [1], "test_accuracy": [0.5]}), folder / "curve.parquet")
    store.commit(each, folder)


def write_truth(store: Store, labels: list[int]) -> None:
    ids = [f"i{i}" for i in range(len(labels))]
    halves, groups = ["test"] * len(labels) + ["A"], [*ids, "x"]
    table = pa.table({"id": [*ids, "x"], "half": halves, "group": groups, "label": pa.array([*labels, 1], pa.int8())})
    store.write_truth(fit(), table)


def cell(seed: int = 0, weak: str = "s", strong: str = "m") -> Cell:
    supervisor = fit(size=weak, half="A", seed=seed)
    return Cell(
        "toy", "naive", seed, supervisor, fit(size=strong, labels=supervisor, seed=seed), fit(size=strong, seed=seed)
    )
