"""Which methods do better than naive students within one study: paired differences, corrected for how many methods were tried.

Both students of a pair have the same supervisor, ceiling, halves and test items in each replicate, so their difference is known
much better than either score. Whoever tries ten methods finds one with p < 0.05 by chance in four studies of ten: `p_holm` is
adjusted for that (Holm 1979), over the methods of a pair on a task.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl

from w2s_ray.analysis.bootstrap import Sample, moments
from w2s_ray.analysis.cells import is_control

NAIVE = "naive"
GROUP = ["setting", "task", "family", "weak", "strong"]
SCHEMA = {
    **dict.fromkeys([*GROUP, "method"], pl.String),
    "difference": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "p_value": pl.Float64,
    "p_holm": pl.Float64,
    "num_methods": pl.Int64,
    "num_seeds": pl.Int64,
    "reason": pl.String,
}
"""`difference`: score of the method's students minus that of naive ones, over the replicates that both have. `task` is null in
rows that pool all tasks. `num_methods`: how many p-values the adjustment counts."""


def method_table(samples: list[Sample]) -> pl.DataFrame:
    """One row for each method other than naive, for each pair and task. Controls are left out."""
    groups: dict[tuple[Any, ...], dict[str, Sample]] = {}
    for sample in samples:
        first = sample.cells.row(0, named=True) | {"task": sample.task}
        groups.setdefault(tuple(first[name] for name in GROUP), {})[first["method"]] = sample
    rows = []
    for key, by_method in groups.items():
        if NAIVE not in by_method:
            continue
        tried = [method for method in by_method if method != NAIVE and not is_control(method)]
        group = [
            dict.fromkeys(SCHEMA)
            | dict(zip(GROUP, key, strict=True))
            | {"method": method}
            | _difference(by_method[method], by_method[NAIVE])
            for method in tried
        ]
        _adjust(group)
        rows += group
    return pl.DataFrame(rows, schema=SCHEMA)


def _difference(sample: Sample, naive: Sample) -> dict[str, Any]:
    sample, naive = _common(sample, naive), _common(naive, sample)
    if not sample.parts or not naive.parts:
        return {"reason": "no replicate has a result for both"}
    both = moments([sample, naive], arms=["student"])
    contrast = {"0.student": 1.0, "1.student": -1.0}
    value, low, high = both.interval(contrast)
    return {
        "difference": value,
        "difference_low": low,
        "difference_high": high,
        "p_value": both.p_value(contrast),
        "num_seeds": both.num_replicates,
        "reason": "one replicate: the interval holds the noise of the test items only"
        if both.num_replicates == 1
        else None,
    }


def _common(sample: Sample, other: Sample) -> Sample:
    """A sample with the tasks and seeds that another one has as well."""
    seeds = {part.task: set(part.seeds) for part in other.parts}
    parts = [part.of_seeds(seeds.get(part.task, set())) for part in sample.parts]
    return replace(sample, parts=tuple(part for part in parts if part.seeds))


def _adjust(rows: list[dict[str, Any]]) -> None:
    """Holm's step-down adjustment of the rows' p-values."""
    ranked = sorted((row for row in rows if row["p_value"] is not None), key=lambda row: row["p_value"])
    highest = 0.0
    for i, row in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - i) * row["p_value"]))
        row |= {"p_holm": highest, "num_methods": len(ranked)}
