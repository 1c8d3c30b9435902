"""Where groups of workers get their packs: one actor of the run, on the driver's node.

Workers take about ten seconds to start, and a small Fit two. So workers that have ended a pack ask for the next one instead of
ending too. Tune and Ray Train carry reports from workers to the driver; this is the way back.
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
    """The latest order for each group of workers. None tells a group to end."""

    def __init__(self) -> None:
        self.orders: dict[str, Order | None] = {}
        self.changed = asyncio.Condition()

    async def put(self, group: str, order: Order | None) -> None:
        async with self.changed:
            self.orders[group] = order
            self.changed.notify_all()

    async def take(self, group: str, *, after: str | None = None) -> Order | None:
        """The group's order, as soon as it is not `after`, the name of the pack that it has ended. Workers that were started again
        get the order that they had."""

        def is_there() -> bool:
            order = self.orders[group]
            return order is None or order.pack.name != after

        async with self.changed:
            await self.changed.wait_for(is_there)
            return self.orders[group]


def open_desk() -> Any:
    """The actor. It lives as long as the run holds its handle, and dies with the driver's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_concurrency=MAX_WAITING)(Desk)
    return actor.options(scheduling_strategy=here).remote()
