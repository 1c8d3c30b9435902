"""Student's t without scipy gives what scipy gives."""

from __future__ import annotations

import math

import pytest
from scipy.special import stdtrit

from analysis import student_t


@pytest.mark.parametrize("level", [0.01, 0.5, 0.95, 0.999, 1 - 1e-8, 1 - 1e-12])
def test_quantiles_are_those_of_scipy(level: float) -> None:
    for df in (0.1, 0.5, 1, 1.5, 2, 2.7, 4, 10, 29.3, 999, 12345.6, 1e6):
        assert student_t.quantile(df, level) == pytest.approx(-stdtrit(df, (1 - level) / 2), rel=1e-8), df


def test_with_almost_no_degrees_of_freedom_a_quantile_is_infinite() -> None:
    assert student_t.quantile(0.002, 0.95) == math.inf
