"""The options that `w2s run` and `w2s submit` share: what a run may take, what it waits for, and where curves are copied to."""

from __future__ import annotations

from dataclasses import dataclass

from w2s_ray.errors import InputError
from w2s_ray.planning import Plan


@dataclass(frozen=True)
class RunOptions:
    """They change how a study runs, never its results."""

    max_parallel: int | None = None
    """Packs at a time; None runs as many as fit."""
    retry_failed: bool = False
    budget_hours: float | None = None
    """In worker hours."""
    budget_usd: float | None = None
    wait_for_nodes_min: float = 0.0
    track: tuple[str, ...] = ()
    """Names of trackers."""

    def arguments(self) -> list[str]:
        """The same options on the command line of `w2s run`."""
        values = {
            "--max-parallel": self.max_parallel,
            "--budget-hours": self.budget_hours,
            "--budget-usd": self.budget_usd,
            "--wait-for-nodes": self.wait_for_nodes_min or None,
        }
        words = [word for option, value in values.items() if value is not None for word in (option, str(value))]
        words += [word for name in self.track for word in ("--track", name)]
        return [*words, "--retry-failed"] if self.retry_failed else words

    def budget_worker_hours(self, plan: Plan) -> float | None:
        """The smaller of both budgets, or None for no limit. Dollars are converted at the study's price."""
        if self.budget_usd is None:
            return self.budget_hours
        price = plan.study.compute.usd_per_worker_hour
        if not price:
            raise InputError(
                f"--budget-usd: given {self.budget_usd:g}, but {plan.path} names no compute.usd_per_worker_hour to convert "
                "it with; add the price of a worker hour there, or use --budget-hours"
            )
        return min(self.budget_usd / price, self.budget_hours if self.budget_hours is not None else float("inf"))
