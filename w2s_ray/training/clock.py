"""Where the seconds of a Fit go."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from w2s_ray.fit import BUSY


@dataclass
class Clock:
    """Seconds by phase: load, features, train, eval, checkpoint, commit."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    is_resumed: bool = False
    """Whether an earlier try did a part of the work, whose seconds are not among these."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began

    @property
    def busy_share(self) -> float | None:
        """Work as a share of all the time so far."""
        total_s = sum(self.seconds.values())
        return sum(self.seconds.get(phase, 0.0) for phase in BUSY) / total_s if total_s else None
