"""Memory: what a worker holds of a model, on its GPU and on its node, and what this machine has.

The needs leave out activations, buffers and the libraries themselves, so what does not fit by them can never run. They are for weights
in fp32 and Adam, as ZeRO shares them among workers (Rajbhandari et al. 2020, figure 1).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from w2s_ray.fit import Execution, Fit

GIB = 2**30
NO_LIMIT_GIB = 2**20
"""From here on a container's limit is none: version 1 of cgroups has no word for that."""


@dataclass(frozen=True)
class Need:
    """Of one worker."""

    model: str
    gpu_bytes: float
    """0 if it has no GPU."""
    host_bytes: float
    """In the memory of its node."""


def largest_needs(fits: Iterable[tuple[Fit, Execution]]) -> dict[Execution, Need]:
    """Shape -> the largest need of a worker among its Fits."""
    found: dict[Execution, Need] = {}
    kinds = set()
    for fit, execution in fits:
        kind = (id(fit.model), id(fit.training), fit.role == "reading", id(execution))
        if kind in kinds:
            continue
        kinds.add(kind)
        need = need_of(fit, execution)
        found[execution] = max(found.get(execution, need), need, key=lambda each: each.gpu_bytes + each.host_bytes)
    return found


def need_of(fit: Fit, execution: Execution) -> Need:
    num_params, workers, stage = fit.model.num_params, execution.workers, execution.zero_stage
    weights, copy, gradients, moments = 4.0, 0.0, 4.0, 8.0  # bytes per parameter
    pristine = 0.0 if stage == 3 and workers > 1 else 4.0  # for the next Fit, unless each worker loads a part only
    if fit.role == "reading":
        copy, gradients, moments, pristine = 0.0, 0.0, 0.0, 0.0
    elif fit.training.tune == "head":  # a head on features is small
        weights, gradients, moments, pristine = 0.0, 0.0, 0.0, 0.0
    elif fit.training.tune == "lora":  # adapters are small
        gradients, moments = 0.0, 0.0
    elif stage:
        copy = 4.0 / workers  # ZeRO steps weights of its own
        moments /= workers
        gradients /= workers if stage >= 2 else 1
    if stage == 3 and fit.role != "reading":
        weights /= workers
    on_host = pristine
    if execution.offload != "none" and stage:
        on_host += copy + moments
        copy, moments = 0.0, 0.0
    if execution.offload == "parameters" and stage == 3:
        on_host += weights
        weights = 0.0
    on_device = weights + copy + gradients + moments
    if not execution.gpus_per_worker:
        on_host, on_device = on_host + on_device, 0.0
    return Need(fit.model.name, num_params * on_device, num_params * on_host)


def machine_gib() -> float:
    """The memory of this machine, or of the container that this process is in if that has a limit."""
    limit_gib, _ = container_memory_gib()
    total_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return min(total_gib, limit_gib or total_gib)


def container_memory_gib(root: Path = Path("/sys/fs/cgroup")) -> tuple[float | None, float]:
    """The limit of this process's container, None without one, and what of it is used: version 2 and version 1 of cgroups."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            said, used_bytes = (root / limit).read_text().strip(), int((root / used).read_text())
        except (OSError, ValueError):
            continue
        limit_gib = None if said == "max" else int(said) / GIB
        return (None if limit_gib is None or limit_gib > NO_LIMIT_GIB else limit_gib), used_bytes / GIB
    return None, 0.0
