"""Mid-fit checkpoints: weights and Adam's state as safetensors, progress as JSON. Nothing is pickled.

A Fit that resumes from a checkpoint ends in the very bytes of an uninterrupted one, if world size and ZeRO stage are the same.
Any other shape ignores the checkpoint and starts the Fit again. Each worker writes and reads its own share: weights that were
loaded in parts are never put together for it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from w2s_ray.fit import Execution, Fit
from w2s_ray.training.distributed import broadcast, gather, rank, world_size
from w2s_ray.training.engine import Engine, is_partitioned
from w2s_ray.training.worker import Worker

WEIGHTS, BEST_WEIGHTS, PROGRESS, ADAM = "model.safetensors", "best.safetensors", "progress.json", "adam-"
LAYOUT = 2
"""Which files there are and what is in them. A checkpoint of another layout is ignored."""


@dataclass
class Progress:
    """How far a Fit is: all that a resumed one must know besides weights and optimizer state."""

    step: int = 0
    """Optimizer steps taken."""
    curve: list[dict[str, float | None]] = field(default_factory=list)
    loss_sum: float = 0.0
    hits: float = 0.0
    num_rows: int = 0
    """Loss, hits against the Fit's own labels, and rows since the last point of the curve."""
    verified_loss_sum: float = 0.0
    num_verified: int = 0
    """The same for rows whose truth is known."""
    best_step: int | None = None
    """With `stop: validation`: the first step with the highest accuracy on the rows held out, so far."""
    best_accuracy: float = -1.0


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one Fit, with a local folder for their files."""

    fit: Fit
    worker: Worker
    folder: Path

    def save(self, engine: Engine, progress: Progress, *, best_weights: dict[str, torch.Tensor]) -> None:
        """Put a checkpoint into the store: each worker its share, then the marker.

        `best_weights`: those of `progress.best_step`, on rank 0; empty where there is no such step.
        """
        parts = engine.own_parts()
        weights = engine.full_weights(without=parts)
        files = []
        if rank() == 0:
            content = asdict(progress) | _shape(self.worker.execution)
            (self.folder / PROGRESS).write_text(json.dumps(content))
            files = [self.folder / PROGRESS, self._save(WEIGHTS, weights)]
            if best_weights:
                files.append(self._save(BEST_WEIGHTS, best_weights))
        if parts:
            files.append(self._save(_own_file("parts"), parts))
        states = [engine.adam_states.get(parameter, {}) for parameter in engine.adam_parameters]
        for name in sorted({name for state in states for name, value in state.items() if torch.is_tensor(value)}):
            # a file for each, since writing one takes its size in memory again
            tensors = {
                str(i): state[name].detach().cpu().contiguous() for i, state in enumerate(states) if name in state
            }
            files.append(self._save(_own_file(f"{ADAM}{name}"), tensors))
        store = self.worker.store
        entries = [store.write_checkpoint_file(self.fit, step=progress.step, file=file) for file in files]
        all_entries = [entry for of_rank in gather(entries) for entry in of_rank]
        if rank() == 0:
            store.seal_checkpoint(self.fit, step=progress.step, entries=all_entries)

    def _save(self, name: str, tensors: dict[str, torch.Tensor]) -> Path:
        save_file(tensors, self.folder / name)
        return self.folder / name

    def find(self) -> Progress | None:
        """Fetch the newest whole checkpoint of this shape, the same one on every rank."""
        store, step = self.worker.store, None
        if rank() == 0:
            step = store.read_checkpoint(self.fit, into=self.folder, is_wanted=_is_mine)
        wanted = broadcast(step)
        if wanted is None:
            return None
        own = step if rank() == 0 else store.read_checkpoint(self.fit, into=self.folder, is_wanted=_is_mine)
        if set(gather(own)) != {wanted}:
            return None
        content = json.loads((self.folder / PROGRESS).read_text())
        own_shape = _shape(self.worker.execution)
        shape = {name: content.pop(name, None) for name in own_shape}
        return Progress(**content) if shape == own_shape else None

    def load_weights(self, model: nn.Module) -> None:
        """Into a model that no engine has wrapped yet, so that every copy of the weights starts from them."""
        with torch.no_grad():
            weights = load_file(self.folder / WEIGHTS)
            if (parts := self.folder / _own_file("parts")).exists():
                weights |= load_file(parts)
            for name, parameter in model.named_parameters():
                own: Any = parameter
                (own.ds_tensor if is_partitioned(own) else own).copy_(weights[name])

    def best_weights(self) -> dict[str, torch.Tensor]:
        """The weights of `Progress.best_step`, on rank 0; empty on the other ranks."""
        return load_file(self.folder / BEST_WEIGHTS) if rank() == 0 else {}

    def load_optimizer(self, engine: Engine) -> None:
        parameters, states = engine.adam_parameters, engine.adam_states
        for file in self.folder.glob(_own_file(f"{ADAM}*")):
            name = file.name.removeprefix(ADAM).removesuffix(_own_file(""))
            for i, value in load_file(file).items():
                parameter = parameters[int(i)]
                states.setdefault(parameter, {})[name] = value.to(parameter.device).clone()


def _shape(execution: Execution) -> dict[str, int]:
    """What a checkpoint's files depend on."""
    return {"world_size": world_size(), "zero_stage": execution.zero_stage, "layout": LAYOUT}


def _own_file(name: str) -> str:
    return f"{name}-{rank()}.safetensors"


def _is_mine(file: str) -> bool:
    """Whether this rank reads this file of a checkpoint."""
    return file in (WEIGHTS, PROGRESS) or file.endswith(_own_file("")) or (file == BEST_WEIGHTS and rank() == 0)
