"""Chaos: a study that is disturbed again and again, at moments and in ways that a seed draws, and started again by the same
command each time that it is gone. What it ends in is held against the same study, run in peace.

`tests/test_chaos.py` runs a little of it, `benchmarks/chaos.py` fifty disturbances.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from w2s_ray.fit import Fit
from w2s_ray.planning import load_plan
from w2s_ray.store import Store, open_store

from driver import own_environment
from proxy import Proxy

STALLED_S = 300.0
GRID = {
    "methods": ["naive", "confidence"],
    "training": {"epochs": 60, "batch_size": 16, "learning_rate": 0.001, "evals_per_epoch": 1},
    "split": {"num_train": 128, "num_test": 64},
}
"""Fits of a second or two, ten for each seed."""
COMPUTE = {"checkpoint_every_s": 0.2}


@dataclass
class Run:
    """`w2s run` in a process of its own."""

    study: Path
    uri: str
    out: Path
    process: subprocess.Popen[bytes] | None = None
    num_starts: int = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "w2s_ray.cli", "run", self.study, "--store", self.uri, "--out", self.out]
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "said.txt").open("ab") as said:
            self.process = subprocess.Popen(
                [*map(str, command), "--track", "tensorboard"],
                stdout=said, stderr=said, start_new_session=True, env=own_environment(),
            )  # fmt: skip
        self.num_starts += 1

    @property
    def is_over(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def store(self) -> Store:
        return open_store(self.uri)

    def done(self) -> list[str]:
        return self.store.committed_folders()

    def num_attempts(self) -> int:
        """How often a Fit was begun: each time a file of its own appears in its tracker's folder."""
        return len(list(self.out.glob("tensorboard/*/*/events*")))

    def family(self, *names: str) -> list[psutil.Process]:
        """Its processes whose command line holds one of the names; all without a name."""
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True) if self.process else ():
                with contextlib.suppress(psutil.Error):
                    line = " ".join(child.cmdline())
                    if not names or any(name in line for name in names):
                        found.append(child)
        return found

    def kill(self, *names: str, draw: random.Random) -> bool:
        """One of its processes of these names."""
        found = self.family(*names)
        with contextlib.suppress(psutil.Error):
            draw.choice(found or [psutil.Process(2**22 - 1)]).kill()
            return True
        return False

    def kill_driver(self) -> bool:
        """The driver alone; its Ray finds out and goes."""
        if self.process is None or self.is_over:
            return False
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return True

    def kill_all(self) -> bool:
        others = self.family()
        killed = self.kill_driver()
        for other in others:
            with contextlib.suppress(psutil.Error):
                other.kill()
        return killed

    def pause(self, draw: random.Random) -> bool:
        found = self.family("RayTrainWorker", "ImplicitFunc", "raylet/raylet")
        with contextlib.suppress(psutil.Error):
            found += [psutil.Process(self.process.pid)] if self.process else []
            chosen = draw.choice(found)
            chosen.suspend()
            time.sleep(draw.uniform(2, 8))
            chosen.resume()
            return True
        return False

    def cut_short(self, draw: random.Random) -> bool:
        """A committed file, as a broken disk leaves it. The study has to be stopped: a running one trusts what it has seen."""
        done = self.done()
        if not done:
            return False
        self.kill_all()
        store, folder = self.store, draw.choice(done)
        path = f"fits/{folder}/{draw.choice(['test.parquet', 'curve.parquet', 'fit.json', 'done.json'])}"
        content = store.storage.read(path)
        store.storage.write(path, content[: draw.randrange(len(content))])
        command = [sys.executable, "-m", "w2s_ray.cli", "verify", self.study, "--store", self.uri, "--repair"]
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
        return True

    def fill(self, disk: Path) -> bool:
        """The store's disk is full until the run has given up, or for half a minute."""
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**16))
        deadline_s = time.monotonic() + 30
        while not self.is_over and time.monotonic() < deadline_s:
            time.sleep(0.2)
        filler.unlink()
        return True


def cut_off(proxy: Proxy, draw: random.Random) -> bool:
    """The store's server is away for some seconds."""
    proxy.drop()
    time.sleep(draw.uniform(3, 15))
    proxy.restore()
    return True


@dataclass
class Told:
    """What came of it."""

    num_fits: int
    ways: Counter[str] = field(default_factory=Counter)
    num_starts: int = 0
    num_attempts: int = 0
    failed: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ways = ", ".join(f"{count} {way}" for way, count in sorted(self.ways.items()))
        return (
            f"{self.ways.total()} disturbances ({ways}), {self.num_starts} starts: {self.num_fits} Fits, "
            f"{len(self.failed)} failed, {len(self.differ)} differ from the undisturbed run; "
            f"{self.num_attempts - self.num_fits} begun again, at most {2 * self.ways.total()} were in hand"
        )


def ways_of(run: Run, draw: random.Random, *, disk: Path | None, proxy: Proxy | None) -> dict[str, Callable[[], bool]]:
    """What can be done to a run here."""
    ways: dict[str, Callable[[], bool]] = {
        "worker killed": lambda: run.kill("RayTrainWorker", draw=draw),
        "trial killed": lambda: run.kill("ImplicitFunc", draw=draw),
        "raylet killed": lambda: run.kill("raylet/raylet", draw=draw),
        "driver killed": run.kill_driver,
        "everything killed": run.kill_all,
        "process paused": lambda: run.pause(draw),
        "file cut short": lambda: run.cut_short(draw),
    }
    if disk is not None:
        ways["disk filled"] = lambda: run.fill(disk)
    if proxy is not None:
        ways["server away"] = lambda: cut_off(proxy, draw)
    return ways


def disturb(
    run: Run,
    *,
    peace: Store,
    num_disturbances: int,
    draw: random.Random,
    only: tuple[str, ...] = (),
    disk: Path | None = None,
    proxy: Proxy | None = None,
) -> Told:
    """Run a study to its end through so many disturbances; `only` names the ways, in turn."""
    fits = load_plan(run.study).fits
    told = Told(num_fits=len(fits))
    ways = ways_of(run, draw, disk=disk, proxy=proxy)
    next_s, moved_s, last, begun = 0.0, time.monotonic(), -1, 0
    while True:
        if run.is_over:
            if len(run.done()) == len(fits):
                break
            run.start()
            begun, next_s = run.num_attempts(), 0.0
        time.sleep(0.2)
        if not next_s and run.num_attempts() > begun:  # its start-up is behind it
            next_s = time.monotonic() + draw.uniform(0, 6)
        if run.num_attempts() != last:
            last, moved_s = run.num_attempts(), time.monotonic()
        assert time.monotonic() - moved_s < STALLED_S, f"nothing moved for {STALLED_S:.0f} s after {told}"
        if not next_s or time.monotonic() < next_s or told.ways.total() >= num_disturbances or run.is_over:
            continue
        way = only[told.ways.total() % len(only)] if only else draw.choice(sorted(ways))
        if ways[way]():
            told.ways[way] += 1
            print(f"{told.ways.total():3d} {way}; {len(run.done())} of {len(fits)} Fits", flush=True)
        next_s = time.monotonic() + draw.uniform(1, 8)
    told.num_starts, told.num_attempts = run.num_starts, run.num_attempts()
    told.failed = list(run.store.read_failures())
    told.differ = differences(fits, run.store, peace)
    return told


def differences(fits: tuple[Fit, ...], one: Store, other: Store) -> list[str]:
    """Files that are not the same byte for byte; provenance aside."""
    return [
        f"{fit.folder}/{name}"
        for fit in fits
        for name in other.read_done(fit.folder)["files"]
        if name != "fit.json" and one.read_file(fit.folder, name) != other.read_file(fit.folder, name)
    ]
