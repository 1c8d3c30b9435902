"""The store at its doors: commits, damage, leases, partial checkpoints, on a local folder and on an S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from w2s_ray import cli, store
from w2s_ray.errors import InputError
from w2s_ray.store import Store, StoreDown, StoreError

from fits import fit
from proxy import Proxy
from tiny import save_study


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


def test_of_two_that_commit_at_once_one_stays_whole(tmp_path: Path) -> None:
    opened = store.open_store(tmp_path / "store")
    folders = [tmp_path / name for name in ("one", "other")]
    for seed in range(20):
        for folder in folders:
            folder.mkdir(exist_ok=True)
            for name in ("fit.json", "test.parquet"):
                (folder / name).write_text(f"{folder.name} {seed}" * 500)
        with ThreadPoolExecutor() as racers:
            for racer in [racers.submit(store.commit, opened, fit(seed=seed), folder) for folder in folders]:
                racer.result()
        assert store.damage(opened, fit(seed=seed).folder) == []
        both = [store.read_file(opened, fit(seed=seed).folder, name) for name in ("fit.json", "test.parquet")]
        assert both[0] == both[1], "all files are of one and the same"
    assert store.names(opened, "staging") == []


def test_what_a_killed_commit_left_is_cleared_away(tmp_path: Path, files: Path) -> None:
    opened = store.open_store(tmp_path / "store")
    left = Path(opened.path("staging", f"{fit().folder}-0123"))
    left.mkdir(parents=True)
    store.commit(opened, fit(), files)
    assert store.names(opened, "staging") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "w2s", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_and_loses_nothing(small_disk: Path, files: Path) -> None:
    opened = store.open_store(small_disk / "store")
    store.commit(opened, fit(), files)
    (files / "test.parquet").write_bytes(os.urandom(2**21))
    with pytest.raises(StoreDown, match="is full"):
        store.commit(opened, fit(seed=1), files)
    with pytest.raises(StoreDown, match="is full"):
        store.check_room(opened)
    assert store.committed(opened, [fit(), fit(seed=1)]) == {fit().key: fit().folder}
    assert store.damage(opened, fit().folder) == [] and store.names(opened, "staging") == []


def test_a_disk_that_turns_read_only_is_said(small_disk: Path, files: Path) -> None:
    opened = store.open_store(small_disk / "store")
    store.commit(opened, fit(), files)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreDown, match="does not let us in"):
        store.commit(opened, fit(seed=1), files)
    with pytest.raises(InputError, match="not writable"):
        store.check_writable(opened)
    assert store.damage(opened, fit().folder) == []


def test_an_outage_is_waited_out(s3_uri: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy.to(s3_uri) as proxy:
        opened = store.open_store(proxy.uri.replace("/store?", f"/{tmp_path.name}?"))
        store.commit(opened, fit(), files)
        proxy.drop()
        threading.Timer(3.0, proxy.restore).start()
        began_s = time.monotonic()
        store.commit(opened, fit(seed=1), files)
        assert time.monotonic() - began_s >= 2.5
        assert store.damage(opened, fit(seed=1).folder) == []
        proxy.drop()
        monkeypatch.setattr(store, "PATIENCE_S", 1.0)
        with pytest.raises(StoreDown, match="was away"):
            store.read_file(opened, fit().folder, "test.parquet")
        proxy.restore()
        assert store.damage(opened, fit().folder) == [], "an outage is no damage"


def test_a_store_that_is_away_is_a_message(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "PATIENCE_S", 1.0)
    with Proxy.to(s3_uri) as proxy:
        monkeypatch.setattr(sys, "argv", ["w2s", "status", str(save_study(tmp_path)), "--store", proxy.uri])
        proxy.drop()
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "was away for 1 s" in said and "Traceback" not in said


def test_a_bucket_of_google_goes_the_same_way() -> None:
    opened = store.open_store("gs://anonymous@bucket/w2s")
    assert opened.fs.type_name == "gcs" and opened.path("fits") == "bucket/w2s/fits"


def test_failures_are_kept_and_cleared(opened: Store) -> None:
    store.write_failure(opened, fit(), kind="nan", reason="loss is NaN at step 3", detail="")
    assert store.read_failures(opened)[fit().key]["reason"] == "loss is NaN at step 3"
    store.write_bytes(opened, opened.path("failures", "broken.json"), b"{")
    assert list(store.read_failures(opened)) == [fit().key]
    store.clear_failure(opened, fit())
    assert fit().key not in store.read_failures(opened)


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
