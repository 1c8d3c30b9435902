"""Studies with a known truth: test answers of models that differ between replicates, by a latent-variable model.

A model is right on an item if a latent value is below the quantile of the model's true score. The latent value has a part that
all models of an item share, a part of the model that its replicates share, and a part of its own. `group_share` of the first
two is common to a group of items. A replicate's true score differs from the mean with a standard deviation of `replicate_sd`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import ndtri

from w2s_ray.analysis.bootstrap import GAIN, GAP, SIDES, Panel, Part, Sample

PGR = 0.5
NUM_CHECKED = 100


@dataclass(frozen=True)
class Truth:
    """What is simulated. The true PGR is 0.5."""

    num_replicates: int = 1
    gap: float = 0.1
    replicate_sd: float = 0.0
    num_items: int = 2000
    items_per_group: int = 1
    group_share: float = 0.0
    common: float = 0.6
    """Share of the latent variance that all models have in common."""
    of_model: float = 0.2
    """Share that the replicates of a model have in common besides."""

    @property
    def scores(self) -> dict[str, float]:
        """The mean over replicates, of each side."""
        return {"weak": 0.7, "student": 0.7 + PGR * self.gap, "ceiling": 0.7 + self.gap}

    def groups(self) -> np.ndarray:
        """[item]"""
        return np.arange(self.num_items) // self.items_per_group

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """[side, replicate, item]: whether it is right."""
        common = np.sqrt(self.common) * self._latent(rng, ())
        of_model = np.sqrt(self.of_model) * self._latent(rng, (len(SIDES), 1))
        own = np.sqrt(1 - self.common - self.of_model) * self._latent(rng, (len(SIDES), self.num_replicates))
        true = np.array(list(self.scores.values()))[:, None]
        true = true + self.replicate_sd * rng.standard_normal((len(SIDES), self.num_replicates))
        return np.asarray(common + of_model + own < ndtri(true)[:, :, None])

    def _latent(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal values, of which `group_share` of the variance is common to a group."""
        values = rng.standard_normal((*shape, self.num_items), dtype=np.float32)
        if not self.group_share:
            return values
        groups = self.groups()
        of_group = rng.standard_normal((*shape, groups[-1] + 1), dtype=np.float32)[..., groups]
        return np.asarray(np.sqrt(self.group_share) * of_group + np.sqrt(1 - self.group_share) * values)


def sample_of(truth: Truth, right: np.ndarray) -> Sample:
    """A sample of one pair on one task, straight from answers."""
    _, num_replicates, num_items = right.shape
    answers = right.reshape(-1, num_items)
    sizes = np.bincount(truth.groups())
    starts = np.cumsum(sizes) - sizes
    mean = answers.mean(axis=1)
    sums = answers.astype(np.float32)
    if truth.items_per_group > 1:
        sums = np.add.reduceat(sums, starts, axis=1)
    influence = ((sums - mean[:, None] * sizes) / num_items).astype(np.float32)
    panel = Panel({}, mean, influence, np.arange(len(sizes)), sizes / num_items, mean[:, None])
    rows = {side: [[i * num_replicates + k] for k in range(num_replicates)] for i, side in enumerate(SIDES)}
    scores = right.mean(axis=(1, 2))[:, None]
    return Sample(pl.DataFrame(), "t", scores, None, (Part("t", panel, tuple(range(num_replicates)), rows, None),))


def frames(truth: Truth, right: np.ndarray, **columns: object) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(results, predictions) of the same, as `w2s report` writes them."""
    ids = [f"{i:05d}" for i in range(truth.num_items)]
    groups = [f"g{group:05d}" for group in truth.groups()]
    results, predictions = [], []
    for seed in range(truth.num_replicates):
        keys = {side: f"{side}{seed:02d}" for side in SIDES}
        of_seed = {side: right[i, seed] for i, side in enumerate(SIDES)}
        predictions += [
            pl.DataFrame({"key": keys[side], "id": ids, "group": groups, "correct": of_seed[side]}) for side in SIDES
        ]
        gap = of_seed["ceiling"].mean() - of_seed["weak"].mean()
        gain = of_seed["student"].mean() - of_seed["weak"].mean()
        results.append(
            {"setting": "classification", "task": "t", "family": "toy", "weak": "s", "strong": "m", "weak_params": 10}
            | {"strong_params": 100, "method": "naive", "seed": seed, "status": "done"}
            | {f"{side}_key": key for side, key in keys.items()}
            | {"pgr": gain / gap if gap > 0 else None}
            | columns
        )
    return pl.DataFrame(results), pl.concat(predictions)


@dataclass(frozen=True)
class Coverage:
    """Shares of simulations."""

    gain: float
    """The interval of the gain holds the truth."""
    pgr: float
    """Fieller's set of PGR holds the truth, also where it is not finite."""
    finite: float
    """The set is finite, so that PGR is reported."""
    pgr_if_finite: float
    """The interval holds the truth, among those reported."""


def coverage(truth: Truth, *, num_simulations: int, seed: int = 0) -> Coverage:
    """Fieller's interval holds the truth where its set does, which is quicker to tell. The first NUM_CHECKED simulations look for
    the ends of the interval, too."""
    rng = np.random.default_rng(seed)
    at_truth = {"student": 1.0, "weak": PGR - 1, "ceiling": -PGR}
    gains, sets, finite, intervals = (np.zeros(num_simulations, bool) for _ in range(4))
    for i in range(num_simulations):
        moments = sample_of(truth, truth.draw(rng)).moments
        assert moments is not None
        gains[i] = _holds(moments.interval(GAIN), PGR * truth.gap)
        sets[i] = _holds(moments.interval(at_truth), 0.0)
        finite[i] = moments.is_clear(GAP)
        intervals[i] = finite[i] and sets[i]
        if finite[i] and i < NUM_CHECKED:
            assert intervals[i] == _holds(moments.ratio(GAIN, GAP), PGR), truth
    return Coverage(gains.mean(), sets.mean(), finite.mean(), intervals.sum() / max(1, finite.sum()))


def _holds(interval: tuple[float, float | None, float | None], value: float) -> bool:
    _, low, high = interval
    return low is not None and high is not None and low <= value <= high
