"""Folders for what a Fit writes before it is committed, below the temporary folder of its machine.

Promise: they are gone when their process is. A worker removes its own; what a killed one left is removed by the next worker on
its machine, and by the driver when a run ends. A folder belongs to whoever holds the lock of its file `LOCK`. The system
gives a lock back when its process dies, however it dies, so no folder in use is ever removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX, LOCK = "w2s-scratch-", "in-use.lock"
MAX_WAIT_S = 10.0
"""Workers that are told to end have ended by then."""


@contextlib.contextmanager
def scratch_folder(owner: str) -> Iterator[Path]:
    """A folder of this process alone, removed at the end. `owner`: the pack's lease, which begins with its driver's name."""
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{owner}-"))
    # locked before it has its name, since a folder whose file is not locked is taken for one that was left
    early = folder / f".{LOCK}"
    with early.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        early.rename(folder / LOCK)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(*, driver: str = "") -> None:
    """Remove this user's folders whose process is dead. `driver`: whose workers are being ended, and are waited for."""
    deadline_s = time.monotonic() + MAX_WAIT_S
    while True:
        in_use = [path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}") if _is_in_use(path, driver)]
        if not in_use or time.monotonic() > deadline_s:
            return
        time.sleep(0.1)


def _is_in_use(path: Path, driver: str) -> bool:
    """Whether this driver's worker has this folder in use. One that nobody uses is removed."""
    with contextlib.suppress(OSError), path.open("r+") as file:  # another user's, or gone meanwhile
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return bool(driver) and path.parent.name.startswith(f"{PREFIX}{driver}")
        shutil.rmtree(path.parent, ignore_errors=True)
    return False
