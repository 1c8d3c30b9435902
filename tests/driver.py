"""`w2s` in this process, and `w2s run` in a process of its own, with a Ray of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from typer.testing import CliRunner, Result

from w2s_ray import cli
from w2s_ray.store import Store

GIVE_UP_S = 300.0
"""No test waits for longer. On two busy cores Ray alone takes a minute to start."""


def own_environment() -> dict[str, str]:
    """This process's environment without its Ray. Ray lowers its workers' priority; beside other work they would then starve."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return own | {"RAY_worker_niceness": "0"}


def w2s(*arguments: object) -> Result:
    """A command in this process."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=True)


class Driver:
    def __init__(self, study: Path, store: Store, *, out: Path) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "w2s_ray.cli", "run", study, "--store", store.storage.root, "--out", out]
        with (out / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=output, stderr=subprocess.STDOUT, env=own_environment(), start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return (self.out / "output.txt").read_text()

    def told(self) -> str:
        """What it printed and logged, for a test that gives up."""
        log = self.out / "run.log"
        return f"output:\n{self.output}\nrun.log:\n{log.read_text()[-5000:] if log.exists() else 'none'}"

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + GIVE_UP_S
        while not condition():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}\n{self.told()}"
            assert time.monotonic() < deadline_s, f"nothing happened in {GIVE_UP_S:.0f} s\n{self.told()}"
            time.sleep(0.1)

    def wait(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(GIVE_UP_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end in {GIVE_UP_S:.0f} s\n{self.told()}") from None

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        os.kill(self.process.pid, signal.SIGINT)

    def workers(self) -> list[psutil.Process]:
        """Its Ray Train workers."""
        return self.actors("RayTrainWorker")

    def trials(self) -> list[psutil.Process]:
        """Its Tune trials, each of which controls a group of workers."""
        return self.actors("ImplicitFunc")

    def actors(self, name: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                if name in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def kill_everything(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self.process.wait()
