"""A desk without Ray, for tests of the searcher: it keeps what each group of workers was told last."""

from __future__ import annotations

from w2s_ray.scheduling import desk
from w2s_ray.scheduling.desk import Order


class Desk(desk.Desk):
    def __init__(self) -> None:
        self.told: dict[str, Order | None] = {}

    def give(self, group: str, order: Order) -> None:
        self.told[group] = order

    def send_away(self, group: str) -> None:
        self.told[group] = None

    def clean_up(self, group: str) -> None:
        self.told.pop(group, None)
