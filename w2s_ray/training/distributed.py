"""Ranks and collectives: everything that talks to NCCL or gloo.

With one process every function returns at once, without a collective.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from w2s_ray.leases import LeaseLost
from w2s_ray.storage import StoreDown

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others, such as for one that evaluates or writes to a slow store."""


def device() -> torch.device:
    """This worker's GPU if it was given one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def use_gpu(number: int) -> None:
    """Make one of the visible GPUs the device of this thread."""
    torch.cuda.set_device(number)


def join_workers(backend: str, environment: dict[str, str]) -> None:
    """Join a process group. `environment` is what torchrun would set: address, ranks and the number of workers."""
    os.environ |= environment
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)


def leave_workers() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def join_processes() -> None:
    """Make sure there is a process group: that of several workers, or one of this process alone, which DeepSpeed needs too."""
    if dist.is_initialized():
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    join_workers(
        "nccl" if torch.cuda.is_available() else "gloo",
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
        },
    )


# --- failures -----------------------------------------------------------------------------------------------------


class FailedOnSomeRank(Exception):
    """A failure that every rank knows of, at the same point of the program."""


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Run a block without collectives; if any rank raises, every rank raises, so none waits forever.

    With several ranks the exception is `FailedOnSomeRank`, or `StoreDown` where no Fit is to blame.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    if world_size() == 1:
        if problem is not None:
            raise problem
        return
    own = (f"{problem}" or type(problem).__name__, isinstance(problem, (StoreDown, LeaseLost))) if problem else None
    if problems := [entry for entry in gather(own) if entry]:
        kind = StoreDown if any(is_blameless for _, is_blameless in problems) else FailedOnSomeRank
        raise kind("; ".join(dict.fromkeys(text for text, _ in problems))) from problem


# --- Python objects -----------------------------------------------------------------------------------------------


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: T) -> list[T]:
    """Every rank's value, in order of rank, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_agree(value: bool) -> bool:
    """Whether the value is true on every rank."""
    return all(gather(value))


# --- tensors ------------------------------------------------------------------------------------------------------


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's tensor, all of one shape."""
    if world_size() > 1:
        values = values.to(device())
        dist.all_reduce(values)
    return values


def broadcast_tensor(values: torch.Tensor) -> None:
    """Give every rank the values of rank 0, in place."""
    if world_size() > 1:
        dist.broadcast(values, src=0)


def gather_rows(own: torch.Tensor, *, max_rows: int) -> torch.Tensor:
    """The rows of all ranks in order. A rank with fewer than `max_rows` rows must be the last one that has any."""
    if world_size() == 1:
        return own
    padded = torch.zeros(max_rows, dtype=own.dtype, device=own.device)
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat(parts)


def sum_rows_over_ranks(own: torch.Tensor | None, num_rows: int) -> torch.Tensor:
    """The sum of every rank's [rows, a, b] tensor. A rank without a tensor takes the shape from the others."""
    if world_size() == 1:
        assert own is not None
        return own
    shape = torch.tensor(own.shape[1:] if own is not None else (0, 0), device=device())
    dist.all_reduce(shape, op=dist.ReduceOp.MAX)
    whole = own if own is not None else torch.zeros((num_rows, *shape.tolist()), device=device())
    dist.all_reduce(whole)
    return whole
