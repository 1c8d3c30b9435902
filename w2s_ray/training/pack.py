"""Several Fits in one process, one after another, each committed as soon as it is done.

Promises: a Fit that is in the store is passed over; a Fit that fails is recorded with its reason and fails alone; a Fit
whose parents are not there is left for later; when memory runs out the micro-batch is halved and the Fit starts over. What is
no Fit's fault (the store is gone or full, the lease is lost) ends the pack and is recorded of none.
"""

from __future__ import annotations

import logging
import socket
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from w2s_ray.errors import InputError
from w2s_ray.fit import Execution, Fit
from w2s_ray.leases import LeaseLost, Leases
from w2s_ray.storage import FULL, StoreDown
from w2s_ray.store import Store, StoreError, open_store
from w2s_ray.tracking import Log, Tracking, run_of
from w2s_ray.training import engine as engines
from w2s_ray.training.loop import Report, TrainingFailed, train_fit

log = logging.getLogger(__name__)

FAILURES = (TrainingFailed, engines.Agreed, StoreError, InputError, OSError, RuntimeError, ValueError)


def run_pack(
    fits: list[Fit],
    *,
    store_uri: str,
    execution: Execution,
    report: Report,
    lease: str | None = None,
    tracking: Tracking | None = None,
) -> None:
    """Work through Fits in order. Every worker of the world calls this with the same Fits. With a lease, only as long as
    it is held."""
    torch.set_num_threads(execution.cpus_per_worker)
    engines.join_processes()
    store = open_store(store_uri)
    report({"event": "start", "key": fits[0].key})  # one for the pack: a report takes as long as a hundred small steps
    if lease and store.storage.is_local and not Path(store.storage.path("leases")).exists():
        raise StoreDown(f"node {socket.gethostname()} does not see the folder {store.storage.root}")

    def check_lease() -> None:
        if lease and not Leases(store.storage).holds(lease):
            raise LeaseLost(f"{lease} is held no more")

    for fit in fits:
        check_lease()
        if store.is_committed(fit):
            report({"event": "done", "key": fit.key, "seconds": {}})
            continue
        if missing := [parent.folder for parent in fit.parents if not store.is_committed(parent)]:
            log.warning("%s waits for %s", fit.folder, ", ".join(missing))
            continue
        try:
            with run_of(fit, tracking if engines.rank() == 0 else None) as log_point:
                seconds = _with_less_memory(
                    fit, store=store, execution=execution, report=report, log_point=log_point, check_lease=check_lease
                )
        except StoreDown as error:
            if engines.world_size() == 1:  # a report is a matter of the whole group
                report({"event": "store", "key": fit.key, "reason": str(error)})
            raise
        except FAILURES as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise StoreDown(f"the disk of node {socket.gethostname()} is full ({error})") from error
            if engines.world_size() > 1 and not isinstance(error, (TrainingFailed, engines.Agreed)):
                # A fellow went away, or waits for this worker in the middle of a step: the whole group ends and starts
                # again. A Fit in whose hand groups end again and again is recorded by the driver.
                raise
            kind = error.kind if isinstance(error, TrainingFailed) else "error"
            reason = str(error) or type(error).__name__
            if engines.rank() == 0:
                detail = "".join(traceback.format_exception(error))[-4000:]
                store.write_failure(fit, kind=kind, reason=reason, detail=detail)
            report({"event": "failed", "key": fit.key, "reason": reason, "seconds": {}})
        else:
            report({"event": "done", "key": fit.key, "seconds": seconds})


def _with_less_memory(
    fit: Fit,
    *,
    store: Store,
    execution: Execution,
    report: Report,
    log_point: Log,
    check_lease: Callable[[], None],
) -> dict[str, float]:
    """Train, with half the micro-batch each time that memory runs out. In a group it may run out on one worker while the
    others wait for it, so the group ends, and starts again with what the store was told."""
    while True:
        micro = min(engines.micro_batch_size(fit.training, execution), _advised(fit, store=store))
        execution = replace(execution, micro_batch_size=micro)
        with tempfile.TemporaryDirectory(prefix="w2s-") as scratch:
            try:
                return train_fit(
                    fit, store=store, execution=execution, report=report, scratch=Path(scratch),
                    log_point=log_point, check_lease=check_lease,
                )  # fmt: skip
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if micro == 1:
                    raise TrainingFailed("oom", f"out of memory with one row in a micro-batch ({error})") from error
                if engines.world_size() > 1:
                    store.advise_micro_batch(fit, micro // 2)
                    raise GroupOutOfMemory from error
        log.warning("%s: out of memory at micro-batch %d, trying %d", fit.folder, micro, micro // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        execution = replace(execution, micro_batch_size=micro // 2)


class GroupOutOfMemory(Exception):
    """Ends a group of workers; nothing is wrong with the Fit, which is tried again with smaller micro-batches."""


def _advised(fit: Fit, *, store: Store) -> int:
    """The micro-batch that an earlier group found to fit, the same on every worker."""
    found = [store.advised_micro_batch(fit) or fit.training.batch_size]
    if engines.world_size() > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]


def _is_out_of_memory(error: RuntimeError) -> bool:
    return (
        isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error) or "out of memory" in str(error)
    )
