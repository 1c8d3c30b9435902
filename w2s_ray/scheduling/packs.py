"""Which Fits run next, and which of them together: the schedule over the DAG of Fits. No Ray in here.

A *pack* is several Fits of one resource shape that a group of workers works through. Starting the workers takes about ten seconds,
handing them a pack a tenth of one, and a small Fit two. A pack therefore takes enough Fits to make this a small share of its time,
but not so many that other slots stand idle. A Fit may enter a pack when each of its dependencies is committed or comes earlier
in the same pack.

Promises: no Fit is handed out twice at a time, and none before its dependencies. When a Fit fails, only the Fits that depend
on it are blocked. A Fit that was in progress in `MAX_CRASHES` crashed packs is given up.

A decision costs what it hands out, however many Fits are left: Fits that can start wait in heaps, one for each data, seed and
shape, and what an event changes is counted when it happens.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from w2s_ray.fit import Execution, Fit
from w2s_ray.scheduling.room import Place, Room

MAX_CRASHES = 3
START_UP_S = 10.0
"""Of a group of workers, until its first Fit."""
SHORTEST_PACK_S, LONGEST_PACK_S = 10.0, 1800.0
PART_OF_SHARE = 0.5
"""Of a slot's share of what is left. A smaller part means more packs; a larger one, slots that are idle at the end. Studies of 90 to
38,000 Fits on 2 to 512 slots, simulated with estimates as wrong as real ones, take 1 % more to 5 % less time with 0.5 than with 0.7,
and as long as with 0.3."""
MOST_FITS_OF_PACK = 200
"""However short they are: so that choosing them takes milliseconds, and thousands of tiny Fits are shared among slots."""
MOST_CHILDREN_OF_PACK = 20_000
"""Of its Fits together, each of which is looked at: the readings of late replicates have hundreds each."""
LONGEST_FIRST_PACK_S = 300.0
"""Of a slot's first pack: other drivers that start at about the same time are not seen yet, and need their share."""
WORTHWHILE_S = 300.0
"""Work that is worth another slot where one has to be asked for."""

Entry = tuple[float, int]
"""A Fit in a heap: minus the seconds of the longest path that begins with it, and its number. The longest path comes first."""

NO, TOGETHER, ALONE = 0, 1, 2
"""Whether a Fit can start: not yet, in a pack with others, or only by itself since it was in progress in a crash."""


@dataclass(frozen=True)
class Pack:
    name: str
    fits: tuple[Fit, ...]
    execution: Execution
    place: Place
    seconds: float
    """Estimated, start-up included."""

    @property
    def num_cpus(self) -> float:
        return self.execution.workers * self.execution.cpus_per_worker

    @property
    def num_gpus(self) -> float:
        return self.execution.workers * self.execution.gpus_per_worker


def _start_up_s(place: Place) -> float:
    """Workers that wait there need not be started."""
    return START_UP_S if place.group is None else 0.0


@dataclass(slots=True)
class _Group:
    """The Fits of one data, seed and shape."""

    number: int
    data: int
    shape: int
    heap: list[Entry] = field(default_factory=list)
    """Those that can start. An entry is only looked at when it is on top: its Fit may have been taken since."""
    listed: Entry | None = None
    """What stands for the group in the heaps of groups."""


@dataclass
class Schedule:
    """The state of one run. Its sets hold keys of Fits, and each key is in exactly one of todo, running, done, failed and
    blocked."""

    fits: dict[str, Fit]
    """Dependencies come before the Fits that depend on them."""
    executions: dict[str, Execution]
    seconds: dict[str, float]
    """Estimated cost of each Fit."""
    num_slots: int
    """Packs that run at the same time."""
    num_packs_elsewhere: int = 0
    """Packs of other drivers, which share what is left."""
    fits_per_pack: int | None = None
    """None leaves the size of packs to the schedule."""
    todo: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """Key -> reason."""
    blocked: dict[str, str] = field(default_factory=dict)
    """Key -> key of the failed dependency."""
    elsewhere: set[str] = field(default_factory=set)
    """Keys of Fits that other drivers work on. They are not handed out here."""
    crashes: dict[str, int] = field(default_factory=dict)
    """Key -> number of packs that crashed while this Fit was in progress."""
    in_progress: dict[str, str] = field(default_factory=dict)
    """Name of a pack -> key of the Fit that it started last."""
    num_packs: int = 0
    num_packs_out: int = 0
    """Packs that are handed out and have not come back."""

    def __post_init__(self) -> None:
        self.num_done_before = len(self.done)
        self._keys = list(self.fits)
        self._number = {key: number for number, key in enumerate(self._keys)}
        self._link()
        self._sort_into_groups()
        self.left_s_of: dict[str, float] = defaultdict(float)
        """Name of a model -> estimated seconds of its Fits that are to do or running."""
        for key in (*self.todo, *self.running):
            self.left_s_of[self.fits[key].model.name] += self.seconds[key]
        self._open_s = sum(self.seconds[key] for key in self.todo if key not in self.elsewhere)
        """Estimated seconds of the Fits that are to do, without those that others work on."""
        self._num_left = [0] * len(self._shapes)
        """Shape -> Fits that are to do or running."""
        for key in (*self.todo, *self.running):
            self._num_left[self._shape_of(self._number[key])] += 1
        self._num_ready = [0] * len(self._shapes)
        """Shape -> Fits that can start."""
        self._ready = bytearray(len(self._keys))
        for number, key in enumerate(self._keys):
            if key in self.todo:
                self._get_ready(number)
        self._by_path = [(-self._path_s[self._number[key]], self._number[key]) for key in self.todo]
        """The Fits that are to do, the longest path first. Entries of others stay until they come to the top."""
        heapq.heapify(self._by_path)

    def _link(self) -> None:
        """Number the Fits and find, for each, its children, how many dependencies are missing, and its longest path."""
        num = len(self._keys)
        self._children: list[list[int]] = [[] for _ in range(num)]
        self._missing = [0] * num
        self._depth = [0] * num
        for number, fit in enumerate(self.fits.values()):
            for parent in fit.parents:
                of_parent = self._number[parent.key]
                self._children[of_parent].append(number)
                self._missing[number] += parent.key not in self.done
                self._depth[number] = max(self._depth[number], self._depth[of_parent] + 1)
        self._path_s = [0.0] * num
        """Seconds of the longest chain of Fits that begins with this one."""
        for number in range(num - 1, -1, -1):  # children come after their parents
            longest = max((self._path_s[child] for child in self._children[number]), default=0.0)
            self._path_s[number] = self.seconds[self._keys[number]] + longest

    def _sort_into_groups(self) -> None:
        shapes: dict[Execution, int] = {}
        shape_of: dict[int, int] = {}  # most Fits share their Execution
        groups: dict[tuple[int, int, int], _Group] = {}
        neighbours: dict[tuple[int, str], int] = {}
        self._groups: list[_Group] = []
        self._group_of = [0] * len(self._keys)
        self._neighbour = [0] * len(self._keys)
        """The same for Fits of one base model and task."""
        for number, fit in enumerate(self.fits.values()):
            execution = self.executions[self._keys[number]]
            shape = shape_of.get(id(execution))
            if shape is None:
                shape = shape_of[id(execution)] = shapes.setdefault(execution, len(shapes))
            place = (id(fit.data), fit.seed, shape)
            if place not in groups:
                groups[place] = _Group(len(groups), place[0], shape)
                self._groups.append(groups[place])
            self._group_of[number] = groups[place].number
            self._neighbour[number] = neighbours.setdefault((id(fit.model), fit.data.task), len(neighbours))
        self._shapes = list(shapes)
        self._by_shape: list[list[tuple[Entry, int]]] = [[] for _ in shapes]
        """Shape -> its groups, by the longest path in them."""
        self._by_data: dict[tuple[int, int], list[tuple[Entry, int]]] = defaultdict(list)
        """(shape, data) -> the same of one data, whatever the seed."""
        self._alone: list[list[Entry]] = [[] for _ in shapes]
        """Shape -> the Fits that start only by themselves."""

    def _shape_of(self, number: int) -> int:
        return self._groups[self._group_of[number]].shape

    @property
    def finished(self) -> bool:
        return not self.todo and not self.running

    @property
    def num_new(self) -> int:
        """Fits that became done since the run began."""
        return len(self.done) - self.num_done_before

    @property
    def num_left(self) -> int:
        """Fits that are to do or running."""
        return len(self.todo) + len(self.running)

    @property
    def left_s(self) -> float:
        """Estimated seconds of the Fits that are to do or running."""
        return sum(self.left_s_of.values()) if self.num_left else 0.0

    @property
    def longest_path_s(self) -> float:
        """Seconds of the longest chain that begins with a Fit that is to do."""
        while self._by_path and self._keys[self._by_path[0][1]] not in self.todo:
            heapq.heappop(self._by_path)
        return -self._by_path[0][0] if self._by_path else 0.0

    @property
    def num_ready(self) -> int:
        """Fits that can start."""
        return sum(self._num_ready)

    @property
    def num_packs_worthwhile(self) -> int:
        """How many packs at a time the remaining work justifies: fewer than there is room for when little is left."""
        if self.fits_per_pack:
            return math.ceil(self.num_left / self.fits_per_pack)
        return math.ceil(self.left_s / WORTHWHILE_S)

    @property
    def shapes_left(self) -> set[Execution]:
        """The shapes of the Fits that are to do or running."""
        return {shape for shape, num in zip(self._shapes, self._num_left, strict=True) if num}

    def shapes_ready(self, most: int) -> list[Execution]:
        """The shapes of Fits that could start now, at most so many; each shape has its turn."""
        left = list(self._num_ready)
        found: list[Execution] = []
        while len(found) < most and any(left):
            for number, shape in enumerate(self._shapes):
                if left[number]:
                    left[number] -= 1
                    found.append(shape)
        return found[:most]

    # --- handing out packs ---

    def next_pack(self, room: Room, *, now_s: float = 0.0) -> Pack | None:
        """The next pack for which there is room, or None.

        The shape of the longest path comes first. If it has to wait while another shape finds room, nodes are reserved for it.
        """
        tops = sorted((top, shape) for shape in range(len(self._shapes)) if (top := self._top_of_shape(shape)))
        if room.reservation and all(self._shapes[shape] != room.reservation.shape for _, shape in tops):
            room.reservation = None
        waits: Execution | None = None
        for (_, first), shape in tops:
            execution = self._shapes[shape]
            place = room.find(execution, now_s=now_s)
            if place and waits and room.reservation is None:
                room.reserve(waits)
                place = room.find(execution, now_s=now_s)
            if place is None:
                waits = waits or execution
                continue
            time_s = place.until_s - now_s - _start_up_s(place)
            if time_s < max(SHORTEST_PACK_S, self.seconds[self._keys[first]]):
                continue
            chosen = [first] if self._ready[first] == ALONE else self._gather(first, most_s=time_s)
            return self._hand_out(chosen, execution, place)
        return None

    def _hand_out(self, chosen: list[int], execution: Execution, place: Place) -> Pack:
        keys = [self._keys[number] for number in sorted(chosen, key=self._place_in_pack)]
        seconds = sum(self.seconds[key] for key in keys)
        for number in chosen:
            self._unready(number)
        self.todo.difference_update(keys)
        self.running.update(keys)
        self._open_s -= seconds
        self.num_packs += 1
        self.num_packs_out += 1
        fits = tuple(self.fits[key] for key in keys)
        return Pack(f"pack-{self.num_packs:05d}", fits, execution, place, _start_up_s(place) + seconds)

    def is_ready(self, key: str) -> bool:
        """Whether every dependency of a Fit is done."""
        return not self._missing[self._number[key]]

    def _gather(self, first: int, *, most_s: float) -> list[int]:
        """Fits for a pack that begins with `first`: those of its data and seed, then of its data, then the longest paths; and of
        each group the longest path first. A Fit that enters the pack may make others ready."""
        budget_s = min(self._pack_budget_s(), most_s) * 0.999
        most_fits = self.fits_per_pack or MOST_FITS_OF_PACK
        group: _Group | None = self._groups[self._group_of[first]]
        assert group is not None
        shape, data = group.shape, group.data
        missing: dict[int, int] = {}  # of Fits with a parent in the pack
        made_ready: dict[int, list[Entry]] = {}  # group -> Fits that the pack makes ready
        chosen: list[int] = []
        used_s, num_children = 0.0, 0
        while group is not None:
            number = self._take_from(group, made_ready)
            if number is None:
                group = self._next_group(shape, data, made_ready)
                continue
            chosen.append(number)
            used_s += self.seconds[self._keys[number]]
            num_children += len(self._children[number])
            if used_s >= budget_s or len(chosen) >= most_fits or num_children > MOST_CHILDREN_OF_PACK:
                break
            for child in self._children[number]:
                missing[child] = missing.get(child, self._missing[child]) - 1
                if not missing[child] and self._may_join(child, shape):
                    of_child = self._group_of[child]
                    heapq.heappush(made_ready.setdefault(of_child, []), (-self._path_s[child], child))
        if group is not None:
            self._list(group)
        return chosen

    def _take_from(self, group: _Group, made_ready: dict[int, list[Entry]]) -> int | None:
        """The longest path of a group, among the Fits that can start and those that the pack makes ready."""
        top, made = self._top(group), made_ready.get(group.number)
        if made and (top is None or made[0] < top):
            return heapq.heappop(made)[1]
        if top is None:
            return None
        heapq.heappop(group.heap)
        self._ready[top[1]] = NO  # so that it is not met again in this pack; `_hand_out` counts it
        self._num_ready[group.shape] -= 1
        return top[1]

    def _next_group(self, shape: int, data: int, made_ready: dict[int, list[Entry]]) -> _Group | None:
        """Where a pack goes on that has emptied a group."""
        if (group := self._first(self._by_data[shape, data])) is not None:
            return group
        for number, made in made_ready.items():
            if made:
                return self._groups[number]
        return self._first(self._by_shape[shape])

    def _may_join(self, number: int, shape: int) -> bool:
        """Whether a Fit may enter a pack of this shape that holds its dependencies."""
        key = self._keys[number]
        return (
            self._shape_of(number) == shape
            and key in self.todo
            and key not in self.elsewhere
            and key not in self.crashes
        )

    def _pack_budget_s(self) -> float:
        """How much work the next pack takes: a part of a slot's share of what is left. So packs get shorter towards the end, where
        a wrong estimate would leave the other slots idle. A study with little work is dealt to all slots at its start, as long
        as the work of a pack takes as long as its start-up."""
        share_s = self._open_s / (self.num_slots + self.num_packs_elsewhere)
        budget_s = max(PART_OF_SHARE * share_s, SHORTEST_PACK_S)
        if self.num_packs >= self.num_slots:
            return min(budget_s, LONGEST_PACK_S)
        even_s = self._open_s / (self.num_slots - self.num_packs)
        return min(budget_s, LONGEST_FIRST_PACK_S, max(even_s, START_UP_S))

    def _place_in_pack(self, number: int) -> tuple[int, bool, int, int]:
        """Dependencies first; then Fits that others wait for; then Fits of one base model and task next to each other."""
        return self._depth[number], not self._children[number], self._neighbour[number], number

    # --- the heaps ---

    def _get_ready(self, number: int) -> None:
        """Put a Fit that is to do into the heaps, if it can start."""
        key = self._keys[number]
        if self._ready[number] or self._missing[number] or key in self.elsewhere:
            return
        entry, group = (-self._path_s[number], number), self._groups[self._group_of[number]]
        self._num_ready[group.shape] += 1
        if key in self.crashes:
            self._ready[number] = ALONE
            heapq.heappush(self._alone[group.shape], entry)
            return
        self._ready[number] = TOGETHER
        heapq.heappush(group.heap, entry)
        if group.listed is None or entry < group.listed:
            self._list(group)

    def _unready(self, number: int) -> None:
        """It can't start any more. Its entries stay in the heaps until they come to the top."""
        if self._ready[number]:
            self._ready[number] = NO
            self._num_ready[self._shape_of(number)] -= 1

    def _top(self, group: _Group) -> Entry | None:
        while group.heap:
            if self._ready[group.heap[0][1]] == TOGETHER:
                return group.heap[0]
            heapq.heappop(group.heap)
        return None

    def _list(self, group: _Group) -> None:
        """Let the longest path of a group stand for it in the heaps of groups."""
        group.listed = self._top(group)
        if group.listed is not None:
            self._push(group, self._by_shape[group.shape])
            self._push(group, self._by_data[group.shape, group.data])

    def _push(self, group: _Group, heap: list[tuple[Entry, int]]) -> None:
        """List a group in a heap, and drop stale entries faster than they arise, or one decision might find 30,000 of them."""
        assert group.listed is not None
        heapq.heappush(heap, (group.listed, group.number))
        for _ in range(2):
            entry, number = heap[0]
            if self._groups[number].listed == entry:
                break
            heapq.heappop(heap)

    def _first(self, heap: list[tuple[Entry, int]]) -> _Group | None:
        """The group with the longest path."""
        while heap:
            entry, number = heap[0]
            group = self._groups[number]
            if group.listed == entry and self._top(group) == entry:
                return group
            heapq.heappop(heap)
            if group.listed == entry:  # its Fit was taken: the next one stands for the group
                self._list(group)
        return None

    def _top_of_shape(self, shape: int) -> Entry | None:
        alone = self._alone[shape]
        while alone and self._ready[alone[0][1]] != ALONE:
            heapq.heappop(alone)
        group = self._first(self._by_shape[shape])
        tops = [entry for entry in (alone[0] if alone else None, group.listed if group else None) if entry]
        return min(tops, default=None)

    # --- what became of them ---

    def leave_to_others(self, keys: Iterable[str]) -> None:
        """Other drivers work on these Fits now."""
        for key in keys:
            if key not in self.elsewhere and key in self._number:
                self.elsewhere.add(key)
                self._unready(self._number[key])
                if key in self.todo:
                    self._open_s -= self.seconds[key]

    def take_up(self, keys: Iterable[str]) -> None:
        """No other driver works on these Fits any more."""
        for key in keys:
            if key in self.elsewhere:
                self.elsewhere.remove(key)
                if key in self.todo:
                    self._open_s += self.seconds[key]
                    self._get_ready(self._number[key])

    def awaited_elsewhere(self, most: int) -> list[Fit]:
        """Fits that other drivers work on and that Fits of nobody's pack wait for, at most so many."""
        awaited = (
            key
            for key in self.elsewhere
            if key in self.todo and any(self._is_open(child) for child in self._children[self._number[key]])
        )
        return [self.fits[key] for key in islice(awaited, most)]

    def _is_open(self, number: int) -> bool:
        key = self._keys[number]
        return key in self.todo and key not in self.elsewhere

    def mark_started(self, pack: str, key: str) -> None:
        self.in_progress[pack] = key

    def mark_done(self, key: str) -> None:
        if key in self.done:
            return
        number = self._number[key]
        self._close(number)
        self.failed.pop(key, None)
        self.blocked.pop(key, None)
        self.done.add(key)
        for child in self._children[number]:
            self._missing[child] -= 1
            if not self._missing[child] and self._keys[child] in self.todo:
                self._get_ready(child)

    def mark_failed(self, key: str, reason: str) -> None:
        """Record a failed Fit, and block those that depend on it."""
        self._close(self._number[key])
        self.blocked.pop(key, None)
        self.failed[key] = reason
        descendants = list(self._children[self._number[key]])
        while descendants:
            number = descendants.pop()
            child = self._keys[number]
            if child in self.blocked or child in self.done or child in self.failed:
                continue
            self._close(number)
            self.blocked[child] = key
            descendants.extend(self._children[number])

    def _close(self, number: int) -> None:
        """A Fit is neither to do nor running any more."""
        key = self._keys[number]
        if key in self.todo:
            self._unready(number)
            self.todo.remove(key)
            if key not in self.elsewhere:
                self._open_s -= self.seconds[key]
        elif key in self.running:
            self.running.remove(key)
        else:
            return
        self.left_s_of[self.fits[key].model.name] -= self.seconds[key]
        self._num_left[self._shape_of(number)] -= 1

    def take_back(self, pack: Pack, *, crashed: bool) -> list[str]:
        """A pack ended: put its unfinished Fits back. Returns the Fits that have now crashed too often."""
        self.num_packs_out -= 1
        in_progress = self.in_progress.pop(pack.name, None)
        left = [fit.key for fit in pack.fits if fit.key in self.running]
        suspects = []
        if left and crashed:
            # A pack works in order. If it never reported, the Fit in progress was the first unfinished one that could run.
            suspects = [in_progress] if in_progress in left else [key for key in left if self.is_ready(key)][:1]
        for key in suspects:
            self.crashes[key] = self.crashes.get(key, 0) + 1
        for key in left:
            self.running.remove(key)
            self.todo.add(key)
            if key not in self.elsewhere:
                self._open_s += self.seconds[key]
            number = self._number[key]
            heapq.heappush(self._by_path, (-self._path_s[number], number))
            self._get_ready(number)
        return [key for key in suspects if self.crashes[key] >= MAX_CRASHES]
