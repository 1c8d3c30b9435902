"""What the user sees while a study runs: a live display at a terminal, and a whole line every ten seconds elsewhere.

It shows how many Fits are done, failed and to do, what each slot works on, and the time left. All of it comes from the events
that workers report, which `tune_progress.py` passes on. Each Fit's start and end, and what workers warn of, goes into the log.
No Ray in here.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from w2s_ray.cost import duration
from w2s_ray.fit import BUSY
from w2s_ray.scheduling.packs import Pack, Schedule

PLAIN_LINE_EVERY_S = 10.0
MAX_NAMED = 4
"""A plain line says of at most so many slots what they do."""
SHORTEST_BAR, LONGEST_BAR = 8, 30
LINES_AROUND_SLOTS = 4
FIRST_PACK, PACK_START = "starting the first pack (about 10 s)", "starting its workers (about 10 s)"
LONG_WAIT_S = 20.0
"""A wait that is longer than this says how long it has been: a busy machine takes more than was said."""

log = logging.getLogger(__name__)


@contextmanager
def phase(text: str, *, console: Console) -> Iterator[Callable[[str], object]]:
    """Say what is being done: beside a spinner at a terminal, as a line elsewhere. Yields a function that says what is done
    next."""
    if console.is_terminal:
        with moving(console) as live:

            def say(next_text: str) -> None:
                log.info("%s", next_text)
                live.update(Spinner("dots", _Waiting(next_text)))

            say(text)
            yield say
    else:
        console.print(text)
        yield console.print


def moving(console: Console, show: Callable[[], RenderableType] | None = None) -> Live:
    """A display that is drawn again and again. What others print to standard error meanwhile goes where it would go anyway,
    which is the log."""
    return Live(
        console=console,
        refresh_per_second=4,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        get_renderable=show,
    )


class _Waiting:
    """What is being done, and for how long if that gets long."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.began_s = time.monotonic()

    def __rich__(self) -> Text:
        return Text(waiting(self.text, time.monotonic() - self.began_s), no_wrap=True, overflow="ellipsis")


def waiting(text: str, for_s: float) -> str:
    return text if for_s < LONG_WAIT_S else f"{text}, {duration(for_s)} so far"


@dataclass
class Slot:
    """A pack that runs."""

    pack: Pack
    key: str
    """Of the Fit that it works on."""
    since_s: float
    """When it began with this Fit."""
    event: dict[str, Any] = field(default_factory=dict)
    """What was last reported of this Fit. Empty before that."""
    has_started: bool = False
    """Whether its workers have reported at all."""

    @property
    def measured_share(self) -> float:
        """Share of the Fit's steps, or of a reading's rows, that are done; 0 where it is not known."""
        if "share_read" in self.event:
            return float(self.event["share_read"])
        return self.event.get("step", 0) / self.event["num_steps"] if self.event.get("num_steps") else 0.0

    def doing(self, now_s: float) -> str:
        """In words: `step 10/40`."""
        event = self.event
        if "step" in event:
            return f"step {event['step']:,}/{event['num_steps']:,}"
        if "share_read" in event:
            return f"reading features {event['share_read']:.0%}"
        return waiting("loading" if self.has_started else PACK_START, now_s - self.since_s)


class Progress:
    def __init__(
        self, schedule: Schedule, *, console: Console, began_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.schedule = schedule
        self.console = console
        self.began_s = began_s
        self.clock = clock
        self.first_start_s: float | None = None
        """When the first Fit began."""
        self.phase_s: dict[str, float] = defaultdict(float)
        """Phase -> seconds, over all Fits that ended."""
        self.measured_s: dict[str, float] = defaultdict(float)
        """Name of a model -> what its Fits that ended took."""
        self.estimated_s: dict[str, float] = defaultdict(float)
        """The same Fits' estimates."""
        self.timed: dict[str, tuple[str, dict[str, float]]] = {}
        """Key of a Fit that ran from its beginning to its end -> the kind of machine, and seconds by phase."""
        self.slots: dict[str, Slot] = {}
        """Trial -> its pack."""
        self.told_failures = set(schedule.failed)
        self.told_warnings: set[str] = set()
        self.printed_s = -PLAIN_LINE_EVERY_S
        self.live = moving(console, lambda: self)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()
        self._tell_failures()

    # --- what happens ---

    def begin_pack(self, trial: str, pack: Pack) -> None:
        self.slots[trial] = Slot(pack, pack.fits[0].key, self.clock())
        log.info("%s begins: %d Fit(s)", pack.name, len(pack.fits))

    def take(self, trial: str, event: dict[str, Any]) -> None:
        """An event that a worker reported. The schedule knows of it already."""
        slot = self.slots.get(trial)
        self._log_warnings(slot, event)
        kind, key = event.get("event"), event.get("key", "")
        if slot is None or key not in self.schedule.fits:
            return
        if kind in ("start", "step", "features"):
            if self.first_start_s is None:
                self.first_start_s = self.clock()
            if not slot.has_started or slot.key != key or kind == "start":
                self._begin_fit(slot, key)
            slot.has_started = True
            slot.event = event
        elif kind in ("done", "failed"):
            self._end_fit(slot, key, event)
        elif kind == "end":
            self.end_pack(trial)

    def end_pack(self, trial: str, error: str = "") -> None:
        """`error`: how it failed, with a traceback."""
        slot = self.slots.pop(trial, None)
        if slot and error:
            fit = self.schedule.fits[slot.key]
            log.error("%s ended with an error while it worked on %s:\n%s", slot.pack.name, fit.folder, error)

    def look(self) -> None:
        """Say what is new, and print a line if one is due."""
        self._tell_failures()
        if not self.console.is_terminal and self.clock() - self.printed_s >= PLAIN_LINE_EVERY_S:
            self.printed_s = self.clock()
            self.console.print(self.line(), markup=False)

    def _tell_failures(self) -> None:
        for key in [key for key in self.schedule.failed if key not in self.told_failures]:
            self.told_failures.add(key)
            folder, reason = self.schedule.fits[key].folder, self.schedule.failed[key]
            self.console.print(f"[red]failed[/red] {folder}: {escape(reason)}")

    def _begin_fit(self, slot: Slot, key: str) -> None:
        slot.key, slot.since_s, slot.event = key, self.clock(), {}
        log.info("%s starts %s", slot.pack.name, self.schedule.fits[key].folder)

    def _end_fit(self, slot: Slot, key: str, event: dict[str, Any]) -> None:
        fit, seconds = self.schedule.fits[key], event.get("seconds") or {}
        for name, phase_s in seconds.items():
            self.phase_s[name] += phase_s
        if event["event"] == "failed":
            log.error("failed %s: %s\n%s", fit.folder, event.get("reason", ""), event.get("detail", ""))
        elif seconds:
            if "machine" in event and not event.get("is_resumed"):
                self.timed[key] = event["machine"], seconds
            self.measured_s[fit.model.name] += sum(seconds.values())
            self.estimated_s[fit.model.name] += self.schedule.seconds[key]
            phases = ", ".join(f"{name} {phase_s:.1f} s" for name, phase_s in seconds.items())
            log.info("done %s in %.1f s: %s", fit.folder, sum(seconds.values()), phases)
        keys = [each.key for each in slot.pack.fits]
        left = [each for each in keys[keys.index(key) + 1 :] if each in self.schedule.running] if key in keys else []
        if left:  # a pack works in order, and reports a Fit's start only where that costs nothing
            self._begin_fit(slot, left[0])

    def _log_warnings(self, slot: Slot | None, event: dict[str, Any]) -> None:
        for text in event.get("warnings", ()):
            if text not in self.told_warnings:
                self.told_warnings.add(text)
                log.warning("%s: %s", slot.pack.name if slot else "a worker", text)

    # --- numbers ---

    @property
    def wall_s(self) -> float:
        return self.clock() - self.began_s

    @property
    def busy_share(self) -> float:
        """Share of the slots' time since the run began that Fits spent in the phases `BUSY`."""
        busy_s = sum(self.phase_s.get(phase, 0.0) for phase in BUSY)
        return busy_s / max(self.wall_s * self.schedule.num_slots, 1e-9)

    @property
    def time_left_s(self) -> float | None:
        """From the estimates, corrected by what the Fits so far took; None before anything is measured.

        The rest is shared among the slots, which are busy for as much of their time as they were so far. It takes no less than
        the longest chain of Fits that wait for one another. What this costs depends on slots and models, not on Fits.
        """
        now_s, schedule = self.clock(), self.schedule
        measured_s, estimated_s = sum(self.measured_s.values()), sum(self.estimated_s.values())
        in_hand_s = {}
        for slot in self.slots.values():
            if share := slot.measured_share:
                whole_s = (now_s - slot.since_s) / share
                in_hand_s[slot.key] = whole_s * (1 - share)
                measured_s, estimated_s = measured_s + whole_s, estimated_s + schedule.seconds[slot.key]
        if not measured_s or not estimated_s or self.first_start_s is None:
            return None
        overall = measured_s / estimated_s

        def slower(model: str) -> float:
            """What this model's Fits took, over their estimates."""
            known_s = self.estimated_s.get(model)
            return self.measured_s[model] / known_s if known_s else overall

        work_s = sum(left_s * slower(model) for model, left_s in schedule.left_s_of.items())
        for key, left_s in in_hand_s.items():
            if key in schedule.running or key in schedule.todo:
                work_s += left_s - schedule.seconds[key] * slower(schedule.fits[key].model.name)
        spent_s = sum(self.measured_s.values()) + sum(now_s - slot.since_s for slot in self.slots.values())
        num_slots = max(1, min(schedule.num_slots, schedule.num_left))
        offered_s = max(now_s - self.first_start_s, 1e-9) * num_slots
        busy = min(max(spent_s / offered_s, 0.2), 1.0)
        return max(work_s / num_slots / busy, schedule.longest_path_s * overall) if schedule.num_left else 0.0

    def fields(self) -> list[str]:
        """What is said of the run as a whole, the most important first."""
        schedule, left_s = self.schedule, self.time_left_s
        num_todo = schedule.num_left - len(self.slots)
        fields = [
            f"{len(schedule.done):,}/{len(schedule.fits):,} Fits done",
            f"{len(schedule.failed):,} failed" if schedule.failed else "",
            f"{duration(left_s)} left" if left_s is not None else "",
            f"{len(schedule.blocked):,} blocked" if schedule.blocked else "",
            f"{duration(self.wall_s)} so far",
            f"{len(self.slots):,} running" if self.slots else "",
            f"{max(num_todo, 0):,} to do",
        ]
        return [field for field in fields if field]

    # --- what is shown ---

    def line(self) -> str:
        """For a pipe: everything, with whole names."""
        slots = list(self.slots.values())
        now = [" ".join(self._row(slot)) for slot in slots[:MAX_NAMED]]
        if len(slots) > MAX_NAMED:
            now.append(f"and {len(slots) - MAX_NAMED:,} more")
        return ", ".join(self.fields()) + (f"; now {', '.join(now)}" if now else "")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For a terminal: a bar and the fields that there is room for, and a row for each slot."""
        width, schedule = options.max_width, self.schedule
        text = "  ".join(fitting(self.fields(), width=width - SHORTEST_BAR - 1))
        row = Table.grid(padding=(0, 1))
        room = min(width - len(text) - 1, LONGEST_BAR)
        if room >= SHORTEST_BAR:
            num_ended = len(schedule.done) + len(schedule.failed) + len(schedule.blocked)
            row.add_row(ProgressBar(total=len(schedule.fits), completed=num_ended, width=room), Text(text))
        else:
            row.add_row(Text(text, no_wrap=True))
        yield row
        slots = list(self.slots.values())
        num_shown = max(1, console.height - LINES_AROUND_SLOTS)
        yield slot_table([self._row(slot) for slot in slots[:num_shown]], width=width)
        if self.first_start_s is None and not slots and not schedule.finished:
            yield Text(waiting(FIRST_PACK, self.clock() - self.began_s))
        if len(slots) > num_shown:
            yield Text(f"and {len(slots) - num_shown:,} more")

    def _row(self, slot: Slot) -> list[str]:
        """What a slot does, the most important first: its Fit's folder without the hash at its end, step, loss, speed."""
        row, event = [self.schedule.fits[slot.key].folder[:-13], slot.doing(self.clock())], slot.event
        if "loss" in event:
            row.append(f"loss {event['loss']:.3f}")
        if "rows_per_s" in event:
            row.append(f"{event['rows_per_s']:,.0f} rows/s")
        return row


def fitting(fields: list[str], *, width: int) -> list[str]:
    """The first of the fields that fit side by side; at least one."""
    chosen, used = fields[:1], len(fields[0])
    for field_ in fields[1:]:
        used += 2 + len(field_)
        if used > width:
            break
        chosen.append(field_)
    return chosen


def slot_table(rows: list[list[str]], *, width: int) -> Table:
    """A row for each slot: as many columns as there is room for, so that names stay whole as long as that is possible."""
    num_columns = max((len(row) for row in rows), default=1)
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(num_columns)]
    while num_columns > 2 and sum(widths[:num_columns]) + 2 * (num_columns - 1) > width:
        num_columns -= 1
    table = Table.grid(padding=(0, 2))
    for i in range(num_columns):
        table.add_column(no_wrap=True, overflow="ellipsis", min_width=None if i == 0 else widths[i])
    for row in rows:
        table.add_row(*(Text(cell) for cell in row[:num_columns]))
    return table
