"""What a run keeps an eye on beside its work: a budget that it must not pass, and packs that say nothing for too long.

Promises: a budget is worker hours, start-up and waiting for other workers included; when it is spent the run stops in good
order, as on Ctrl-C. Silence is explained, by what a pack waits for, again and again until it ends.
"""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback
from rich.console import Console

from w2s_ray.plan import duration
from w2s_ray.scheduling.packs import Pack
from w2s_ray.scheduling.searcher import DagSearcher

SILENT_S = 300.0
"""A pack that has said nothing for so long is explained. Extracting features and large test sets take their time."""


class BudgetSpent(KeyboardInterrupt):
    """Ends a run as Ctrl-C does."""


class Watch(Callback):
    """A Tune callback: Tune calls it in every turn of its loop, also while nothing happens."""

    def __init__(self, searcher: DagSearcher, *, budget_worker_hours: float | None, console: Console) -> None:
        self.searcher = searcher
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


def _explained(pack: Pack, silent_s: float, result: dict[str, Any]) -> str:
    shape = pack.execution
    if not result:
        return (
            f"{pack.name} has waited {duration(silent_s)} for {shape.workers} worker(s) of {shape.cpus_per_worker} CPU(s) "
            f"and {shape.gpus_per_worker:g} GPU(s) each, or for them to start"
        )
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
