"""Committed Fits in a folder or bucket (any `pyarrow.fs` URI). The store is the only memory of a study.

Layout under the root:
    fits/<name>-<hash12>/...        a Fit's files, and `done.json` last: every file's size and SHA-256
    failures/<name>-<hash12>.json   why a Fit failed, the last time it was tried
    leases/<pack>.json              which driver works on which Fits, with a heartbeat
    partial/<name>-<hash12>/...     mid-fit checkpoints of long Fits, removed when the Fit is committed
    staging/<name>-<hash12>/...     a Fit's files on their way into a folder's `fits/`
    tasks/<name>-<hash12>/          the truth of a task's rows, for scoring without the task's own files
    quarantine/                     what `w2s verify --repair` moved aside

Promises: no `done.json`, no Fit. In a folder a Fit appears whole or not at all, by one rename; in a bucket its marker does,
by one PUT. Everything read from a Fit is checked against its hash. Nothing here is ever unpickled. A short outage is waited
out; a store that stays away, is full or may not be written is a `StoreDown`, and loses nothing that was committed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from w2s_ray.errors import InputError
from w2s_ray.fit import Fit

DONE = "done.json"
ADVICE = "micro_batch.json"
PATIENCE_S = 120.0
"""An outage of the store is waited out for so long."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTDOWN, errno.ENOTCONN}
"""What a shared folder says while its server is away."""
REFUSALS = (
    "ACCESS_DENIED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "INVALID_ACCESS_KEY",
    "SIGNATURE",
    "NO_SUCH_BUCKET",
)
"""What a bucket says when waiting doesn't help."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class StoreError(Exception):
    """What the store holds is not what was committed; the message names the file and the way out."""


class StoreDown(Exception):
    """The store is away, full or forbidden: no Fit's fault, and the same command goes on when it is back."""


@dataclass(frozen=True)
class Store:
    fs: pafs.FileSystem
    root: str
    uri: str

    def path(self, *parts: str) -> str:
        return "/".join((self.root.rstrip("/"), *parts))


def open_store(uri: str | Path) -> Store:
    """Open a folder or a bucket; creates nothing."""
    text = str(uri)
    try:
        if "://" in text:
            filesystem, root = pafs.FileSystem.from_uri(text)
        else:
            filesystem, root = pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"--store {text}: {error}. Allowed: a folder, or a URI such as s3://bucket/path or gs://bucket/path"
        ) from error
    return Store(fs=filesystem, root=root, uri=text if "://" in text else root)


def uri_of(store: Store, *parts: str) -> str:
    """The URI or path of something in the store, with the store's own options kept."""
    base, mark, options = store.uri.partition("?")
    return "/".join((base.rstrip("/"), *parts)) + mark + options


def patiently(store: Store, act: Callable[[], T]) -> T:
    """What `act` returns, an outage waited out. A file that is not there is an answer and no outage."""
    deadline_s, pause_s = time.monotonic() + PATIENCE_S, 0.5
    while True:
        try:
            return act()
        except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:
            local = isinstance(store.fs, pafs.LocalFileSystem)
            if error.errno in FULL:
                raise StoreDown(f"the store {store.uri} is full ({error})") from error
            if error.errno in FORBIDDEN or (not local and any(word in str(error) for word in REFUSALS)):
                raise StoreDown(f"the store {store.uri} does not let us in ({error})") from error
            if local and error.errno not in PASSING:
                raise
            if time.monotonic() + pause_s > deadline_s:
                raise StoreDown(f"the store {store.uri} was away for {PATIENCE_S:.0f} s ({error})") from error
            log.warning("the store does not answer, waiting: %s", error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 10.0)


def check_writable(store: Store) -> None:
    """Refuse a store that can't be written, before anything is trained."""
    probe = store.path(f".writable-{uuid.uuid4().hex}")
    try:
        store.fs.create_dir(store.root, recursive=True)
        with store.fs.open_output_stream(probe) as stream:
            stream.write(b"w2s")
        store.fs.delete_file(probe)
    except OSError as error:
        raise InputError(f"--store {store.uri}: not writable ({error})") from error


def check_room(store: Store) -> None:
    """StoreDown, where the store can't take another MiB."""
    probe = store.path(f".room-{uuid.uuid4().hex}")
    write_bytes(store, probe, bytes(2**20))
    delete_file(store, probe)


def write_bytes(store: Store, path: str, content: bytes) -> None:
    """Write a whole file or nothing: temporary file, fsync and rename locally, one PUT elsewhere."""

    def write() -> None:
        store.fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
        if isinstance(store.fs, pafs.LocalFileSystem):
            temporary = Path(f"{path}.{uuid.uuid4().hex}.tmp")
            try:
                _write_synced(temporary, content)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            with store.fs.open_output_stream(path) as stream:
                stream.write(content)

    patiently(store, write)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_bytes(store: Store, path: str) -> bytes:
    def read() -> bytes:
        with store.fs.open_input_file(path) as file:
            return file.read()

    return patiently(store, read)


def exists(store: Store, path: str) -> bool:
    return _infos(store, [path])[0].type == pafs.FileType.File


def _infos(store: Store, paths: list[str]) -> list[pafs.FileInfo]:
    return patiently(store, lambda: store.fs.get_file_info(paths))


def names(store: Store, room: str) -> list[str]:
    """What lies in a folder of the store; nothing, where there is no such folder."""
    selector = pafs.FileSelector(store.path(room), allow_not_found=True)
    return [info.base_name for info in patiently(store, lambda: store.fs.get_file_info(selector))]


def delete_file(store: Store, path: str) -> None:
    """Remove a file, if it is there."""
    if exists(store, path):
        patiently(store, lambda: store.fs.delete_file(path))


def delete_folder(store: Store, path: str) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if _infos(store, [path])[0].type == pafs.FileType.Directory:
        patiently(store, lambda: store.fs.delete_dir(path))


# --- Fits ---------------------------------------------------------------------------------------------------------


def committed(store: Store, fits: Iterable[Fit]) -> dict[str, str]:
    """Key -> folder of those among `fits` that are in the store: one listing and one batch of stats."""
    by_hash = {name[-12:]: name for name in names(store, "fits")}
    found = [(fit.key, by_hash[fit.key[:12]]) for fit in fits if fit.key[:12] in by_hash]
    infos = _infos(store, [store.path("fits", folder, DONE) for _, folder in found])
    return {key: folder for (key, folder), info in zip(found, infos, strict=True) if info.size}


def is_committed(store: Store, fit: Fit) -> bool:
    return bool(_infos(store, [store.path("fits", fit.folder, DONE)])[0].size) or fit.key in committed(store, [fit])


def commit(store: Store, fit: Fit, folder: Path) -> None:
    """Publish the files of a local folder as this Fit, `done.json` last; a Fit already there stays as it is."""
    if is_committed(store, fit):
        return
    contents = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    files = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    contents[DONE] = json.dumps({"key": fit.key, "files": files}, indent=1).encode()
    if isinstance(store.fs, pafs.LocalFileSystem):
        _commit_by_rename(store, fit, contents)
    else:
        for name, content in contents.items():
            write_bytes(store, store.path("fits", fit.folder, name), content)
    clear_failure(store, fit)
    drop_partial(store, fit)


def _commit_by_rename(store: Store, fit: Fit, contents: dict[str, bytes]) -> None:
    """Of two who commit one Fit in the same moment the first one's files stay, all of them."""
    target = Path(store.path("fits", fit.folder))
    staging = Path(store.path("staging", f"{fit.folder}-{uuid.uuid4().hex}"))

    def put() -> None:
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            for name, content in contents.items():
                _write_synced(staging / name, content)
            target.parent.mkdir(exist_ok=True)
            if target.exists() and not is_committed(store, fit):
                target.rename(f"{staging}-old")  # what lay there without a marker
            staging.rename(target)
        except OSError:
            if not is_committed(store, fit):
                raise

    try:
        patiently(store, put)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    for left in (name for name in names(store, "staging") if name.startswith(fit.folder)):  # of one that was killed
        shutil.rmtree(store.path("staging", left), ignore_errors=True)


def read_done(store: Store, folder: str) -> dict[str, Any]:
    """A Fit's commit marker, or StoreError if it is damaged."""
    try:
        done = json.loads(read_bytes(store, store.path("fits", folder, DONE)))
        assert isinstance(done["files"], dict) and isinstance(done["key"], str)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise StoreError(f"fits/{folder}/{DONE} is damaged ({error}); run `w2s verify --repair`") from error
    return done


def read_file(store: Store, folder: str, name: str) -> bytes:
    """One file of a committed Fit, checked against its hash."""
    expected = read_done(store, folder)["files"].get(name)
    if expected is None:
        raise StoreError(f"fits/{folder}: no {name} was committed")
    try:
        content = read_bytes(store, store.path("fits", folder, name))
    except OSError as error:
        raise StoreError(f"fits/{folder}/{name} can't be read ({error}); run `w2s verify --repair`") from error
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise StoreError(f"fits/{folder}/{name} is not what was committed; run `w2s verify --repair`")
    return content


def read_table(store: Store, folder: str, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(read_file(store, folder, name)))


def damage(store: Store, folder: str) -> list[str]:
    """What is wrong with a committed Fit: nothing, or one line for each bad file."""
    try:
        done = read_done(store, folder)
    except StoreError as error:
        return [str(error)]
    problems = []
    for name in done["files"]:
        try:
            read_file(store, folder, name)
        except StoreError as error:
            problems.append(str(error))
    return problems


def committed_folders(store: Store) -> list[str]:
    """Every committed folder in the store, whichever study it belongs to."""
    found = sorted(names(store, "fits"))
    infos = _infos(store, [store.path("fits", name, DONE) for name in found])
    return [name for name, info in zip(found, infos, strict=True) if info.type == pafs.FileType.File]


def quarantine(store: Store, folder: str) -> str:
    """Move a damaged Fit aside, marker first, so that it runs again."""
    aside = store.path("quarantine", f"{folder}-{time.strftime('%Y%m%dT%H%M%S')}")
    store.fs.create_dir(aside, recursive=True)
    files = store.fs.get_file_info(pafs.FileSelector(store.path("fits", folder)))
    for info in sorted(files, key=lambda info: info.base_name != DONE):
        store.fs.move(info.path, f"{aside}/{info.base_name}")
    store.fs.delete_dir(store.path("fits", folder))
    return aside


# --- the truth of a task ------------------------------------------------------------------------------------------


def write_truth(store: Store, name: str, truth: pa.Table) -> None:
    """Keep a task's truth (id, half, label) once; `name` carries the hash of what it depends on."""
    path = store.path("tasks", name, "truth.parquet")
    if not exists(store, path):
        buffer = io.BytesIO()
        pq.write_table(truth, buffer)
        write_bytes(store, path, buffer.getvalue())


def read_truth(store: Store, name: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(read_bytes(store, store.path("tasks", name, "truth.parquet"))))
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"tasks/{name}/truth.parquet can't be read ({error})") from error


def truth_name(fit: Fit) -> str:
    """The name under which the truth for a Fit's data is kept."""
    return f"{fit.data.task}-{hashlib.sha256(json.dumps(fit.data.identity, sort_keys=True).encode()).hexdigest()[:12]}"


# --- failures -----------------------------------------------------------------------------------------------------


def write_failure(store: Store, fit: Fit, *, kind: str, reason: str, detail: str) -> None:
    """Record why a Fit failed. `kind` is a word (nan, oom, data, error), `detail` the end of the traceback."""
    record = {"key": fit.key, "kind": kind, "reason": reason, "detail": detail, "at": time.time()}
    write_bytes(store, store.path("failures", f"{fit.folder}.json"), json.dumps(record, indent=1).encode())


def read_failures(store: Store) -> dict[str, dict[str, Any]]:
    """Key -> failure record. A record that can't be read counts as absent: its Fit is simply tried again."""
    found = {}
    for name in names(store, "failures"):
        try:
            record = json.loads(read_bytes(store, store.path("failures", name)))
            found[record["key"]] = record
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def clear_failure(store: Store, fit: Fit) -> None:
    delete_file(store, store.path("failures", f"{fit.folder}.json"))


# --- mid-fit checkpoints ------------------------------------------------------------------------------------------


def put_partial(store: Store, fit: Fit, *, step: int, file: Path) -> dict[str, Any]:
    """Put one file of a mid-fit checkpoint; each worker puts its own. The entry to seal it with."""
    content = file.read_bytes()
    write_bytes(store, store.path("partial", fit.folder, _step_name(step), file.name), content)
    return {"name": file.name, "sha256": hashlib.sha256(content).hexdigest()}


def seal_partial(store: Store, fit: Fit, *, step: int, entries: list[dict[str, Any]]) -> None:
    """Make a checkpoint count: its marker, last. The ones before it are dropped."""
    marker = json.dumps({"step": step, "files": {entry["name"]: entry["sha256"] for entry in entries}})
    write_bytes(store, store.path("partial", fit.folder, _step_name(step), DONE), marker.encode())
    for name in names(store, f"partial/{fit.folder}"):
        if name.startswith("step-") and name < _step_name(step):
            delete_folder(store, store.path("partial", fit.folder, name))


def _step_name(step: int) -> str:
    return f"step-{step:09d}"


def read_partial(store: Store, fit: Fit, *, folder: Path) -> int | None:
    """Fetch the newest whole checkpoint into a local folder; its step, or None. Damaged ones are passed over."""
    for name in sorted(names(store, f"partial/{fit.folder}"), reverse=True):
        if not name.startswith("step-"):
            continue
        try:
            marker = json.loads(read_bytes(store, store.path("partial", fit.folder, name, DONE)))
            for file, expected in marker["files"].items():
                content = read_bytes(store, store.path("partial", fit.folder, name, file))
                if hashlib.sha256(content).hexdigest() != expected:
                    raise StoreError(f"partial/{fit.folder}/{name}/{file} is damaged")
                (folder / file).write_bytes(content)
            return int(marker["step"])
        except (OSError, ValueError, KeyError, TypeError, StoreError):
            continue
    return None


def advise_micro_batch(store: Store, fit: Fit, rows: int) -> None:
    """Remember with which micro-batch a Fit should be tried next; forgotten when it is committed."""
    write_bytes(store, store.path("partial", fit.folder, ADVICE), json.dumps({"micro_batch_size": rows}).encode())


def advised_micro_batch(store: Store, fit: Fit) -> int | None:
    path = store.path("partial", fit.folder, ADVICE)
    try:
        return max(1, int(json.loads(read_bytes(store, path))["micro_batch_size"])) if exists(store, path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def drop_partial(store: Store, fit: Fit) -> None:
    delete_folder(store, store.path("partial", fit.folder))
