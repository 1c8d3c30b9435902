"""Bytes in a folder or a bucket: any URI that `pyarrow.fs` understands.

Paths are relative to the root and use `/`. The promises:

- A file is written whole or not at all: a temporary file, fsync and a rename in a folder, one PUT in a bucket.
- A folder of files appears whole in a local folder, by one rename.
- A short outage is waited out. Storage that stays away, is full, or refuses access raises `StoreDown`.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from w2s_ray.errors import InputError

MAX_OUTAGE_S = 120.0
"""An outage that lasts longer than this ends the run."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTDOWN, errno.ENOTCONN}
"""What a shared folder reports while its server is away."""
BUCKET_REFUSALS = (
    "ACCESS_DENIED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "INVALID_ACCESS_KEY",
    "SIGNATURE",
    "NO_SUCH_BUCKET",
)
"""Bucket errors that waiting does not cure."""

HAVE_NO_FOLDERS = ("s3", "gcs", "abfs")
"""Kinds of buckets. To make a folder in them would only cost a call for each part of its path."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class StoreDown(Exception):
    """The store is away, full or forbidden. No Fit is to blame, and the same command resumes once it is back."""


@dataclass(frozen=True)
class Storage:
    """A folder or a bucket that has been opened."""

    fs: pafs.FileSystem
    root: str
    uri: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        """The absolute path of something below the root."""
        return "/".join((self.root.rstrip("/"), *parts))

    def uri_of(self, *parts: str) -> str:
        """The URI of something below the root, with the options of the storage's own URI kept."""
        base, mark, options = self.uri.partition("?")
        return "/".join((base.rstrip("/"), *parts)) + mark + options

    # --- reading ---

    def read(self, path: str) -> bytes:
        def read() -> bytes:
            with self.fs.open_input_file(self.path(path)) as file:
                return file.read()

        return self._with_retries(read)

    def sizes(self, paths: list[str]) -> list[int | None]:
        """The size of each file in bytes; None where there is no such file."""
        infos = self._with_retries(lambda: self.fs.get_file_info([self.path(path) for path in paths]))
        return [info.size if info.type == pafs.FileType.File else None for info in infos]

    def stamps(self, paths: list[str]) -> list[str | None]:
        """The size and the time of the last change of each file, which tell a file from one written later under its name.
        None where there is no such file, or an empty one."""
        infos = self._with_retries(lambda: self.fs.get_file_info([self.path(path) for path in paths]))
        return [f"{info.size}@{info.mtime_ns}" if info.is_file and info.size else None for info in infos]

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self.sizes([path])[0] is not None

    def names(self, folder: str) -> list[str]:
        """The names in a folder; empty where there is no such folder."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        return [info.base_name for info in self._with_retries(lambda: self.fs.get_file_info(selector))]

    def stamps_below(self, folder: str) -> dict[str, str]:
        """Path -> stamp of every file in a folder and its folders. In a bucket it takes a call for each thousand files."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True, recursive=True)
        infos = self._with_retries(lambda: self.fs.get_file_info(selector))
        skip = len(self.path(""))
        return {info.path[skip:]: f"{info.size}@{info.mtime_ns}" for info in infos if info.is_file and info.size}

    # --- writing ---

    def write(self, path: str, content: bytes) -> None:
        """Write a file, whole or not at all."""

        def write() -> None:
            target = self.path(path)
            if self.fs.type_name not in HAVE_NO_FOLDERS:
                self.fs.create_dir(target.rpartition("/")[0], recursive=True)
            if self.is_local:
                temporary = Path(f"{target}.{uuid.uuid4().hex}.tmp")
                try:
                    _write_synced(temporary, content)
                    temporary.replace(target)
                finally:
                    temporary.unlink(missing_ok=True)
            else:
                with self.fs.open_output_stream(target) as stream:
                    stream.write(content)

        self._with_retries(write)

    def write_folder(self, path: str, contents: dict[str, bytes], *, is_complete: Callable[[], bool]) -> None:
        """Write the files of a folder, in the order given.

        A local folder appears by one rename. When two processes write the same folder at once, all files of the first one
        stay. `is_complete` tells whether the folder is already there; what lies there incomplete is replaced.
        """
        if self.is_local:
            self._write_folder_by_rename(path, contents, is_complete=is_complete)
            return
        for name, content in contents.items():
            self.write(f"{path}/{name}", content)

    def _write_folder_by_rename(
        self, path: str, contents: dict[str, bytes], *, is_complete: Callable[[], bool]
    ) -> None:
        target, name = Path(self.path(path)), path.rpartition("/")[2]
        staging = Path(self.path("staging", f"{name}-{uuid.uuid4().hex}"))

        def put() -> None:
            try:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
                for file, content in contents.items():
                    _write_synced(staging / file, content)
                target.parent.mkdir(exist_ok=True)
                if target.exists() and not is_complete():
                    target.rename(f"{staging}-old")
                staging.rename(target)
            except OSError:
                if not is_complete():
                    raise

        try:
            self._with_retries(put)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        for leftover in self.names("staging"):  # of this commit, and of earlier ones that were killed
            if leftover.startswith(name):
                shutil.rmtree(self.path("staging", leftover), ignore_errors=True)

    def delete_file(self, path: str) -> None:
        """Remove a file, if it is there."""
        if self.exists(path):
            self._with_retries(lambda: self.fs.delete_file(self.path(path)))

    def delete_folder(self, path: str) -> None:
        """Remove a folder and everything in it, if it is there."""
        [info] = self._with_retries(lambda: self.fs.get_file_info([self.path(path)]))
        if info.type == pafs.FileType.Directory:
            self._with_retries(lambda: self.fs.delete_dir(self.path(path)))

    def move_folder(self, path: str, target: str, *, first: str) -> None:
        """Move the files of a folder elsewhere, beginning with the one named `first`."""
        self.fs.create_dir(self.path(target), recursive=True)
        infos = self.fs.get_file_info(pafs.FileSelector(self.path(path)))
        for info in sorted(infos, key=lambda info: info.base_name != first):
            self.fs.move(info.path, self.path(target, info.base_name))
        self.fs.delete_dir(self.path(path))

    # --- checks ---

    def check_exists(self) -> None:
        """Refuse a folder or bucket that is not there, for commands that only read."""
        [info] = self._with_retries(lambda: self.fs.get_file_info([self.root]))
        if info.type == pafs.FileType.NotFound:
            raise InputError(f"--store {self.uri}: there is no such store. Is the path right? `w2s run` creates one")

    def check_writable(self) -> None:
        """Refuse storage that cannot be written, before anything is trained."""
        probe = self.path(f".writable-{uuid.uuid4().hex}")
        try:
            self.fs.create_dir(self.root, recursive=True)
            with self.fs.open_output_stream(probe) as stream:
                stream.write(b"w2s")
            self.fs.delete_file(probe)
        except OSError as error:
            raise InputError(f"--store {self.uri}: not writable ({error})") from error

    def check_room(self) -> None:
        """Raise `StoreDown` if another MiB does not fit."""
        probe = f".room-{uuid.uuid4().hex}"
        self.write(probe, bytes(2**20))
        self.delete_file(probe)

    def _with_retries(self, act: Callable[[], T]) -> T:
        """Call `act` until it succeeds or the outage is too long. A missing file is an answer, not an outage."""
        deadline_s, pause_s = time.monotonic() + MAX_OUTAGE_S, 0.5
        while True:
            try:
                return act()
            except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError):
                raise
            except OSError as error:
                if error.errno in FULL:
                    raise StoreDown(f"the store {self.uri} is full ({error})") from error
                is_refusal = not self.is_local and any(word in str(error) for word in BUCKET_REFUSALS)
                if error.errno in FORBIDDEN or is_refusal:
                    raise StoreDown(f"the store {self.uri} refuses access ({error})") from error
                if self.is_local and error.errno not in TRANSIENT:
                    raise
                if time.monotonic() + pause_s > deadline_s:
                    raise StoreDown(f"the store {self.uri} was away for {MAX_OUTAGE_S:.0f} s ({error})") from error
                log.warning("the store does not answer, trying again: %s", error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 10.0)


def open_storage(uri: str | Path) -> Storage:
    """Open a folder or a bucket. Creates nothing."""
    text = str(uri)
    try:
        if "://" in text:
            filesystem, root = pafs.FileSystem.from_uri(_in_one_put(text))
        else:
            filesystem, root = pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"--store {text}: {error}. Allowed: a folder, or a URI such as s3://bucket/path or gs://bucket/path"
        ) from error
    return Storage(fs=filesystem, root=root, uri=text if "://" in text else root)


def _in_one_put(uri: str) -> str:
    """A bucket's URI with the option to write a small file by one PUT instead of the three calls of an upload in parts."""
    if not uri.startswith("s3://") or "allow_delayed_open" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
