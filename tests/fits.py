"""Fits made by hand, for tests that train nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from w2s_ray.fit import Data, Execution, Fit, Method, Model, Training
from w2s_ray.planning import Cell
from w2s_ray.scheduling.packs import Schedule
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
        "pretraining_flops": 6e9,
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
    store: Store,
    each: Fit,
    probabilities: list[float],
    folder: Path,
    provenance: dict[str, Any] | None = None,
    half_b: dict[str, float] | None = None,
) -> None:
    """`half_b`: id -> probability of the rows of half B, if the Fit keeps any."""
    folder = folder / each.key[:8]
    folder.mkdir()
    if provenance is not None:
        (folder / "fit.json").write_text(json.dumps({"provenance": provenance}))
    ids = [f"i{i}" for i in range(len(probabilities))]
    pq.write_table(pa.table({"id": ids, "probability": pa.array(probabilities, pa.float32())}), folder / "test.parquet")
    if half_b is not None:
        table = pa.table({"id": list(half_b), "probability": pa.array(half_b.values(), pa.float32())})
        pq.write_table(table, folder / ("half_b.parquet" if each.keeps_half_b else "labels.parquet"))
    pq.write_table(pa.table({"step": [1], "test_accuracy": [0.5]}), folder / "curve.parquet")
    store.commit(each, folder)


def write_truth(store: Store, labels: list[int]) -> None:
    """Test rows i0, i1, ... with these labels, a row of half A, and b0 to b3 of half B with the labels 1, 1, 0, 0."""
    ids = [*(f"i{i}" for i in range(len(labels))), "x", "b0", "b1", "b2", "b3"]
    halves = ["test"] * len(labels) + ["A"] + ["B"] * 4
    label = pa.array([*labels, 1, 1, 1, 0, 0], pa.int8())
    store.write_truth(fit(), pa.table({"id": ids, "half": halves, "group": ids, "label": label}))


def cell(seed: int = 0, weak: str = "s", strong: str = "m") -> Cell:
    supervisor = fit(size=weak, half="A", seed=seed)
    return Cell(
        "toy", "naive", seed, supervisor, fit(size=strong, labels=supervisor, seed=seed), fit(size=strong, seed=seed)
    )


# --- a schedule of them -----------------------------------------------------------------------------------------------


def small_grid(num_seeds: int = 2) -> list[Fit]:
    """Supervisor s, ceilings s and m, students s->s and s->m, for each seed."""
    found = []
    for seed in range(num_seeds):
        supervisor = fit(size="s", half="A", seed=seed)
        found += [supervisor, fit(size="s", seed=seed), fit(size="m", seed=seed)]
        found += [fit(size=size, labels=supervisor, seed=seed) for size in ("s", "m")]
    return found


def schedule_of(
    fits: list[Fit],
    *,
    seconds: float = 10.0,
    num_slots: int = 2,
    longer: dict[str, float] | None = None,
    shape: Callable[[Fit], Execution] = lambda fit: Execution(),
    **more: Any,
) -> Schedule:
    """`longer`: key -> seconds of those that take longer."""
    return Schedule(
        fits={f.key: f for f in fits},
        executions={f.key: shape(f) for f in fits},
        seconds={f.key: seconds for f in fits} | (longer or {}),
        num_slots=num_slots,
        todo={f.key for f in fits},
        **more,
    )
