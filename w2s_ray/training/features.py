"""Features of a frozen model: read off once for each (model, part of a task), and kept in the store for all Fits.

Linear probes learn from them, and some transforms of labels look at them. Promises: the features are the same however many
workers extract them; a file that cannot be read back whole is extracted again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.numpy import load, save

from w2s_ray.fit import SEMANTICS, Fit, canonical_json
from w2s_ray.store import Store
from w2s_ray.training.batches import eval_batches
from w2s_ray.training.distributed import all_agree, device, rank, sum_rows_over_ranks, world_size
from w2s_ray.training.model import ModelSpec, Scorer, frozen_model
from w2s_ray.training.rows import PreparedTask, Rows
from w2s_ray.training.settings import setting_of
from w2s_ray.training.worker import Worker

NUM_CACHED = 4
"""Feature sets that a worker keeps in memory: of two models, halves and test set each."""

TELL_EVERY_S = 5.0

Features = dict[str, np.ndarray]
"""Part of the task -> [row, sequence, width]."""

_cache: dict[str, Features] = {}


def with_features(fit: Fit, task: PreparedTask, worker: Worker) -> PreparedTask:
    """The same task with features in place of tokens, standardised over the half that the Fit learns from."""
    raw = _features(fit, task, worker)
    own = raw[fit.part.half].reshape(-1, raw[fit.part.half].shape[-1])
    mean, spread = own.mean(axis=0), own.std(axis=0) + 1e-6
    parts = {
        name: replace(rows, sequences=[tuple(row) for row in (raw[name] - mean) / spread], are_features=True)
        for name, rows in task.parts.items()
    }
    return replace(task, parts=parts)


def _features(fit: Fit, task: PreparedTask, worker: Worker) -> Features:
    """All parts of the task. The test set is common to all replicates, so its features are kept apart from the halves'."""
    halves = {name: rows for name, rows in task.parts.items() if name != "test"}
    test = {"test": task.parts["test"]}
    test_data = {name: value for name, value in fit.data.identity.items() if name not in OF_THE_HALVES}
    features = _cached(fit, halves, f"halves-{_digest(fit, fit.data.identity)}", task, worker)
    return features | _cached(fit, test, f"test-{_digest(fit, test_data)}", task, worker)


OF_THE_HALVES = ("halves_seed", "is_swapped", "num_train", "difficulty", "num_fresh")
"""What of a Fit's data does not change its test set."""


def _digest(fit: Fit, data: dict[str, Any]) -> str:
    identity = {
        "model": fit.model.identity,
        "data": data,
        "precision": fit.training.precision,
        "semantics": SEMANTICS,
    } | ({"told": fit.labels[0].key} if fit.method.name == "told" else {})  # its texts hold labels
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]


def _cached(fit: Fit, parts: dict[str, Rows], name: str, task: PreparedTask, worker: Worker) -> Features:
    """Features of some parts: from this worker's memory, from the store, or extracted now."""
    name = f"{fit.data.task}-{fit.model.name}-{name}"
    if name not in _cache:
        while len(_cache) >= NUM_CACHED:
            _cache.pop(next(iter(_cache)))
        features = _read(worker.store, name, parts)
        if not all_agree(features is not None) or features is None:  # all ranks extract together, or none does
            features = _extract(fit, parts, task, worker)
            if rank() == 0:
                worker.store.storage.write(_path(name), save(features))
        _cache[name] = features
    return _cache[name]


def _path(name: str) -> str:
    return f"features/{name}.safetensors"


def _read(store: Store, name: str, parts: dict[str, Rows]) -> Features | None:
    try:
        features = load(store.storage.read(_path(name))) if store.storage.exists(_path(name)) else {}
    except (OSError, safetensors.SafetensorError):
        return None
    num_rows = {part: len(rows) for part, rows in parts.items()}
    return features if {part: len(rows) for part, rows in features.items()} == num_rows else None


@torch.no_grad()
def _extract(fit: Fit, parts: dict[str, Rows], task: PreparedTask, worker: Worker) -> Features:
    model = frozen_model(ModelSpec.of(fit, execution=worker.execution)).to(device())
    tell = _teller(fit, sum(len(rows) for rows in parts.values()), worker)
    return {name: _extract_part(fit, model, rows, task, tell) for name, rows in sorted(parts.items())}


def _teller(fit: Fit, num_rows: int, worker: Worker) -> Callable[[int], None]:
    """A function that takes how many rows were read, and now and then tells the driver what share of all that is."""
    num_read, told_s = 0, time.monotonic()

    def tell(num_more: int) -> None:
        nonlocal num_read, told_s
        num_read += num_more
        if (
            world_size() == 1 and time.monotonic() - told_s >= TELL_EVERY_S
        ):  # with more ranks a report needs all of them
            told_s = time.monotonic()
            worker.report({"event": "features", "key": fit.key, "share_read": num_read / num_rows})

    return tell


def _extract_part(fit: Fit, model: Scorer, rows: Rows, task: PreparedTask, tell: Callable[[int], None]) -> np.ndarray:
    features: torch.Tensor | None = None
    for index, chosen in enumerate(eval_batches(rows)):
        if index % world_size() != rank():
            continue
        inputs: tuple[Any, ...] = setting_of(fit).collate(rows, chosen, pad_id=task.pad_id)[0]
        flat = model.features(*inputs)
        by_row = flat.view(-1, len(chosen), flat.shape[-1]).transpose(0, 1)
        if features is None:
            features = torch.zeros((len(rows), *by_row.shape[1:]), device=by_row.device)
        features[chosen] = by_row
        tell(len(chosen))
    return sum_rows_over_ranks(features, len(rows)).cpu().numpy()
