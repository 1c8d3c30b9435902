"""What a training worker has at hand, whichever Fit it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from w2s_ray.fit import Execution
from w2s_ray.leases import HeldLease
from w2s_ray.store import Store
from w2s_ray.tracking import Log, Point

Report = Callable[[dict[str, Any]], bool | None]
"""Tells the driver what happens. Returns True if this machine is about to be taken away, so progress should be saved."""


class TrainingFailed(Exception):
    """A Fit that cannot be trained on any machine. `kind` is one word (nan, oom, length, ...)."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def _ignore(step: int, point: Point) -> None:
    """For a worker without trackers."""


@dataclass(frozen=True)
class Worker:
    store: Store
    execution: Execution
    report: Report
    log: Log = _ignore
    """Takes points of the learning curve, for trackers."""
    lease: HeldLease | None = None
    """The pack's lease; None where nobody else could work on its Fits."""

    def check_lease(self) -> None:
        """Raise `LeaseLost` if another driver has taken over this worker's Fits."""
        if self.lease:
            self.lease.check()
