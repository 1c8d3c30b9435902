"""The samples of a study: scores of every pair under every method, with what their noise is made of.

Noise comes from these levels, outermost first: replicate (a seed, with its own halves), task (in rows that pool tasks), group
of test items, item. Replicates share the test items, and supervisor, student, ceiling and controls of a replicate belong
together. Everything here keeps that pairing, so a difference or ratio of scores has an interval that takes the correlations
into account. Items of a group (questions on one text, both sides of a pair) are never told apart by chance: whole groups are
drawn, or each item by itself where the task has no groups.

A sample holds the noise in two forms. `moments` are covariances, from which `w2s_ray.analysis.intervals` makes the intervals of all
tables. `scores` are resampled scores for what has no formula, such as fits of scaling laws: groups of items are drawn with
replacement, and each replicate's deviation from the mean is scaled by a random number. These are made a little too wide
rather than too narrow: they count the item noise that replicates do not share twice.

With one replicate an interval holds the noise of the test set only.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from w2s_ray.analysis import tables
from w2s_ray.analysis.intervals import Moments, critical_value

NUM_RESAMPLES = 2000
SEED = 20231214
SIDES = ("weak", "student", "ceiling")
CONTROL_ARMS = ("zero_shot", "shuffled")
FLOOR = ("weak", *CONTROL_ARMS)
"""The models of which a floor is the best: what is reached without learning anything from the supervisor's labels."""
PAIR = ["setting", "family", "weak", "strong", "method"]
"""What tells one pair under one method from another. Two families may use the same names for their sizes."""
MAX_DRAWN_GROUPS = 2**26
"""How many drawn groups are held in memory at a time."""
GAP = {"ceiling": 1.0, "weak": -1.0}
GAIN = {"student": 1.0, "weak": -1.0}


# --- samples ------------------------------------------------------------------------------------------------------


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
    parts: tuple[Part, ...] = ()
    """The Fits behind the scores, task by task. Empty for scores that do not come from predictions."""

    @property
    def done(self) -> pl.DataFrame:
        return self.cells.filter(pl.col("status") == "done")

    @cached_property
    def moments(self) -> Moments | None:
        return moments([self]) if self.parts else None

    @property
    def by_task(self) -> list[Sample]:
        """A pooled sample's tasks."""
        tasks = ((self.cells.filter(pl.col("task") == part.task), part) for part in self.parts)
        return [Sample(cells, part.task, _resampled(part), None, (part,)) for cells, part in tasks]

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
        """Whether the interval of the gap reaches 0, or is not known. PGR, which divides by the gap, then means nothing."""
        low = self.moments.interval(GAP)[1] if self.moments else interval(self.gap)[1]
        return low is None or low <= 0


@dataclass(frozen=True)
class Panel:
    """All Fits of one task on its test set, summed up by groups of test items."""

    index: dict[str, int]
    """Key -> its row below."""
    mean: np.ndarray
    """[key] scores."""
    influence: np.ndarray
    """[key, group]: by how much each group moves the score, sum over its items of (correct - score) / number of items."""
    groups: np.ndarray
    """[group] hashes of the groups' names."""
    weights: np.ndarray
    """[group] shares of the test set."""
    scores: np.ndarray
    """[key, 1 + num_resamples]"""


@dataclass(frozen=True)
class Part:
    """The Fits of one pair and method on one task, replicate by replicate."""

    task: str
    panel: Panel
    seeds: tuple[int, ...]
    """The replicates. A seed and its twin with the halves exchanged are one."""
    rows: dict[str, list[list[int]]]
    """Arm -> for each seed its Fits, as rows of the panel. An arm is a side, a control, or the floor."""
    floor: str | None
    """The arm that is the floor, or None without controls."""

    def scores(self, arm: str) -> np.ndarray:
        """[seed]"""
        return _over_twins(self.panel.mean, self.rows[arm])

    def influence(self, arm: str) -> np.ndarray:
        """[seed, group]"""
        return _over_twins(self.panel.influence, self.rows[arm])

    def of_seeds(self, seeds: set[int]) -> Part:
        """The same, without other replicates."""
        kept = [i for i, seed in enumerate(self.seeds) if seed in seeds]
        rows = {arm: [by_seed[i] for i in kept] for arm, by_seed in self.rows.items()}
        return Part(self.task, self.panel, tuple(self.seeds[i] for i in kept), rows, self.floor)


def _over_twins(values: np.ndarray, rows: list[list[int]]) -> np.ndarray:
    """[seed, ...]: the mean over each seed's rows of `values`."""
    if all(len(of_seed) == 1 for of_seed in rows):
        return np.asarray(values[[of_seed[0] for of_seed in rows]])
    return np.stack([values[of_seed].mean(axis=0) for of_seed in rows])


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


def resample(
    results: pl.DataFrame, predictions: tables.Predictions, *, num_resamples: int = NUM_RESAMPLES
) -> list[Sample]:
    """A sample for every pair on every task, in the order of the results. The last sample of each pair pools its tasks, apart
    from variants."""
    parts: dict[tuple[Any, ...], Part] = {}
    done = results.filter(pl.col("status") == "done")
    graded = _read_graded(predictions, _keys(done))
    for (task,), cells in done.group_by("task", maintain_order=True):
        panel = _panel(cells, graded, task=str(task), num_resamples=num_resamples)
        for pair, replicates in cells.group_by(PAIR, maintain_order=True):
            parts[*pair, task] = _part(replicates, panel, task=str(task))
    samples = []
    for pair, cells in results.group_by(PAIR, maintain_order=True):
        pooled_parts: list[Part] = []
        for (task,), replicates in cells.group_by("task", maintain_order=True):
            sample = _sample(replicates, str(task), [parts[*pair, task]] if (*pair, task) in parts else [])
            samples.append(sample)
            if sample.parts and not str(task).endswith(VARIANT_SUFFIX):
                pooled_parts.extend(sample.parts)
        pooled = cells.filter(~pl.col("task").str.ends_with(VARIANT_SUFFIX))
        if pooled.height:
            samples.append(_sample(pooled, None, pooled_parts))
    return samples


def _sample(cells: pl.DataFrame, task: str | None, parts: list[Part]) -> Sample:
    done = cells.filter(pl.col("status") == "done")
    replicate = [name for name in ("task", "seed", "swapped") if name in cells.columns]
    if done.select(replicate).is_duplicated().any():
        reason = "several cells of one seed: grids that differ in split or training only can't be pooled"
        return Sample(cells, task, None, reason)
    if not parts:
        return Sample(cells, task, None, "no cell has a result")
    return Sample(cells, task, np.mean([_resampled(part) for part in parts], axis=0), None, tuple(parts))


def _part(cells: pl.DataFrame, panel: Panel, *, task: str) -> Part:
    cells = cells.sort("seed", maintain_order=True)
    seeds = tuple(cells["seed"].unique(maintain_order=True).to_list())
    rows: dict[str, list[list[int]]] = {}
    for arm in (*SIDES, *CONTROL_ARMS):
        column = f"{arm}_key"
        if column in cells.columns and not cells[column].is_null().any():
            by_seed = cells.group_by("seed", maintain_order=True).agg(column)[column].to_list()
            rows[arm] = [[panel.index[key] for key in keys] for keys in by_seed]
    part = Part(task, panel, seeds, rows, None)
    if not any(arm in rows for arm in CONTROL_ARMS):
        return part
    floor = max((arm for arm in FLOOR if arm in rows), key=lambda arm: part.scores(arm).mean())
    return Part(task, panel, seeds, rows | {"floor": rows[floor]}, floor)


def _resampled(part: Part) -> np.ndarray:
    """[side, 1 + num_resamples] scores of one pair on one task over its replicates, the score itself first."""
    mean = np.stack([_over_twins(part.panel.scores, part.rows[side]).mean(axis=0) for side in SIDES])
    if len(part.seeds) > 1:
        noise = np.stack([_seed_noise(seed, mean.shape[1] - 1) for seed in part.seeds])
        stretch = critical_value(1, num_replicates=len(part.seeds)) / critical_value(0, num_replicates=1)
        mean[:, 1:] += stretch * np.stack([_deviations(part.scores(side)) for side in SIDES]) @ noise
    return mean


def _deviations(scores: np.ndarray) -> np.ndarray:
    """What each replicate adds to the error of their mean; the sum of squares is the mean's squared standard error."""
    num = len(scores)
    return (scores - scores.mean()) / np.sqrt(num * (num - 1)) if num > 1 else np.zeros(1)


# --- moments ------------------------------------------------------------------------------------------------------


def moments(samples: Sequence[Sample], *, arms: Sequence[str] = (*SIDES, *CONTROL_ARMS, "floor")) -> Moments:
    """Means and covariances of samples side by side, with their pairing: equal seeds and equal groups of a task vary together.

    With several samples, the arms of the i-th are named `i.weak` and so on. An arm that a task lacks is left out.
    """
    names, columns = [], []
    for i, sample in enumerate(samples):
        for arm in arms:
            if all(arm in part.rows for part in sample.parts):
                names.append(f"{i}.{arm}" if len(samples) > 1 else arm)
                columns.append((sample, arm))
    num_arms = len(names)
    mean, items = np.zeros(num_arms), np.zeros((num_arms, num_arms))
    deviations: dict[int, np.ndarray] = {}
    num_replicates, num_groups = min(len(part.seeds) for sample in samples for part in sample.parts), 1.0
    for task in dict.fromkeys(part.task for sample in samples for part in sample.parts):
        entries = [
            (j, part, arm, 1 / len(sample.parts))
            for j, (sample, arm) in enumerate(columns)
            for part in sample.parts
            if part.task == task
        ]
        for j, part, arm, weight in entries:
            scores = part.scores(arm)
            mean[j] += weight * scores.mean()
            for seed, deviation in zip(part.seeds, _deviations(scores), strict=True):
                deviations.setdefault(seed, np.zeros(num_arms))[j] += weight * deviation
        covariance, num_task_groups = _item_covariance(entries, num_arms)
        items += covariance
        num_groups += num_task_groups - 1 if num_task_groups > 1 else np.nan  # one group tells nothing about its noise
    stacked = np.stack(list(deviations.values()))
    return Moments(tuple(names), mean, items, stacked.T @ stacked, num_replicates, num_groups)


def _item_covariance(entries: list[tuple[int, Part, str, float]], num_arms: int) -> tuple[np.ndarray, float]:
    """([arm, arm] covariance that all replicates share through the test groups of one task, effective number of groups).

    Let f[k, g] be what group g adds to the error of the mean through replicate k. The covariance of the mean is that of the
    sums over k. It counts products of a replicate with itself, whose noise is in the variance between replicates already.
    Products of different replicates alone tell what they share.
    """
    panels = {id(part.panel): part.panel for _, part, _, _ in entries}
    groups = np.concatenate([panel.groups for panel in panels.values()])
    groups = np.unique(groups) if len(panels) > 1 else groups  # a panel's are in order, each once
    seeds = sorted({seed for _, part, _, _ in entries for seed in part.seeds})
    added = np.zeros((num_arms, len(seeds), len(groups)), np.float32)
    for j, part, arm, weight in entries:
        influence = np.float32(weight / len(part.seeds)) * part.influence(arm)
        if len(panels) == 1 and len(part.seeds) == len(seeds):
            added[j] = influence
        else:
            at_seeds, at_groups = np.searchsorted(seeds, part.seeds), np.searchsorted(groups, part.panel.groups)
            added[j][np.ix_(at_seeds, at_groups)] = influence
    total = added.sum(axis=1, dtype=np.float64)
    covariance = total @ total.T
    num = min(len(part.seeds) for _, part, _, _ in entries)
    if num > 1:
        flat = added.reshape(num_arms, -1)
        covariance = (covariance - flat @ flat.T) * num / (num - 1)
    concentration = max(float((panel.weights**2).sum()) for panel in panels.values())
    return covariance / max(1 - concentration, 1e-12), 1 / concentration


# --- test items ---------------------------------------------------------------------------------------------------


def _keys(cells: pl.DataFrame) -> list[str]:
    """The Fits behind these cells."""
    columns = [name for arm in (*SIDES, *CONTROL_ARMS) if (name := f"{arm}_key") in cells.columns]
    keys = pl.concat([cells[name].alias("key").cast(pl.String) for name in columns])
    return sorted(keys.drop_nulls().unique().to_list())


def _panel(cells: pl.DataFrame, graded: dict[str, _Graded], *, task: str, num_resamples: int) -> Panel:
    """A task's Fits, and their resampled scores. All Fits see the same drawn groups."""
    keys = _keys(cells)
    for key in keys:
        if key not in graded:
            raise tables.TableError(
                f"no predictions of Fit {key}: the results and predictions are not of the same `w2s report`; run it again"
            )
    parts = _answers({key: graded[key] for key in keys})
    all_groups = np.unique(np.concatenate([part.groups for part in parts])) if parts else np.zeros(0, np.uint64)
    index: dict[str, int] = {}
    means, influences, scores = [], [], []
    weights = np.zeros(len(all_groups))
    for part in parts:
        index |= {key: len(index) + i for i, key in enumerate(part.keys)}
        num_items = part.sizes.sum()
        mean = part.sums.sum(axis=1, dtype=np.float64) / num_items
        influence = (part.sums - mean[:, None] * part.sizes) / num_items
        means.append(mean)
        scores.append(np.column_stack([mean, _resample_groups(part, task=task, num_resamples=num_resamples)]))
        at = np.searchsorted(all_groups, part.groups)
        weights[at] = np.maximum(weights[at], part.sizes / num_items)
        whole = np.zeros((len(part.keys), len(all_groups)), np.float32)
        whole[:, at] = influence
        influences.append(whole)
    return Panel(index, np.concatenate(means), np.concatenate(influences), all_groups, weights, np.concatenate(scores))


@dataclass(frozen=True)
class _Items:
    """Test items that Fits share."""

    order: np.ndarray
    """Places of the items, group by group."""
    sizes: np.ndarray
    """[group]: number of items."""
    groups: np.ndarray
    """[group]: hashes of their names, ascending."""


@dataclass(frozen=True)
class _Graded:
    """Which items a Fit answers right: a byte an item."""

    items: _Items
    correct: np.ndarray


def _read_graded(predictions: tables.Predictions, keys: list[str]) -> dict[str, _Graded]:
    """These Fits, read part by part."""
    known: dict[bytes, _Items] = {}
    graded: dict[str, _Graded] = {}
    for part in tables.parts_of(predictions).each("key", "id", "group", "correct"):
        rows = tables.by_fit(part.filter(pl.col("key").cast(pl.String).is_in(keys)))
        group = rows["group"].fill_null(rows["id"]) if "group" in rows.columns else rows["id"]
        ids, groups, correct = rows["id"].hash().to_numpy(), group.hash().to_numpy(), rows["correct"].to_numpy()
        for key, own in tables.fit_slices(rows):
            content = ids[own].tobytes() + groups[own].tobytes()
            if content not in known:
                names, codes, sizes = np.unique(groups[own], return_inverse=True, return_counts=True)
                known[content] = _Items(np.argsort(codes, kind="stable"), sizes.astype(np.float32), names)
            graded[key] = _Graded(known[content], correct[own].copy())
    return graded


@dataclass(frozen=True)
class _Answers:
    """Right answers of Fits that share their test items."""

    keys: list[str]
    sums: np.ndarray
    """[key, group]: number of right answers."""
    sizes: np.ndarray
    """[group]: number of items."""
    groups: np.ndarray
    """[group]: hashes of their names, ascending."""


def _answers(graded: dict[str, _Graded]) -> list[_Answers]:
    """The answers of these Fits, for each set of test items."""
    sharing: dict[int, list[str]] = {}
    for key, fit in graded.items():
        sharing.setdefault(id(fit.items), []).append(key)
    parts = []
    for keys in sharing.values():
        items = graded[keys[0]].items
        ordered = np.stack([graded[key].correct for key in keys])[:, items.order].astype(np.float32)
        starts = np.cumsum(items.sizes, dtype=np.int64) - items.sizes.astype(np.int64)
        sums = ordered if len(items.sizes) == len(items.order) else np.add.reduceat(ordered, starts, axis=1)
        parts.append(_Answers(keys, sums, items.sizes, items.groups))
    return parts


def _resample_groups(answers: _Answers, *, task: str, num_resamples: int) -> np.ndarray:
    """[key, num_resamples] scores on drawn groups. Deviations are stretched a little where groups are few."""
    num_groups = len(answers.sizes)
    sums = np.vstack([answers.sums, answers.sizes]).T
    parts = []
    num_at_once = max(1, MAX_DRAWN_GROUPS // num_groups)  # a full matrix of resamples x groups may not fit in memory
    for first in range(0, num_resamples, num_at_once):
        draws = _draws(task, first, num_groups, min(num_at_once, num_resamples - first))
        parts.append((draws @ sums).astype(np.float64))
    drawn = np.concatenate(parts).T if parts else np.zeros((len(sums.T), 0))
    scores = drawn[:-1] / drawn[-1]
    mean = answers.sums.sum(axis=1, dtype=np.float64)[:, None] / answers.sizes.sum()
    concentration = float(((answers.sizes / answers.sizes.sum()) ** 2).sum())
    if concentration >= 1:
        return scores
    stretch = critical_value(0, num_replicates=1, num_groups=1 / concentration) / critical_value(0, num_replicates=1)
    return np.asarray(mean + (scores - mean) * stretch / np.sqrt(1 - concentration))


@lru_cache(maxsize=2)
def _draws(task: str, first: int, num_groups: int, num_draws: int) -> np.ndarray:
    """[draw, group]: how often each group is drawn."""
    shares = np.full(num_groups, 1 / num_groups)
    return _rng(f"groups of {task} from {first}").multinomial(num_groups, shares, num_draws).astype(np.float32)


@lru_cache(maxsize=128)
def _seed_noise(seed: int, num_resamples: int) -> np.ndarray:
    """How far each resample goes along a replicate's deviation: the same for all rows and tasks."""
    return _rng(f"seed {seed}").standard_normal(num_resamples)


def _rng(purpose: str) -> np.random.Generator:
    """A generator with the same draws whenever it is made for the same purpose."""
    return np.random.default_rng([SEED, zlib.crc32(purpose.encode())])


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
