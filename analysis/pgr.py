"""PGR over seeds and tasks with 95 % intervals: `python -m w2s_ray.analysis.pgr OUT [--out DIR]`. Writes pgr.parquet and methods.csv.

    PGR             = (student - supervisor) / (ceiling - supervisor)        Burns et al. 2023, section 3
    PGR above floor = (student - floor) / (ceiling - floor)
    gain            = student - supervisor

The floor is the best of the supervisor, the untrained model (zero-shot) and a student of shuffled labels: what a student could
reach without learning anything from its supervisor. Estimates are ratios of means over replicates and tasks. Intervals come
from `w2s_ray.analysis.intervals`. Where the interval of a denominator reaches 0, the ratio means nothing: it is null, and `reason`
says why.

In rows that pool tasks the intervals are those of a mean over these very tasks. `pgr_median` is the median over tasks of
their PGR, with the interval for these tasks, and `pgr_new_tasks_*` is the interval for the median over tasks like them: there,
tasks are drawn too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from w2s_ray.analysis import controls, tables
from w2s_ray.analysis.bootstrap import (
    CONTROL_ARMS,
    FLOOR,
    GAIN,
    GAP,
    PAIR,
    SEED,
    SIDES,
    Sample,
    interval,
    moments,
    run_script,
)
from w2s_ray.analysis.cells import is_control
from w2s_ray.analysis.intervals import Interval, Noise
from w2s_ray.analysis.methods import method_table

ENDS = ("", "_low", "_high")
MIN_TASKS = 6
"""With fewer tasks, no two of them enclose the median over all tasks with a probability of 95 %: 2 / 2^5 > 0.05."""
NAMES = {"weak": "supervisor", "zero_shot": "zero-shot", "shuffled": "shuffled"}

SCHEMA = {
    "setting": pl.String,
    "task": pl.String,
    "family": pl.String,
    "weak": pl.String,
    "strong": pl.String,
    "method": pl.String,
    "weak_params": pl.Int64,
    "strong_params": pl.Int64,
    **{f"{arm}_score{end}": pl.Float64 for arm in (*SIDES, *CONTROL_ARMS) for end in ENDS},
    **{f"gain{end}": pl.Float64 for end in ENDS},
    **{f"gap{end}": pl.Float64 for end in ENDS},
    "gap_too_small": pl.Boolean,
    **{f"pgr{end}": pl.Float64 for end in ENDS},
    **{f"floor{end}": pl.Float64 for end in ENDS},
    "floor_of": pl.String,
    **{f"pgr_above_floor{end}": pl.Float64 for end in ENDS},
    "no_headroom": pl.Boolean,
    "above_untrained": pl.Boolean,
    "label_sensitive": pl.Boolean,
    "controls_reason": pl.String,
    **{f"pgr_median{end}": pl.Float64 for end in ENDS},
    "pgr_new_tasks_low": pl.Float64,
    "pgr_new_tasks_high": pl.Float64,
    "num_left_out": pl.Int64,
    "num_tasks": pl.Int64,
    "num_seeds": pl.Int64,
    "num_groups": pl.Float64,
    "num_cells": pl.Int64,
    "num_dropped": pl.Int64,
    "noise": pl.String,
    "reason": pl.String,
}
"""`task` is null in rows that pool all tasks.

`floor_of`: the models of which the floor is the best. `no_headroom`: the ceiling is not clearly above the untrained model.
`above_untrained`: the student is clearly above it. `label_sensitive`: a student of shuffled labels is clearly below this one.
`controls_reason`: in words, which control fails or is missing. `pgr_median`: null where `pgr` is. `num_left_out`: how many cells `pgr_median` leaves out, because their gap (or that of their task) is too small.
`num_groups`: effective number of groups of test items. `num_dropped`: cells that have no result. `noise`: what the intervals
hold. `reason`: why a value is null."""


def pgr_table(samples: list[Sample]) -> pl.DataFrame:
    """One row for each (setting, task, family, weak, strong, method), and one for each such pair and method over tasks."""
    rows: list[dict[str, Any]] = []
    of_tasks: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for sample in samples:
        row = _row(sample)
        pair = tuple(row[name] for name in PAIR)
        if sample.task is None:
            pooled = {part.task for part in sample.parts}
            _pool_controls(row, [other for other in of_tasks.get(pair, []) if other["task"] in pooled])
        else:
            of_tasks.setdefault(pair, []).append(row)
        rows.append(row)
    return pl.DataFrame(rows, schema=SCHEMA)


def pgr_difference(a: Sample, b: Sample) -> Interval:
    """PGR of `b` minus that of `a`, with its paired interval: to first order in the noise, of which both gaps must be clear."""
    both = moments([a, b], arms=SIDES)
    mean = dict(zip(both.arms, both.mean.tolist(), strict=True))
    (pgr_a, slope_a), (pgr_b, slope_b) = (_pgr_and_slope(mean, i) for i in (0, 1))
    difference = pgr_b - pgr_a
    _, low, high = both.interval({name: -weight for name, weight in slope_a.items()} | slope_b)  # of a sum that is 0
    return difference, None if low is None else difference + low, None if high is None else difference + high


def _pgr_and_slope(mean: dict[str, float], i: int) -> tuple[float, dict[str, float]]:
    """PGR of the i-th of several samples, and how much it changes with each of its scores."""
    weak, student, ceiling = (mean[f"{i}.{side}"] for side in SIDES)
    gap = ceiling - weak
    pgr = (student - weak) / gap
    return pgr, {f"{i}.weak": (pgr - 1) / gap, f"{i}.student": 1 / gap, f"{i}.ceiling": -pgr / gap}


def measured_noise(samples: list[Sample]) -> dict[str, Noise]:
    """Task -> the mean noise of its pairs, as far as pairs of different sizes have several replicates."""
    contrast = {"student": 1.0, "weak": -0.5, "ceiling": -0.5}
    by_task: dict[str, list[tuple[float, float, float]]] = {}
    for sample in samples:
        if sample.task is None or sample.moments is None or sample.moments.num_replicates < 2:
            continue
        first = sample.cells.row(0, named=True)
        if first["weak"] == first["strong"] or is_control(first["method"]):
            continue
        [part] = sample.parts
        single = [moments([replace(sample, parts=(part.of_seeds({seed}),))]) for seed in part.seeds]
        num_items = float(sample.done["n_test"][0])
        items, replicates = sample.moments.variances(contrast)
        by_task.setdefault(sample.task, []).append(
            (
                items * num_items,
                replicates * len(part.seeds),
                float(np.mean([one.variances(contrast)[0] for one in single])) * num_items,
            )
        )
    return {task: Noise(*np.mean(rows, axis=0).tolist()) for task, rows in by_task.items()}


def _row(sample: Sample) -> dict[str, Any]:
    cells, done = sample.cells, sample.done
    row: dict[str, Any] = dict.fromkeys(SCHEMA) | {
        **{name: cells[name][0] for name in (*PAIR, "weak_params", "strong_params")},
        "task": sample.task,
        "num_tasks": done["task"].n_unique(),
        "num_seeds": done["seed"].n_unique(),
        "num_cells": done.height,
        "num_dropped": cells.height - done.height,
        "reason": sample.reason,
    }
    moments = sample.moments
    if moments is None:
        return row
    for arm in (*SIDES, *CONTROL_ARMS):
        if arm in moments.arms:
            row |= _columns(f"{arm}_score", moments.interval({arm: 1}))
    row |= _columns("gain", moments.interval(GAIN)) | _columns("gap", moments.interval(GAP))
    row["gap_too_small"] = sample.gap_too_small
    row["num_groups"] = moments.num_groups
    num_seeds = moments.num_replicates
    row["noise"] = f"test items and {num_seeds} replicates" if num_seeds > 1 else "test items only: one replicate"
    row |= _median(sample)
    reasons = []
    if row["gap_too_small"]:
        reasons.append(f"gap_too_small: the ceiling is not clearly above the supervisor{_few(sample, GAP)}")
        row |= dict.fromkeys(f"pgr_median{end}" for end in ENDS) | {
            "pgr_new_tasks_low": None,
            "pgr_new_tasks_high": None,
        }
    else:
        row |= _columns("pgr", moments.ratio(GAIN, GAP))
    if "floor" in moments.arms:
        row |= _columns("floor", moments.interval({"floor": 1}))
        row["floor_of"] = ", ".join(NAMES[arm] for arm in FLOOR if any(arm in part.rows for part in sample.parts))
        above = {"ceiling": 1.0, "floor": -1.0}
        if moments.is_clear(above):
            row |= _columns("pgr_above_floor", moments.ratio({"student": 1, "floor": -1}, above))
        elif not row["gap_too_small"]:
            reasons.append(f"no pgr_above_floor: the ceiling is not clearly above the floor{_few(sample, above)}")
    row["reason"] = "; ".join(reasons) or None
    return row | _controls(sample)


def _columns(name: str, values: tuple[float, float | None, float | None]) -> dict[str, Any]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _few(sample: Sample, contrast: dict[str, float]) -> str:
    """What to add to "not clearly above" where only the small number of replicates leaves it open."""
    assert sample.moments is not None
    return (
        f" with {sample.moments.num_replicates} replicates; more seeds may tell"
        if _seems_clear(sample, contrast)
        else ""
    )


def _seems_clear(sample: Sample, contrast: dict[str, float]) -> bool:
    """Whether a weighted sum is two standard errors above 0, however few replicates these come from."""
    assert sample.moments is not None
    return replace(sample.moments, num_replicates=1).is_clear(contrast)


def _median(sample: Sample) -> dict[str, Any]:
    """The columns of the median: over cells in the row of a task, over tasks in a row that pools them."""
    if sample.task is not None:
        of_cells = sample.done["pgr"]
        return {"pgr_median": of_cells.median(), "num_left_out": of_cells.null_count()}
    tasks = sample.by_task
    usable = [task for task in tasks if not task.gap_too_small]
    columns: dict[str, Any] = {"num_left_out": sum(task.done.height for task in tasks if task.gap_too_small)}
    if not usable:
        return columns
    ratios = np.stack([task.pgr for task in usable])
    columns |= _columns("pgr_median", interval(np.median(ratios, axis=0)))
    if len(usable) >= MIN_TASKS:
        drawn = np.random.default_rng(SEED).integers(len(usable), size=ratios.shape)
        drawn[:, 0] = np.arange(len(usable))
        _, low, high = interval(np.median(np.take_along_axis(ratios, drawn, axis=0), axis=0))
        columns |= {"pgr_new_tasks_low": low, "pgr_new_tasks_high": high}
    return columns


# --- controls -----------------------------------------------------------------------------------------------------


def _controls(sample: Sample) -> dict[str, Any]:
    """The flags of a sample's controls, and in words what they forbid to conclude. Sentences are separated by ". "."""
    moments = sample.moments
    assert moments is not None
    no_headroom = above_untrained = label_sensitive = None
    reasons = []
    if "zero_shot" in moments.arms:
        headroom = {"ceiling": 1.0, "zero_shot": -1.0}
        no_headroom = not moments.is_clear(headroom)
        if no_headroom and _seems_clear(sample, headroom):
            reasons.append(
                f"with {moments.num_replicates} replicates it is not clear that the ceiling is above the untrained model"
            )
        elif no_headroom:
            reasons.append(
                "the untrained model does as well as the ceiling; its PGR does not measure what supervision adds"
            )
        lead = {"student": 1.0, "zero_shot": -1.0}
        above_untrained = moments.is_clear(lead)
        if not above_untrained and not no_headroom and _seems_clear(sample, lead):
            reasons.append(
                f"with {moments.num_replicates} replicates it is not clear that the student is above the untrained model"
            )
        elif not above_untrained and not no_headroom:
            reasons.append(
                "the untrained model does as well as the student; its PGR does not measure what the supervisor's labels taught"
            )
    if "shuffled" in moments.arms:
        lead = {"student": 1.0, "shuffled": -1.0}
        label_sensitive = moments.is_clear(lead)
        if not label_sensitive and _seems_clear(sample, lead):
            reasons.append(
                f"with {moments.num_replicates} replicates it is not clear that the supervisor's labels do better than shuffled ones"
            )
        elif not label_sensitive:
            reasons.append("shuffled labels do as well as the supervisor's; its PGR does not measure generalization")
    if not any(arm in moments.arms for arm in CONTROL_ARMS):
        wanted = "controls" in sample.cells.columns and sample.cells["controls"].fill_null(False).all()
        reasons.append(
            "its controls have no result yet, so nothing vouches for its PGR"
            if wanted
            else "the study has no controls, so nothing vouches for its PGR"
        )
    return {
        "no_headroom": no_headroom,
        "above_untrained": above_untrained,
        "label_sensitive": label_sensitive,
        "controls_reason": ". ".join(reasons) or None,
    }


def _pool_controls(row: dict[str, Any], of_tasks: list[dict[str, Any]]) -> None:
    """The flags of a row that pools tasks: a control that fails on one of them fails here."""
    for flag, failing in (("no_headroom", True), ("above_untrained", False), ("label_sensitive", False)):
        flags = [other[flag] for other in of_tasks]
        row[flag] = failing if failing in flags else None if None in flags or not flags else not failing
    reasons = [f"{other['task']}: {other['controls_reason']}" for other in of_tasks if other["controls_reason"]]
    row["controls_reason"] = ". ".join(reasons) or None


def _write(samples: list[Sample], folder: Path) -> None:
    table = pgr_table(samples)
    tables.write(table, folder / "pgr.parquet")
    method_table(samples).write_csv(folder / "methods.csv")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160):
        print(table.select(*PAIR, "task", "gap", "pgr", "pgr_low", "pgr_high", "num_seeds", "reason"))
    for place, verdict in controls.verdicts(table).items():
        print(f"{place.task}, {place.family}: {verdict}")


if __name__ == "__main__":
    run_script("PGR with 95 % intervals from a study's tables; writes pgr.parquet and methods.csv.", _write)
