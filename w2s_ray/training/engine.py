"""DeepSpeed engines: built from a Fit's hyper-parameters and the execution at hand, and taken apart without a trace.

A global batch is sliced over workers, then into micro-batches; rows that pad a last batch weigh nothing. The gradient
is that of the mean loss over the global batch's rows, whatever the slicing.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from w2s_ray.fit import Execution, Training
from w2s_ray.leases import LeaseLost
from w2s_ray.storage import StoreDown

for _name in ("DeepSpeed", "deepspeed"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# gloo and NCCL do the communication; DeepSpeed would compile a shared-memory one on a machine's first run (half a minute)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def device() -> torch.device:
    """The device of this worker: its GPU, if it was given one."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def join_processes() -> None:
    """Make sure there is a process group: Ray Train's, or one of this process alone."""
    if dist.is_initialized():
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=0, world_size=1)


class Agreed(Exception):
    """A failure that every worker of the group knows of, at the same point."""


@contextmanager
def together() -> Iterator[None]:
    """A part without collectives that all workers leave well or none does: a failure of one is raised on every one (in a
    group as `Agreed`, or as `StoreDown` when it is no Fit's fault), so that nobody waits for it for ever."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    if world_size() == 1:
        if problem is not None:
            raise problem
        return
    mine = (f"{problem}" or type(problem).__name__, isinstance(problem, (StoreDown, LeaseLost))) if problem else None
    said: list[tuple[str, bool] | None] = [None] * world_size()
    dist.all_gather_object(said, mine)
    if problems := [each for each in said if each]:
        kind = StoreDown if any(blameless for _, blameless in problems) else Agreed
        raise kind("; ".join(dict.fromkeys(text for text, _ in problems))) from problem


def micro_batch_size(training: Training, execution: Execution) -> int:
    share = math.ceil(training.batch_size / world_size())
    return min(execution.micro_batch_size or share, share)


def num_micro_batches(training: Training, execution: Execution) -> int:
    """Micro-batches of each worker in one step."""
    return math.ceil(math.ceil(training.batch_size / world_size()) / micro_batch_size(training, execution))


def config(training: Training, execution: Execution) -> dict[str, Any]:
    """DeepSpeed's configuration. Weights are fp32; bf16 is autocast inside the model."""
    zero: dict[str, Any] = {"stage": execution.zero_stage}
    if execution.offload != "none" and execution.zero_stage:
        zero["offload_optimizer"] = {"device": "cpu"}
    if execution.offload == "parameters" and execution.zero_stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    micro, accumulation = micro_batch_size(training, execution), num_micro_batches(training, execution)
    return {
        "train_batch_size": micro * accumulation * world_size(),
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": training.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def start(model: nn.Module, *, training: Training, execution: Execution) -> Any:
    """An engine for one Fit. Its learning rate is 0 until `set_rate`."""
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = kind(parameters, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=training.weight_decay)
    if execution.zero_stage < 3:
        model.to(device())
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config(training, execution), dist_init_required=False
    )
    adam_states(engine).clear()  # ZeRO-3 has taken an empty step; Adam's count starts at the first real one
    return engine


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """torch's optimizer under whatever ZeRO wraps around it."""
    wrapped = engine.optimizer
    return (
        wrapped
        if isinstance(wrapped, torch.optim.Optimizer) and not hasattr(wrapped, "optimizer")
        else wrapped.optimizer
    )


def adam_states(engine: Any) -> dict[Any, dict[str, torch.Tensor]]:
    return base_optimizer(engine).state


def adam_parameters(engine: Any) -> list[torch.Tensor]:
    """The tensors that Adam steps, in a fixed order: this worker's flat partitions under ZeRO."""
    wrapped = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(wrapped, name):
            return list(getattr(wrapped, name))
    return [p for group in base_optimizer(engine).param_groups for p in group["params"]]


def set_rate(engine: Any, rate: float) -> None:
    for group in base_optimizer(engine).param_groups:
        group["lr"] = rate


def rate_at(step: int, num_steps: int, *, training: Training) -> float:
    """Linear warm-up, then constant or half a cosine to 0. `step` counts from 0."""
    warmup = training.warmup_fraction * num_steps
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    if training.schedule == "constant":
        return training.learning_rate
    progress = (step - warmup) / max(1.0, num_steps - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def stop(engine: Any) -> None:
    """Take an engine apart, so that hundreds can follow one another in a process.

    ZeRO-3 makes autograd functions for every module, which outlive `destroy` and hold on to it; what they hold is emptied.
    """
    parameters = list(engine.module.parameters())
    engine.destroy()
    for parameter in parameters:
        parameter.__dict__.clear()
        parameter.grad = None
        parameter.data = torch.empty(0)
    offload = getattr(engine.optimizer, "parameter_offload", None)
    for part in (offload, engine.optimizer):
        if part is not None:
            part.__dict__.clear()
    engine.optimizer = None
    engine.module = None
    gc.collect()
