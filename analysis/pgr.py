"""PGR over seeds and tasks with 95 % intervals: `python -m analysis.pgr OUT [--out DIR]`.

    PGR = (student - supervisor) / (ceiling - supervisor)        Burns et al. 2023, section 3

The estimate is the ratio of sums over seeds and tasks; the median of the cells' own ratios stands beside it. The interval
is a paired bootstrap: seeds are drawn, then test items, the same ones for supervisor, student and ceiling, so that
numerator and denominator move together; tasks are drawn independently. With one seed an interval holds test noise only,
with a few it still understates the noise between seeds. Where the interval of the gap (ceiling - supervisor) reaches 0, the ratio means
nothing: `gap_too_small` is set and PGR is null.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis import tables

NUM_RESAMPLES = 1000
SEED = 0
SIDES = ("weak", "student", "ceiling")

SCHEMA = {
    "setting": pl.String,
    "task": pl.String,
    "family": pl.String,
    "weak": pl.String,
    "strong": pl.String,
    "method": pl.String,
    "weak_params": pl.Int64,
    "strong_params": pl.Int64,
    **{f"{side}_score{end}": pl.Float64 for side in SIDES for end in ("", "_low", "_high")},
    "gap": pl.Float64,
    "gap_low": pl.Float64,
    "gap_high": pl.Float64,
    "gap_too_small": pl.Boolean,
    "pgr": pl.Float64,
    "pgr_low": pl.Float64,
    "pgr_high": pl.Float64,
    "pgr_median": pl.Float64,
    "num_tasks": pl.Int64,
    "num_seeds": pl.Int64,
    "num_cells": pl.Int64,
    "num_dropped": pl.Int64,
    "reason": pl.String,
}
"""`task` is null where a row is over all tasks. `num_dropped`: cells of the row that have no result."""

PAIR = ["setting", "family", "weak", "strong", "method"]  # two families may share the names of their sizes


def pgr_table(results: pl.DataFrame, predictions: pl.DataFrame, *, num_resamples: int = NUM_RESAMPLES) -> pl.DataFrame:
    """One row for each (setting, task, family, weak, strong, method), and one for each of them over tasks."""
    right = {
        str(key[0]): rows["correct"].to_numpy()
        for key, rows in predictions.sort("key", "id").group_by("key", maintain_order=True)
    }
    samples: dict[tuple[Any, ...], np.ndarray] = {}
    done = results.filter(pl.col("status") == "done")
    for (task,), cells in done.group_by("task", maintain_order=True):
        scores = _resample_items(cells, right, task=str(task), num_resamples=num_resamples)
        for pair, seeds in cells.group_by(PAIR, maintain_order=True):
            samples[*pair, task] = _resample_seeds(seeds, scores, task=str(task))
    rows = []
    for pair, cells in results.group_by(PAIR, maintain_order=True):
        of_tasks = []
        for (task,), seeds in cells.group_by("task", maintain_order=True):
            sample = [samples[*pair, task]] if (*pair, task) in samples else []
            rows.append(_row(seeds, sample, task=str(task)))
            of_tasks += sample
        rows.append(_row(cells, of_tasks, task=None))
    return pl.DataFrame(rows, schema=SCHEMA)


def _resample_items(
    cells: pl.DataFrame, right: dict[str, np.ndarray], *, task: str, num_resamples: int
) -> dict[str, np.ndarray]:
    """Key -> [1 + resamples] scores of a task's Fits, the score itself first. All Fits see the same drawn items."""
    draws: dict[int, np.ndarray] = {}
    scores = {}
    for key in pl.concat([cells[f"{side}_key"].alias("key") for side in SIDES]).unique(maintain_order=True):
        if key not in right:
            raise tables.TableError(f"no predictions of Fit {key}: results and predictions are not of one `w2s report`")
        num_items = len(right[key])
        if num_items not in draws:
            shares = np.full(num_items, 1 / num_items)
            draws[num_items] = _rng(task, "items").multinomial(num_items, shares, num_resamples).astype(np.float32)
        resampled = draws[num_items] @ right[key].astype(np.float32) / num_items
        scores[key] = np.concatenate([[right[key].mean()], resampled])
    return scores


def _resample_seeds(cells: pl.DataFrame, scores: dict[str, np.ndarray], *, task: str) -> np.ndarray:
    """[side, 1 + resamples] scores of one pair on one task over its seeds, the score itself first."""
    by_seed = np.stack([np.stack([scores[key] for key in cells[f"{side}_key"]]) for side in SIDES])
    num_seeds, num_resamples = by_seed.shape[1], by_seed.shape[2] - 1
    weights = np.full((1 + num_resamples, num_seeds), 1 / num_seeds)
    weights[1:] = _rng(task, "seeds").multinomial(num_seeds, weights[0], num_resamples) / num_seeds
    return np.einsum("skr,rk->sr", by_seed, weights)


def _rng(task: str, purpose: str) -> np.random.Generator:
    """The same draws for all pairs of a task, other ones for every task."""
    return np.random.default_rng([SEED, zlib.crc32(f"{purpose} {task}".encode())])


def _row(cells: pl.DataFrame, samples: list[np.ndarray], *, task: str | None) -> dict[str, Any]:
    done = cells.filter(pl.col("status") == "done")
    row: dict[str, Any] = dict.fromkeys(SCHEMA) | {
        **{name: cells[name][0] for name in (*PAIR, "weak_params", "strong_params")},
        "task": task,
        "num_tasks": done["task"].n_unique(),
        "num_seeds": done["seed"].n_unique(),
        "num_cells": done.height,
        "num_dropped": cells.height - done.height,
    }
    if not samples:
        row["reason"] = "no cell has a result"
        return row
    if done.select("task", "seed").is_duplicated().any():
        row["reason"] = "several cells of one seed: grids that differ in split or training only can't be pooled"
        return row
    scores = np.mean(samples, axis=0)  # [side, 1 + resamples], equal weight to every task
    for side, values in zip(SIDES, scores, strict=True):
        row[f"{side}_score"], row[f"{side}_score_low"], row[f"{side}_score_high"] = _interval(values)
    weak, student, ceiling = scores
    gap = ceiling - weak
    row["gap"], row["gap_low"], row["gap_high"] = _interval(gap)
    row["gap_too_small"] = bool(row["gap_low"] <= 0)
    row["pgr_median"] = done["pgr"].median()
    if row["gap_too_small"]:
        row["reason"] = "gap_too_small: the ceiling is not clearly above the supervisor"
        return row
    with np.errstate(divide="ignore", invalid="ignore"):
        row["pgr"], row["pgr_low"], row["pgr_high"] = _interval((student - weak) / gap)
    return row


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """The estimate and its 95 % percentile interval."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description="PGR with 95 % intervals from a study's tables; writes pgr.parquet.")
    parser.add_argument("results", type=Path, metavar="OUT", help="folder of results.parquet, or that file itself")
    parser.add_argument("--out", type=Path, help="folder for pgr.parquet; default beside the results")
    parser.add_argument("--resamples", type=int, default=NUM_RESAMPLES, help=f"default {NUM_RESAMPLES}")
    options = parser.parse_args()
    beside = options.results.parent if options.results.suffix == ".parquet" else options.results
    try:
        table = pgr_table(*tables.read_both(options.results), num_resamples=options.resamples)
        tables.write(table, (options.out or beside) / "pgr.parquet")
    except (tables.TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160):
        print(table.select(*PAIR, "task", "gap", "pgr", "pgr_low", "pgr_high", "num_seeds", "reason"))


if __name__ == "__main__":
    main()
