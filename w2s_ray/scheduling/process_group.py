"""The process group of a pack's workers.

Ray's own `TorchConfig` imports torch in every process that handles it: in the Tune trial and in Ray Train's controller, which
never use it. That costs two seconds of CPU time in each, before the first Fit begins. Here only the workers import torch.

A single worker makes a group of its own (`training/distributed.py`).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

SHUTDOWN_TIMEOUT_S = 30.0


@dataclass
class ProcessGroupConfig(BackendConfig):
    backend: str
    """nccl or gloo."""

    @property
    def backend_cls(self) -> type[Backend]:
        return ProcessGroup


class ProcessGroup(Backend):
    share_cuda_visible_devices = True  # NCCL wants to see the GPUs of the other workers on its node

    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        num_workers = len(worker_group)
        if num_workers == 1:
            return
        address, port = worker_group.execute_single(0, _free_address)
        ray.get(
            [
                worker_group.execute_single_async(
                    worker, _join, backend_config.backend, address=address, port=port, num_workers=num_workers
                )
                for worker in range(num_workers)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """Workers that still hang in a collective are killed with their group, so nothing waits for them for long."""
        if len(worker_group) > 1:
            ray.wait(worker_group.execute_async(_leave), num_returns=len(worker_group), timeout=SHUTDOWN_TIMEOUT_S)


def _free_address() -> tuple[str, int]:
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind(("", 0))
        return address, free.getsockname()[1]


def _join(backend: str, *, address: str, port: int, num_workers: int) -> None:
    from w2s_ray.training import distributed

    context = ray.train.get_context()
    distributed.join_workers(
        backend,
        {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "RANK": str(context.get_world_rank()),
            "WORLD_SIZE": str(num_workers),
            "LOCAL_RANK": str(context.get_local_rank()),
            "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
            "NODE_RANK": str(context.get_node_rank()),
        },
    )


def _leave() -> None:
    from w2s_ray.training import distributed

    distributed.leave_workers()
