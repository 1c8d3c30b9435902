"""Where, when and with what a Fit was trained, for `fit.json`. Nothing here is part of its identity."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from w2s_ray.fit import PACKAGES, Execution, Fit
from w2s_ray.speeds import cpu_name
from w2s_ray.training.clock import Clock
from w2s_ray.training.distributed import world_size
from w2s_ray.training.loop import num_passes
from w2s_ray.training.rows import PreparedTask
from w2s_ray.training.settings import model_setting_of
from w2s_ray.training.training_set import TrainingSet


@cache
def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


@dataclass(frozen=True)
class Circumstances:
    """How a Fit came to be, as far as it shows only afterwards."""

    execution: Execution
    clock: Clock
    head_start: str
    resumed_from_step: int
    best_step: int | None
    """The step whose weights predict, if that need not be the last."""


def provenance(fit: Fit, task: PreparedTask, training_set: TrainingSet, circumstances: Circumstances) -> dict[str, Any]:
    num_tokens = _num_training_tokens(fit, task, training_set)
    num_rows = {name: len(rows) for name, rows in task.parts.items()} | {"learned": len(training_set)}
    return _place_and_time(circumstances.execution, circumstances.clock) | {
        "tokens": num_tokens,
        "flops": _flops(fit, num_tokens),
        "head_start": circumstances.head_start,
        "label_score": training_set.label_score,
        "ensemble_score": training_set.ensemble_score,
        "num_rows": num_rows,
        "num_too_long": task.num_too_long,
        "resumed_from_step": circumstances.resumed_from_step,
        "best_step": circumstances.best_step,
    }


def provenance_of_reading(fit: Fit, task: PreparedTask, execution: Execution, clock: Clock) -> dict[str, Any]:
    """A forward pass over each row: 2ND."""
    num_tokens = sum(len(tokens) for rows in task.parts.values() for row in rows.sequences for tokens in row)
    return _place_and_time(execution, clock) | {
        "tokens": num_tokens,
        "flops": 2 * fit.model.num_params * num_tokens,
        "num_rows": {name: len(rows) for name, rows in task.parts.items()},
        "num_too_long": task.num_too_long,
    }


def _place_and_time(execution: Execution, clock: Clock) -> dict[str, Any]:
    return {
        "versions": versions(),
        "python": sys.version.split()[0],
        "git_commit": git_commit(),
        "host": platform.node(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "cpu": cpu_name(),
        "world_size": world_size(),
        "execution": asdict(execution),
        "committed_at": time.time(),
        "seconds": {name: round(seconds, 4) for name, seconds in clock.seconds.items()},
        "busy": None if clock.busy_share is None else round(clock.busy_share, 4),
    }


def _num_training_tokens(fit: Fit, task: PreparedTask, training_set: TrainingSet) -> int:
    """Tokens that the model reads, and learns to write, over all passes."""
    if num_passes(fit) == 0:
        return 0
    rows = training_set.rows
    read = task.parts[fit.part.half].in_order_of(rows.ids) if fit.training.tune == "head" else rows
    num_read = sum(len(tokens) for sequences in read.sequences for tokens in sequences)
    num_written = sum(map(len, rows.labels)) if model_setting_of(fit).TARGETS_ARE_TOKENS else 0
    return round((num_read + num_written) * num_passes(fit))


def _flops(fit: Fit, num_tokens: int) -> int:
    """6ND (Kaplan et al. 2020, section 2.1); 4ND with LoRA, whose frozen weights need no gradient of their own; none with a
    probe, for which a reading has read."""
    if fit.training.tune == "head":
        return 0
    return (4 if fit.training.tune == "lora" else 6) * fit.model.num_params * num_tokens


@cache
def machine_name() -> str:
    """The kind of GPU, or of CPU, that does the work."""
    return f"GPU {torch.cuda.get_device_name()}" if torch.cuda.is_available() else f"CPU {cpu_name()}"


@cache
def git_commit() -> str | None:
    """The commit of the running code, if it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
