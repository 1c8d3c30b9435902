"""How PGR moves with the scale of both models: `PGR ~ a + b log10(strong) + c log10(weak)`, for each setting, family
and method.

Least squares over the pairs' PGR with weak < strong; intervals from t and the residuals. One form for now; where there is
too little to fit, the row is null with its reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from scipy import stats

FORM = "pgr = a + b log10(strong_params) + c log10(weak_params)"
SCHEMA = {
    "setting": pl.String,
    "family": pl.String,
    "method": pl.String,
    "form": pl.String,
    "parameter": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "num_points": pl.Int64,
    "reason": pl.String,
}
MIN_SPARE_POINTS = 2


def fit_scaling(pgr: pl.DataFrame) -> pl.DataFrame:
    """One row for each parameter of each (setting, family, method)."""
    rows: list[dict[str, Any]] = []
    over_tasks = pgr.filter(pl.col("task").is_null())
    for key, group in over_tasks.group_by(["setting", "family", "method"], maintain_order=True):
        points = group.filter(pl.col("pgr").is_not_null() & (pl.col("weak") != pl.col("strong")))
        head = {
            **dict(zip(("setting", "family", "method"), key, strict=True)),
            "form": FORM,
            "num_points": points.height,
        }
        rows += [head | found for found in _fit(points)]
    return pl.DataFrame(rows, schema=SCHEMA)


def _fit(points: pl.DataFrame) -> list[dict[str, Any]]:
    names = ["a", "b", "c"]
    design = np.column_stack(
        [np.ones(points.height), *(np.log10(points[side].to_numpy()) for side in ("strong_params", "weak_params"))]
    )
    spare = points.height - len(names)
    if spare < MIN_SPARE_POINTS or np.linalg.matrix_rank(design) < len(names):
        reason = (
            f"{points.height} pairs with a PGR; at least {len(names) + MIN_SPARE_POINTS} of different sizes are needed"
        )
        return [{"parameter": name, "value": None, "low": None, "high": None, "reason": reason} for name in names]
    wanted = points["pgr"].to_numpy()
    values, *_ = np.linalg.lstsq(design, wanted, rcond=None)
    residuals = wanted - design @ values
    errors = np.sqrt(residuals @ residuals / spare * np.diag(np.linalg.inv(design.T @ design)))
    width = stats.t.ppf(0.975, spare) * errors
    return [
        {"parameter": n, "value": float(v), "low": float(v - w), "high": float(v + w), "reason": None}
        for n, v, w in zip(names, values, width, strict=True)
    ]
