"""What a run keeps an eye on beside its work: a budget that it must not pass, packs that say nothing for too long, nodes that
come and go, and whether it may go on at all.

Promises: a budget is worker hours, start-up and waiting for other workers included; when it is spent, or the lease or the
store is lost, the run stops in good order, as on Ctrl-C. Silence is explained, by what a pack waits for, again and again until
it ends. An autoscaler is asked for what could run now, and for nothing at the end.
"""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback
from rich.console import Console

from w2s_ray.fit import Execution
from w2s_ray.plan import duration
from w2s_ray.scheduling import cluster
from w2s_ray.scheduling.packs import Pack
from w2s_ray.scheduling.searcher import DagSearcher

SILENT_S = 300.0
"""A pack that has said nothing for so long is explained. Extracting features and large test sets take their time."""


class BudgetSpent(KeyboardInterrupt):
    """Ends a run as Ctrl-C does."""


class Trouble(KeyboardInterrupt):
    """Ends a run as Ctrl-C does; says why it can't go on."""


class Watch(Callback):
    """A Tune callback: Tune calls it in every turn of its loop, also while nothing happens."""

    def __init__(
        self, searcher: DagSearcher, *, budget_worker_hours: float | None, console: Console, grows: bool
    ) -> None:
        self.searcher = searcher
        self.grows = grows
        """Whether the cluster may have an autoscaler, which wants to be told what is needed."""
        self.asked: list[Execution] = []
        self.num_nodes = len(searcher.nodes)
        self.budget_s = None if budget_worker_hours is None else budget_worker_hours * 3600
        self.console = console
        self.said: dict[str, tuple[float, dict[str, Any]]] = {}
        self.explained_s = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that never happens."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.said[trial.trial_id] = (time.monotonic(), result)

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if self.budget_s is not None and self.searcher.worker_s >= self.budget_s:
            raise BudgetSpent
        if self.searcher.trouble is not None:
            raise Trouble(str(self.searcher.trouble))
        self._look_at_nodes()
        now_s = time.monotonic()
        if now_s - self.explained_s < SILENT_S:
            return
        silent = []
        for trial_id, (pack, began_s) in list(self.searcher.packs.items()):
            last_s, result = self.said.get(trial_id, (began_s, {}))
            if now_s - last_s >= SILENT_S:
                silent.append(_explained(pack, now_s - last_s, result))
        if silent:
            self.explained_s = now_s
            for line in [*silent, resources()]:
                self.console.print(f"[yellow]{line}[/yellow]")

    def _look_at_nodes(self) -> None:
        self.searcher.look_at_nodes()
        num_nodes, num_slots = len(self.searcher.nodes), self.searcher.walk.num_slots
        if num_nodes != self.num_nodes:
            self.console.print(
                f"the cluster has {num_nodes} node(s) now, where {self.num_nodes} were: {num_slots} pack(s) at a time"
            )
            self.num_nodes = num_nodes
        if self.grows and (wanted := self.searcher.wanted()) != self.asked:
            self.asked = wanted
            cluster.ask_for(wanted)

    def close(self) -> None:
        """Take back what was asked of an autoscaler."""
        if self.asked:
            cluster.ask_for([])


def _explained(pack: Pack, silent_s: float, result: dict[str, Any]) -> str:
    if not result:
        return f"{pack.name} has waited {duration(silent_s)} for {cluster.needs(pack.execution)}, or for them to start"
    at = f", at step {result['step']} of {result['num_steps']}" if "step" in result else ""
    return f"{pack.name} has said nothing for {duration(silent_s)}; its last word was of Fit {result['key'][:12]}{at}"


def resources() -> str:
    """What the cluster has, what of it is free, and what waits for a place."""
    import ray
    from ray.util import placement_group_table

    def shown(amounts: dict[str, float]) -> str:
        return ", ".join(f"{amounts.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))

    waiting = [
        " + ".join(shown(bundle) for bundle in group["bundles"].values())
        for group in placement_group_table().values()
        if group["state"] == "PENDING"
    ]
    there = f"the cluster has {shown(ray.cluster_resources())}, of which {shown(ray.available_resources())} are free"
    return f"{there}; {len(waiting)} group(s) of workers wait for a place{': ' + '; '.join(waiting) if waiting else ''}"
