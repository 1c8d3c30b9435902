"""The scores of a study, resampled by a paired bootstrap for 95 % intervals.

A resample draws seeds and test items with replacement. All models of a task see the same drawn seeds and items, so
supervisor, student and ceiling vary together, and so do pairs and methods. A difference or ratio of their scores thus has
an interval that takes their correlation into account. Tasks are drawn independently of one another.

What an interval leaves out: with one seed it holds the noise of the test set only. With a few seeds it still understates
the noise between seeds. The noise of the split into halves, which all cells of a grid share, is never in it.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis import tables

NUM_RESAMPLES = 2000
SEED = 20231214
SIDES = ("weak", "student", "ceiling")
PAIR = ["setting", "family", "weak", "strong", "method"]
"""What tells one pair under one method from another. Two families may use the same names for their sizes."""
MAX_DRAWN_ITEMS = 2**26
"""How many drawn items are held in memory at a time."""


@dataclass(frozen=True)
class Sample:
    """One pair under one method, on one task or pooled over tasks."""

    cells: pl.DataFrame
    """Rows of results.parquet, with and without a result."""
    task: str | None
    """None if pooled over all tasks, which then have equal weights."""
    scores: np.ndarray | None
    """[side, 1 + num_resamples]; the first column holds the scores themselves. None if `reason` says why there are none."""
    reason: str | None

    @property
    def done(self) -> pl.DataFrame:
        return self.cells.filter(pl.col("status") == "done")

    @property
    def pgr(self) -> np.ndarray:
        """[1 + num_resamples] of PGR = (student - supervisor) / (ceiling - supervisor)."""
        assert self.scores is not None
        weak, student, ceiling = self.scores
        with np.errstate(divide="ignore", invalid="ignore"):
            return (student - weak) / (ceiling - weak)

    @property
    def gap(self) -> np.ndarray:
        """[1 + num_resamples] of ceiling - supervisor."""
        assert self.scores is not None
        return self.scores[2] - self.scores[0]

    @property
    def gap_too_small(self) -> bool:
        """Whether the interval of the gap reaches 0. PGR, which divides by the gap, then means nothing."""
        return bool(interval(self.gap)[1] <= 0)


def interval(values: np.ndarray) -> tuple[float, Any, Any]:
    """(estimate, low, high) with a 95 % percentile interval. An end that is not finite is None, such as a ratio
    over gaps of 0.
    """
    with np.errstate(invalid="ignore"):
        ends = np.nanpercentile(values[1:], [2.5, 97.5])
    low, high = (float(end) if np.isfinite(end) else None for end in ends)
    return float(values[0]), low, high


VARIANT_SUFFIX = ")"
"""Ends the name of a task to which a grid added its label, such as `chess-mate (easy)`. Such a variant is reported by itself
and never pooled with the task that it varies."""


def resample(results: pl.DataFrame, predictions: pl.DataFrame, *, num_resamples: int = NUM_RESAMPLES) -> list[Sample]:
    """A sample for every pair on every task, in the order of the results. The last sample of each pair pools its tasks, apart
    from variants."""
    by_pair: dict[tuple[Any, ...], np.ndarray] = {}
    done = results.filter(pl.col("status") == "done")
    for (task,), cells in done.group_by("task", maintain_order=True):
        scores = _resample_items(cells, predictions, task=str(task), num_resamples=num_resamples)
        for pair, seeds in cells.group_by(PAIR, maintain_order=True):
            by_pair[*pair, task] = _resample_seeds(seeds, scores, task=str(task))
    samples = []
    for pair, cells in results.group_by(PAIR, maintain_order=True):
        task_scores = []
        for (task,), seeds in cells.group_by("task", maintain_order=True):
            sample = _sample(seeds, str(task), [by_pair[*pair, task]] if (*pair, task) in by_pair else [])
            samples.append(sample)
            if sample.scores is not None and not str(task).endswith(VARIANT_SUFFIX):
                task_scores.append(sample.scores)
        pooled = cells.filter(~pl.col("task").str.ends_with(VARIANT_SUFFIX))
        if pooled.height:
            samples.append(_sample(pooled, None, task_scores))
    return samples


def _sample(cells: pl.DataFrame, task: str | None, scores: list[np.ndarray]) -> Sample:
    done = cells.filter(pl.col("status") == "done")
    if done.select("task", "seed").is_duplicated().any():
        reason = "several cells of one seed: grids that differ in split or training only can't be pooled"
        return Sample(cells, task, None, reason)
    if not scores:
        return Sample(cells, task, None, "no cell has a result")
    return Sample(cells, task, np.mean(scores, axis=0), None)


def _resample_items(
    cells: pl.DataFrame, predictions: pl.DataFrame, *, task: str, num_resamples: int
) -> dict[str, np.ndarray]:
    """Key -> [1 + num_resamples] scores of a task's Fits, the score itself first. All Fits see the same drawn items."""
    keys = pl.concat([cells[f"{side}_key"].alias("key") for side in SIDES]).unique(maintain_order=True)
    scores: dict[str, np.ndarray] = {}
    for fit_keys, correct in _correct_answers(predictions, keys):
        num_items = correct.shape[1]
        parts = [correct.mean(axis=1, dtype=np.float64)[None]]
        num_at_once = max(1, MAX_DRAWN_ITEMS // num_items)  # a full matrix of resamples x items may not fit in memory
        for first in range(0, num_resamples, num_at_once):
            draws = _draws(task, first, num_items, min(num_at_once, num_resamples - first))
            parts.append((draws @ correct.T).astype(np.float64) / num_items)
        scores |= dict(zip(fit_keys, np.concatenate(parts).T, strict=True))
    for key in keys:
        if key not in scores:
            raise tables.TableError(
                f"no predictions of Fit {key}: the results and predictions are not of the same `w2s report`; run it again"
            )
    return scores


@lru_cache(maxsize=2)
def _draws(task: str, first: int, num_items: int, num_draws: int) -> np.ndarray:
    """[draw, item]: how often each item is drawn."""
    shares = np.full(num_items, 1 / num_items)
    return _rng(task, f"items from {first}").multinomial(num_items, shares, num_draws).astype(np.float32)


def _correct_answers(predictions: pl.DataFrame, keys: pl.Series) -> list[tuple[list[str], np.ndarray]]:
    """(keys, [key, item] of 0 and 1) for each size of test set. Items are in the order of their ids."""
    chosen = predictions.filter(pl.col("key").cast(pl.String).is_in(keys.implode()))
    counts = chosen.group_by("key", maintain_order=True).len()
    groups = []
    for (num_items,), group in counts.group_by("len", maintain_order=True):
        names = group["key"].cast(pl.String).to_list()
        rows = chosen.filter(pl.col("key").cast(pl.String).is_in(names)) if len(names) < counts.height else chosen
        rows = rows.sort("key", maintain_order=True) if not rows["key"].cast(pl.String).is_sorted() else rows
        ids = rows["id"].hash().to_numpy().reshape(len(names), num_items)
        if not (ids == ids[0]).all() or not rows["id"][:num_items].is_sorted():
            rows = rows.sort(pl.col("key").cast(pl.String), "id")
        correct = rows["correct"].to_numpy().reshape(len(names), num_items).astype(np.float32)
        order = rows["key"].cast(pl.String).gather_every(num_items).to_list()
        groups.append((order, correct))
    return groups


def _resample_seeds(cells: pl.DataFrame, scores: dict[str, np.ndarray], *, task: str) -> np.ndarray:
    """[side, 1 + num_resamples] scores of one pair on one task over its seeds, the score itself first."""
    by_seed = np.stack([np.stack([scores[key] for key in cells[f"{side}_key"]]) for side in SIDES])
    num_seeds, num_resamples = by_seed.shape[1], by_seed.shape[2] - 1
    weights = np.full((1 + num_resamples, num_seeds), 1 / num_seeds)
    weights[1:] = _rng(task, "seeds").multinomial(num_seeds, weights[0], num_resamples) / num_seeds
    return np.einsum("skr,rk->sr", by_seed, weights)


def _rng(task: str, purpose: str) -> np.random.Generator:
    """A generator with the same draws for all pairs of a task, and with different draws for each task."""
    return np.random.default_rng([SEED, zlib.crc32(f"{purpose} {task}".encode())])


def run_script(description: str, work: Callable[[list[Sample], Path], None]) -> None:
    """The command line of a script. `work` takes the samples of a study and the folder to write to."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("results", type=Path, metavar="OUT", help="folder of results.parquet, or that file itself")
    parser.add_argument("--out", type=Path, help="folder to write the tables to; by default that of the results")
    parser.add_argument(
        "--resamples", type=int, default=NUM_RESAMPLES, help=f"number of resamples, by default {NUM_RESAMPLES}"
    )
    options = parser.parse_args()
    folder = options.results.parent if options.results.suffix == ".parquet" else options.results
    try:
        work(resample(*tables.read_study(options.results), num_resamples=options.resamples), options.out or folder)
    except (tables.TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
