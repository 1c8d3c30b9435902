"""The schedule over the DAG, without Ray: order, packs, failures, crashes."""

from __future__ import annotations

import random
from dataclasses import replace

from w2s_ray.fit import Execution
from w2s_ray.scheduling.packs import MAX_CRASHES, MOST_FITS_OF_PACK, Pack, Schedule
from w2s_ray.scheduling.room import Node, Place, Room, num_slots

from fits import fit, schedule_of, small_grid


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
    schedule = schedule_of(small_grid(8), num_slots=2, seconds=4.0)
    packs = []
    while pack := schedule.next_pack(here()):
        packs.append(pack)
        finish(schedule, pack)
    assert [len(pack.fits) for pack in packs] == [10, 8, 6, 4, 3, 3, 3, 3]
    seeds = [each.seed for each in packs[0].fits]
    assert seeds.count(seeds[0]) == 5, "a pack keeps a seed together"


def test_little_work_is_dealt_to_all_slots() -> None:
    """50 Fits of a second would fit into one pack, while three slots wait."""
    schedule = schedule_of(small_grid(10), seconds=1.0, num_slots=4)
    room = here(4)
    packs = [pack for _ in range(4) if (pack := hand_out(schedule, room))]
    assert [len(pack.fits) for pack in packs] == [10, 10, 10, 10], "and ten are left for who ends first"


def test_a_pack_does_not_swallow_thousands_of_tiny_fits() -> None:
    """Such as readings that find no new row."""
    schedule = schedule_of(small_grid(300), seconds=0.001)
    pack = schedule.next_pack(here())
    assert pack and len(pack.fits) == MOST_FITS_OF_PACK


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


def test_a_diamond_of_failures_is_walked_once() -> None:
    """Chains of ensembles have as many paths as there are subsets; each Fit is blocked once."""
    layer = [fit(size="s", half="A", seed=seed) for seed in range(3)]
    fits = list(layer)
    for depth in range(12):
        layer = [replace(fit(size="s", half=f"B{n}/3", seed=depth), labels=tuple(layer)) for n in (1, 2, 3)]
        fits += layer
    schedule = schedule_of(fits)
    schedule.mark_failed(fits[0].key, "loss is NaN")
    assert len(schedule.blocked) == 36 and schedule.blocked[fits[-1].key] == fits[0].key
    while pack := schedule.next_pack(here()):
        finish(schedule, pack)
    assert schedule.finished and len(schedule.done) == 2 and schedule.left_s == 0


# --- room, node by node ---------------------------------------------------------------------------------------------


WIDE, NARROW = Execution(workers=8, gpus_per_worker=1), Execution(gpus_per_worker=1)


def gpu_nodes(num: int = 8) -> list[Node]:
    return [Node(f"node-{number}", 8.0, 8.0) for number in range(num)]


def hand_out(schedule: Schedule, room: Room, *, now_s: float = 0.0) -> Pack | None:
    pack = schedule.next_pack(room, now_s=now_s)
    if pack is not None:
        room.take(pack.name, pack.execution, pack.place, until_s=now_s + pack.seconds)
    return pack


def test_eight_free_gpus_on_eight_nodes_are_no_room_for_a_pack_of_eight() -> None:
    room = Room(gpu_nodes())
    for number in range(8):
        seven = replace(NARROW, workers=7)
        place = room.find(seven, now_s=0.0)
        assert place and len(place.workers) == 1, "on one node"
        room.take(f"p{number}", seven, place, until_s=100.0)
    assert room.find(NARROW, now_s=0.0) and room.find(WIDE, now_s=0.0) is None
    room.give_back("p3")
    place = room.find(WIDE, now_s=0.0)
    assert place and len(place.workers) == 1 and place.workers[0][1] == 8
    room.set_nodes(gpu_nodes(2))
    assert room.find(WIDE, now_s=0.0) is None, "what still runs on the nodes that are left is counted"


def test_a_pack_that_no_node_holds_takes_as_few_as_it_can() -> None:
    room = Room(gpu_nodes(3))
    sixteen = replace(WIDE, workers=16)
    place = room.find(sixteen, now_s=0.0)
    assert place is not None and len(place.workers) == 2
    for name, node in (("p1", 0), ("p2", 1)):
        room.take(name, NARROW, Place(((f"node-{node}", 1),)), until_s=100.0)
    assert room.find(sixteen, now_s=0.0) is None, "7 + 7 + 8 would be three nodes"


def test_ten_workers_of_a_tenth_fill_a_gpu() -> None:
    tenth = Execution(gpus_per_worker=0.1)
    room = Room([Node("here", 16.0, 1.0)])
    for number in range(10):
        place = room.find(tenth, now_s=0.0)
        assert place
        room.take(f"p{number}", tenth, place, until_s=100.0)
    assert room.find(tenth, now_s=0.0) is None
    assert num_slots({tenth}, nodes=[Node("here", 16.0, 1.0)], max_parallel=None) == 10


def test_a_wide_pack_does_not_starve_behind_narrow_ones() -> None:
    """Two nodes full of narrow packs, and more narrow work than will ever end: the wide Fit, whose path is the longest, waits for
    one node and no longer."""
    narrow = [fit(size="s", seed=seed) for seed in range(1000)]
    wide = fit(size="l", seed=0)
    schedule = schedule_of(
        [*narrow, wide],
        num_slots=16,
        fits_per_pack=1,
        longer={wide.key: 60.0},
        shape=lambda f: WIDE if f is wide else NARROW,
    )
    schedule.leave_to_others([wide.key])  # it becomes ready when all slots are taken
    room = Room(gpu_nodes(2))
    packs = [pack for _ in range(16) if (pack := hand_out(schedule, room))]
    assert len(packs) == 16 and hand_out(schedule, room) is None
    schedule.take_up([wide.key])
    alternately = [
        pack for pair in zip(packs[:8], packs[8:], strict=True) for pack in pair
    ]  # of one node, of the other
    for number, pack in enumerate(alternately):
        room.give_back(pack.name)
        finish(schedule, pack)
        following = hand_out(schedule, room, now_s=20.0 + number)
        if following and following.execution == WIDE:
            break
    else:
        raise AssertionError("it was not handed out, though every pack ended")
    assert following.fits == (wide,) and len(following.place.workers) == 1
    assert schedule.num_packs > 17, "the other node went on with narrow ones"


def test_what_ends_in_time_may_run_on_a_reserved_node() -> None:
    fits = [fit(size="s", seed=seed) for seed in range(200)]
    wide = fit(size="l", seed=0)
    schedule = schedule_of(
        [*fits, wide], num_slots=8, longer={wide.key: 60.0}, shape=lambda f: WIDE if f is wide else NARROW
    )
    room = Room(gpu_nodes(1))
    room.take("long", NARROW, Place((("node-0", 1),)), until_s=300.0)
    pack = hand_out(schedule, room)
    assert pack and pack.execution == NARROW and pack.place.until_s == 300.0 and room.reservation
    assert pack.seconds <= 300.0
    assert schedule.next_pack(room, now_s=285.0) is None, "too late to end in time"


def test_a_pack_holds_as_much_as_its_share_whatever_the_order_of_events() -> None:
    """Each Fit is handed out once, after its parents, when packs end in any order, crash, and give Fits to other drivers."""
    draw = random.Random(0)
    fits = small_grid(30)
    schedule = schedule_of(fits, num_slots=6, shape=lambda f: NARROW if f.model.size == "m" else Execution())
    room = Room([Node("one", 3.0, 2.0), Node("other", 3.0, 2.0)])
    out: list[Pack] = []
    ended: set[str] = set()
    theirs: list[str] = []
    while not schedule.finished:
        if pack := hand_out(schedule, room):
            assert not {f.key for f in pack.fits} & (ended | {f.key for p in out for f in p.fits} | set(theirs))
            out.append(pack)
            continue
        if draw.random() < 0.3:
            schedule.take_up(theirs)
            theirs = draw.sample(sorted(schedule.todo), min(3, len(schedule.todo) // 2))
            schedule.leave_to_others(theirs)
        if not out:
            continue
        pack = out.pop(draw.randrange(len(out)))
        room.give_back(pack.name)
        for each in pack.fits[: draw.choice([len(pack.fits)] * 3 + [draw.randrange(len(pack.fits) + 1)])]:
            assert all(parent.key in ended for parent in each.parents)
            schedule.mark_done(each.key)
            ended.add(each.key)
        for key in schedule.take_back(pack, crashed=draw.random() < 0.5):
            schedule.mark_failed(key, "crashed")
    assert ended == schedule.done and len(ended) + len(schedule.failed) + len(schedule.blocked) == len(fits)
    assert schedule.num_ready == 0 and schedule.shapes_left == set() and abs(schedule.left_s) < 1e-6


def test_fits_of_another_driver_are_left_alone() -> None:
    fits = small_grid(1)
    schedule = schedule_of(fits)
    schedule.leave_to_others(f.key for f in fits)
    assert schedule.next_pack(here()) is None and schedule.num_ready == 0
    schedule.take_up(f.key for f in fits)
    pack = schedule.next_pack(here())
    assert pack and pack.fits[0] is fits[0]
