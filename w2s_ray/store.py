"""The store: committed Fits and everything a run remembers about them.

Layout under the root:
    fits/<name>-<hash12>/...        a Fit's files, with `done.json` written last: every file's size and SHA-256
    index/<hash3>/<name>-<hash12>   written after `done.json`: the committed Fits, to be listed a thousand at a time
    index/complete                  the index began with the store, or was built by `w2s verify`
    failures/<name>-<hash12>.json   why a Fit failed, the last time it was tried
    leases/<pack>.json              which driver works on which Fits, with a heartbeat (`leases.py`)
    partial/<name>-<hash12>/...     mid-fit checkpoints of long Fits, and what a reading has read so far; removed when the Fit
                                    is committed
    staging/<name>-<hash12>/...     a Fit's files on their way into `fits/`, in a local folder
    tasks/<name>-<hash12>/          truth-<sha12>.parquet: the ground truth of a task's rows, for scoring without the
                                    task's own files; <sha12> begins its SHA-256
    speeds/<machine>/<model>.json   what Fits took, for estimates (`speeds.py`)
    quarantine/                     what `w2s verify --repair` moved aside

Promises: without `done.json` there is no Fit. Everything read from a Fit, and its ground truth, is checked against its hash.
Nothing is ever unpickled. How bytes are written, and what happens in an outage, is the matter of `storage.py`.

The index is a shortcut, and `done.json` the truth. A Fit enters the index after its `done.json` is there and leaves it before
that is moved away, so a kill at any moment leaves an index that says too little and never too much. A Fit that it lacks is
handed out again; the worker sees the `done.json`, trains nothing, and enters the Fit. In a folder, where a look at a file
costs microseconds, nothing but `done.json` is believed; in a bucket the index is, and `w2s verify` sets it right if files were
removed by hand. A store without `index/complete` is read as before there was an index.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from w2s_ray.fit import Fit, canonical_json
from w2s_ray.storage import Storage, open_storage

DONE = "done.json"
ADVICE = "micro_batch.json"
INDEX_IS_COMPLETE = "index/complete"
TRUTH = re.compile(r"truth-[0-9a-f]{12}\.parquet")


class StoreError(Exception):
    """What the store holds is not what was committed. The message names the file and what to do."""


def open_store(uri: str | Path) -> Store:
    """Open a folder or a bucket. Creates nothing."""
    return Store(open_storage(uri))


@dataclass(frozen=True)
class Commit:
    """A committed Fit in the store."""

    folder: str
    stamp: str
    """Another one after the Fit was removed and run again. See `Storage.stamps`."""


@dataclass(frozen=True)
class Store:
    storage: Storage

    @property
    def uri(self) -> str:
        return self.storage.uri

    # --- committed Fits ---

    def committed(self, fits: Iterable[Fit]) -> dict[str, str]:
        """Key -> folder of those among `fits` that are in the store."""
        return {key: commit.folder for key, commit in self.commits(fits).items()}

    def commits(self, fits: Iterable[Fit]) -> dict[str, Commit]:
        """The same with the stamp of each commit. In a bucket a listing of the index; in a folder, and in a bucket without an
        index, a listing of the Fits and a look at each marker."""
        if not self.storage.is_local and self.storage.exists(INDEX_IS_COMPLETE):
            by_hash = {folder[-12:]: Commit(folder, stamp) for folder, stamp in self._index().items()}
            return {fit.key: by_hash[fit.key[:12]] for fit in fits if fit.key[:12] in by_hash}
        names = {name[-12:]: name for name in self.storage.names("fits")}
        candidates = [(fit.key, names[fit.key[:12]]) for fit in fits if fit.key[:12] in names]
        stamps = self.storage.stamps([f"fits/{folder}/{DONE}" for _, folder in candidates])
        return {key: Commit(folder, stamp) for (key, folder), stamp in zip(candidates, stamps, strict=True) if stamp}

    def committed_now(self, fits: Iterable[Fit]) -> set[str]:
        """The keys of those among a few `fits` whose markers are there, under the names that these Fits have now."""
        fits = list(fits)
        stamps = self.storage.stamps([f"fits/{fit.folder}/{DONE}" for fit in fits])
        return {fit.key for fit, stamp in zip(fits, stamps, strict=True) if stamp}

    def committed_folders(self) -> list[str]:
        """Every committed folder, whichever study it belongs to. Looks at every marker."""
        folders = sorted(self.storage.names("fits"))
        sizes = self.storage.sizes([f"fits/{folder}/{DONE}" for folder in folders])
        return [folder for folder, size in zip(folders, sizes, strict=True) if size is not None]

    def is_committed(self, fit: Fit) -> bool:
        """Whether a Fit's marker is there, under whatever name it was committed."""
        return self._is_committed_under_its_name(fit) or self._folder_under_another_name(fit) is not None

    def _is_committed_under_its_name(self, fit: Fit) -> bool:
        return bool(self.storage.sizes([f"fits/{fit.folder}/{DONE}"])[0])

    def _folder_under_another_name(self, fit: Fit) -> str | None:
        """The folder of a Fit whose task or model was renamed since."""
        if self.storage.exists(INDEX_IS_COMPLETE):
            names = self.storage.names(_index_path(fit.folder).rpartition("/")[0])
        else:
            names = self.storage.names("fits")
        same = [name for name in names if name[-12:] == fit.key[:12] and name != fit.folder]
        return next((name for name in same if self.storage.sizes([f"fits/{name}/{DONE}"])[0]), None)

    def folder_of(self, fit: Fit) -> str:
        """The folder of a committed Fit. It bears another name where the task or the model was renamed since."""
        if self._is_committed_under_its_name(fit):
            return fit.folder
        folder = self._folder_under_another_name(fit)
        if folder is None:
            raise StoreError(f"fits/{fit.folder}: this Fit is not in the store")
        return folder

    def commit(self, fit: Fit, files: Path) -> None:
        """Publish the files of a local folder as this Fit, `done.json` last. A Fit already there stays as it is."""
        if self.is_committed(fit):
            self.enter(fit)
            return
        contents = {file.name: file.read_bytes() for file in sorted(files.iterdir())}
        listed = {name: {"size": len(content), "sha256": _sha256(content)} for name, content in contents.items()}
        truth = {} if fit.role == "reading" else {"truth": _truth_folder(fit)}
        done = {"key": fit.key, **truth, "files": listed}
        contents[DONE] = json.dumps(done, indent=1).encode()
        is_complete = partial(self._is_committed_under_its_name, fit)
        self.storage.write_folder(f"fits/{fit.folder}", contents, is_complete=is_complete)
        self._enter(fit.folder)
        self.clear_failure(fit)
        self.drop_checkpoints(fit)

    def read_done(self, folder: str) -> dict[str, Any]:
        """A Fit's commit marker, or `StoreError` if it is damaged."""
        try:
            done = json.loads(self.storage.read(f"fits/{folder}/{DONE}"))
            assert isinstance(done["files"], dict) and isinstance(done["key"], str)
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise StoreError(f"fits/{folder}/{DONE} is damaged ({error}); run `w2s verify --repair`") from error
        return done

    def read_file(self, folder: str, name: str) -> bytes:
        """One file of a committed folder, checked against its hash."""
        expected = self.read_done(folder)["files"].get(name)
        if expected is None:
            raise StoreError(f"fits/{folder}: no {name} was committed")
        try:
            content = self.storage.read(f"fits/{folder}/{name}")
        except OSError as error:
            raise StoreError(f"fits/{folder}/{name} can't be read ({error}); run `w2s verify --repair`") from error
        if _sha256(content) != expected["sha256"]:
            raise StoreError(f"fits/{folder}/{name} is not what was committed; run `w2s verify --repair`")
        return content

    def read_table(self, fit: Fit, name: str) -> pa.Table:
        """A parquet file of a committed Fit."""
        return pq.read_table(io.BytesIO(self.read_file(self.folder_of(fit), name)))

    def damage(self, folder: str) -> list[str]:
        """What is wrong with a committed folder: nothing, or one line for each bad file."""
        try:
            done = self.read_done(folder)
        except StoreError as error:
            return [str(error)]
        problems = []
        for name in done["files"]:
            try:
                self.read_file(folder, name)
            except StoreError as error:
                problems.append(str(error))
        return problems

    def damage_of_truths(self, folders: Iterable[str]) -> dict[str, str]:
        """Folder -> what is wrong with its ground truth. Of the Fits that share a truth only the first is named: it writes
        the truth again when it runs, and the others are whole."""
        first: dict[str, str] = {}
        for folder in folders:
            try:
                first.setdefault(self.read_done(folder)["truth"], folder)
            except (
                StoreError,
                KeyError,
            ):  # a damaged marker, one of an earlier version, or a reading, which needs no truth
                continue
        problems = {}
        for truth, folder in first.items():
            try:
                self._read_truth(truth)
            except StoreError as error:
                problems[folder] = str(error)
        return problems

    def quarantine(self, folder: str) -> str:
        """Move a damaged Fit aside, its marker first, so that it runs again. Returns where it is now."""
        self.storage.delete_file(_index_path(folder))
        aside = f"quarantine/{folder}-{time.strftime('%Y%m%dT%H%M%S')}"
        self.storage.move_folder(f"fits/{folder}", aside, first=DONE)
        return self.storage.path(aside)

    # --- the index ---

    def begin_index(self) -> None:
        """Let an empty store have a complete index from its first Fit on."""
        if not self.storage.exists(INDEX_IS_COMPLETE) and not self.storage.names("fits"):
            self.storage.write(INDEX_IS_COMPLETE, b"1")

    def enter(self, fit: Fit) -> None:
        """Enter a committed Fit into the index, where it may be already."""
        if self._is_committed_under_its_name(fit):
            self._enter(fit.folder)

    def _enter(self, folder: str) -> None:
        self.storage.write(_index_path(folder), b"1")

    def rebuild_index(self) -> tuple[int, int]:
        """Make the index what the markers say. Returns how many Fits it lacked, and how many it had that are not there."""
        there, listed = set(self.committed_folders()), set(self._index())
        for folder in sorted(there - listed):
            self._enter(folder)
        for folder in sorted(listed - there):
            self.storage.delete_file(_index_path(folder))
        if not self.storage.exists(INDEX_IS_COMPLETE):
            self.storage.write(INDEX_IS_COMPLETE, b"1")
        return len(there - listed), len(listed - there)

    def _index(self) -> dict[str, str]:
        """Folder -> stamp of every Fit in the index."""
        found = self.storage.stamps_below("index")
        return {path.rpartition("/")[2]: stamp for path, stamp in found.items() if path != INDEX_IS_COMPLETE}

    # --- ground truth of a task's rows ---

    def write_truth(self, fit: Fit, truth: pa.Table) -> None:
        """Keep the truth (id, half, label) for a Fit's data, once for all Fits that share it. A damaged one is replaced."""
        folder = _truth_folder(fit)
        try:
            kept = self._read_truth(folder)
        except StoreError:
            buffer = io.BytesIO()
            pq.write_table(truth, buffer)
            path = f"{folder}/truth-{_sha256(buffer.getvalue())[:12]}.parquet"
            self.storage.write(path, buffer.getvalue())
            for other in self._truth_files(folder):
                if other != path:
                    self.storage.delete_file(other)
        else:
            if not kept.equals(truth):
                raise RuntimeError(f"{folder} holds another ground truth for the same data; raise SEMANTICS")

    def read_truth(self, fit: Fit) -> pa.Table:
        """The truth of a Fit's data, checked against the hash in its name."""
        return self._read_truth(_truth_folder(fit))

    def _read_truth(self, folder: str) -> pa.Table:
        paths = self._truth_files(folder)
        if not paths:
            raise StoreError(f"{folder} has no ground truth; run `w2s verify --repair`")
        path = paths[0]
        try:
            content = self.storage.read(path)
        except OSError as error:
            raise StoreError(f"{path} can't be read ({error}); run `w2s verify --repair`") from error
        if not path.endswith(f"truth-{_sha256(content)[:12]}.parquet"):
            raise StoreError(f"{path} is not what was written; run `w2s verify --repair`")
        return pq.read_table(io.BytesIO(content))

    def _truth_files(self, folder: str) -> list[str]:
        return sorted(f"{folder}/{name}" for name in self.storage.names(folder) if TRUTH.fullmatch(name))

    # --- failures ---

    def write_failure(self, fit: Fit, *, kind: str, reason: str, detail: str) -> None:
        """Record why a Fit failed. `kind` is one word (nan, oom, crash, ...), `detail` the end of the traceback."""
        record = {"key": fit.key, "kind": kind, "reason": reason, "detail": detail, "at": time.time()}
        self.storage.write(_failure_path(fit), json.dumps(record, indent=1).encode())

    def read_failures(self) -> dict[str, dict[str, Any]]:
        """Key -> failure record. A record that can't be read counts as absent: its Fit is simply tried again."""
        records = (self._read_failure(f"failures/{name}") for name in self.storage.names("failures"))
        return {record["key"]: record for record in records if record is not None}

    def failures_of(self, fits: Iterable[Fit]) -> dict[str, dict[str, Any]]:
        """The same of a few Fits, of which no others are read."""
        fits = list(fits)
        sizes = self.storage.sizes([_failure_path(fit) for fit in fits])
        failures = {}
        for fit, size in zip(fits, sizes, strict=True):
            if size is not None and (record := self._read_failure(_failure_path(fit))) is not None:
                failures[fit.key] = record
        return failures

    def _read_failure(self, path: str) -> dict[str, Any] | None:
        try:
            record = json.loads(self.storage.read(path))
            assert isinstance(record["key"], str) and isinstance(record["reason"], str)
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            return None
        return dict(record)

    def clear_failure(self, fit: Fit) -> None:
        self.storage.delete_file(_failure_path(fit))

    # --- mid-fit checkpoints ---

    def write_checkpoint_file(self, fit: Fit, *, step: int, file: Path) -> dict[str, Any]:
        """Put one file of a mid-fit checkpoint; each worker puts its own. Returns the entry to seal it with."""
        content = file.read_bytes()
        self.storage.write(f"{_checkpoint_folder(fit, step)}/{file.name}", content)
        return {"name": file.name, "sha256": _sha256(content)}

    def seal_checkpoint(self, fit: Fit, *, step: int, entries: list[dict[str, Any]]) -> None:
        """Write a checkpoint's marker, which makes it count, and remove the earlier checkpoints."""
        marker = json.dumps({"step": step, "files": {entry["name"]: entry["sha256"] for entry in entries}})
        folder = _checkpoint_folder(fit, step)
        self.storage.write(f"{folder}/{DONE}", marker.encode())
        for name in self.storage.names(f"partial/{fit.folder}"):
            if name.startswith("step-") and f"partial/{fit.folder}/{name}" < folder:
                self.storage.delete_folder(f"partial/{fit.folder}/{name}")

    def read_checkpoint(
        self, fit: Fit, *, into: Path, is_wanted: Callable[[str], bool] = lambda file: True
    ) -> int | None:
        """Fetch the newest whole checkpoint, or the wanted files of it, into a local folder. Returns its step, or None; damaged
        ones are skipped."""
        for name in sorted(self.storage.names(f"partial/{fit.folder}"), reverse=True):
            if not name.startswith("step-"):
                continue
            folder = f"partial/{fit.folder}/{name}"
            try:
                marker = json.loads(self.storage.read(f"{folder}/{DONE}"))
                for file, expected in marker["files"].items():
                    if not is_wanted(file):
                        continue
                    content = self.storage.read(f"{folder}/{file}")
                    if _sha256(content) != expected:
                        raise StoreError(f"{folder}/{file} is damaged")
                    (into / file).write_bytes(content)
                return int(marker["step"])
            except (OSError, ValueError, KeyError, TypeError, StoreError):
                continue
        return None

    def write_part(self, fit: Fit, name: str, content: bytes) -> None:
        """Keep a part of what a reading reads, until it is committed."""
        self.storage.write(f"partial/{fit.folder}/{name}", content)

    def read_parts(self, fit: Fit) -> Iterator[bytes]:
        """What earlier tries of a reading have kept."""
        for name in sorted(self.storage.names(f"partial/{fit.folder}")):
            if name.startswith("part-") and not name.endswith(".tmp"):
                with contextlib.suppress(FileNotFoundError):  # another driver has just committed the reading
                    yield self.storage.read(f"partial/{fit.folder}/{name}")

    def advise_micro_batch(self, fit: Fit, num_rows: int) -> None:
        """Remember which micro-batch to try next after running out of memory. Forgotten when the Fit is committed."""
        self.storage.write(f"partial/{fit.folder}/{ADVICE}", json.dumps({"micro_batch_size": num_rows}).encode())

    def advised_micro_batch(self, fit: Fit) -> int | None:
        path = f"partial/{fit.folder}/{ADVICE}"
        try:
            if not self.storage.exists(path):
                return None
            return max(1, int(json.loads(self.storage.read(path))["micro_batch_size"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def drop_checkpoints(self, fit: Fit) -> None:
        self.storage.delete_folder(f"partial/{fit.folder}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _truth_folder(fit: Fit) -> str:
    """The same for all Fits with the same rows. What a Data means may change with the version of the code's meaning."""
    data = {"data": fit.data.identity, "semantics": fit.semantics}
    return f"tasks/{fit.data.task}-{_sha256(canonical_json(data).encode())[:12]}"


def _index_path(folder: str) -> str:
    """Spread over 4,096 folders, so that one of them can be searched for a hash."""
    return f"index/{folder[-12:-9]}/{folder}"


def _failure_path(fit: Fit) -> str:
    return f"failures/{fit.folder}.json"


def _checkpoint_folder(fit: Fit, step: int) -> str:
    return f"partial/{fit.folder}/step-{step:09d}"
