"""95 % intervals of scores, their differences and their ratios, from two sources of noise.

A replicate is one seed: its own halves, its own order of rows, its own Fits. All replicates of a task share its test items.
The noise of a mean over R replicates therefore has two parts:

    items        what the replicates share: the test set might have held other groups of items. There are many groups, so
                 this variance is known well.
    replicates   what differs between them: their halves, their training, and the item noise that they do not share. Its
                 variance is estimated from R values, with R - 1 degrees of freedom.

The quantile that multiplies the standard error lies between that of t with R - 1 degrees of freedom (all noise is between
replicates) and almost 1.96 (none is); see `critical_value`. A ratio such as PGR has Fieller's interval: from the smallest to the
largest r for which numerator - r * denominator is not clearly different from 0. It needs no assumption about the ratio's own
distribution, and it is finite only if the denominator is clearly different from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

LEVEL = 0.95
HALF_SHARES = (0.2, 0.4)
"""Where `critical_value` turns from the normal quantile to that of t, with 2 replicates and with more. By quadrature over all
ratios of the two variances, coverage then is 94.0 to 96.5 % with 2 replicates, and 95.0 to 95.9 % with more. For comparison, with
2 replicates: Satterthwaite's degrees of freedom give as little as 87 %, a fiducial interval up to 99 %."""

Contrast = dict[str, float]
"""Arm -> its weight in a sum, such as {"student": 1, "weak": -1} for the gain."""
Interval = tuple[float, float | None, float | None]
"""(estimate, low, high). An end that no data can give is None."""


@lru_cache(maxsize=4096)
def _t_quantile(df: float, level: float) -> float:
    from scipy.special import (
        stdtrit,
    )  # scipy.stats takes a second to import, scipy.special a quarter of one, and `w2s plan` needs this module

    return float(-stdtrit(df, (1 - level) / 2))


def critical_value(share: Any, *, num_replicates: int, num_groups: float = math.inf, level: float = LEVEL) -> Any:
    """How many standard errors an interval reaches to each side. `share`: what part of the variance is between replicates, a
    number or an array.

    The variance between few replicates is known badly, but that matters only if it is a large part of the whole.
    """
    of_items = _t_quantile(min(num_groups - 1, 1e6), level)
    if num_replicates < 2:
        return of_items
    half = HALF_SHARES[num_replicates > 2]
    weight = share**3.5 * (1 + half**3) / (share**3 + half**3)
    return of_items + (_t_quantile(num_replicates - 1, level) - of_items) * weight


@dataclass(frozen=True)
class Moments:
    """Mean scores of a row's models, and the covariances of their noise."""

    arms: tuple[str, ...]
    mean: np.ndarray
    """[arm]"""
    items: np.ndarray
    """[arm, arm]: covariance of the means through the test items that all replicates share."""
    replicates: np.ndarray
    """[arm, arm]: covariance of the means through what differs between replicates; 0 if there is only one."""
    num_replicates: int
    num_groups: float
    """Effective number of groups of test items. Unequal groups count less."""

    def interval(self, contrast: Contrast) -> Interval:
        """The interval of a weighted sum of mean scores."""
        value = float(self._weights(contrast) @ self.mean)
        half = self._half_width(*self.variances(contrast))
        return (value, value - half, value + half) if math.isfinite(half) else (value, None, None)

    def ratio(self, numerator: Contrast, denominator: Contrast) -> Interval:
        """Fieller's interval of numerator / denominator. Both ends are None unless the denominator is clearly not 0."""
        top, bottom = self._weights(numerator), self._weights(denominator)
        n, d = float(top @ self.mean), float(bottom @ self.mean)
        if d == 0:
            return math.nan, None, None
        _, low, high = self.interval(denominator)
        if low is None or high is None or low <= 0 <= high:
            return n / d, None, None
        items, replicates = (
            tuple(float(x @ covariance @ y) for x, y in ((top, top), (top, bottom), (bottom, bottom)))
            for covariance in (self.items, self.replicates)
        )

        def excess(r: Any) -> Any:
            """How far numerator - r * denominator is from 0, beyond what noise explains."""
            of_items, own = (np.maximum(0.0, v[0] - 2 * r * v[1] + r * r * v[2]) for v in (items, replicates))
            total = of_items + own
            share = own / np.maximum(total, 1e-300)
            quantile = critical_value(share, num_replicates=self.num_replicates, num_groups=self.num_groups)
            return abs(n - r * d) - quantile * np.sqrt(total)

        return n / d, _end(excess, n / d, -1.0), _end(excess, n / d, 1.0)

    def variances(self, contrast: Contrast) -> tuple[float, float]:
        """The two variances of a weighted sum of mean scores: through the shared items, and between replicates."""
        weights = self._weights(contrast)
        items, replicates = (float(weights @ covariance @ weights) for covariance in (self.items, self.replicates))
        return max(items, 0.0), max(replicates, 0.0)  # rounding, and estimates below 0

    def is_clear(self, contrast: Contrast) -> bool:
        """Whether the interval of a weighted sum lies above 0."""
        low = self.interval(contrast)[1]
        return low is not None and low > 0

    def p_value(self, contrast: Contrast) -> float | None:
        """The smallest 1 - level at which the interval of a weighted sum leaves out 0. None if there is no interval."""
        value, variances = abs(float(self._weights(contrast) @ self.mean)), self.variances(contrast)
        if not math.isfinite(self._half_width(*variances)):
            return None
        low, high = 1e-12, 1.0
        for _ in range(40):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._half_width(*variances, level=1 - middle) < value else (middle, high)
        return high

    def _weights(self, contrast: Contrast) -> np.ndarray:
        return np.array([contrast.get(arm, 0.0) for arm in self.arms])

    def _half_width(self, items: float, replicates: float, *, level: float = LEVEL) -> float:
        """NaN if there are too few groups to know."""
        if not self.num_groups > 1:
            return math.nan
        total = items + replicates
        if total == 0:
            return 0.0
        quantile = critical_value(
            replicates / total, num_replicates=self.num_replicates, num_groups=self.num_groups, level=level
        )
        return quantile * math.sqrt(total)


@dataclass(frozen=True)
class Noise:
    """The noise of (student - supervisor) - 0.5 (ceiling - supervisor), which is that of a PGR of 0.5 times the gap."""

    per_item: float
    """Variance that replicates share, times the number of test items."""
    per_replicate: float
    """Variance between replicates."""
    one_replicate_per_item: float
    """Variance of a single replicate through the test items, times their number: what its interval holds."""


DISTANCES = np.geomspace(1e-6, 1e6, 500)
"""From a ratio's estimate, at which its ends are looked for."""


def _end(excess: Callable[[Any], Any], start: float, direction: float) -> float | None:
    """The last value on one side of `start` at which `excess` is not above 0, or None if there is no last one.

    The values need not hang together: the share of the noise between replicates changes with r, and the quantile with it.
    """
    places = start + direction * DISTANCES
    is_inside = excess(places) <= 0
    if is_inside[-1]:
        return None
    if not is_inside.any():
        return start
    last = np.flatnonzero(is_inside)[-1]
    inside, outside = float(places[last]), float(places[last + 1])
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if excess(middle) <= 0 else (inside, middle)
    return outside
