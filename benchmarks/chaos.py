"""What a study survives: `python benchmarks/chaos.py [--disturbances 50] [--seed 0]`.

Runs a study of tiny models once in peace. Then runs it again in another store and, at moments and in ways that a seed draws,
kills a training worker, the Tune trial around it, a raylet, the driver or everything, pauses a process, or cuts a committed
file short; each time the same command (after `w2s verify --repair` for the cut file) goes on. At the end the predictions of
both stores are compared byte for byte, and Fits that were committed more than once are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from w2s_ray import store as stores
from w2s_ray.plan import load_plan

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny import save_study

STALLED_S = 240.0


class Run:
    """`w2s run` in a process of its own, started again whenever it is gone."""

    def __init__(self, study: Path, store: Path) -> None:
        self.study, self.store = study, store
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "w2s_ray.cli", "run", str(self.study), "--store", str(self.store)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.process = subprocess.Popen(
            [*command, "--out", str(self.store.with_name("out")), "--retry-failed"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        self.starts += 1

    @property
    def is_over(self) -> bool:
        return self.process is None or self.process.poll() is not None

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


def num_done(store: Path) -> int:
    return len(list(store.glob("fits/*/done.json")))


def kill_one(run: Run, draw: random.Random, *names: str) -> bool:
    found = run.family(*names)
    if found:
        with contextlib.suppress(psutil.Error):
            draw.choice(found).kill()
            return True
    return False


def kill_all(run: Run) -> bool:
    others = run.family()
    if run.process is None:
        return False
    os.kill(run.process.pid, signal.SIGKILL)
    for other in others:
        with contextlib.suppress(psutil.Error):
            other.kill()
    run.process.wait()
    return True


def kill_driver(run: Run) -> bool:
    """The driver alone; its Ray finds out and goes."""
    if run.process is None:
        return False
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    return True


def pause(run: Run, draw: random.Random) -> bool:
    found = run.family("RayTrainWorker", "ImplicitFunc", "TrainController", "raylet/raylet")
    if not found:
        return False
    with contextlib.suppress(psutil.Error):
        chosen = draw.choice(found)
        chosen.suspend()
        time.sleep(5)
        chosen.resume()
    return True


def cut_short(run: Run, draw: random.Random) -> bool:
    """A committed file, as a broken disk leaves it. The study has to be stopped: a running one trusts what it has seen."""
    done = sorted(run.store.glob("fits/*/test.parquet"))
    if not done:
        return False
    kill_all(run)
    path = draw.choice(done)
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
    command = [sys.executable, "-m", "w2s_ray.cli", "verify", str(run.study), "--store", str(run.store), "--repair"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disturbances", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=40, help="of the study: 10 Fits each")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        grid = {
            "methods": ["naive", "confidence"],
            "seeds": options.seeds,
            "training": {"epochs": 60, "batch_size": 16, "learning_rate": 0.001},
            "split": {"num_train": 128, "num_test": 64},
        }
        study = save_study(folder, grid=grid, compute={"checkpoint_every_s": 0.2})
        fits = load_plan(study).fits
        peace = Run(study, folder / "peace")
        peace.start()
        assert peace.process is not None and peace.process.wait() == 0, "the undisturbed run failed"
        print(f"in peace: {num_done(peace.store)} of {len(fits)} Fits", flush=True)
        ways: dict[str, Callable[[Run], bool]] = {
            "worker killed": lambda run: kill_one(run, draw, "RayTrainWorker"),
            "trial killed": lambda run: kill_one(run, draw, "ImplicitFunc"),
            "raylet killed": lambda run: kill_one(run, draw, "raylet/raylet"),
            "driver killed": kill_driver,
            "everything killed": kill_all,
            "process paused": lambda run: pause(run, draw),
            "file cut short": lambda run: cut_short(run, draw),
        }
        run = Run(study, folder / "chaos")
        counts: Counter[str] = Counter()
        commits: Counter[str] = Counter()
        stamps: dict[Path, int] = {}
        next_s, moved_s, last = time.monotonic() + 30, time.monotonic(), 0
        while True:
            if run.is_over:
                if num_done(run.store) == len(fits) and sum(counts.values()) >= options.disturbances:
                    break
                if num_done(run.store) == len(fits):
                    print(f"done after {sum(counts.values())} disturbances; more --seeds give more time for them")
                    break
                run.start()
                next_s = time.monotonic() + draw.uniform(8, 30)
            time.sleep(0.2)
            for path in run.store.glob("fits/*/done.json"):
                with contextlib.suppress(OSError):
                    stamp = path.stat().st_mtime_ns
                    if stamps.get(path) != stamp:
                        stamps[path] = stamp
                        commits[path.parent.name] += 1
            if num_done(run.store) != last:
                last, moved_s = num_done(run.store), time.monotonic()
            if time.monotonic() - moved_s > STALLED_S:
                print(f"STALLED for {STALLED_S:.0f} s after {dict(counts)}", flush=True)
                sys.exit(1)
            if time.monotonic() < next_s or sum(counts.values()) >= options.disturbances:
                continue
            way = draw.choice(sorted(ways))
            if ways[way](run):
                counts[way] += 1
                print(f"{sum(counts.values()):3d} {way}; {num_done(run.store)} of {len(fits)} Fits", flush=True)
            next_s = time.monotonic() + draw.uniform(2, 12)
        one, other = (stores.open_store(each.store) for each in (peace, run))
        differ = [
            fit.folder
            for fit in fits
            for name in ("test.parquet", "curve.parquet", *(["labels.parquet"] if fit.labels_others else []))
            if stores.read_file(one, fit.folder, name) != stores.read_file(other, fit.folder, name)
        ]
        twice = sum(count - 1 for count in commits.values() if count > 1)
        failures = stores.read_failures(other)
        print(
            f"{sum(counts.values())} disturbances ({', '.join(f'{n} {way}' for way, n in sorted(counts.items()))}), "
            f"{run.starts} starts: {len(fits)} Fits, {len(failures)} failed, {len(differ)} differ from the undisturbed run, "
            f"{twice} committed more than once (of which {counts['file cut short']} were cut short)"
        )
        sys.exit(1 if differ or failures else 0)


if __name__ == "__main__":
    main()
