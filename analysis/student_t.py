"""The quantiles of Student's t distribution, without scipy: its import would take a quarter of `w2s plan` of a small study.

P(|T| > t) is the regularized incomplete beta function I_x(df/2, 1/2) at x = df / (df + t^2), which a continued fraction gives.
Newton's method inverts it on logarithms: log P is a concave function of log t, so it converges from any start.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

PRECISION = 1e-15
MAX_LOG_T = 300.0
"""Quantiles beyond e^300 count as infinite: with so few degrees of freedom nothing is known."""


@lru_cache(maxsize=4096)
def quantile(df: float, level: float) -> float:
    """The t of which P(|T| <= t) is `level`, for any number of degrees of freedom above 0."""
    outside = 1 - level
    log_t = math.log(NormalDist().inv_cdf(1 - outside / 2))
    for _ in range(100):
        tail, density = _tail(math.exp(log_t), df)
        step = math.log(tail / outside) * tail / density
        log_t += step
        if log_t > MAX_LOG_T:
            return math.inf
        if abs(step) < 1e-12:
            break
    return math.exp(log_t)


def _tail(t: float, df: float) -> tuple[float, float]:
    """P(|T| > t), and by how much it falls when log t grows by a unit: 2 t times the density of t."""
    a, x, rest = df / 2, df / (df + t * t), t * t / (df + t * t)
    log_beta = math.lgamma(a) + math.lgamma(0.5) - math.lgamma(a + 0.5)
    factor = math.exp(a * math.log(x) + 0.5 * math.log(rest) - log_beta)
    if x < (a + 1) / (a + 2.5):
        return factor * _fraction(x, a, 0.5) / a, 2 * factor
    return 1 - factor * _fraction(rest, 0.5, a) / 0.5, 2 * factor


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of I_x(a, b) (DLMF 8.17.22), by the method of Lentz."""
    above, below = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = below
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            above, below = 1 + term / above, 1 / (1 + term * below)
            value *= above * below
        if abs(above * below - 1) < PRECISION:
            break
    return value
