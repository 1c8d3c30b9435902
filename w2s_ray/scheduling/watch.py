"""What a run watches beside its progress: the budget, packs that have gone silent, the nodes, and whether it can go on.

Promises:

- A budget counts worker hours, with start-up and waiting included. When it is spent, or when the lease or the store is lost,
  the run stops as on Ctrl-C.
- A pack that has been silent for too long is explained by what it waits for, and again until it goes on.
- An autoscaler is asked for room for what could run now, and for nothing when the run ends.
"""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback
from rich.console import Console

from w2s_ray.cost import duration
from w2s_ray.fit import Execution
from w2s_ray.scheduling import cluster
from w2s_ray.scheduling.packs import Pack
from w2s_ray.scheduling.searcher import DagSearcher

SILENT_S = 300.0
"""A pack that has not reported for this long is explained. Extracting features and large test sets take minutes."""


class BudgetSpent(KeyboardInterrupt):
    """Ends a run as Ctrl-C does."""


class Trouble(KeyboardInterrupt):
    """Ends a run as Ctrl-C does. The message says why it can't go on."""


class Watch(Callback):
    """A Tune callback. Tune calls it in every turn of its loop, also while nothing happens."""

    def __init__(
        self, searcher: DagSearcher, *, budget_worker_hours: float | None, console: Console, may_autoscale: bool
    ) -> None:
        self.searcher = searcher
        self.may_autoscale = may_autoscale
        """Whether the cluster may have an autoscaler, which has to be told what is needed."""
        self.requested: list[Execution] = []
        """The shapes that the autoscaler was last asked for."""
        self.num_nodes = len(searcher.nodes)
        self.budget_s = None if budget_worker_hours is None else budget_worker_hours * 3600
        self.console = console
        self.last_reports: dict[str, tuple[float, dict[str, Any]]] = {}
        """Trial -> when it last reported, and what."""
        self.explained_s = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore, which is never used here."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.last_reports[trial.trial_id] = (time.monotonic(), result)

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if self.budget_s is not None and self.searcher.worker_s >= self.budget_s:
            raise BudgetSpent
        if self.searcher.trouble is not None:
            raise Trouble(str(self.searcher.trouble))
        self._watch_nodes()
        self._explain_silence()

    def _watch_nodes(self) -> None:
        self.searcher.look_at_nodes()
        num_nodes, num_slots = len(self.searcher.nodes), self.searcher.schedule.num_slots
        if num_nodes != self.num_nodes:
            self.console.print(
                f"the cluster now has {num_nodes} node(s) instead of {self.num_nodes}: {num_slots} pack(s) at a time"
            )
            self.num_nodes = num_nodes
        if self.may_autoscale and (wanted := self.searcher.wanted()) != self.requested:
            self.requested = wanted
            cluster.request_room(wanted)

    def _explain_silence(self) -> None:
        now_s = time.monotonic()
        if now_s - self.explained_s < SILENT_S:
            return
        lines = []
        for trial_id, (pack, began_s) in list(self.searcher.packs.items()):
            last_s, result = self.last_reports.get(trial_id, (began_s, {}))
            if now_s - last_s >= SILENT_S:
                lines.append(_explanation(pack, now_s - last_s, result))
        if lines:
            self.explained_s = now_s
            for line in [*lines, resources()]:
                self.console.print(f"[yellow]{line}[/yellow]")

    def close(self) -> None:
        """Ask the autoscaler for nothing any more."""
        if self.requested:
            cluster.request_room([])


def _explanation(pack: Pack, silent_s: float, result: dict[str, Any]) -> str:
    if not result:
        return f"{pack.name} has waited {duration(silent_s)} for {cluster.needs(pack.execution)}, or for them to start"
    step = f", at step {result['step']} of {result['num_steps']}" if "step" in result else ""
    return (
        f"{pack.name} has not reported for {duration(silent_s)}; its last report was on Fit {result['key'][:12]}{step}"
    )


def resources() -> str:
    """What the cluster has, what of it is free, and which groups of workers wait for resources."""
    import ray
    from ray.util import placement_group_table

    def in_words(amounts: dict[str, float]) -> str:
        return ", ".join(f"{amounts.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))

    waiting = [
        " + ".join(in_words(bundle) for bundle in group["bundles"].values())
        for group in placement_group_table().values()
        if group["state"] == "PENDING"
    ]
    total, free = in_words(ray.cluster_resources()), in_words(ray.available_resources())
    groups = f"{len(waiting)} group(s) of workers wait for resources{': ' + '; '.join(waiting) if waiting else ''}"
    return f"the cluster has {total}, of which {free} are free; {groups}"
