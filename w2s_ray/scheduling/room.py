"""Which nodes have room for a pack: the nodes of the cluster, what of each is free, and what is kept for a wide pack.

Workers that have ended a pack wait for the next one. What they have counts as free: their place is the first choice for a pack of
their shape, and they have to leave where another pack needs it.

Promises:

- A pack goes to as few nodes as it would in an empty cluster. Eight GPUs that are free on eight nodes are no room for a pack that
  one node can hold.
- A pack that waits for whole nodes gets them: while narrower packs would take every CPU and GPU that becomes free, the nodes
  that will be free soonest are reserved. Until then they take only packs that are expected to end in time.

Everything here is this driver's bookkeeping. Ray places the workers itself, with its PACK strategy, which takes as few nodes as
it finds room on, too.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from w2s_ray.fit import Execution

UNIT = 10_000
"""Parts of a CPU or GPU that are counted. Whole numbers, so that ten workers of a tenth fill a GPU; Ray counts the same."""

Amount = tuple[int, int]
"""GPUs and CPUs, in parts."""


@dataclass(frozen=True)
class Node:
    id: str
    num_cpus: float
    num_gpus: float
    memory_gib: float = float("inf")
    """Infinite where it is not known."""


@dataclass(frozen=True)
class Place:
    """Where the workers of a pack go."""

    workers: tuple[tuple[str, int], ...]
    """(node, its workers)"""
    until_s: float = float("inf")
    """When the pack should have ended, since a node is reserved for another."""
    group: str | None = None
    """The group of workers that waits there; None if workers have to be started."""

    @property
    def nodes(self) -> set[str]:
        return {node for node, _ in self.workers}


@dataclass(frozen=True)
class _Held:
    shape: Execution
    place: Place
    until_s: float
    """When the pack is expected to end."""


@dataclass(frozen=True)
class _Reservation:
    shape: Execution
    nodes: frozenset[str]
    from_s: float
    """When they are expected to be free. It stays, however late they are, so that nothing else is put there for long."""


class Room:
    def __init__(self, nodes: list[Node]) -> None:
        self.held: dict[str, _Held] = {}
        """Pack -> what it has."""
        self.waiting: dict[Execution, dict[str, Place]] = defaultdict(dict)
        """Shape -> the groups of workers that wait for a pack, and where they are."""
        self.reservation: _Reservation | None = None
        self.set_nodes(nodes)

    def set_nodes(self, nodes: list[Node]) -> None:
        """The nodes that there are now."""
        self.total: dict[str, Amount] = {node.id: _amount(node.num_gpus, node.num_cpus) for node in nodes}
        self.free = dict(self.total)
        self.packs_on: dict[str, set[str]] = defaultdict(set)
        self.by_free: dict[Amount, dict[str, None]] = defaultdict(dict)
        for node, free in self.free.items():
            self.by_free[free][node] = None
        self.fewest: dict[Execution, int | None] = {}
        self.reservation = None
        for name, held in self.held.items():
            self._change(name, held, sign=-1)
        for groups in self.waiting.values():
            for group in [group for group, place in groups.items() if not place.nodes <= self.total.keys()]:
                del groups[group]

    # --- looking for room ---

    def find(self, shape: Execution, *, now_s: float) -> Place | None:
        """A place for a pack of this shape, or None."""
        reservation = self.reservation
        if reservation is None or reservation.shape == shape:
            return self._find(shape, frozenset(), float("inf"))
        place = self._find(shape, reservation.nodes, float("inf"))
        if place is None and now_s < reservation.from_s:
            place = self._find(shape, frozenset(), reservation.from_s)
        return place

    def _find(self, shape: Execution, kept: frozenset[str], until_s: float) -> Place | None:
        for place in self.waiting[shape].values():
            if kept.isdisjoint(place.nodes):
                return replace(place, until_s=until_s)
        fewest = self._fewest_nodes(shape)
        if fewest is None:
            return None
        if fewest == 1:
            for free in sorted(self.by_free):  # the fullest first
                if _num_workers(free, shape) >= shape.workers:
                    node = next((node for node in self.by_free[free] if node not in kept), None)
                    if node is not None:
                        return Place(((node, shape.workers),), until_s)
            return None
        found, left = [], shape.workers
        for free in sorted(self.by_free, key=lambda free: -_num_workers(free, shape)):
            here = _num_workers(free, shape)
            for node in self.by_free[free] if here > 0 else ():
                if node in kept:
                    continue
                found.append((node, min(here, left)))
                left -= here
                if left <= 0:
                    return Place(tuple(found), until_s)
                if len(found) == fewest:
                    return None
        return None

    def _fewest_nodes(self, shape: Execution) -> int | None:
        """How many nodes the shape takes in an empty cluster; None if it does not fit."""
        if shape not in self.fewest:
            left, self.fewest[shape] = shape.workers, None
            for number, here in enumerate(
                sorted((_num_workers(t, shape) for t in self.total.values()), reverse=True), 1
            ):
                left -= here
                if left <= 0:
                    self.fewest[shape] = number
                    break
        return self.fewest[shape]

    # --- taking it ---

    def take(self, pack: str, shape: Execution, place: Place, *, until_s: float) -> list[str]:
        """A pack has this place, and is expected to end then. Returns the groups of workers that are in its way, which don't wait
        any more."""
        self.held[pack] = _Held(shape, place, until_s)
        self._change(pack, self.held[pack], sign=-1)
        if self.reservation is not None and self.reservation.shape == shape:
            self.reservation = None
        if place.group is not None:
            del self.waiting[shape][place.group]
            return []
        return [group for node in place.nodes for group in self._clear(node)]

    def wait(self, group: str, shape: Execution, place: Place) -> None:
        """A group of workers that has ended a pack waits for another."""
        if self.free.keys() >= place.nodes:
            self.waiting[shape][group] = replace(place, group=group, until_s=float("inf"))

    def leave(self, group: str) -> None:
        """A group of workers does not wait any more."""
        for groups in self.waiting.values():
            groups.pop(group, None)

    def _clear(self, node: str) -> list[str]:
        """Send groups away that wait on a node, until the others have room there. Returns them."""
        gpus, cpus = self.free[node]
        has: dict[str, Amount] = {}
        for shape, groups in self.waiting.items():
            for group, place in groups.items():
                num = dict(place.workers).get(node, 0)
                if num:
                    has[group] = _amount(num * shape.gpus_per_worker, num * shape.cpus_per_worker)
                    gpus, cpus = gpus - has[group][0], cpus - has[group][1]
        sent = []
        for group, (its_gpus, its_cpus) in has.items():
            if gpus >= 0 and cpus >= 0:
                break
            sent.append(group)
            self.leave(group)
            gpus, cpus = gpus + its_gpus, cpus + its_cpus
        return sent

    def give_back(self, pack: str) -> None:
        """A pack has ended."""
        held = self.held.pop(pack, None)
        if held is not None:
            self._change(pack, held, sign=1)

    def _change(self, pack: str, held: _Held, *, sign: int) -> None:
        gpus, cpus = _amount(held.shape.gpus_per_worker, held.shape.cpus_per_worker)
        for node, workers in held.place.workers:
            if node not in self.free:
                continue  # it has left the cluster
            before = self.free[node]
            after = (before[0] + sign * workers * gpus, before[1] + sign * workers * cpus)
            self.free[node] = after
            del self.by_free[before][node]
            if not self.by_free[before]:
                del self.by_free[before]
            self.by_free[after][node] = None
            (self.packs_on[node].add if sign < 0 else self.packs_on[node].discard)(pack)

    # --- keeping it for a wide pack ---

    def reserve(self, shape: Execution) -> None:
        """Keep the nodes that will soonest have room for a pack of this shape."""
        fewest = self._fewest_nodes(shape)
        if fewest is None:
            return
        capacity = {node: _num_workers(total, shape) for node, total in self.total.items()}
        least = sorted(capacity.values(), reverse=True)[fewest - 1]
        wanted = min(least, shape.workers)
        soonest = sorted(
            (self._free_from_s(node, wanted, shape), node) for node, most in capacity.items() if most >= least
        )
        chosen = soonest[:fewest]
        if sum(capacity[node] for _, node in chosen) < shape.workers:  # only the largest nodes hold it together
            largest = sorted(capacity, key=lambda node: -capacity[node])[:fewest]
            chosen = [(self._free_from_s(node, capacity[node], shape), node) for node in largest]
        from_s = max(free_s for free_s, _ in chosen)
        self.reservation = _Reservation(shape, frozenset(node for _, node in chosen), from_s)

    def _free_from_s(self, node: str, num_workers: int, shape: Execution) -> float:
        """When a node is expected to have room for so many workers."""
        gpus, cpus = self.free[node]
        free_s = 0.0
        for until_s, name in sorted((self.held[name].until_s, name) for name in self.packs_on[node]):
            if _num_workers((gpus, cpus), shape) >= num_workers:
                break
            held = self.held[name]
            workers = dict(held.place.workers)[node]
            one = _amount(held.shape.gpus_per_worker, held.shape.cpus_per_worker)
            gpus, cpus, free_s = gpus + workers * one[0], cpus + workers * one[1], until_s
        return free_s


def _amount(num_gpus: float, num_cpus: float) -> Amount:
    return round(num_gpus * UNIT), round(num_cpus * UNIT)


def _num_workers(free: Amount, shape: Execution) -> int:
    """How many workers of a shape these resources hold."""
    gpus, cpus = _amount(shape.gpus_per_worker, shape.cpus_per_worker)
    by_cpu = free[1] // cpus
    return min(by_cpu, free[0] // gpus) if gpus else by_cpu


# --- the whole cluster ------------------------------------------------------------------------------------------------


def workers_on(node: Node, shape: Execution) -> int:
    return _num_workers(_amount(node.num_gpus, node.num_cpus), shape)


def num_slots(shapes: set[Execution], *, nodes: list[Node], max_parallel: int | None) -> int:
    """How many packs can run at once, by the shape of which most fit."""

    def most_of(shape: Execution) -> int:
        on_each = [workers_on(node, shape) for node in nodes]
        whole = sum(here // shape.workers for here in on_each)
        return whole or sum(on_each) // shape.workers

    most = max(most_of(shape) for shape in shapes)
    return max(1, min(most, max_parallel or most))


def shape_without_room(shapes: set[Execution], *, nodes: list[Node]) -> tuple[Execution, int] | None:
    """A shape that does not fit on the nodes, and how many of its workers would; None if all shapes fit."""
    for shape in sorted(shapes, key=lambda shape: -shape.workers):
        room = sum(workers_on(node, shape) for node in nodes)
        if room < shape.workers:
            return shape, room
    return None
