"""The store at its doors: commits, damage, leases, partial checkpoints, on a local folder and on an S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from w2s_ray import cli, storage
from w2s_ray.cli.status import find_damage
from w2s_ray.errors import InputError
from w2s_ray.storage import StoreDown
from w2s_ray.store import Store, StoreError, open_store

from fits import fit, model, write_truth
from proxy import CALLS, Proxy
from tiny import save_study


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(tmp_path / "store")
    uri = request.getfixturevalue("s3_uri").replace("/store?", f"/{tmp_path.name}?")
    return open_store(uri)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "fit.json").write_text("{}")
    (folder / "test.parquet").write_bytes(b"PAR1" * 100)
    return folder


def test_a_commit_is_found_and_read_back(store: Store, files: Path) -> None:
    assert store.committed([fit()]) == {}
    store.storage.check_writable()
    store.commit(fit(), files)
    assert store.committed([fit(), fit(seed=1)]) == {fit().key: fit().folder}
    assert store.read_file(fit().folder, "test.parquet") == b"PAR1" * 100
    done = json.loads(store.storage.read(f"fits/{fit().folder}/done.json"))
    assert done["files"]["fit.json"] == {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    assert store.damage(fit().folder) == []


def test_without_the_marker_there_is_no_fit(store: Store, files: Path) -> None:
    store.commit(fit(), files)
    store.storage.fs.delete_file(store.storage.path("fits", fit().folder, "done.json"))
    assert store.committed([fit()]) == {}
    store.commit(fit(), files)
    assert store.damage(fit().folder) == []


def test_a_second_commit_changes_nothing(store: Store, files: Path) -> None:
    store.commit(fit(), files)
    (files / "test.parquet").write_bytes(b"other")
    store.commit(fit(), files)
    assert store.read_file(fit().folder, "test.parquet") == b"PAR1" * 100


def calls_of(act: Callable[[], object]) -> dict[str, int]:
    """What a bucket is asked meanwhile."""
    CALLS.clear()
    act()
    return dict(CALLS)


@pytest.fixture
def bucket(s3_uri: str, tmp_path: Path) -> Store:
    return open_store(s3_uri.replace("/store?", f"/{tmp_path.name}?"))


def test_neither_a_commit_nor_a_status_asks_for_each_fit(bucket: Store, files: Path) -> None:
    bucket.begin_index()
    first = calls_of(lambda: bucket.commit(fit(), files))
    assert first["PUT"] == 4, "one for each of two files, the marker and the index"
    fits = [fit(seed=seed) for seed in range(100)]
    for each in fits[1:50]:
        bucket.storage.write(f"index/{each.key[:3]}/{each.folder}", b"1")
    assert calls_of(lambda: bucket.commit(fits[99], files)) == first
    assert calls_of(lambda: bucket.committed(fits)) == {"HEAD": 1, "LIST": 1}, "a listing takes a thousand names"
    assert bucket.committed(fits).keys() == {each.key for each in [*fits[:50], fits[99]]}


def test_a_commit_that_was_killed_before_the_index_is_not_lost(bucket: Store, files: Path) -> None:
    bucket.begin_index()
    bucket.commit(fit(), files)
    entry = f"index/{fit().key[:3]}/{fit().folder}"
    for mend in (lambda: bucket.commit(fit(), files), lambda: bucket.enter(fit()), bucket.rebuild_index):
        bucket.storage.delete_file(entry)
        assert bucket.committed([fit()]) == {}, "it says too little, so that the Fit is handed out again"
        assert bucket.is_committed(fit()) and bucket.committed_now([fit()]) == {fit().key}
        mend()
        assert bucket.committed([fit()]) == {fit().key: fit().folder}
    assert bucket.rebuild_index() == (0, 0)


def test_the_index_forgets_what_is_set_aside_or_gone(store: Store, files: Path) -> None:
    store.begin_index()
    for seed in range(2):
        store.commit(fit(seed=seed), files)
    store.quarantine(fit().folder)
    assert list(store.committed([fit(), fit(seed=1)])) == [fit(seed=1).key]
    store.storage.fs.delete_file(store.storage.path("fits", fit(seed=1).folder, "done.json"))
    assert not store.is_committed(fit(seed=1))
    assert store.rebuild_index() == (0, 1) and store.committed([fit(seed=1)]) == {}


def test_a_store_from_before_the_index_is_read_and_gets_one(store: Store, files: Path) -> None:
    for seed in range(2):
        store.commit(fit(seed=seed), files)
    store.storage.delete_folder("index")
    store.begin_index()
    both = {fit(seed=seed).key: fit(seed=seed).folder for seed in range(2)}
    assert store.committed([fit(), fit(seed=1)]) == both and not store.storage.exists("index/complete")
    assert store.rebuild_index() == (2, 0) and store.rebuild_index() == (0, 0)
    assert store.committed([fit(), fit(seed=1)]) == both and store.storage.exists("index/complete")


@pytest.mark.parametrize("has_index", [True, False])
def test_a_fit_is_found_under_the_name_it_had(store: Store, files: Path, has_index: bool) -> None:
    if has_index:
        store.begin_index()
    store.commit(fit(), files)
    renamed = fit(model=model(family="other"))
    assert renamed.key == fit().key and renamed.folder != fit().folder
    assert store.is_committed(renamed) and store.folder_of(renamed) == fit().folder
    assert store.committed([renamed]) == {renamed.key: fit().folder}
    store.commit(renamed, files)
    assert store.committed_folders() == [fit().folder], "it is not committed twice"
    assert not store.is_committed(fit(seed=1))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 99 + b"PARX"])
def test_a_damaged_file_is_named_and_set_aside(store: Store, files: Path, content: bytes) -> None:
    store.commit(fit(), files)
    store.storage.write(f"fits/{fit().folder}/test.parquet", content)
    assert "test.parquet" in store.damage(fit().folder)[0]
    with pytest.raises(StoreError, match="verify --repair"):
        store.read_file(fit().folder, "test.parquet")
    store.quarantine(fit().folder)
    assert store.committed([fit()]) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 1, "key": "x"}'])
def test_a_damaged_marker_is_damage(store: Store, files: Path, content: bytes) -> None:
    store.commit(fit(), files)
    store.storage.write(f"fits/{fit().folder}/done.json", content)
    assert "done.json is damaged" in store.damage(fit().folder)[0]


def test_a_damaged_truth_is_found_and_written_again(store: Store, files: Path) -> None:
    write_truth(store, [1, 0])
    for seed in (0, 1):
        store.commit(fit(seed=seed), files)
    folders = sorted([fit().folder, fit(seed=1).folder])
    assert store.damage_of_truths(folders) == {} and store.read_truth(fit())["label"].to_pylist()[:2] == [1, 0]
    [name] = store.storage.names(store.read_done(fit().folder)["truth"])
    path = f"{store.read_done(fit().folder)['truth']}/{name}"
    whole = store.storage.read(path)
    store.storage.write(path, whole[:-8] + b"\0" * 4 + b"PAR1")
    with pytest.raises(StoreError, match="is not what was written; run `w2s verify --repair`"):
        store.read_truth(fit())
    assert list(store.damage_of_truths(folders)) == folders[:1], "one Fit writes the truth for all"
    assert list(find_damage(folders, store=store)) == folders[:1]
    write_truth(store, [1, 0])
    assert store.storage.read(path) == whole and find_damage(folders, store=store) == {}
    store.storage.fs.delete_file(store.storage.path(path))
    assert "has no ground truth" in find_damage(folders, store=store)[folders[0]][0]


def test_a_truth_is_of_one_version_of_the_code_and_stays(store: Store) -> None:
    write_truth(store, [1, 0])
    with pytest.raises(RuntimeError, match="raise SEMANTICS"):
        write_truth(store, [0, 1])
    with pytest.raises(StoreError, match="has no ground truth"):
        store.read_truth(fit(semantics=0))


def test_a_file_in_the_making_is_not_seen(store: Store) -> None:
    path = "x/y.json"
    store.storage.write(path, b"one")
    store.storage.write(path, b"two")
    assert store.storage.read(path) == b"two"
    assert store.storage.names("x") == ["y.json"]


def test_of_two_that_commit_at_once_one_stays_whole(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    folders = [tmp_path / name for name in ("one", "other")]
    for seed in range(20):
        for folder in folders:
            folder.mkdir(exist_ok=True)
            for name in ("fit.json", "test.parquet"):
                (folder / name).write_text(f"{folder.name} {seed}" * 500)
        with ThreadPoolExecutor() as racers:
            for racer in [racers.submit(store.commit, fit(seed=seed), folder) for folder in folders]:
                racer.result()
        assert store.damage(fit(seed=seed).folder) == []
        both = [store.read_file(fit(seed=seed).folder, name) for name in ("fit.json", "test.parquet")]
        assert both[0] == both[1], "all files are of one and the same"
    assert store.storage.names("staging") == []


def test_what_a_killed_commit_left_is_cleared_away(tmp_path: Path, files: Path) -> None:
    store = open_store(tmp_path / "store")
    left = Path(store.storage.path("staging", f"{fit().folder}-0123"))
    left.mkdir(parents=True)
    store.commit(fit(), files)
    assert store.storage.names("staging") == []


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
    store = open_store(small_disk / "store")
    store.commit(fit(), files)
    (files / "test.parquet").write_bytes(os.urandom(2**21))
    with pytest.raises(StoreDown, match="is full"):
        store.commit(fit(seed=1), files)
    with pytest.raises(StoreDown, match="is full"):
        store.storage.check_room()
    assert store.committed([fit(), fit(seed=1)]) == {fit().key: fit().folder}
    assert store.damage(fit().folder) == [] and store.storage.names("staging") == []


def test_a_disk_that_turns_read_only_is_said(small_disk: Path, files: Path) -> None:
    store = open_store(small_disk / "store")
    store.commit(fit(), files)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreDown, match="refuses access"):
        store.commit(fit(seed=1), files)
    with pytest.raises(InputError, match="not writable"):
        store.storage.check_writable()
    assert store.damage(fit().folder) == []


def test_an_outage_is_waited_out(s3_uri: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy.to(s3_uri) as proxy:
        store = open_store(proxy.uri.replace("/store?", f"/{tmp_path.name}?"))
        store.commit(fit(), files)
        proxy.drop()
        threading.Timer(3.0, proxy.restore).start()
        began_s = time.monotonic()
        store.commit(fit(seed=1), files)
        assert time.monotonic() - began_s >= 2.5
        assert store.damage(fit(seed=1).folder) == []
        proxy.drop()
        monkeypatch.setattr(storage, "MAX_OUTAGE_S", 1.0)
        with pytest.raises(StoreDown, match="was away"):
            store.read_file(fit().folder, "test.parquet")
        proxy.restore()
        assert store.damage(fit().folder) == [], "an outage is no damage"


def test_a_store_that_is_away_is_a_message(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "MAX_OUTAGE_S", 1.0)
    with Proxy.to(s3_uri) as proxy:
        monkeypatch.setattr(sys, "argv", ["w2s", "status", str(save_study(tmp_path)), "--store", proxy.uri])
        proxy.drop()
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "was away for 1 s" in said and "Traceback" not in said


def test_a_bucket_of_google_goes_the_same_way() -> None:
    store = open_store("gs://anonymous@bucket/w2s")
    assert store.storage.fs.type_name == "gcs" and store.storage.path("fits") == "bucket/w2s/fits"


def test_failures_are_kept_and_cleared(store: Store) -> None:
    store.write_failure(fit(), kind="nan", reason="loss is NaN at step 3", detail="")
    assert store.read_failures()[fit().key]["reason"] == "loss is NaN at step 3"
    store.storage.write("failures/broken.json", b"{")
    assert list(store.read_failures()) == list(store.failures_of([fit(), fit(seed=1)])) == [fit().key]
    store.clear_failure(fit())
    assert fit().key not in store.read_failures()


def test_the_newest_whole_checkpoint_is_taken(store: Store, files: Path, tmp_path: Path) -> None:
    for step in (5, 10):
        entries = [store.write_checkpoint_file(fit(), step=step, file=file) for file in sorted(files.iterdir())]
        store.seal_checkpoint(fit(), step=step, entries=entries)
    into = tmp_path / "into"
    into.mkdir()
    assert store.read_checkpoint(fit(), into=into) == 10
    assert (into / "test.parquet").read_bytes() == b"PAR1" * 100
    newer = f"partial/{fit().folder}/step-000000020"
    store.storage.write(f"{newer}/test.parquet", b"PAR1")
    assert store.read_checkpoint(fit(), into=into) == 10, "no marker yet"
    marker = store.storage.read(f"partial/{fit().folder}/step-000000010/done.json")
    store.storage.write(f"{newer}/done.json", marker)
    assert store.read_checkpoint(fit(), into=into) == 10, "truncated"
    store.commit(fit(), files)
    assert store.read_checkpoint(fit(), into=into) is None, "a committed Fit needs none"


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="not writable"):
        open_store(tmp_path / "file").storage.check_writable()
    with pytest.raises(InputError, match="Allowed: a folder, or a URI"):
        open_store("nosuch://bucket/x")
