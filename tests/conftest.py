"""One Ray for the whole suite, started when the first test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from w2s_ray.store import Store, open_store

from fits import write_truth
from proxy import bucket
from tiny import save_rewriting, save_study

os.environ.setdefault("OMP_NUM_THREADS", "1")


LONGEST = (
    "test_run.py",
    "test_run_order.py",
    "test_execution.py",
    "test_chaos.py",
    "test_nodes.py",
    "test_analysis.py",
    "test_chains.py",
    "test_engine.py",
    "test_report.py",
    "test_same_bytes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that two processes end at about the same time."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """A Ray of two CPUs in this process; `w2s run` takes the Ray that is there."""
    import ray

    from w2s_ray.scheduling.cluster import QUIET

    os.environ.update(QUIET | {"RAY_worker_niceness": "0"})
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny Llamas, a study of them, and a task of each setting."""
    folder = tmp_path_factory.mktemp("study")
    save_study(folder)
    save_rewriting(folder)
    return folder


@pytest.fixture(scope="session")
def s3_uri() -> Iterator[str]:
    with bucket() as uri:
        yield uri


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the truth of eight test rows, four of each label."""
    store = open_store(tmp_path / "store")
    write_truth(store, [1, 1, 1, 1, 0, 0, 0, 0])
    return store
