"""Checkpoints of a pretraining: an interrupted recipe continues from its last one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, step: int) -> None:
    """Write weights and the state of Adam, whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    for i, parameter in enumerate(model.parameters()):
        state = optimizer.state[parameter]
        tensors |= {f"{i}.weight": parameter.detach(), f"{i}.m": state["exp_avg"], f"{i}.v": state["exp_avg_sq"]}
    save_file(tensors, path.with_suffix(".tmp"), metadata={"step": str(step)})
    path.with_suffix(".tmp").replace(path)


@torch.no_grad()
def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Set weights and the state of Adam to those of a checkpoint. Returns the number of steps that it had taken."""
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(file.get_tensor(f"{i}.weight"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": file.get_tensor(f"{i}.m"),
                "exp_avg_sq": file.get_tensor(f"{i}.v"),
            }
    return step
