"""One Ray for the whole suite, started when the first test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """A Ray of two CPUs in this process; `w2s run` takes the Ray that is there."""
    import ray

    from w2s_ray.scheduling.run import QUIET

    os.environ.update(QUIET)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
