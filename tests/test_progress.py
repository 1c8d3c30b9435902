"""What a run shows while it works: at a terminal of any width, in a pipe, and in its log. Fed with events, without Ray."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from w2s_ray.errors import InputError
from w2s_ray.fit import Fit
from w2s_ray.run_log import LOG, RunLog, run_log
from w2s_ray.scheduling.packs import Pack, Schedule
from w2s_ray.scheduling.progress import FIRST_PACK, PACK_START, Progress, phase
from w2s_ray.scheduling.room import Node, Room

from fits import schedule_of, small_grid


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Told:
    """A run of ten Fits in two slots, told by events."""

    def __init__(
        self, *, width: int = 80, is_terminal: bool = False, longer: dict[str, float] | None = None, num_seeds: int = 2
    ) -> None:
        """`longer`: key -> seconds of the Fits that do not take 10."""
        self.said = StringIO()
        self.clock = Clock()
        fits = small_grid(num_seeds)
        self.schedule: Schedule = schedule_of(fits, seconds=10.0, fits_per_pack=3, longer=longer)
        # TERM is set, since a terminal without it shows nothing that moves
        console = Console(
            file=self.said,
            width=width,
            height=12,
            soft_wrap=True,
            highlight=False,
            force_terminal=is_terminal,
            _environ={"TERM": "xterm", "COLUMNS": str(width), "LINES": "12"},
        )
        self.progress = Progress(self.schedule, console=console, began_s=0.0, clock=self.clock)

    def begin(self, trial: str) -> Pack:
        pack = self.schedule.next_pack(Room([Node("here", 2.0, 0.0)]))
        assert pack is not None
        self.progress.begin_pack(trial, pack)
        return pack

    def take(self, trial: str, fit: Fit, event: str, **more: object) -> None:
        if event == "done":
            self.schedule.mark_done(fit.key)
        if event == "failed":
            self.schedule.mark_failed(fit.key, str(more["reason"]))
        self.progress.take(trial, {"event": event, "key": fit.key, **more})

    @property
    def shown(self) -> list[str]:
        """The display at a terminal, as lines of plain text."""
        console = self.progress.console
        with console.capture() as capture:
            console.print(self.progress, soft_wrap=False)
        return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in capture.get().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RunLog]:
    with run_log(tmp_path / LOG) as opened:
        opened.begin()
        yield opened


STEP = {"step": 10, "num_steps": 40, "loss": 0.5, "rows_per_s": 120.0}


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_the_display_fits_the_terminal_and_keeps_what_matters(width: int) -> None:
    told = Told(width=width, is_terminal=True)
    pack = told.begin("a")
    told.take("a", pack.fits[0], "start")
    told.clock.now_s = 20.0
    told.take("a", pack.fits[0], "step", **STEP)
    bar, slot = told.shown
    assert len(bar) <= width and len(slot) <= width
    assert "0/10 Fits done" in bar if width > 20 else "0/10" in bar
    assert ("━" in bar) == (width > 20)
    if width >= 80:
        name = pack.fits[0].folder[:-13]
        assert slot.split("  ")[0] == name and "step 10/40" in slot
        assert "left" in bar and "20 s so far" in bar
    assert ("rows/s" in slot) == (width >= 80)


def test_a_display_of_many_slots_fits_the_height() -> None:
    told = Told(is_terminal=True)
    told.schedule.fits_per_pack = 1
    packs = [told.begin(str(number)) for number in range(6)]
    told.progress.slots |= {f"more {i}": told.progress.slots["0"] for i in range(20)}
    assert len(packs) == 6 and len(told.shown) <= 12 and told.shown[-1] == "and 18 more"


def test_a_slot_says_what_it_does() -> None:
    told = Told(is_terminal=True)
    pack = told.begin("a")
    assert PACK_START in told.shown[1]
    told.take("a", pack.fits[0], "start")
    assert told.shown[1].endswith("loading")
    told.take("a", pack.fits[0], "features", share_read=0.4)
    assert told.shown[1].endswith("reading features 40%")
    told.take("a", pack.fits[0], "step", **STEP)
    assert "step 10/40  loss 0.500  120 rows/s" in told.shown[1]
    told.take("a", pack.fits[0], "done", seconds={"train": 5.0})
    assert pack.fits[1].folder[:-13] in told.shown[1], "a pack works in order"
    told.progress.end_pack("a")
    assert len(told.shown) == 1, "between packs"


def test_a_long_wait_says_how_long_it_has_been() -> None:
    told = Told(is_terminal=True)
    assert told.shown[1] == FIRST_PACK
    told.clock.now_s = 60.0
    assert told.shown[1] == f"{FIRST_PACK}, 1 min 00 s so far"
    told.begin("a")
    assert told.shown[1].endswith(PACK_START)
    told.clock.now_s = 90.0
    assert told.shown[1].endswith(f"{PACK_START}, 30 s so far")


def test_the_time_left_comes_from_what_fits_took() -> None:
    told = Told()
    pack = told.begin("a")
    told.take("a", pack.fits[0], "start")
    assert told.progress.time_left_s is None, "nothing is measured yet"
    told.clock.now_s = 30.0
    told.take("a", pack.fits[0], "step", **STEP | {"step": 20})
    half_way = told.progress.time_left_s
    assert half_way is not None and half_way > 9 * 60 / 2, (
        "a Fit takes 60 s rather than 10, and nine are left for two slots"
    )
    told.clock.now_s = 60.0
    told.take("a", pack.fits[0], "done", seconds={"load": 10.0, "train": 50.0})
    left_s = told.progress.time_left_s
    assert left_s is not None and 9 * 60 / 2 < left_s < 3 * 9 * 60
    for fit in told.schedule.fits.values():
        if fit.key != pack.fits[0].key:
            told.schedule.mark_done(fit.key)
    assert told.progress.time_left_s == 0


def time_left_by_walking_s(told: Told) -> float | None:
    """The time left from every Fit that is left, one by one."""
    progress, schedule, now_s = told.progress, told.schedule, told.clock.now_s
    measured_s, estimated_s = dict(progress.measured_s), dict(progress.estimated_s)
    shares = {slot.key: (slot, slot.measured_share) for slot in progress.slots.values() if slot.measured_share}
    wholes_s = {key: (now_s - slot.since_s) / share for key, (slot, share) in shares.items()}
    known_s = sum(estimated_s.values()) + sum(schedule.seconds[key] for key in wholes_s)
    if not known_s or progress.first_start_s is None:
        return None
    overall = (sum(measured_s.values()) + sum(wholes_s.values())) / known_s
    slower = {model: measured_s[model] / estimated_s[model] for model in estimated_s}

    def path_s(key: str) -> float:
        children = [fit for fit in schedule.fits.values() if any(parent.key == key for parent in fit.parents)]
        return schedule.seconds[key] + max((path_s(child.key) for child in children), default=0.0)

    left = schedule.todo | schedule.running
    work_s = sum(
        wholes_s[key] * (1 - shares[key][1])
        if key in shares
        else schedule.seconds[key] * slower.get(schedule.fits[key].model.name, overall)
        for key in left
    )
    num_slots = max(1, min(schedule.num_slots, len(left)))
    spent_s = sum(measured_s.values()) + sum(now_s - slot.since_s for slot in progress.slots.values())
    busy = min(max(spent_s / max(now_s - progress.first_start_s, 1e-9) / num_slots, 0.2), 1.0)
    return max(work_s / num_slots / busy, max((overall * path_s(key) for key in schedule.todo), default=0.0))


def test_the_time_left_is_that_of_every_fit_left_without_walking_over_them() -> None:
    """Packs begin, work, fail, crash and end: the counters keep up."""
    draw, seen = random.Random(0), set()
    told = Told(num_seeds=6, longer={fit.key: draw.uniform(1, 20) for fit in small_grid(6)})
    for turn in range(40):
        trial = f"t{turn}"
        pack = told.schedule.next_pack(Room([Node("here", 2.0, 0.0)]))
        if pack is None:
            break
        told.progress.begin_pack(trial, pack)
        for number, fit in enumerate(pack.fits):
            if fit.key in told.schedule.blocked:
                continue
            told.take(trial, fit, "start")
            told.clock.now_s += draw.uniform(1, 30)
            told.take(trial, fit, "step", **STEP | {"step": draw.randint(1, 39)})
            if turn % 5 == 2 and number == 1:
                break
            if turn % 7 == 3:
                told.take(trial, fit, "failed", reason="the loss is nan")
            else:
                told.take(trial, fit, "done", seconds={"train": draw.uniform(1, 40)})
            left_s, expected_s = told.progress.time_left_s, time_left_by_walking_s(told)
            assert left_s == pytest.approx(expected_s, abs=1e-6), (turn, number)
            seen.add(left_s)
        told.schedule.take_back(pack, crashed=turn % 2 == 0)
        told.progress.end_pack(trial)
        assert told.progress.time_left_s == pytest.approx(time_left_by_walking_s(told), abs=1e-6)
    assert told.schedule.finished and told.schedule.blocked and told.progress.time_left_s == 0
    assert len(seen) > 15


def test_a_pipe_gets_a_whole_line_every_ten_seconds_at_most() -> None:
    told = Told(width=20)
    pack = told.begin("a")
    for second in range(31):
        told.clock.now_s = float(second)
        told.take("a", pack.fits[0], "step", **STEP)
        told.progress.look()
    lines = told.said.getvalue().splitlines()
    assert len(lines) == 4, lines
    assert all(pack.fits[0].folder[:-13] in line and "0/10 Fits done" in line for line in lines)
    assert "\x1b" not in told.said.getvalue()


def test_a_failure_is_said_once_with_its_reason_and_logged_with_its_traceback(log: RunLog) -> None:
    told = Told()
    pack = told.begin("a")
    told.take("a", pack.fits[0], "start", warnings=["WARNING torch: slow", "WARNING torch: slow"])
    told.take("a", pack.fits[0], "failed", reason="the loss is [nan]", detail="Traceback ...\nTrainingFailed: nan")
    told.progress.look()
    told.progress.look()
    assert told.said.getvalue().count("the loss is [nan]") == 1
    written = log.path.read_text()
    assert f"pack-00001 starts {pack.fits[0].folder}" in written
    assert f"failed {pack.fits[0].folder}: the loss is [nan]\nTraceback ...\nTrainingFailed: nan" in written
    assert written.count("WARNING torch: slow") == 1


def test_the_log_has_starts_ends_and_dead_workers(log: RunLog) -> None:
    told = Told()
    pack = told.begin("a")
    told.take("a", pack.fits[0], "start")
    told.take("a", pack.fits[0], "done", seconds={"load": 1.0, "train": 2.0})
    told.progress.end_pack("a", error="Traceback ...\nActorDiedError")
    written = log.path.read_text()
    assert f"done {pack.fits[0].folder} in 3.0 s: load 1.0 s, train 2.0 s" in written
    assert f"pack-00001 starts {pack.fits[1].folder}" in written
    assert f"ended with an error while it worked on {pack.fits[1].folder}:\nTraceback ...\nActorDiedError" in written


def test_a_phase_is_a_line_in_a_pipe() -> None:
    said = StringIO()
    with phase("starting Ray (about 20 s)", console=Console(file=said, soft_wrap=True)) as say:
        say("drawing 12 figures")
    assert said.getvalue().splitlines() == ["starting Ray (about 20 s)", "drawing 12 figures"]


# --- run.log ------------------------------------------------------------------------------------------------------


def test_a_refused_run_writes_no_log(tmp_path: Path) -> None:
    with pytest.raises(InputError), run_log(tmp_path / "out" / LOG):
        logging.getLogger("w2s_ray").info("3 cells")
        raise InputError("compute: no room")
    assert not (tmp_path / "out").exists()


def test_a_log_keeps_earlier_runs_and_how_a_run_ended(tmp_path: Path) -> None:
    for number in (1, 2):
        with run_log(tmp_path / LOG):
            logging.getLogger("w2s_ray").info("run %d", number)
    with pytest.raises(ZeroDivisionError), run_log(tmp_path / LOG) as log:
        logging.getLogger("ray").addHandler(logging.StreamHandler())  # as Ray's import does
        log.begin()
        assert logging.getLogger("ray").handlers == [log]
        logging.getLogger("ray.train").warning("a worker is gone")
        raise ZeroDivisionError
    written = (tmp_path / LOG).read_text()
    assert re.findall(r"run \d", written) == ["run 1", "run 2"]
    assert (
        "WARNING ray.train: a worker is gone" in written and "Traceback" in written and "ZeroDivisionError" in written
    )


def test_what_the_command_line_prints_is_in_the_log_as_plain_text(tmp_path: Path) -> None:
    from w2s_ray.cli.console import out

    with run_log(tmp_path / LOG) as log:
        log.setFormatter(logging.Formatter("as Ray does: %(message)s"))
        out.print("[bold]tiny[/bold]: 6 cells " + "of a long line " * 20)
    out.print("not any more")
    [line] = (tmp_path / LOG).read_text().splitlines()
    assert "tiny: 6 cells of a long line of" in line and len(line) > 300
