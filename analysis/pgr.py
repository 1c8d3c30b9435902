"""PGR over seeds and tasks with 95 % intervals: `python -m analysis.pgr OUT [--resamples N]`.

    PGR = (student - supervisor) / (ceiling - supervisor)        Burns et al. 2023, section 3

The estimate is the ratio of sums over seeds and tasks; the median of the cells' own ratios stands beside it. The interval
is a paired bootstrap: seeds are drawn, then test items, the same ones for supervisor, student and ceiling, so that
numerator and denominator move together. Where the interval of the gap (ceiling - supervisor) reaches 0, the ratio means
nothing: `gap_too_small` is set and PGR is null.
"""

from __future__ import annotations

import argparse
import sys
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

PAIR = ["setting", "weak", "strong", "method"]


def pgr_table(results: pl.DataFrame, predictions: pl.DataFrame, *, num_resamples: int = NUM_RESAMPLES) -> pl.DataFrame:
    """One row for each (setting, task, weak, strong, method), and one for each of them over tasks."""
    right = {
        str(key[0]): (rows["probability"].to_numpy() > 0.5) == (rows["label"].to_numpy() == 1)
        for key, rows in predictions.sort("key", "id").group_by("key", maintain_order=True)
    }
    draws: dict[str, np.ndarray] = {}
    rows = []
    for _, pair in results.group_by(PAIR, maintain_order=True):
        samples = {}
        for (task,), cells in pair.group_by("task", maintain_order=True):
            samples[str(task)] = _sample(cells, right, draws=draws, num_resamples=num_resamples)
            rows.append(_row(cells, [samples[str(task)]], task=str(task)))
        rows.append(_row(pair, list(samples.values()), task=None))
    return pl.DataFrame(rows, schema=SCHEMA)


def _sample(
    cells: pl.DataFrame, right: dict[str, np.ndarray], *, draws: dict[str, np.ndarray], num_resamples: int
) -> np.ndarray | None:
    """[side, 1 + resamples] scores over the seeds of one task; the first column is the score itself."""
    done = cells.filter(pl.col("status") == "done")
    if done.is_empty():
        return None
    correct = np.stack([np.stack([right[key] for key in done[f"{side}_key"]]) for side in SIDES]).astype(
        np.float32
    )  # [side, seed, item]
    num_seeds, num_items = correct.shape[1:]
    task = f"{cells['task'][0]} {num_items}"
    if task not in draws:  # the same items are drawn for all pairs of a task
        items = np.random.default_rng(SEED).multinomial(num_items, np.full(num_items, 1 / num_items), num_resamples)
        draws[task] = items.astype(np.float32)
    seeds = np.random.default_rng(SEED + 1).multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples)
    by_seed = correct @ draws[task].T / num_items  # [side, seed, resample]
    resampled = np.einsum("srk,kr->sk", by_seed, seeds / num_seeds)
    return np.concatenate([correct.mean(axis=(1, 2), dtype=np.float64)[:, None], resampled], axis=1)


def _row(cells: pl.DataFrame, samples: list[np.ndarray | None], *, task: str | None) -> dict[str, Any]:
    done = cells.filter(pl.col("status") == "done")
    row: dict[str, Any] = dict.fromkeys(SCHEMA) | {
        **{name: cells[name][0] for name in (*PAIR, "weak_params", "strong_params")},
        "task": task,
        "num_tasks": done["task"].n_unique(),
        "num_seeds": done["seed"].n_unique(),
        "num_cells": done.height,
        "num_dropped": cells.height - done.height,
    }
    usable = [sample for sample in samples if sample is not None]
    if not usable:
        row["reason"] = "no cell has a result"
        return row
    scores = np.mean(usable, axis=0)  # [side, 1 + resamples], equal weight to every task
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
    parser.add_argument("out", type=Path, metavar="OUT", help="folder with results.parquet and predictions.parquet")
    parser.add_argument("--resamples", type=int, default=NUM_RESAMPLES, help=f"default {NUM_RESAMPLES}")
    options = parser.parse_args()
    try:
        table = pgr_table(
            tables.read_results(options.out),
            tables.read_predictions(options.out),
            num_resamples=options.resamples,
        )
    except tables.TableError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    tables.write(table, options.out / "pgr.parquet")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160):
        print(table.select(*PAIR, "task", "gap", "pgr", "pgr_low", "pgr_high", "num_seeds", "reason"))


if __name__ == "__main__":
    main()
