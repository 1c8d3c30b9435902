"""What the user sees while a study runs: a live table on a terminal, plain lines elsewhere.

Counts of Fits, what runs now with loss and speed, time left, and `busy`: the share of the slots' time that went into
extracting features, training and evaluation. Everything comes from the events that the workers report.
"""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from w2s_ray.fit import BUSY
from w2s_ray.plan import duration
from w2s_ray.scheduling.packs import Walk

PLAIN_LINE_EVERY_S = 10.0


class Progress(Callback):
    """A Tune callback that draws. `busy_s` sums BUSY over all workers' packs."""

    def __init__(self, walk: Walk, *, console: Console) -> None:
        self.walk = walk
        self.console = console
        self.began_s = time.monotonic()
        self.first_start_s: float | None = None
        self.busy_s = 0.0
        self.phase_s: dict[str, float] = {}
        self.done_estimate_s = 0.0
        self.now: dict[str, dict[str, Any]] = {}
        self.num_before = len(walk.done)
        self.printed_s = -PLAIN_LINE_EVERY_S
        self.live = Live(console=console, refresh_per_second=2, transient=True, get_renderable=self.table)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that never happens."""
        return {}

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        event, key = result.get("event"), result.get("key", "")
        if event in ("start", "step"):
            self.first_start_s = self.first_start_s or time.monotonic()
            self.now[trial.trial_id] = result
        elif event in ("done", "failed"):
            self.now.pop(trial.trial_id, None)
            for phase, seconds in (result.get("seconds") or {}).items():
                self.phase_s[phase] = self.phase_s.get(phase, 0.0) + seconds
            self.busy_s = sum(self.phase_s.get(phase, 0.0) for phase in BUSY)
            self.done_estimate_s += self.walk.seconds.get(key, 0.0)
            if event == "failed":
                self.console.print(f"[red]failed[/red] {self.walk.fits[key].folder}: {result.get('reason', '')}")
        self._plain(force=False)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.now.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.now.pop(trial.trial_id, None)

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.began_s

    @property
    def busy_share(self) -> float:
        """Training and evaluation, as a share of all slots' time since the run began."""
        return self.busy_s / max(self.wall_s * self.walk.num_slots, 1e-9)

    def counts(self) -> str:
        walk = self.walk
        blocked = f", {len(walk.blocked)} blocked" if walk.blocked else ""
        running = len(self.now)
        todo = len(walk.todo) + len(walk.running) - running
        return (
            f"{len(walk.done)}/{len(walk.fits)} Fits done, {running} running, "
            f"{len(walk.failed)} failed{blocked}, {max(todo, 0)} to do"
        )

    def left(self) -> str:
        """Time left, from how the estimates have compared with the clock so far."""
        if not self.done_estimate_s or self.first_start_s is None:
            return ""
        rest_s = sum(self.walk.seconds[key] for key in self.walk.todo | self.walk.running)
        pace = (time.monotonic() - self.first_start_s) / self.done_estimate_s
        return f", {duration(rest_s * pace)} left"

    def table(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for result in self.now.values():
            fit = self.walk.fits[result["key"]]
            table.add_row(
                Text(fit.folder[:-13]),
                Text(f"step {result.get('step', 0)}/{result.get('num_steps', '?')}"),
                Text(f"loss {result['loss']:.3f}" if "loss" in result else "starting"),
                Text(f"{result['rows_per_s']:.0f} rows/s" if "rows_per_s" in result else ""),
            )
        walk = self.walk
        bar = ProgressBar(
            total=len(walk.fits), completed=len(walk.done) + len(walk.failed) + len(walk.blocked), width=40
        )
        return Group(bar, Text(f"{self.counts()}{self.left()} ({duration(self.wall_s)} so far)"), table)

    def _plain(self, *, force: bool) -> None:
        if self.console.is_terminal or (not force and time.monotonic() - self.printed_s < PLAIN_LINE_EVERY_S):
            return
        self.printed_s = time.monotonic()
        now = ", ".join(
            f"{self.walk.fits[r['key']].folder[:-13]} loss {r['loss']:.3f} {r.get('rows_per_s', 0):.0f} rows/s"
            for r in self.now.values()
            if "loss" in r
        )
        self.console.print(f"{duration(self.wall_s)}  {self.counts()}{self.left()}{'; now ' + now if now else ''}")
