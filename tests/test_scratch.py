"""Temporary folders of workers: gone with their process, however it ends, and never while it lives."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from w2s_ray.scratch import LOCK, remove_abandoned, scratch_folder

HOLD = """
import sys
from w2s_ray.scratch import scratch_folder
with scratch_folder("driver-pack-00001") as folder:
    (folder / "checkpoint").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def worker(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_a_worker_removes_its_own(temporary: Path) -> None:
    with scratch_folder("driver") as folder:
        assert folder.parent == temporary and (folder / LOCK).exists()
    assert not list(temporary.iterdir())


def test_what_a_killed_worker_left_is_removed_but_nothing_in_use(
    temporary: Path, worker: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.stdout is not None
    folder = Path(worker.stdout.readline().strip())
    (temporary / "w2s-scratch-of-mine").mkdir()  # has no lock, so nobody's
    remove_abandoned()
    assert (folder / "checkpoint").exists(), "its process lives"
    worker.kill()
    worker.wait()
    remove_abandoned(driver="driver")
    assert [path.name for path in temporary.iterdir()] == ["w2s-scratch-of-mine"]


def test_a_driver_waits_for_workers_that_are_about_to_end(temporary: Path, worker: subprocess.Popen[str]) -> None:
    import threading

    assert worker.stdout is not None
    folder = Path(worker.stdout.readline().strip())
    remove_abandoned(driver="another")
    assert folder.exists(), "another driver's worker is not waited for"
    threading.Timer(0.3, worker.kill).start()
    remove_abandoned(driver="driver")
    assert not folder.exists()
