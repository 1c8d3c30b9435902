"""Several Fits in one process, one after another, each committed as soon as it is done.

Promises: a Fit that is in the store is skipped; a Fit that fails is recorded with its reason and fails alone; a Fit whose
parents are not there yet is left for later; when memory runs out, the micro-batch is halved and the Fit starts again. Where no
Fit is to blame (the store is away or full, the lease is lost) the pack ends and no failure is recorded.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import socket
import traceback
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from w2s_ray.errors import InputError
from w2s_ray.fit import Execution, Fit
from w2s_ray.leases import HeldLease, Leases
from w2s_ray.scratch import remove_abandoned, scratch_folder
from w2s_ray.storage import FULL, StoreDown
from w2s_ray.store import StoreError, open_store
from w2s_ray.tracking import Tracking, run_of
from w2s_ray.training.clock import Clock
from w2s_ray.training.distributed import FailedOnSomeRank, broadcast, join_processes, rank, world_size
from w2s_ray.training.engine import micro_batch_size
from w2s_ray.training.features import read_features
from w2s_ray.training.provenance import machine_name
from w2s_ray.training.train_fit import train_fit
from w2s_ray.training.worker import Report, TrainingFailed, Worker

log = logging.getLogger(__name__)

M_MMAP_THRESHOLD = -3
"""A constant of malloc.h: the bytes from which an allocation has pages of its own."""

FAILURES = (TrainingFailed, FailedOnSomeRank, StoreError, InputError, OSError, RuntimeError, ValueError)


def run_pack(
    fits: list[Fit],
    *,
    store_uri: str,
    execution: Execution,
    report: Report,
    lease: str | None = None,
    tracking: Tracking | None = None,
) -> None:
    """Work through Fits in order, as long as the lease is held. Every rank calls this with the same Fits."""
    torch.set_num_threads(execution.cpus_per_worker)
    set_imports_aside()
    join_processes()
    if execution.zero_stage == 3 and world_size() > 1:
        return_freed_memory()
    remove_abandoned()
    store = open_store(store_uri)
    report({"event": "start", "key": fits[0].key})  # once a pack, since a report takes as long as a hundred small steps
    if lease and store.storage.is_local and not Path(store.storage.path("leases")).exists():
        raise StoreDown(f"node {socket.gethostname()} does not see the folder {store.storage.root}")
    held = HeldLease(Leases(store.storage), lease) if lease else None
    worker = Worker(store, execution, report, lease=held)
    for fit in fits:
        run_fit(fit, worker, tracking=tracking if rank() == 0 else None)


@cache
def set_imports_aside() -> None:
    """Keep the garbage collector from what this process has imported. Once, and before there is any model.

    Each engine that is taken apart calls the collector. Half a million objects of torch, transformers and Ray would cost it half
    a second every time, most of what a small Fit takes.
    """
    gc.freeze()


def return_freed_memory() -> None:
    """Let large pieces of memory go back to the system as soon as they are free.

    glibc keeps them in its heap. Under ZeRO-3 weights come and go all the time between parts that stay, so that the holes take
    as much as the model. Training on CPUs gets slower by it; on GPUs the host has little to do with weights.
    """
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "mallopt"):  # glibc has it
        c_library.mallopt(M_MMAP_THRESHOLD, 131_072)


def run_fit(fit: Fit, worker: Worker, *, tracking: Tracking | None) -> None:
    """Train a Fit unless it is done or not ready, and report how that ended."""
    worker.check_lease()
    store, report = worker.store, worker.report
    if store.is_committed(fit):
        if rank() == 0:
            store.enter(fit)  # had the index known of it, it would not have been handed out
        report({"event": "done", "key": fit.key, "seconds": {}})
        return
    if missing := [parent.folder for parent in fit.parents if not store.is_committed(parent)]:
        log.warning("%s waits for %s", fit.folder, ", ".join(missing))
        return
    try:
        if fit.role == "reading":
            clock = _read(fit, worker)
        else:
            with run_of(fit, tracking) as log_point:
                clock = _train_with_less_memory(fit, replace(worker, log=log_point))
    except StoreDown as error:
        if world_size() == 1:  # with more ranks a report needs all of them
            report({"event": "store", "key": fit.key, "reason": str(error)})
        raise
    except FAILURES as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise StoreDown(f"the disk of node {socket.gethostname()} is full ({error})") from error
        if world_size() > 1 and not isinstance(error, (TrainingFailed, FailedOnSomeRank)):
            # Another rank went away, or waits for this one in the middle of a step. The group ends and starts again. The
            # driver records a Fit under which groups end again and again.
            raise
        kind = error.kind if isinstance(error, TrainingFailed) else "error"
        reason = str(error) or type(error).__name__
        detail = "".join(traceback.format_exception(error))[-4000:]
        if rank() == 0:
            store.write_failure(fit, kind=kind, reason=reason, detail=detail)
        report({"event": "failed", "key": fit.key, "reason": reason, "detail": detail, "seconds": {}})
    else:
        event = {"event": "done", "key": fit.key, "seconds": dict(clock.seconds), "is_resumed": clock.is_resumed}
        report(event | {"machine": machine_name()})


def _read(fit: Fit, worker: Worker) -> Clock:
    with scratch_folder(worker.lease.name if worker.lease else "alone") as scratch:
        try:
            return read_features(fit, worker, scratch=scratch)
        except RuntimeError as error:
            if world_size() > 1 or not _is_out_of_memory(error):
                raise
            raise TrainingFailed("oom", f"out of memory while reading, without gradients ({error})") from error


def _train_with_less_memory(fit: Fit, worker: Worker) -> Clock:
    """Train, with half the micro-batch each time that memory runs out.

    In a group, memory may run out on one rank while the others wait for it. So the group ends, and the next group starts with
    the micro-batch that the store was told.
    """
    while True:
        # the store's advice, the same on every rank, is what an earlier group found to fit
        advised = broadcast(worker.store.advised_micro_batch(fit) or fit.training.batch_size)
        micro = min(micro_batch_size(fit.training, worker.execution), advised)
        worker = replace(worker, execution=replace(worker.execution, micro_batch_size=micro))
        with scratch_folder(worker.lease.name if worker.lease else "alone") as scratch:
            try:
                return train_fit(fit, worker, scratch=scratch)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if micro == 1:
                    raise TrainingFailed("oom", f"out of memory with one row in a micro-batch ({error})") from error
                if world_size() > 1:
                    worker.store.advise_micro_batch(fit, micro // 2)
                    raise GroupOutOfMemory from error
        log.warning("%s: out of memory at micro-batch %d, trying %d", fit.folder, micro, micro // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        worker = replace(worker, execution=replace(worker.execution, micro_batch_size=micro // 2))


class GroupOutOfMemory(Exception):
    """Ends a group of workers. The Fit is fine, and is tried again with smaller micro-batches."""


def _is_out_of_memory(error: RuntimeError) -> bool:
    return (
        isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error) or "out of memory" in str(error)
    )
