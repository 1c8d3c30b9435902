"""Where the time to a study's first Fit goes: every process of a run, when it lives, and the CPU time that it takes.

`python benchmarks/startup.py [STUDY]` runs the quickstart, or another study, in a store of its own, and ends it at its first Fit.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_EVERY_S = 0.1


@dataclass
class Seen:
    """A process of the run, as it was last seen."""

    name: str
    first_s: float
    last_s: float
    cpu_s: float


def name_of(process: psutil.Process) -> str:
    """What Ray calls a worker process while it works, without the method that it is in; or the program's name."""
    words = process.cmdline()
    title = words[0] if words else process.name()
    if title.startswith("ray::"):
        return title.partition(".")[0]
    return next((Path(word).stem for word in words[1:] if word.endswith(".py")), Path(title).name)


def watch(driver: subprocess.Popen[bytes], store: Path) -> tuple[float, list[Seen]]:
    """Seconds until the first Fit is in the store, and all processes until then."""
    began_s, seen = time.monotonic(), dict[int, Seen]()
    root = psutil.Process(driver.pid)
    while not list(store.glob("fits/*/done.json")):
        if driver.poll() is not None:
            raise SystemExit(f"the run ended with exit code {driver.returncode} before its first Fit")
        now_s = time.monotonic() - began_s
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                name, times = name_of(process), process.cpu_times()
                known = seen.setdefault(process.pid, Seen(name, now_s, now_s, 0.0))
                known.last_s, known.cpu_s = now_s, times.user + times.system
                known.name = known.name if name == "ray::IDLE" else name
        time.sleep(LOOK_EVERY_S)
    return time.monotonic() - began_s, list(seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="quickstart")
    study = parser.parse_args().study
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        command = [sys.executable, "-m", "w2s_ray", "run", study, "--store", str(store), "--out", f"{folder}/out"]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            first_s, seen = watch(driver, store)
        finally:
            driver.send_signal(signal.SIGINT)
            driver.wait()
    print("from s   to s  CPU s  process")
    for process in sorted(seen, key=lambda process: process.first_s):
        print(f"{process.first_s:6.1f} {process.last_s:6.1f} {process.cpu_s:6.1f}  {process.name}")
    print(f"first Fit after {first_s:.1f} s, {len(seen)} processes, {sum(p.cpu_s for p in seen):.1f} s of CPU time")


if __name__ == "__main__":
    main()
