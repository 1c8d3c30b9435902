"""Groups of workers take pack after pack: who gets the next one, and when a group has to end. Without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from w2s_ray.fit import Execution, Fit
from w2s_ray.scheduling.packs import Schedule
from w2s_ray.scheduling.room import Node
from w2s_ray.scheduling.searcher import LONGEST_WAIT_S, DagSearcher
from w2s_ray.store import Store, open_store

from desk import Desk
from fits import fit, small_grid

WIDE = Execution(workers=2)


class Told:
    """A driver with two CPUs, and what its groups were told."""

    def __init__(
        self,
        store: Store,
        fits: list[Fit],
        *,
        shape: Callable[[Fit], Execution] = lambda fit: Execution(),
        max_parallel: int | None = None,
    ) -> None:
        self.now_s = 0.0
        self.desk = Desk()
        self.num_trials = 0
        schedule = Schedule(
            fits={each.key: each for each in fits},
            executions={each.key: shape(each) for each in fits},
            seconds={each.key: 1.0 for each in fits},
            num_slots=1,
            fits_per_pack=1,
            todo={each.key for each in fits},
        )
        self.searcher = DagSearcher(
            schedule,
            store=store,
            nodes=lambda: [Node("here", 2.0, 0.0)],
            desk=self.desk,
            max_parallel=max_parallel,
            clock=lambda: self.now_s,
        )

    def suggest(self) -> str | None:
        """The group that is to be started, or FINISHED."""
        self.num_trials += 1
        suggestion = self.searcher.suggest(f"group {self.num_trials}")
        return suggestion["group"] if isinstance(suggestion, dict) else suggestion

    def end(self, group: str, **event: object) -> None:
        """The group has trained its pack, and says so."""
        order = self.desk.told[group]
        assert order is not None
        for each in order.pack.fits:
            self.searcher.on_trial_result(group, {"event": "done", "key": each.key})
        self.searcher.on_trial_result(group, {"event": "end", "key": order.pack.fits[-1].key, **event})

    def pack(self, group: str) -> str:
        order = self.desk.told[group]
        assert order is not None
        return order.pack.name

    def fits(self, group: str) -> tuple[Fit, ...]:
        order = self.desk.told[group]
        assert order is not None
        return order.pack.fits


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def test_a_group_that_ends_a_pack_gets_the_next_one(store: Store) -> None:
    told = Told(store, [fit(seed=seed) for seed in range(4)])
    assert told.suggest() == "group 1" and told.suggest() == "group 2" and told.suggest() is None
    assert told.pack("group 1") == "pack-00001" and told.pack("group 2") == "pack-00002"
    told.end("group 1")
    assert told.suggest() is None, "no other group is started"
    assert told.pack("group 1") == "pack-00003" and told.pack("group 2") == "pack-00002"
    told.end("group 2")
    assert told.suggest() is None and told.pack("group 2") == "pack-00004"
    told.end("group 1")
    assert told.suggest() is None, "nothing is left for it, and another group still works"
    told.end("group 2")
    assert told.suggest() == Searcher.FINISHED
    assert told.desk.told == {"group 1": None, "group 2": None}, "all are sent away"


def test_a_group_that_waits_too_long_is_sent_away(store: Store) -> None:
    """One slot trains a supervisor, and the other waits for it."""
    supervisor, *others = small_grid(1)
    students = [each for each in others if supervisor in each.labels]
    told = Told(store, [supervisor, fit(seed=1), *students])
    one, other = told.suggest(), told.suggest()
    assert one and other and told.suggest() is None
    assert told.fits(one) == (supervisor,), "it has the longest path behind it"
    told.end(other)
    told.now_s += LONGEST_WAIT_S - 1
    assert told.suggest() is None and told.desk.told[other] is not None, "it holds its CPU for a while"
    told.now_s += 1
    assert told.suggest() is None and told.desk.told[other] is None
    assert told.searcher.worker_s == pytest.approx(2 * LONGEST_WAIT_S), "a budget counts what it waited"
    told.searcher.on_trial_complete(other)
    told.end(one)
    assert told.suggest() == f"group {told.num_trials}", "of two students, the second needs a new group"
    assert told.fits(one) == (students[0],)


def test_groups_make_room_for_a_pack_of_another_shape(store: Store) -> None:
    grid = small_grid(1)
    supervisor = grid[0]
    students = [each for each in grid if supervisor in each.labels]
    told = Told(store, [supervisor, *students], shape=lambda each: WIDE if each.labels else Execution())
    narrow = told.suggest()
    assert narrow and told.suggest() is None
    told.end(narrow)
    assert told.desk.told[narrow] is not None, "it waits, since nobody needs its place"
    wide = told.suggest()
    assert wide and wide != narrow and told.desk.told[narrow] is None
    assert told.suggest() is None, "the wide pack has both CPUs"


def test_there_are_no_more_groups_than_slots(store: Store) -> None:
    """The node has room for both, but `--max-parallel 1` allows one."""
    grid = small_grid(1)
    supervisor = grid[0]
    students = [each for each in grid if supervisor in each.labels]
    told = Told(
        store,
        [supervisor, *students],
        shape=lambda each: Execution(zero_stage=2) if each.labels else Execution(),
        max_parallel=1,
    )
    first = told.suggest()
    assert first and told.suggest() is None
    told.end(first)
    second = told.suggest()
    assert second and second != first and told.desk.told[first] is None


def test_a_group_that_was_started_again_ends_with_its_pack(store: Store) -> None:
    """Ray Train starts the workers of a group again once. The next pack deserves a group with all its tries."""
    told = Told(store, [fit(seed=seed) for seed in range(3)])
    first, second = told.suggest(), told.suggest()
    assert first and second
    told.end(first, was_restarted=True)
    assert told.desk.told[first] is None
    assert told.suggest() == "group 3" and told.pack("group 3") == "pack-00003"


def test_a_group_that_dies_while_it_waits_is_forgotten(store: Store) -> None:
    told = Told(store, [fit(seed=seed) for seed in range(4)])
    first, second = told.suggest(), told.suggest()
    assert first and second
    told.end(first)
    told.searcher.on_trial_complete(first, error=True)
    assert not told.searcher.schedule.crashes and first not in told.desk.told
    assert told.suggest() == "group 3" and told.pack("group 3") == "pack-00003"
