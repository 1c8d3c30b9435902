"""Mid-fit checkpoints: weights and Adam's state as safetensors, progress as JSON. Nothing is pickled.

A checkpoint resumes to the very bytes of an uninterrupted Fit when the world size and ZeRO stage are the same; another
shape passes it over and starts the Fit again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from w2s_ray.fit import Execution, Fit
from w2s_ray.store import Store
from w2s_ray.training import engine as engines

WEIGHTS, PROGRESS = "model.safetensors", "progress.json"


@dataclass
class Progress:
    """How far a Fit is; all that a resumed one must know besides weights and optimizer."""

    step: int
    """Optimizer steps taken."""
    curve: list[dict[str, float | None]]
    loss_sum: float
    hits: float
    num_rows: int
    """Loss, hits against its own labels, and rows since the last point of the curve."""
    verified_loss_sum: float = 0.0
    num_verified: int = 0
    """The same of rows whose truth is known."""


def _optimizer_file(rank: int) -> str:
    return f"optimizer-{rank}.safetensors"


def full_weights(engine: Any) -> dict[str, torch.Tensor]:
    """Every weight, whole, on rank 0's CPU (empty on others under ZeRO-3)."""
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter]):
                if engines.rank() == 0:
                    weights[name] = parameter.detach().cpu().clone()
        elif engines.rank() == 0:
            weights[name] = parameter.detach().cpu().clone()
    return weights


def save(engine: Any, fit: Fit, progress: Progress, *, execution: Execution, store: Store, scratch: Path) -> None:
    """Put a checkpoint into the store: each worker its share, then the marker."""
    files = []
    weights = full_weights(engine)
    if engines.rank() == 0:
        save_file(weights, scratch / WEIGHTS)
        shape = {"world_size": engines.world_size(), "zero_stage": execution.zero_stage}
        (scratch / PROGRESS).write_text(json.dumps(asdict(progress) | shape))
        files += [scratch / WEIGHTS, scratch / PROGRESS]
    states = engines.adam_states(engine)
    tensors = {
        f"{i}.{name}": value.detach().cpu().contiguous()
        for i, parameter in enumerate(engines.adam_parameters(engine))
        for name, value in states.get(parameter, {}).items()
        if torch.is_tensor(value)
    }
    save_file(tensors, scratch / _optimizer_file(engines.rank()))
    files.append(scratch / _optimizer_file(engines.rank()))
    entries = [store.write_checkpoint_file(fit, step=progress.step, file=file) for file in files]
    gathered: list[Any] = [None] * engines.world_size()
    dist.all_gather_object(gathered, entries)
    if engines.rank() == 0:
        flat = [entry for each in gathered for entry in each]
        store.seal_checkpoint(fit, step=progress.step, entries=flat)


def find(fit: Fit, *, execution: Execution, store: Store, scratch: Path) -> Progress | None:
    """Fetch the newest whole checkpoint of this shape, the same on every worker."""
    found: list[Any] = [None]
    if engines.rank() == 0:
        found = [store.read_checkpoint(fit, into=scratch)]
    dist.broadcast_object_list(found, src=0)
    if found[0] is None:
        return None
    mine = store.read_checkpoint(fit, into=scratch) if engines.rank() else found[0]
    agreed: list[Any] = [None] * engines.world_size()
    dist.all_gather_object(agreed, mine)
    content = json.loads((scratch / PROGRESS).read_text()) if set(agreed) == {found[0]} else {}
    if (content.pop("world_size", None), content.pop("zero_stage", None)) != (
        engines.world_size(),
        execution.zero_stage,
    ):
        return None
    return Progress(**content)


def load_weights(model: nn.Module, *, scratch: Path) -> None:
    """Into a model that no engine has wrapped yet, so that every copy of the weights starts from them."""
    with torch.no_grad():
        weights = load_file(scratch / WEIGHTS)
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def load_optimizer(engine: Any, *, scratch: Path) -> None:
    tensors = load_file(scratch / _optimizer_file(engines.rank()))
    states = engines.adam_states(engine)
    for i, parameter in enumerate(engines.adam_parameters(engine)):
        mine = {name.split(".", 1)[1]: value for name, value in tensors.items() if name.split(".", 1)[0] == str(i)}
        if mine:
            # Adam keeps its step count on the CPU and its moments beside the parameter
            states[parameter] = {
                name: value.clone() if name == "step" else value.to(parameter.device).clone()
                for name, value in mine.items()
            }
