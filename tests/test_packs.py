"""The schedule over the DAG, without Ray: order, packs, failures, crashes."""

from __future__ import annotations

from collections.abc import Callable

from w2s_ray.fit import Execution, Fit
from w2s_ray.scheduling.packs import MAX_CRASHES, Pack, Schedule
from w2s_ray.scheduling.room import Node, Room

from fits import fit


def small_grid(num_seeds: int = 2) -> list[Fit]:
    """Supervisor s, ceilings s and m, students s->s and s->m, for each seed."""
    found = []
    for seed in range(num_seeds):
        supervisor = fit(size="s", half="A", seed=seed)
        found += [supervisor, fit(size="s", seed=seed), fit(size="m", seed=seed)]
        found += [fit(size=size, labels=supervisor, seed=seed) for size in ("s", "m")]
    return found


def schedule_of(
    fits: list[Fit],
    *,
    seconds: float = 10.0,
    num_slots: int = 2,
    shape: Callable[[Fit], Execution] = lambda fit: Execution(),
    **more: object,
) -> Schedule:
    return Schedule(
        fits={f.key: f for f in fits},
        executions={f.key: shape(f) for f in fits},
        seconds={f.key: seconds for f in fits},
        num_slots=num_slots,
        todo={f.key for f in fits},
        **more,  # type: ignore[arg-type]
    )


def here(num_cpus: float = 1) -> Room:
    return Room([Node("here", num_cpus, 0.0)])


def finish(schedule: Schedule, pack: Pack) -> None:
    for each in pack.fits:
        schedule.mark_done(each.key)
    schedule.take_back(pack, crashed=False)


def test_each_fit_once_and_after_its_supervisor() -> None:
    schedule = schedule_of(small_grid(5), fits_per_pack=3)
    seen: list[str] = []
    while not schedule.finished:
        pack = schedule.next_pack(here())
        assert pack is not None
        for each in pack.fits:
            assert each.key not in seen
            assert all(parent.key in seen for parent in each.parents)
            seen.append(each.key)
        finish(schedule, pack)
    assert len(seen) == 25


def test_packs_get_shorter_towards_the_end_but_not_too_short() -> None:
    schedule = schedule_of(small_grid(8), num_slots=2)
    packs = []
    while pack := schedule.next_pack(here()):
        packs.append(pack)
        finish(schedule, pack)
    assert [len(pack.fits) for pack in packs] == [10, 8, 6, 5, 5, 5, 1]
    seeds = [each.seed for each in packs[0].fits]
    assert seeds.count(seeds[0]) == 5, "a pack keeps a seed together"


def test_a_student_waits_for_a_supervisor_in_another_pack() -> None:
    fits = small_grid(1)
    schedule = schedule_of(fits, fits_per_pack=1)
    first = schedule.next_pack(here())
    assert first and first.fits[0] is fits[0], "the supervisor has the longest path behind it"
    others = [schedule.next_pack(here()) for _ in range(3)]
    assert [pack.fits[0].role for pack in others if pack] == ["ceiling", "ceiling"]
    finish(schedule, first)
    student = schedule.next_pack(here())
    assert student and student.fits[0].labels == (fits[0],)


def test_nothing_is_handed_out_beyond_the_free_resources() -> None:
    fits = small_grid(1)
    schedule = schedule_of(fits, shape=lambda fit: Execution(workers=2, cpus_per_worker=2))
    assert schedule.next_pack(here(3)) is None
    pack = schedule.next_pack(here(4))
    assert pack and pack.num_cpus == 4


def test_a_pack_holds_one_shape_only() -> None:
    fits = small_grid(1)
    schedule = schedule_of(fits, shape=lambda fit: Execution(zero_stage=3 if fit.model.size == "m" else 1))
    while pack := schedule.next_pack(here()):
        assert {schedule.executions[each.key] for each in pack.fits} == {pack.execution}
        finish(schedule, pack)
    assert schedule.finished


def test_a_failure_blocks_descendants_only() -> None:
    fits = small_grid(2)
    schedule = schedule_of(fits)
    schedule.mark_failed(fits[0].key, "loss is NaN")
    assert set(schedule.blocked) == {fits[3].key, fits[4].key}
    while pack := schedule.next_pack(here()):
        finish(schedule, pack)
    assert schedule.finished and len(schedule.done) == 7


def test_a_fit_that_kills_its_worker_again_and_again_is_given_up() -> None:
    fits = small_grid(1)
    schedule = schedule_of(fits)
    given_up: list[str] = []
    for attempt in range(MAX_CRASHES):
        pack = schedule.next_pack(here())
        assert pack and pack.fits[0] is fits[0]
        assert attempt == 0 or len(pack.fits) == 1, "it doesn't take others with it again"
        schedule.mark_started(pack.name, fits[0].key)
        given_up = schedule.take_back(pack, crashed=True)
    assert given_up == [fits[0].key]


def test_fits_of_another_driver_are_left_alone() -> None:
    fits = small_grid(1)
    schedule = schedule_of(fits)
    schedule.leave_to_others(f.key for f in fits)
    assert schedule.next_pack(here()) is None and schedule.num_ready == 0
    schedule.take_up(f.key for f in fits)
    pack = schedule.next_pack(here())
    assert pack and pack.fits[0] is fits[0]
