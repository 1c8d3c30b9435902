"""The store at its doors: commits, damage, leases, partial checkpoints, on a local folder and on an S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from w2s_ray import store
from w2s_ray.errors import InputError
from w2s_ray.store import Store, StoreError

from fits import fit

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3_uri() -> Iterator[str]:
    """A bucket on a moto server of our own."""
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="w2s")
    yield f"s3://w2s/store?endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["local", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return store.open_store(tmp_path / "store")
    uri = request.getfixturevalue("s3_uri").replace("/store?", f"/{tmp_path.name}?")
    return store.open_store(uri)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "fit.json").write_text("{}")
    (folder / "test.parquet").write_bytes(b"PAR1" * 100)
    return folder


def test_a_commit_is_found_and_read_back(opened: Store, files: Path) -> None:
    assert store.committed(opened, [fit()]) == {}
    store.check_writable(opened)
    store.commit(opened, fit(), files)
    assert store.committed(opened, [fit(), fit(seed=1)]) == {fit().key: fit().folder}
    assert store.read_file(opened, fit().folder, "test.parquet") == b"PAR1" * 100
    done = json.loads(store.read_bytes(opened, opened.path("fits", fit().folder, "done.json")))
    assert done["files"]["fit.json"] == {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    assert store.damage(opened, fit().folder) == []


def test_without_the_marker_there_is_no_fit(opened: Store, files: Path) -> None:
    store.commit(opened, fit(), files)
    opened.fs.delete_file(opened.path("fits", fit().folder, "done.json"))
    assert store.committed(opened, [fit()]) == {}
    store.commit(opened, fit(), files)
    assert store.damage(opened, fit().folder) == []


def test_a_second_commit_changes_nothing(opened: Store, files: Path) -> None:
    store.commit(opened, fit(), files)
    (files / "test.parquet").write_bytes(b"other")
    store.commit(opened, fit(), files)
    assert store.read_file(opened, fit().folder, "test.parquet") == b"PAR1" * 100


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 99 + b"PARX"])
def test_a_damaged_file_is_named_and_set_aside(opened: Store, files: Path, content: bytes) -> None:
    store.commit(opened, fit(), files)
    store.write_bytes(opened, opened.path("fits", fit().folder, "test.parquet"), content)
    assert "test.parquet" in store.damage(opened, fit().folder)[0]
    with pytest.raises(StoreError, match="verify --repair"):
        store.read_file(opened, fit().folder, "test.parquet")
    store.quarantine(opened, fit().folder)
    assert store.committed(opened, [fit()]) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 1, "key": "x"}'])
def test_a_damaged_marker_is_damage(opened: Store, files: Path, content: bytes) -> None:
    store.commit(opened, fit(), files)
    store.write_bytes(opened, opened.path("fits", fit().folder, "done.json"), content)
    assert "done.json is damaged" in store.damage(opened, fit().folder)[0]


def test_a_file_in_the_making_is_not_seen(opened: Store) -> None:
    path = opened.path("x", "y.json")
    store.write_bytes(opened, path, b"one")
    store.write_bytes(opened, path, b"two")
    assert store.read_bytes(opened, path) == b"two"
    assert [info.base_name for info in opened.fs.get_file_info(store.pafs.FileSelector(opened.path("x")))] == ["y.json"]


def test_failures_are_kept_and_cleared(opened: Store) -> None:
    store.write_failure(opened, fit(), kind="nan", reason="loss is NaN at step 3", detail="")
    assert store.read_failures(opened)[fit().key]["reason"] == "loss is NaN at step 3"
    store.write_bytes(opened, opened.path("failures", "broken.json"), b"{")
    assert list(store.read_failures(opened)) == [fit().key]
    store.clear_failure(opened, fit())
    assert fit().key not in store.read_failures(opened)


def test_a_lease_lives_while_its_driver_does(opened: Store) -> None:
    store.write_lease(opened, "mine", owner="me", keys=["k1", "k2"])
    assert set(store.live_leases(opened)) == {"k1", "k2"}
    assert store.live_leases(opened, besides="me") == {}
    path = opened.path("leases", "mine.json")
    lease = json.loads(store.read_bytes(opened, path))
    store.write_bytes(opened, path, json.dumps(lease | {"beat": time.time() - 2 * store.LEASE_STALE_S}).encode())
    assert store.live_leases(opened) == {}, "no heartbeat, no lease"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    store.write_bytes(opened, path, json.dumps(lease | {"pid": int(dead.stdout)}).encode())
    assert store.live_leases(opened) == {}, "a dead process on this host holds nothing"
    store.write_bytes(opened, path, json.dumps(lease | {"host": "another", "pid": int(dead.stdout)}).encode())
    assert set(store.live_leases(opened)) == {"k1", "k2"}, "of another host only the heartbeat tells"
    store.drop_lease(opened, "mine")
    assert store.live_leases(opened) == {}


def test_the_newest_whole_checkpoint_is_taken(opened: Store, files: Path, tmp_path: Path) -> None:
    for step in (5, 10):
        entries = [store.put_partial(opened, fit(), step=step, file=file) for file in sorted(files.iterdir())]
        store.seal_partial(opened, fit(), step=step, entries=entries)
    into = tmp_path / "into"
    into.mkdir()
    assert store.read_partial(opened, fit(), folder=into) == 10
    assert (into / "test.parquet").read_bytes() == b"PAR1" * 100
    newer = opened.path("partial", fit().folder, "step-000000020")
    store.write_bytes(opened, f"{newer}/test.parquet", b"PAR1")
    assert store.read_partial(opened, fit(), folder=into) == 10, "no marker yet"
    marker = store.read_bytes(opened, opened.path("partial", fit().folder, "step-000000010", "done.json"))
    store.write_bytes(opened, f"{newer}/done.json", marker)
    assert store.read_partial(opened, fit(), folder=into) == 10, "truncated"
    store.commit(opened, fit(), files)
    assert store.read_partial(opened, fit(), folder=into) is None, "a committed Fit needs none"


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="not writable"):
        store.check_writable(store.open_store(tmp_path / "file"))
    with pytest.raises(InputError, match="Allowed: a folder, or a URI"):
        store.open_store("nosuch://bucket/x")
