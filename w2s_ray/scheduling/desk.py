"""Where groups of workers get their packs: one actor of the run, on the driver's node.

Workers take about ten seconds to start, and a small Fit two. So workers that have ended a pack ask for the next one instead of
ending too. Tune and Ray Train carry reports from workers to the driver; this is the way back.

The desk also keeps what a group has reserved. Ray Train gives it back when the group ends; where the process that would do so
has died, the desk does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from w2s_ray.scheduling.packs import Pack

MAX_WAITING = 100_000
"""Workers that may ask at the same time."""


@dataclass(frozen=True)
class Order:
    """A pack, and the name of the lease under which its Fits are worked on."""

    pack: Pack
    lease: str


class Desk:
    """The driver's side."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_concurrency=MAX_WAITING)(Orders)
        self.actor: Any = actor.options(scheduling_strategy=here).remote()
        """For the workers."""

    def give(self, group: str, order: Order) -> None:
        """Give a group its next pack."""
        self._ask("put", group, order)

    def send_away(self, group: str) -> None:
        """Tell a group to end."""
        self._ask("put", group, None)

    def clean_up(self, group: str) -> None:
        """A group has ended, one way or another."""
        self._ask("remove", group)

    def close(self) -> None:
        """End the actor. Tune keeps a handle of it, so it would stay as long as this process is connected."""
        import ray

        ray.kill(self.actor)

    def _ask(self, method: str, *given: Any) -> None:
        import ray

        ray.get(getattr(self.actor, method).remote(*given))


class Orders:
    """The actor: the latest order of each group, and its placement group."""

    def __init__(self) -> None:
        self.orders: dict[str, Order | None] = {}
        """None tells a group to end."""
        self.reserved: dict[str, Any] = {}
        self.changed = asyncio.Condition()

    async def put(self, group: str, order: Order | None) -> None:
        async with self.changed:
            self.orders[group] = order
            self.changed.notify_all()

    async def take(self, group: str, *, after: str | None = None) -> Order | None:
        """A group's order, as soon as it is not `after`, the name of the pack that the group has ended. Workers that were started again
        get the order that they had."""

        def is_there() -> bool:
            order = self.orders[group]
            return order is None or order.pack.name != after

        async with self.changed:
            await self.changed.wait_for(is_there)
            return self.orders[group]

    async def keep(self, group: str, placement_group: Any) -> None:
        """What a group has reserved, instead of what it had before."""
        self.reserved[group] = placement_group

    async def remove(self, group: str) -> None:
        from ray.util import remove_placement_group

        self.orders.pop(group, None)
        if (placement_group := self.reserved.pop(group, None)) is not None:
            remove_placement_group(placement_group)
