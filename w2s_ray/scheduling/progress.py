"""What the user sees while a study runs: a live table on a terminal, and a plain line every ten seconds elsewhere.

It shows how many Fits are done, running, failed and to do, the loss and speed of those that run, and the time left. All of it
comes from the events that workers report.
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

from w2s_ray.cost import duration
from w2s_ray.fit import BUSY
from w2s_ray.scheduling.packs import Schedule

PLAIN_LINE_EVERY_S = 10.0


class Progress(Callback):
    """A Tune callback that prints progress and adds up the time that Fits spend in each phase."""

    def __init__(self, schedule: Schedule, *, console: Console, began_s: float) -> None:
        self.schedule = schedule
        self.console = console
        self.began_s = began_s
        self.first_start_s: float | None = None
        """When the first Fit began."""
        self.phase_s: dict[str, float] = {}
        """Phase -> seconds, over all Fits that ended."""
        self.ended_estimate_s = 0.0
        """What the Fits that ended were estimated to take."""
        self.latest: dict[str, dict[str, Any]] = {}
        """Trial -> the latest event of the Fit that it works on."""
        self.printed_s = -PLAIN_LINE_EVERY_S
        self.live = Live(console=console, refresh_per_second=2, transient=True, get_renderable=self.table)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore, which is never used here."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        event, key = result.get("event"), result.get("key", "")
        if event in ("start", "step"):
            self.first_start_s = self.first_start_s or time.monotonic()
            self.latest[trial.trial_id] = result
        elif event in ("done", "failed"):
            self.latest.pop(trial.trial_id, None)
            for phase, seconds in (result.get("seconds") or {}).items():
                self.phase_s[phase] = self.phase_s.get(phase, 0.0) + seconds
            self.ended_estimate_s += self.schedule.seconds.get(key, 0.0)
            if event == "failed":
                self.console.print(f"[red]failed[/red] {self.schedule.fits[key].folder}: {result.get('reason', '')}")
        self._print_plain_line()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.latest.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.latest.pop(trial.trial_id, None)

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.began_s

    @property
    def busy_share(self) -> float:
        """Share of the slots' time since the run began that Fits spent in the phases `BUSY`."""
        busy_s = sum(self.phase_s.get(phase, 0.0) for phase in BUSY)
        return busy_s / max(self.wall_s * self.schedule.num_slots, 1e-9)

    def counts(self) -> str:
        schedule, running = self.schedule, len(self.latest)
        blocked = f", {len(schedule.blocked)} blocked" if schedule.blocked else ""
        todo = len(schedule.todo) + len(schedule.running) - running
        return (
            f"{len(schedule.done)}/{len(schedule.fits)} Fits done, {running} running, "
            f"{len(schedule.failed)} failed{blocked}, {max(todo, 0)} to do"
        )

    def time_left(self) -> str:
        """`, 3 min 10 s left`: the estimates, corrected by how the Fits that ended compared with theirs."""
        if not self.ended_estimate_s or self.first_start_s is None:
            return ""
        left_s = self.schedule.left_s
        pace = (time.monotonic() - self.first_start_s) / self.ended_estimate_s
        return f", {duration(left_s * pace)} left"

    def table(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for event in self.latest.values():
            table.add_row(
                Text(self._name(event)),
                Text(f"step {event.get('step', 0)}/{event.get('num_steps', '?')}"),
                Text(f"loss {event['loss']:.3f}" if "loss" in event else "starting"),
                Text(f"{event['rows_per_s']:.0f} rows/s" if "rows_per_s" in event else ""),
            )
        num_ended = len(self.schedule.done) + len(self.schedule.failed) + len(self.schedule.blocked)
        bar = ProgressBar(total=len(self.schedule.fits), completed=num_ended, width=40)
        return Group(bar, Text(f"{self.counts()}{self.time_left()} ({duration(self.wall_s)} so far)"), table)

    def _print_plain_line(self) -> None:
        if self.console.is_terminal or time.monotonic() - self.printed_s < PLAIN_LINE_EVERY_S:
            return
        self.printed_s = time.monotonic()
        now = ", ".join(
            f"{self._name(event)} loss {event['loss']:.3f} {event.get('rows_per_s', 0):.0f} rows/s"
            for event in self.latest.values()
            if "loss" in event
        )
        line = f"{duration(self.wall_s)}  {self.counts()}{self.time_left()}"
        self.console.print(f"{line}; now {now}" if now else line)

    def _name(self, event: dict[str, Any]) -> str:
        """A Fit's folder without the hash at its end."""
        return self.schedule.fits[event["key"]].folder[:-13]
