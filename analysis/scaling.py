"""How scores and PGR change with the size of both models: fits of four forms, and a forecast that weighs them.

With s and w the log10 of the student's and the supervisor's size, on the chosen axis (parameters, pretraining compute, or the
fraction of the largest):

    log-linear       y = a + b s + c w
    power law        y = 1 - floor - 10^(a - b s - c w)       (Kaplan et al. 2020, section 1.2, with an irreducible floor)
    saturating       y = top / (1 + exp(-(a + b s + c w)))
    broken line      y = a + c w + b min(s, knee) + d max(s - knee, 0)

Each form is fitted to the values of all pairs by robust least squares from many starts: soft L1 loss on residuals in units
of their standard errors. The 95 % intervals come from refits to the bootstrap's resamples. The chosen form is the one that,
fitted without the largest student, predicts that student best. A simpler form is preferred if it does nearly as well.

Which form is right is as uncertain as its parameters. The curves therefore mix all forms, with weights that fall with the
squared held-out error (Bates and Granger 1969), and their bands hold the refits of all forms in these proportions. What lies
beyond the largest student is marked `extrapolated`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import least_squares

from w2s_ray.analysis import tables
from w2s_ray.analysis.bootstrap import NUM_RESAMPLES, SEED, Sample, interval, resample
from w2s_ray.analysis.cells import AXES, SIZE_NOUNS, sized

NUM_STARTS = 12
NUM_REFITS = 100
MIN_SPARE_POINTS = 2
EXTRAPOLATION = 16.0
"""Curves are drawn up to this many times the size of the largest student."""
CURVE_POINTS = 25
MIN_ERROR = 1e-3
"""Standard errors below this are raised to it, so that no single pair dominates a fit."""
BOUND_MARGIN = 0.01
"""A parameter is at its bound if it is this close to an end of its range, as a share of the range."""
TOLERANCE = 1.4
"""A simpler form is preferred while its held-out error is at most this many times the best one. That is twice the
squared error, which with half a dozen pairs is still within the noise."""

FITS = {
    "setting": pl.String,
    "family": pl.String,
    "method": pl.String,
    "target": pl.String,
    "axis": pl.String,
    "form": pl.String,
    "parameter": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "at_bound": pl.Boolean,
    "num_points": pl.Int64,
    "rmse": pl.Float64,
    "held_out_rmse": pl.Float64,
    "weight": pl.Float64,
    "chosen": pl.Boolean,
    "reason": pl.String,
}
"""`target`: `pgr`, or `score` (of the student). `held_out_rmse`: error on the largest student when fitted without it.
`weight`: the form's share of the curves. `at_bound`: the parameter ended at the limit of its search range, so its value says
little."""
CURVES = {
    "setting": pl.String,
    "family": pl.String,
    "method": pl.String,
    "target": pl.String,
    "axis": pl.String,
    "weak": pl.String,
    "weak_size": pl.Float64,
    "strong_size": pl.Float64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "extrapolated": pl.Boolean,
}

Array = np.ndarray


@dataclass(frozen=True)
class Form:
    """A law y(s, w) with its derivatives and the range in which each parameter is searched."""

    name: str
    parameters: tuple[str, ...]
    predict: Callable[[Array, Array, Array], Array]
    """(parameters, s, w) -> y."""
    slope: Callable[[Array, Array, Array], Array]
    """(parameters, s, w) -> dy / dparameters, [point, parameter]."""
    lower: tuple[float, ...]
    upper: tuple[float, ...]


def _log_linear(p: Array, s: Array, w: Array) -> Array:
    return p[0] + p[1] * s + p[2] * w


def _power_law(p: Array, s: Array, w: Array) -> Array:
    return 1 - p[3] - 10 ** np.clip(p[0] - p[1] * s - p[2] * w, -12, 6)


def _saturating(p: Array, s: Array, w: Array) -> Array:
    return p[3] / (1 + np.exp(-np.clip(p[0] + p[1] * s + p[2] * w, -50, 50)))


def _broken_line(p: Array, s: Array, w: Array) -> Array:
    return p[0] + p[2] * w + p[1] * np.minimum(s, p[4]) + p[3] * np.maximum(s - p[4], 0)


def _log_linear_slope(p: Array, s: Array, w: Array) -> Array:
    return np.column_stack([np.ones_like(s), s, w])


def _power_law_slope(p: Array, s: Array, w: Array) -> Array:
    q = np.log(10) * 10 ** np.clip(p[0] - p[1] * s - p[2] * w, -12, 6)
    return np.column_stack([-q, q * s, q * w, -np.ones_like(s)])


def _saturating_slope(p: Array, s: Array, w: Array) -> Array:
    share = _saturating(p, s, w) / p[3]
    q = p[3] * share * (1 - share)
    return np.column_stack([q, q * s, q * w, share])


def _broken_line_slope(p: Array, s: Array, w: Array) -> Array:
    beyond = np.maximum(s - p[4], 0)
    return np.column_stack([np.ones_like(s), np.minimum(s, p[4]), w, beyond, np.where(s > p[4], p[1] - p[3], 0)])


FORMS = (
    Form("log-linear", ("a", "b", "c"), _log_linear, _log_linear_slope, (-20, -5, -5), (20, 5, 5)),
    Form("power law", ("a", "b", "c", "floor"), _power_law, _power_law_slope, (-20, -3, -3, -1), (20, 3, 3, 1)),
    Form("saturating", ("a", "b", "c", "top"), _saturating, _saturating_slope, (-60, -10, -10, 0.01), (60, 10, 10, 2)),
    Form(
        "broken line",
        ("a", "b", "c", "d", "knee"),
        _broken_line,
        _broken_line_slope,
        (-20, -5, -5, -5, -math.inf),  # a knee is searched between the smallest and the largest student
        (20, 5, 5, 5, math.inf),
    ),
)


@dataclass(frozen=True)
class Points:
    """The data of one fit: for each pair a value, its standard error and its resamples."""

    s: Array
    w: Array
    y: Array
    error: Array
    resampled: Array
    """[resample, pair]."""

    def where(self, kept: Array) -> Points:
        return Points(self.s[kept], self.w[kept], self.y[kept], self.error[kept], self.resampled[:, kept])

    def within_range(self, form: Form) -> Form:
        """The form, with its knee searched among the students' sizes."""
        ends = [float(self.s.min()), float(self.s.max())]
        lower, upper = (
            tuple(end if math.isinf(value) else value for value in values)
            for values, end in zip((form.lower, form.upper), ends, strict=True)
        )
        return replace(form, lower=lower, upper=upper)


@dataclass(frozen=True)
class Outcome:
    """One form, fitted."""

    form: Form
    values: list[dict[str, Any]]
    """A row for each parameter."""
    refits: Array | None
    """[1 + refit, parameter], the best fit first. None if the form could not be fitted."""
    summary: dict[str, Any]
    """What all parameters share."""


def fit_scaling(samples: list[Sample], *, axis: str = "params") -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables (fits, curves) for each setting, family, method and target, pooled over tasks, on one of AXES."""
    fits: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    groups: dict[tuple[str, ...], list[tuple[Sample, dict[str, Any]]]] = {}
    pooled = [sample for sample in samples if sample.task is None]
    pairs = sized(pl.concat([sample.cells.head(1) for sample in pooled]), axis).to_dicts() if pooled else []
    for sample, pair in zip(pooled, pairs, strict=True):
        groups.setdefault((pair["setting"], pair["family"], pair["method"]), []).append((sample, pair))
    for key, group in groups.items():
        for target in ("pgr", "score"):
            head = dict(zip(("setting", "family", "method"), key, strict=True)) | {"target": target, "axis": axis}
            points, ladder = _points(group, target)
            outcomes = [_fit_form(form, points, axis) for form in FORMS]
            chosen, weights = _choice(outcomes), _weights(outcomes, points)
            for outcome, weight in zip(outcomes, weights, strict=True):
                shared = {"form": outcome.form.name, "chosen": outcome is chosen, "weight": weight} | outcome.summary
                fits += [head | shared | row for row in outcome.values]
            if chosen is not None:
                curves += [head | row for row in _curves(outcomes, weights, points, ladder)]
    return pl.DataFrame(fits, schema=FITS), pl.DataFrame(curves, schema=CURVES)


def _points(group: list[tuple[Sample, dict[str, Any]]], target: str) -> tuple[Points, dict[str, float]]:
    """The usable pairs, and the size of each supervisor by name. PGR needs a clear gap. `group`: samples, each with its pair."""
    rows, resampled, ladder = [], [], {}
    for sample, pair in group:
        if sample.scores is None or not pair["weak_size"] or not pair["strong_size"]:
            continue
        if target == "pgr" and (pair["weak"] == pair["strong"] or sample.gap_too_small):
            continue
        values = sample.pgr if target == "pgr" else sample.scores[1]
        if not np.isfinite(values).all():
            continue
        _, low, high = interval(values)
        # from the interval, because a few resamples with almost no gap would inflate a standard deviation
        error = max((high - low) / (2 * 1.96), MIN_ERROR)
        rows.append((np.log10(pair["strong_size"]), np.log10(pair["weak_size"]), values[0], error))
        resampled.append(values[1:])
        ladder[pair["weak"]] = pair["weak_size"]
    s, w, y, errors = np.array(rows, dtype=float).reshape(-1, 4).T
    return Points(s, w, y, errors, np.array(resampled, dtype=float).T if rows else np.empty((0, 0))), ladder


def _fit_form(form: Form, points: Points, axis: str) -> Outcome:
    num_points, num_needed = len(points.y), len(form.parameters) + MIN_SPARE_POINTS
    summary: dict[str, Any] = {"num_points": num_points, "rmse": None, "held_out_rmse": None, "reason": None}
    no_values = [{"parameter": name} for name in form.parameters]
    if num_points < num_needed:
        pairs = "pair" if num_points == 1 else "pairs"
        reason = f"{num_points} {pairs} with a value and a size on the axis; at least {num_needed} are needed"
        return Outcome(form, no_values, None, summary | {"reason": reason})
    if len(np.unique(points.s)) < 2 or len(np.unique(points.w)) < 2:
        reason = f"all students or all supervisors have the same {SIZE_NOUNS[axis]}; choose another --axis"
        return Outcome(form, no_values, None, summary | {"reason": reason})
    form = points.within_range(form)
    values = _best(form, points)
    num_refits = min(NUM_REFITS, len(points.resampled))
    refits = [_solve(form, points, y, values) for y in points.resampled[:num_refits]]
    summary["rmse"] = _rmse(form, values, points)
    summary["held_out_rmse"], summary["reason"] = _held_out(form, points)
    low, high = np.percentile(refits, [2.5, 97.5], axis=0)
    span = np.array(form.upper) - np.array(form.lower)
    at_bound = (values - form.lower < BOUND_MARGIN * span) | (form.upper - values < BOUND_MARGIN * span)
    rows = [
        {"parameter": name, "value": float(v), "low": float(lo), "high": float(hi), "at_bound": bool(bound)}
        for name, v, lo, hi, bound in zip(form.parameters, values, low, high, at_bound, strict=True)
    ]
    return Outcome(form, rows, np.stack([values, *refits]), summary)


def _best(form: Form, points: Points) -> Array:
    """Parameters of the best fit from many random starts, drawn with a fixed seed."""
    rng = np.random.default_rng(SEED)
    lower, upper = np.array(form.lower), np.array(form.upper)
    linear, *_ = np.linalg.lstsq(np.column_stack([np.ones_like(points.s), points.s, points.w]), points.y, rcond=None)
    starts = []
    for i in range(1 if form.name == "log-linear" else NUM_STARTS):
        start = lower + (upper - lower) * rng.beta(4, 4, len(lower))
        if form.name in ("log-linear", "broken line"):
            start[:3] = linear * (1 if i == 0 else rng.uniform(0.5, 1.5))
        if form.name == "broken line":
            start[3], start[4] = start[1], rng.uniform(points.s.min(), points.s.max())
        else:  # slopes of a plausible size, and an offset that puts the curve near the mean of the data
            start[1:3] = rng.normal(0, 0.3, 2) if form.name != "log-linear" else start[1:3]
            if form.name == "power law":
                start[0] = (
                    np.log10(max(1e-3, 1 - points.y.mean())) + start[1] * points.s.mean() + start[2] * points.w.mean()
                )
                start[3] = rng.uniform(-0.1, 0.3)
            if form.name == "saturating":
                start[3] = rng.uniform(max(0.1, points.y.max()), 1.5)
                share = np.clip(points.y.mean() / start[3], 0.02, 0.98)
                start[0] = np.log(share / (1 - share)) - start[1] * points.s.mean() - start[2] * points.w.mean()
        starts.append(np.clip(start, lower + 1e-9, upper - 1e-9))
    fitted = [_solve(form, points, points.y, start) for start in starts]
    best = min(fitted, key=lambda values: _cost(form, values, points))
    return _solve(form, points, points.y, best, max_nfev=1000)


def _solve(form: Form, points: Points, y: Array, start: Array, *, max_nfev: int = 50) -> Array:
    lower, upper = np.array(form.lower, float), np.array(form.upper, float)
    solution = least_squares(
        lambda p: (form.predict(p, points.s, points.w) - y) / points.error,
        np.clip(start, lower + 1e-9, upper - 1e-9),
        jac=lambda p: form.slope(p, points.s, points.w) / points.error[:, None],
        bounds=(lower, upper),
        loss="soft_l1",
        x_scale=np.maximum(np.abs(start), 0.1),
        max_nfev=max_nfev,
    )
    return np.asarray(solution.x)


def _cost(form: Form, values: Array, points: Points) -> float:
    z = ((form.predict(values, points.s, points.w) - points.y) / points.error) ** 2
    return float((2 * (np.sqrt(1 + z) - 1)).sum())


def _rmse(form: Form, values: Array, points: Points) -> float:
    return float(np.sqrt(np.mean((form.predict(values, points.s, points.w) - points.y) ** 2)))


def _held_out(form: Form, points: Points) -> tuple[float | None, str | None]:
    """Error on the largest student when fitted without it, or None and the reason."""
    largest = points.s == points.s.max()
    rest = points.where(~largest)
    num_needed = len(form.parameters) + 1
    if len(rest.y) < num_needed or len(np.unique(rest.s)) < 2 or len(np.unique(rest.w)) < 2:
        return None, f"{len(rest.y)} pairs without the largest student; {num_needed} are needed to predict it"
    return _rmse(form, _best(form, rest), points.where(largest)), None


def _choice(outcomes: list[Outcome]) -> Outcome | None:
    """The form that predicts the held-out largest student best, or a simpler one that does nearly as well. Without a held-out
    error anywhere, the simplest form that could be fitted."""
    usable = [outcome for outcome in outcomes if outcome.refits is not None]
    tested = [outcome for outcome in usable if outcome.summary["held_out_rmse"] is not None]
    if tested:
        limit = TOLERANCE * min(outcome.summary["held_out_rmse"] for outcome in tested)
        near = [outcome for outcome in tested if outcome.summary["held_out_rmse"] <= limit]
        return min(near, key=lambda outcome: (len(outcome.form.parameters), outcome.summary["held_out_rmse"]))
    return usable[0] if usable else None


def _weights(outcomes: list[Outcome], points: Points) -> list[float]:
    """Each form's share of the curves. Forms with a held-out error have shares that fall with its square, to which the noise
    of the held-out values is added: a form cannot be proved better than they are known. Without any held-out error, all forms
    that could be fitted have the same share."""
    weights = np.array([float(outcome.refits is not None) for outcome in outcomes])
    errors = [outcome.summary["held_out_rmse"] for outcome in outcomes]
    if any(error is not None for error in errors):
        noise = float(np.mean(points.error[points.s == points.s.max()] ** 2))
        weights = np.array([0.0 if error is None else 1 / (error**2 + noise) for error in errors])
    return [float(weight) for weight in weights / max(weights.sum(), 1e-300)]


def _curves(
    outcomes: list[Outcome], weights: list[float], points: Points, ladder: dict[str, float]
) -> list[dict[str, Any]]:
    """The weighted mean of the forms for each supervisor, and the 2.5 and 97.5 % quantiles of all forms' refits."""
    largest = points.s.max()
    mixed = [
        (outcome.form, outcome.refits, weight)
        for outcome, weight in zip(outcomes, weights, strict=True)
        if outcome.refits is not None and weight > 0
    ]
    rows = []
    for weak, size in ladder.items():
        w = np.log10(size)
        grid = np.unique(
            np.append(np.linspace(max(w, points.s.min()), largest + np.log10(EXTRAPOLATION), CURVE_POINTS), largest)
        )
        predicted = [
            np.stack([form.predict(values, grid, np.full_like(grid, w)) for values in refits])
            for form, refits, _ in mixed
        ]
        value = sum(weight * curve[0] for curve, (*_, weight) in zip(predicted, mixed, strict=True))
        shares = np.concatenate([np.full(len(refits) - 1, weight / (len(refits) - 1)) for _, refits, weight in mixed])
        refitted = np.concatenate([curve[1:] for curve in predicted])
        low, high = (_weighted_quantile(refitted, shares, at) for at in (0.025, 0.975))
        rows += [
            {"weak": weak, "weak_size": size, "strong_size": float(10**s), "value": float(v), "low": float(lo),
             "high": float(hi), "extrapolated": bool(s > largest + 1e-9)}
            for s, v, lo, hi in zip(grid, value, low, high, strict=True)
        ]  # fmt: skip
    return rows


def _weighted_quantile(values: Array, weights: Array, at: float) -> Array:
    """[column]: the smallest value of a [row, column] array below which lies a share `at` of the rows' weights."""
    order = np.argsort(values, axis=0)
    reached = np.cumsum(weights[order], axis=0) >= at * weights.sum()
    return np.take_along_axis(values, np.take_along_axis(order, reached.argmax(axis=0)[None], axis=0), axis=0)[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Scaling fits from a study's tables; writes fits.parquet and fit_curves.parquet."
    )
    parser.add_argument("results", type=Path, metavar="OUT", help="folder of results.parquet, or that file itself")
    parser.add_argument("--out", type=Path, help="folder to write the tables to; by default that of the results")
    parser.add_argument("--axis", choices=AXES, default="params", help="what counts as a model's size")
    parser.add_argument(
        "--resamples", type=int, default=NUM_RESAMPLES, help=f"number of resamples, by default {NUM_RESAMPLES}"
    )
    options = parser.parse_args()
    folder = options.results.parent if options.results.suffix == ".parquet" else options.results
    try:
        samples = resample(*tables.read_study(options.results), num_resamples=options.resamples)
        fits, curves = fit_scaling(samples, axis=options.axis)
        tables.write(fits, (options.out or folder) / "fits.parquet")
        tables.write(curves, (options.out or folder) / "fit_curves.parquet")
    except (tables.TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160):
        print(fits.drop("num_points", "rmse"))


if __name__ == "__main__":
    main()
