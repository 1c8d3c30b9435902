"""Features for linear probes: read off a frozen model once for each (model, task), kept in the store for every probe.

Promises: the same features however many workers extracted them; what can't be read back whole is extracted again.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import safetensors
import torch
import torch.distributed as dist
from safetensors.numpy import load, save

from w2s_ray.fit import SEMANTICS, Execution, Fit, canonical_json
from w2s_ray.store import Store
from w2s_ray.training import data
from w2s_ray.training import engine as engines
from w2s_ray.training.data import Prepared, Rows
from w2s_ray.training.model import frozen

NUM_KEPT = 2
"""Feature sets that a worker keeps in memory."""

_kept: dict[str, dict[str, np.ndarray]] = {}


def for_probe(fit: Fit, prepared: Prepared, *, store: Store, execution: Execution) -> Prepared:
    """The same rows, with features in the place of tokens, standardised over the half that the Fit learns from."""
    raw = _features(fit, prepared, store=store, execution=execution)
    own = raw[fit.half[0]].reshape(-1, raw[fit.half[0]].shape[-1])
    mean, spread = own.mean(axis=0), own.std(axis=0) + 1e-6
    parts = {
        name: replace(rows, sequences=[tuple(row) for row in (raw[name] - mean) / spread])
        for name, rows in prepared.parts.items()
    }
    return replace(prepared, parts=parts)


def _features(fit: Fit, prepared: Prepared, *, store: Store, execution: Execution) -> dict[str, np.ndarray]:
    """Part -> [row, sequence, width]."""
    name = _name(fit)
    if name not in _kept:
        while len(_kept) >= NUM_KEPT:
            _kept.pop(next(iter(_kept)))
        found = _read(store, name, prepared)
        if not _agreed(found is not None) or found is None:
            found = _extract(fit, prepared, execution=execution)
            if engines.rank() == 0:
                store.storage.write(f"features/{name}.safetensors", save(found))
        _kept[name] = found
    return _kept[name]


def _name(fit: Fit) -> str:
    what = {
        "model": fit.model.identity,
        "data": fit.data.identity,
        "precision": fit.training.precision,
        "semantics": SEMANTICS,
    } | ({"told": fit.labels[0].key} if fit.method.name == "told" else {})
    return f"{fit.data.task}-{fit.model.name}-{hashlib.sha256(canonical_json(what).encode()).hexdigest()[:12]}"


def _read(store: Store, name: str, prepared: Prepared) -> dict[str, np.ndarray] | None:
    path = f"features/{name}.safetensors"
    try:
        found = load(store.storage.read(path)) if store.storage.exists(path) else {}
    except (OSError, safetensors.SafetensorError):
        return None
    right = {part: len(rows) for part, rows in prepared.parts.items()}
    return found if {part: len(rows) for part, rows in found.items()} == right else None


def _agreed(mine: bool) -> bool:
    """Whether all workers say so: they extract together or not at all."""
    if engines.world_size() == 1:
        return mine
    votes = torch.tensor([int(mine)], device=engines.device())
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return bool(votes.item())


@torch.no_grad()
def _extract(fit: Fit, prepared: Prepared, *, execution: Execution) -> dict[str, np.ndarray]:
    model = frozen(fit.model, execution=execution, bf16=fit.training.precision == "bf16").to(engines.device())
    return {
        part: _extract_part(model, rows, pad_id=prepared.pad_id, setting=fit.data.setting)
        for part, rows in sorted(prepared.parts.items())
    }


def _extract_part(model: Any, rows: Rows, *, pad_id: int, setting: Any) -> np.ndarray:
    found: torch.Tensor | None = None
    for index, chosen in enumerate(data.eval_batches(rows)):
        if index % engines.world_size() != engines.rank():
            continue
        sequences = [rows.sequences[i] for i in chosen]
        read, _ = data.inputs(
            sequences, np.zeros(len(chosen), np.float32), setting=setting, pad_id=pad_id, device=engines.device()
        )
        features = model.features(*read)
        by_row = features.view(-1, len(chosen), features.shape[-1]).transpose(0, 1)
        if found is None:
            found = torch.zeros((len(rows), *by_row.shape[1:]), device=by_row.device)
        found[chosen] = by_row
    if engines.world_size() > 1:
        found = _summed(found, len(rows), device=engines.device())
    assert found is not None
    return found.cpu().numpy()


def _summed(found: torch.Tensor | None, num_rows: int, *, device: torch.device) -> torch.Tensor:
    """The rows of all workers; one that had no batch takes the shape from the others."""
    shape = torch.tensor(found.shape[1:] if found is not None else (0, 0), device=device)
    dist.all_reduce(shape, op=dist.ReduceOp.MAX)
    whole = found if found is not None else torch.zeros((num_rows, *shape.tolist()), device=device)
    dist.all_reduce(whole)
    return whole
