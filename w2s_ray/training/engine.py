"""A DeepSpeed engine around one Fit's model, that is taken apart without a trace.

A global batch is cut over workers, then into micro-batches; rows that pad a last batch weigh nothing. The gradient is that of
the mean loss over the global batch's rows, however the batch is cut.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from torch import nn

from w2s_ray.fit import Execution, Training
from w2s_ray.training.distributed import broadcast_tensor, device, rank, world_size

for _name in ("DeepSpeed", "deepspeed"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# gloo and NCCL do the communication. DeepSpeed would compile a shared-memory library on a machine's first run, in half a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


LEAST_BUCKET_ELEMENTS, MOST_BUCKET_ELEMENTS = 1_000_000, 20_000_000
"""What ZeRO gathers or reduces at a time. DeepSpeed's own default makes room for 500 million, however small the model."""


class Engine:
    """Wraps `deepspeed.initialize`. Its learning rate is 0 until `set_learning_rate`."""

    def __init__(self, module: nn.Module, *, training: Training, execution: Execution) -> None:
        kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = kind(
            parameters, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=training.weight_decay, fused=True
        )
        if execution.zero_stage < 3:
            module.to(device())
        if execution.compile:
            module.compile(dynamic=True)
        self._in_parts = {name for name, parameter in module.named_parameters() if is_partitioned(parameter)}
        """Names of the weights that were loaded in parts. ZeRO-3 cuts the others, such as the head, only now."""
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=config(training, execution, num_params=sum(map(_num_elements, module.parameters()))),
            dist_init_required=False,
        )
        self.micro_batch_size: int = self._engine.train_micro_batch_size_per_gpu()
        self.num_micro_batches: int = self._engine.gradient_accumulation_steps()
        self.adam_states.clear()  # ZeRO-3 has taken an empty step; Adam's count starts at the first real one

    # --- forward and backward ---

    def __call__(self, *inputs: Any) -> torch.Tensor:
        output: torch.Tensor = self._engine(*inputs)
        return output

    @property
    def module(self) -> Any:
        return self._engine.module

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        """End a micro-batch. The last one of a batch moves the weights."""
        self._engine.step()

    def set_learning_rate(self, rate: float) -> None:
        for group in self._base_optimizer.param_groups:
            group["lr"] = rate

    # --- state, for checkpoints ---

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer under whatever ZeRO wraps around it."""
        wrapped = self._engine.optimizer
        is_bare = isinstance(wrapped, torch.optim.Optimizer) and not hasattr(wrapped, "optimizer")
        return wrapped if is_bare else wrapped.optimizer

    @property
    def adam_states(self) -> dict[Any, dict[str, torch.Tensor]]:
        return self._base_optimizer.state

    @property
    def adam_parameters(self) -> list[torch.Tensor]:
        """The tensors that Adam steps, in a fixed order: this worker's flat partitions under ZeRO."""
        wrapped = self._engine.optimizer
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
            if hasattr(wrapped, name):
                return list(getattr(wrapped, name))
        return [p for group in self._base_optimizer.param_groups for p in group["params"]]

    def full_weights(self, *, without: Container[str] = ()) -> dict[str, torch.Tensor]:
        """Every weight, whole, on rank 0's CPU. Empty on the other ranks; all of them must call it under ZeRO-3."""
        weights: dict[str, torch.Tensor] = {}
        for name, parameter in self.module.named_parameters():
            if name in without:
                continue
            with whole([parameter]):
                if rank() == 0:
                    weights[name] = parameter.detach().cpu().clone()
        return weights

    def own_parts(self) -> dict[str, torch.Tensor]:
        """This rank's parts of the weights that were loaded in parts."""
        parameters = self.module.named_parameters()
        return {name: parameter.ds_tensor.detach().cpu() for name, parameter in parameters if name in self._in_parts}

    def set_full_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Set every weight, on every rank, to what rank 0 was given. All ranks must call it.

        For predictions only: the optimizer keeps copies of its own, and training on would start from those.
        """
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                with whole([parameter], to_write=True):
                    if rank() == 0:
                        parameter.copy_(weights[name])
                if not is_partitioned(parameter):
                    broadcast_tensor(parameter.data)

    def close(self) -> None:
        """Take the engine apart, so that hundreds can follow one another in a process.

        ZeRO-3 makes autograd functions for every module, which outlive `destroy` and keep alive the module, the optimizer and
        weights that were gathered ahead. So everything that they refer to is emptied.
        """
        engine = self._engine
        parameters = list(engine.module.parameters())
        engine.destroy()
        for parameter in parameters:
            parameter.__dict__.clear()
            parameter.grad = None
            parameter.data = torch.empty(0)
        offload = getattr(engine.optimizer, "parameter_offload", None)
        coordinator = getattr(offload, "param_coordinator", None)
        for part in (coordinator, offload, engine.optimizer, engine.module, engine):
            if part is not None:
                part.__dict__.clear()
        gc.collect()


def is_partitioned(parameter: torch.Tensor) -> bool:
    """Whether ZeRO-3 has left each rank with a part of it."""
    return hasattr(parameter, "ds_id")


@contextmanager
def whole(parameters: Iterable[torch.Tensor], *, to_write: bool = False) -> Iterator[None]:
    """Put partitioned parameters together within the block, on every rank. What rank 0 writes there, all get. Others are as
    they are."""
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    with deepspeed.zero.GatheredParameters(
        partitioned, modifier_rank=0 if to_write else None, enabled=bool(partitioned)
    ):
        yield


def micro_batch_size(training: Training, execution: Execution) -> int:
    """Rows of a worker in one forward pass: its share of the batch, unless the execution asks for fewer."""
    share = math.ceil(training.batch_size / world_size())
    return min(execution.micro_batch_size or share, share)


def _num_elements(parameter: Any) -> int:
    return parameter.ds_numel if is_partitioned(parameter) else parameter.numel()


def config(training: Training, execution: Execution, *, num_params: int) -> dict[str, Any]:
    """DeepSpeed's configuration. Weights are fp32; bf16 is autocast inside the model."""
    micro = micro_batch_size(training, execution)
    num_micro_batches = math.ceil(math.ceil(training.batch_size / world_size()) / micro)
    return {
        "train_batch_size": micro * num_micro_batches * world_size(),
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": training.max_grad_norm,
        "zero_optimization": zero_optimization(execution, num_params=num_params),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def zero_optimization(execution: Execution, *, num_params: int) -> dict[str, Any]:
    """What is gathered or reduced at a time is a thirty-second of the weights, which is little beside a worker's part of them."""
    sizes = ["reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"]
    sizes += ["stage3_max_live_parameters", "stage3_max_reuse_distance"]
    num_elements = min(max(num_params // 32, LEAST_BUCKET_ELEMENTS), MOST_BUCKET_ELEMENTS)
    zero: dict[str, Any] = {"stage": execution.zero_stage} | dict.fromkeys(sizes, num_elements)
    if execution.offload != "none" and execution.zero_stage:
        zero["offload_optimizer"] = {"device": "cpu"}
    if execution.offload == "parameters" and execution.zero_stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    return zero
