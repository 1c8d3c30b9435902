"""PGR and its intervals, scaling fits, agreement, figures and the report: from tables made by hand or planted."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import norm

from analysis import charts, compare, scaling, stopping, tables
from analysis.bootstrap import Sample, resample
from analysis.pgr import pgr_table
from analysis.report import write_report
from w2s_ray.cost import pgr_half_width
from w2s_ray.results import write_results
from w2s_ray.store import Store

from fits import cell, commit

# --- intervals ----------------------------------------------------------------------------------------------------


def simulated(
    rng: np.random.Generator, *, num_items: int, scores: tuple[float, float, float]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One cell whose three models are right at the given rates, correlated over items."""
    common = rng.normal(size=num_items)
    results, predictions = [], []
    for side, score in zip(("weak", "student", "ceiling"), scores, strict=True):
        latent = np.sqrt(0.6) * common + np.sqrt(0.4) * rng.normal(size=num_items)
        right = latent < norm.ppf(score)
        ids = [f"{i:05d}" for i in range(num_items)]
        predictions.append(pl.DataFrame({"key": side, "id": ids, "correct": right}))
    row = {
        "setting": "classification",
        "task": "t",
        "family": "toy",
        "weak": "s",
        "strong": "m",
        "weak_params": 10,
        "strong_params": 100,
    }
    keys = {f"{side}_key": side for side in ("weak", "student", "ceiling")}
    results = [row | keys | {"method": "naive", "seed": 0, "status": "done", "pgr": 0.5}]
    return pl.DataFrame(results), pl.concat(predictions)


def coverage(gap: float, *, num_simulations: int, num_resamples: int) -> tuple[float, float]:
    """(share of simulations whose gap is flagged, share of the others whose interval holds the true PGR of 0.5)."""
    rng = np.random.default_rng(7)
    covered = flagged = 0
    for _ in range(num_simulations):
        drawn = simulated(rng, num_items=2000, scores=(0.7, 0.7 + gap / 2, 0.7 + gap))
        row = pgr_table(resample(*drawn, num_resamples=num_resamples)).row(0, named=True)
        flagged += row["gap_too_small"]
        covered += not row["gap_too_small"] and row["pgr_low"] <= 0.5 <= row["pgr_high"]
    return flagged / num_simulations, covered / (num_simulations - flagged)


def test_intervals_cover_the_truth() -> None:
    flagged, covered = coverage(0.2, num_simulations=150, num_resamples=500)
    assert flagged == 0 and 0.9 <= covered <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.04, 0.08, 0.2])
def test_intervals_cover_the_truth_at_every_gap(gap: float) -> None:
    flagged, covered = coverage(gap, num_simulations=1000, num_resamples=2000)
    assert flagged < 0.15 and 0.93 <= covered <= 0.97


def test_a_gap_that_is_not_clear_gives_no_pgr() -> None:
    rng = np.random.default_rng(0)
    row = pgr_table(resample(*simulated(rng, num_items=200, scores=(0.7, 0.7, 0.7)))).row(0, named=True)
    assert row["gap_too_small"] and row["pgr"] is None and "gap_too_small" in row["reason"]


# --- scaling ------------------------------------------------------------------------------------------------------

PLANTED: dict[str, tuple[Any, dict[str, float]]] = {
    "log-linear": (lambda s, w: 0.5 + 0.03 * s + 0.01 * w, {"a": 0.5, "b": 0.03, "c": 0.01}),
    "power law": (lambda s, w: 0.95 - 10 ** (1 - 0.2 * s - 0.1 * w), {"a": 1, "b": 0.2, "c": 0.1, "floor": 0.05}),
    "saturating": (lambda s, w: 0.95 / (1 + np.exp(2 - 0.4 * s - 0.15 * w)), {"b": 0.4, "c": 0.15, "top": 0.95}),
    "broken line": (
        lambda s, w: 0.4 + 0.01 * w + 0.05 * np.minimum(s, 6.5) + 0.01 * np.maximum(s - 6.5, 0),
        {"b": 0.05, "c": 0.01, "d": 0.01, "knee": 6.5},
    ),
}


def planted(form: Any, sizes: list[float], *, noise: float = 0.003, num_resamples: int = 100) -> list[Sample]:
    """Students' scores by a law, with noise that the resamples tell truly."""
    rng = np.random.default_rng(0)
    samples = []
    for i, w in enumerate(sizes):
        for s in sizes[i:]:
            score = form(np.log10(s), np.log10(w)) + rng.normal(0, noise)
            student = score + np.append(0, rng.normal(0, noise, num_resamples))
            level = np.ones_like(student)
            row = {"setting": "classification", "family": "f", "method": "naive", "weak": f"{w:g}", "strong": f"{s:g}"}
            cells = pl.DataFrame([row | {"weak_params": int(w), "strong_params": int(s), "status": "done"}])
            samples.append(Sample(cells, None, np.stack([0.5 * level, student, 0.97 * level]), None))
    return samples


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_law_is_chosen_and_its_parameters_found(name: str) -> None:
    form, expected = PLANTED[name]
    fits, curves = scaling.fit_scaling(planted(form, [1e4, 1e5, 1e6, 1e7, 1e8, 1e9]))
    chosen = fits.filter((pl.col("target") == "score") & pl.col("chosen"))
    assert chosen["form"].unique().to_list() == [name] and not chosen["at_bound"].any()
    assert chosen["held_out_rmse"][0] < 0.01
    for row in chosen.iter_rows(named=True):
        if row["parameter"] in expected:
            slack = (row["high"] - row["low"]) / 2  # the estimate's own noise is as large as the resamples'
            assert row["low"] - slack <= expected[row["parameter"]] <= row["high"] + slack, row
    drawn = curves.filter(pl.col("target") == "score")
    beyond = drawn.filter(pl.col("extrapolated"))
    assert beyond["strong_size"].min() > 1e9 and drawn.filter(~pl.col("extrapolated"))["strong_size"].max() <= 1.001e9
    assert (beyond["high"] - beyond["low"]).max() > (drawn["high"] - drawn["low"]).min()


@pytest.mark.parametrize("form", scaling.FORMS, ids=lambda form: form.name)
def test_the_slopes_are_the_derivatives(form: scaling.Form) -> None:
    s, w = np.array([4.0, 5.5, 7.2]), np.array([4.0, 4.5, 6.0])
    p = np.array([1.0, 0.3, 0.2, 0.6, 6.0])[: len(form.parameters)]
    for i, column in enumerate(form.slope(p, s, w).T):
        step = np.eye(len(p))[i] * 1e-6
        numeric = (form.predict(p + step, s, w) - form.predict(p - step, s, w)) / 2e-6
        np.testing.assert_allclose(column, numeric, rtol=1e-5, atol=1e-8)


def test_too_few_sizes_give_a_reason_and_nulls() -> None:
    fits, curves = scaling.fit_scaling(planted(PLANTED["log-linear"][0], [1e4, 1e6]))
    assert fits["value"].is_null().all() and "at least 5" in fits["reason"][0] and curves.is_empty()
    assert not fits["chosen"].any()
    four, _ = scaling.fit_scaling(planted(PLANTED["log-linear"][0], [1e4, 1e5, 1e6, 1e7]))
    of_pgr = four.filter((pl.col("target") == "pgr") & (pl.col("form") == "log-linear"))
    assert of_pgr["value"].is_not_null().all() and of_pgr["held_out_rmse"].is_null().all()
    assert "without the largest student" in of_pgr["reason"][0] and of_pgr["chosen"].all()


def test_a_value_at_the_end_of_its_search_says_so() -> None:
    fits, _ = scaling.fit_scaling(planted(lambda s, w: 0.1 * s, [1e4, 1e5, 1e6, 1e7, 1e8, 1e9], noise=1e-4))
    assert fits.filter((pl.col("form") == "power law") & (pl.col("target") == "score"))["at_bound"].any()


# --- agreement ----------------------------------------------------------------------------------------------------


def table_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    common = {
        "setting": "classification",
        "family": "f",
        "method": "naive",
        "task": "t",
        "weak": "s",
        "weak_params": 10,
        "strong": "m",
        "strong_params": 100,
        "student_score": 0.7,
    }
    return pl.DataFrame(
        [common | {"status": "done", "agreement": 0.8, "agreement_when_weak_right": 0.9} | r for r in rows]
    )


def test_copied_mistakes_by_hand() -> None:
    wrong = {"naive": 0.8, "combined": 0.5}
    rows = [{"method": m, "agreement_when_weak_wrong": w, "student_key": m, "status": "done"} for m, w in wrong.items()]
    curves = pl.DataFrame(
        {"key": ["naive", "combined", "combined"], "step": [1, 1, 2], "train_loss": [0.3, 0.5, 0.4],
         "verified_loss": [None, 0.9, 0.6]}
    )  # fmt: skip
    by_method = {row["method"]: row for row in stopping.copying_table(table_of(rows), curves).to_dicts()}
    assert (
        by_method["combined"]["more_than_naive"] == pytest.approx(-0.3) and by_method["naive"]["more_than_naive"] == 0
    )
    assert by_method["combined"]["label_loss"] == pytest.approx(0.4) and by_method["combined"][
        "truth_loss"
    ] == pytest.approx(0.6)
    assert by_method["naive"]["truth_loss"] is None


# --- two studies --------------------------------------------------------------------------------------------------


def test_two_studies_side_by_side(store: Store, tmp_path: Path) -> None:
    study_cell = cell()
    commit(store, study_cell.supervisor, [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9], tmp_path)  # 4 of 8
    commit(store, study_cell.student, [0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9], tmp_path)  # 6 of 8
    commit(store, study_cell.ceiling, [0.9] * 4 + [0.1] * 4, tmp_path)  # 8 of 8
    better = replace(study_cell, method="confidence", student=study_cell.ceiling)
    for name, compared in (("a", study_cell), ("b", better)):
        write_results([compared], study=name, store=store, out=tmp_path / name)
    page = compare.write_comparison(tmp_path / "a", tmp_path / "b", out=tmp_path / "both")
    over_tasks = pl.read_parquet(tmp_path / "both/compare.parquet").filter(pl.col("task").is_null())
    [row] = over_tasks.to_dicts()
    assert (row["a"], row["b"]) == ("toy, naive", "toy, confidence")
    assert (row["score_a"], row["score_b"], row["score_difference"]) == (0.75, 1.0, 0.25)
    assert (row["pgr_a"], row["pgr_b"], row["pgr_difference"]) == (0.5, 1.0, 0.5)
    assert 0 <= row["pgr_difference_low"] <= 0.5 <= row["pgr_difference_high"] <= 1
    assert "b (B) against a (A)" in page.read_text() and (tmp_path / "both/figures/compare.svg").exists()
    same = compare.compare(*[resample(*tables.read_study(tmp_path / "a"))] * 2)
    assert same["pgr_difference"].to_list() == [0.0, 0.0] == same["pgr_difference_high"].to_list()


def test_studies_with_nothing_in_common_say_so(store: Store, tmp_path: Path) -> None:
    for name, compared in (("a", cell()), ("b", cell(weak="m", strong="l"))):
        write_results([compared], study=name, store=store, out=tmp_path / name)
    page = compare.write_comparison(tmp_path / "a", tmp_path / "b", out=tmp_path / "both")
    assert "nothing to compare" in page.read_text()


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_report_stands_alone_and_escapes_names(store: Store, tmp_path: Path) -> None:
    evil = "<script>alert(1)</SCRIPT>"
    study_cell = replace(cell(), family=evil)
    commit(store, study_cell.supervisor, [0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.9], tmp_path)
    commit(store, study_cell.student, [0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9], tmp_path)
    commit(store, study_cell.ceiling, [0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1], tmp_path)
    write_results([study_cell], study=evil, store=store, out=tmp_path / "out")
    page = write_report(tmp_path / "out", facts={"store": evil}, study_text=f"name: {evil}").read_text()
    assert evil not in page and "<td>&lt;script&gt;alert(1)" in page and "name: &lt;script&gt;alert(1)" in page
    assert "\\u003cscript\\u003ealert(1)" in page, "figures show the name too"
    assert "src=" not in page.split("<script")[0] and 'rel="stylesheet"' not in page
    assert len(re.findall("<script", page, re.I)) == 2 and len(re.findall("</script>", page, re.I)) == 2
    for name in ("score.svg", "score.png", "pgr.svg", "pgr.png", "agreement.svg", "misfit.svg", "calibration.svg"):
        assert (tmp_path / "out" / "figures" / f"classification-{name}").stat().st_size > 1000
    assert pl.read_csv(io.BytesIO((tmp_path / "out/tables/results.csv").read_bytes())).height == 1


def test_a_report_of_nothing_says_so(store: Store, tmp_path: Path) -> None:
    write_results([cell()], study="x", store=store, out=tmp_path / "out")
    page = write_report(tmp_path / "out").read_text()
    assert "Nothing is done yet" in page and "not run yet" in page
    write_results([], study="x", store=store, out=tmp_path / "empty")
    assert "0 of 0 cells" in write_report(tmp_path / "empty").read_text()


@pytest.mark.parametrize("module", ["analysis.pgr", "analysis.report"])
@pytest.mark.parametrize("content", [None, b"not parquet", "foreign", "typed"])
def test_a_missing_or_foreign_table_is_one_message(tmp_path: Path, module: str, content: object) -> None:
    path = tmp_path / "results.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        columns = {"a": [1]} if content == "foreign" else {"setting": [1]}
        pl.DataFrame(columns).write_parquet(path)
    done = subprocess.run([sys.executable, "-m", module, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "results.parquet" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["failures", "one size", "ceiling below"])
def test_a_report_says_why_there_is_no_curve(store: Store, tmp_path: Path, kind: str) -> None:
    study_cell = cell(weak="m", strong="m") if kind == "one size" else cell()
    wrong, half, right = [0.1] * 4 + [0.9] * 4, [0.9] * 8, [0.9] * 4 + [0.1] * 4
    if kind == "failures":
        store.write_failure(study_cell.supervisor, kind="nan", reason="the loss is nan at step 3", detail="")
    else:
        commit(store, study_cell.supervisor, right if kind == "ceiling below" else half, tmp_path)
        commit(store, study_cell.student, half, tmp_path)
        commit(store, study_cell.ceiling, wrong if kind == "ceiling below" else right, tmp_path)
    write_results([study_cell], study="x", store=store, out=tmp_path / "out")
    page = write_report(tmp_path / "out").read_text()
    if kind == "failures":
        assert "Nothing is done yet" in page and "the loss is nan at step 3" in page
    else:
        assert "no pair of different sizes whose ceiling is clearly above its supervisor" in page
        assert (tmp_path / "out/figures/classification-score.svg").exists()
        assert not (tmp_path / "out/figures/classification-pgr.svg").exists()
    assert "There is one seed only" in page or kind == "failures"


@pytest.mark.parametrize("axis", ["compute", "fraction"])
def test_the_size_axis_can_be_another(store: Store, tmp_path: Path, axis: str) -> None:
    study_cell = cell()
    for fit in (study_cell.supervisor, study_cell.student, study_cell.ceiling):
        commit(store, fit, [0.9] * 8, tmp_path)
    write_results([study_cell], study="x", store=store, out=tmp_path / "out")
    page = write_report(tmp_path / "out", axis=axis).read_text()
    assert {"compute": "pretraining compute", "fraction": "fraction of the largest"}[axis] in page


def test_the_precision_to_expect_by_hand() -> None:
    assert pgr_half_width(2000, gap=0.1, num_seeds=1) == pytest.approx(1.96 * (0.1125 / 2000) ** 0.5 / 0.1)
    assert pgr_half_width(8000, gap=0.1, num_seeds=3) == pytest.approx(pgr_half_width(2000, gap=0.1, num_seeds=3) / 2)
    assert 0.94 < pgr_half_width(2000, gap=0.1, num_seeds=5) / pgr_half_width(2000, gap=0.1, num_seeds=1) < 1


def test_a_learning_curve_of_many_points_is_thinned_and_keeps_its_end() -> None:
    rows = [
        {
            "setting": "classification", "family": "f", "task": "t", "strong": "big", "strong_params": 2, "method": method,
            "weak": "small", "weak_params": 1, "seed": seed, "role": role, "line": line, "epoch": point / 100,
            "test_accuracy": 0.5 + point / 4000, "train_loss": 0.1, "train_accuracy": 0.9,
        }
        for role, line, method in (("student", "small", "naive"), ("ceiling", "ceiling", "truth"))
        for seed in range(8)
        for point in range(1, 1001)
    ]  # fmt: skip
    figure = charts.learning_chart(pl.DataFrame(rows))
    assert figure is not None
    drawn = [row for values in figure.to_dict()["datasets"].values() for row in values]
    assert len(drawn) <= 2 * charts.MAX_CURVE_POINTS, "16,000 points would be too many to draw"
    assert max(row["epoch"] for row in drawn) == 10.0, "where training ended is shown"
