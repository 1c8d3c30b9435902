"""PGR and its intervals, scaling fits, agreement, figures and the report: from tables made by hand or planted."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom, chi2, norm

from w2s_ray.analysis import charts, compare, controls, methods, scaling, stopping, tables
from w2s_ray.analysis.bootstrap import Sample, resample
from w2s_ray.analysis.charts.training import MAX_CURVE_POINTS
from w2s_ray.analysis.intervals import Moments, Noise, critical_value
from w2s_ray.analysis.methods import method_table
from w2s_ray.analysis.pgr import measured_noise, pgr_table
from w2s_ray.analysis.report import write_report
from w2s_ray.cost import measured_noise as measured_on_store
from w2s_ray.cost import pgr_half_width
from w2s_ray.results import write_results
from w2s_ray.store import Store

from fits import cell, commit
from simulation import Truth, coverage, frames

# --- intervals ----------------------------------------------------------------------------------------------------


CELLS = [
    Truth(num_replicates=num_replicates, replicate_sd=sd, gap=gap)
    for num_replicates in (2, 3, 5, 10)
    for sd in (0.0, 0.01, 0.02)
    for gap in (0.04, 0.08, 0.2)
]
GROUPED = [
    Truth(num_replicates=num_replicates, items_per_group=size, group_share=share)
    for num_replicates in (1, 3)
    for size, share in ((2, 0.5), (18, 0.15), (58, 0.1), (58, 0.2))
]


def within(covered: float, *, of: int) -> bool:
    """Whether a share of simulations is consistent with coverage from 93 to 97 %, but for one case in ten thousand."""
    return bool(binom.ppf(5e-5, of, 0.93) <= round(covered * of) <= binom.isf(5e-5, of, 0.97))


@pytest.mark.parametrize("truth", [CELLS[0], CELLS[7], CELLS[16], CELLS[20], GROUPED[3]], ids=str)
def test_intervals_cover_the_truth(truth: Truth) -> None:
    found = coverage(truth, num_simulations=300)
    assert within(found.gain, of=300) and within(found.pgr, of=300)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CELLS + GROUPED)))
def test_intervals_cover_the_truth_for_all_replicates_gaps_and_groups(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints a line of the table of coverage. A share of 2,000 simulations has a standard deviation of 0.5 points."""
    num_simulations, truth, began_s = 2000, (CELLS + GROUPED)[number], time.perf_counter()
    with capsys.disabled():
        if number == 0:
            print(
                "\nCoverage of 95 % intervals; 2,000 test items, true PGR 0.5. 'PGR': also where its interval is not finite"
            )
            print("   cell  replicates  sd of a Fit   gap  items a group (share)   gain    PGR  finite  PGR if finite")
        found = coverage(truth, num_simulations=num_simulations, seed=number)
        print(
            f"{number + 1:>3}/{len(CELLS + GROUPED)}  {truth.num_replicates:>10}  {truth.replicate_sd:>11.2f}  {truth.gap:.2f}  "
            f"{truth.items_per_group:>13} ({truth.group_share:.2f})  {found.gain:>6.3f} {found.pgr:>6.3f}  {found.finite:>6.2f}  "
            f"{found.pgr_if_finite:>13.3f}   {time.perf_counter() - began_s:.0f} s",
            flush=True,
        )
    assert within(found.gain, of=num_simulations) and within(found.pgr, of=num_simulations), truth


@pytest.mark.parametrize("num_replicates", [2, 3, 5, 10])
def test_the_quantile_covers_for_any_ratio_of_the_two_variances(num_replicates: int) -> None:
    """By quadrature: the variance between replicates is estimated, with a chi-squared error; that of the items is known."""
    chi2_values = chi2.ppf((np.arange(400) + 0.5) / 400, num_replicates - 1) / (num_replicates - 1)
    for ratio in np.geomspace(0.01, 1000, 26):
        quantiles = [critical_value(r / (1 + r), num_replicates=num_replicates) for r in ratio * chi2_values]
        half_widths = quantiles * np.sqrt(1 + ratio * chi2_values)
        assert 0.938 < (2 * norm.cdf(half_widths / np.sqrt(1 + ratio)) - 1).mean() < 0.967


def test_the_quantile_is_that_of_t_where_all_noise_is_between_replicates() -> None:
    assert critical_value(0, num_replicates=2) == pytest.approx(1.96, abs=1e-3)
    assert critical_value(1, num_replicates=2) == pytest.approx(12.706, abs=1e-3)
    assert critical_value(1, num_replicates=5) == pytest.approx(2.776, abs=1e-3)
    assert critical_value(1, num_replicates=1) == pytest.approx(1.96, abs=1e-3), "one replicate: test noise only"
    assert critical_value(0, num_replicates=3, num_groups=10) == pytest.approx(2.262, abs=1e-3)


def test_the_interval_of_a_ratio_is_fieller_s() -> None:
    """With known variances its ends solve (n - r d)^2 = q^2 (v_n - 2 r v_nd + r^2 v_d)."""
    covariance = np.array([[4e-4, 1e-4], [1e-4, 9e-4]])
    moments = Moments(("n", "d"), np.array([0.05, 0.1]), covariance, np.zeros((2, 2)), 1, np.inf)
    value, low, high = moments.ratio({"n": 1}, {"d": 1})
    q = critical_value(0, num_replicates=1)
    roots = np.roots([0.01 - q**2 * 9e-4, -2 * (0.005 - q**2 * 1e-4), 0.0025 - q**2 * 4e-4])
    assert value == 0.5 and [low, high] == pytest.approx(sorted(roots), abs=1e-6)
    near = replace(moments, mean=np.array([0.05, 0.03]))
    assert near.ratio({"n": 1}, {"d": 1})[1:] == (None, None), "0.03 is one standard error from 0"


def test_an_interval_reaches_to_the_last_value_that_noise_explains() -> None:
    """Two replicates that nearly agree on (student - 0.6 supervisor - 0.4 ceiling), one simulated study of many: what noise explains
    is [-2.06, -0.48] and [0.37, 0.82], and the second part holds the truth, which is 0.5."""
    items = [[6.243e-05, 4.406e-05, 4.011e-05], [4.406e-05, 6.199e-05, 4.059e-05], [4.011e-05, 4.059e-05, 5.385e-05]]
    own = [[1.0e-04, 7.25e-05, 1.2e-04], [7.25e-05, 5.25625e-05, 8.7e-05], [1.2e-04, 8.7e-05, 1.44e-04]]
    mean = np.array([0.7175, 0.68675, 0.748])
    moments = Moments(("weak", "student", "ceiling"), mean, np.array(items), np.array(own), 2, 2000)
    value, low, high = moments.ratio({"student": 1, "weak": -1}, {"ceiling": 1, "weak": -1})
    assert [value, low, high] == pytest.approx([-1.008, -2.064, 0.822], abs=0.001)


def test_whole_groups_are_drawn() -> None:
    """Ten copies of an item in one group tell as much as the item; as items of their own they seem to tell ten times as much."""
    alone = Truth(num_items=200, gap=0.2)
    copies = replace(alone, num_items=2000, items_per_group=10)
    right = alone.draw(np.random.default_rng(1))
    results, predictions = frames(alone, right)
    _, copied = frames(copies, np.repeat(right, 10, axis=2))
    [once, grouped, apart] = (
        pgr_table(resample(results, rows, num_resamples=50)).row(0, named=True)
        for rows in (predictions, copied, copied.drop("group"))
    )
    for name in ("gap", "pgr"):
        assert grouped[f"{name}_low"] == pytest.approx(once[f"{name}_low"], rel=1e-4)
        assert grouped[f"{name}_high"] == pytest.approx(once[f"{name}_high"], rel=1e-4)
    widths = [row["gap_high"] - row["gap_low"] for row in (grouped, apart)]
    assert widths[0] / widths[1] == pytest.approx(10**0.5, rel=0.02)
    assert (once["num_groups"], grouped["num_groups"]) == (pytest.approx(200), pytest.approx(200))
    spread = [resample(results, rows)[0].gap[1:].std() for rows in (copied, copied.drop("group"))]
    assert spread[0] / spread[1] == pytest.approx(10**0.5, rel=0.1), "resampled scores draw groups, too"


def test_one_group_that_holds_a_third_of_the_items_leaves_few_groups() -> None:
    right = Truth(num_items=300, gap=0.2).draw(np.random.default_rng(1))
    results, predictions = frames(Truth(num_items=300, gap=0.2), right)
    large = predictions.with_columns(
        pl.when(pl.col("id") < "00100").then(pl.lit("page")).otherwise("id").alias("group")
    )
    table = pgr_table(resample(results, large, num_resamples=10))
    assert table["num_groups"][0] == pytest.approx(1 / ((1 / 3) ** 2 + 200 / 300**2), rel=1e-6)
    whole = predictions.with_columns(pl.lit("page").alias("group"))
    row = pgr_table(resample(results, whole, num_resamples=10)).row(0, named=True)
    assert row["gap_low"] is None and row["pgr"] is None and row["gap_too_small"], "one group has no noise to see"


def test_replicates_widen_an_interval_as_t_says() -> None:
    """Items that all replicates answer alike but for a shift: all noise is between replicates."""
    num_items, shifts = 1000, (0, 40, 80)
    truth = Truth(num_replicates=3, num_items=num_items)
    right = np.zeros((3, 3, num_items), bool)
    for k, shift in enumerate(shifts):
        right[0, k, :500], right[1, k, : 600 + shift], right[2, k, :900] = True, True, True
    results, predictions = frames(truth, right)
    row = pgr_table(resample(results, predictions, num_resamples=10)).row(0, named=True)
    assert row["student_score"] == pytest.approx(0.64)
    moments = resample(results, predictions, num_resamples=10)[0].moments
    assert moments is not None
    at = moments.arms.index("student")
    assert moments.replicates[at, at] == pytest.approx(0.04**2 / 3)
    shared = np.mean([0.6 * 0.36, 0.6 * 0.32, 0.64 * 0.32]) / (num_items - 1)  # covariances of different replicates
    assert moments.items[at, at] == pytest.approx(shared, rel=1e-5)
    share = (0.04**2 / 3) / (0.04**2 / 3 + shared)
    half = critical_value(share, num_replicates=3, num_groups=1000) * (0.04**2 / 3 + shared) ** 0.5
    assert row["student_score_high"] == pytest.approx(0.64 + half, rel=1e-4)
    assert row["noise"] == "test items and 3 replicates"
    one = pgr_table(resample(*frames(replace(truth, num_replicates=1), right[:, :1]), num_resamples=10))
    assert one["noise"].to_list() == ["test items only: one replicate"] * 2


def test_a_swapped_twin_belongs_to_its_seed() -> None:
    truth = Truth(num_replicates=4, gap=0.2, replicate_sd=0.02)
    results, predictions = frames(truth, truth.draw(np.random.default_rng(0)))
    twins = results.with_columns(pl.col("seed") // 2, (pl.col("seed") % 2 == 1).alias("swapped"))
    row = pgr_table(resample(twins, predictions, num_resamples=10)).row(0, named=True)
    assert row["num_seeds"] == 2 and row["reason"] is None and row["noise"] == "test items and 2 replicates"
    four = pgr_table(resample(results, predictions, num_resamples=10)).row(0, named=True)
    assert row["student_score"] == pytest.approx(four["student_score"])
    sample = resample(twins, predictions, num_resamples=10)[0]
    of_seeds = [results["student_key"][2 * i : 2 * i + 2].to_list() for i in range(2)]
    means = [predictions.filter(pl.col("key").is_in(keys))["correct"].mean() for keys in of_seeds]
    assert sample.parts[0].scores("student").tolist() == pytest.approx(means)


def test_a_gap_that_is_not_clear_gives_no_pgr() -> None:
    truth = Truth(num_items=200, gap=0.0)
    row = pgr_table(resample(*frames(truth, truth.draw(np.random.default_rng(0))))).row(0, named=True)
    assert row["gap_too_small"] and row["pgr"] is None and "gap_too_small" in row["reason"]
    few = Truth(num_replicates=2, gap=0.06, replicate_sd=0.01)
    row = pgr_table(resample(*frames(few, few.draw(np.random.default_rng(0))))).row(0, named=True)
    assert row["pgr"] is None and row["reason"].endswith("with 2 replicates; more seeds may tell")


# --- floors and controls ------------------------------------------------------------------------------------------


def with_controls(
    *, zero_shot: float | None, shuffled: float | None, num_replicates: int = 3, task: str = "chess-mate"
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Supervisor 0.5, student 0.7, ceiling 0.9, and controls at the given scores, all nested. A step more in each replicate."""
    num_items = 2000
    scores = {"weak": 0.5, "student": 0.7, "ceiling": 0.9, "shuffled": shuffled, "zero_shot": zero_shot}
    ids = [f"{i:05d}" for i in range(num_items)]
    rows, predictions = [], {}
    for seed in range(num_replicates):
        row: dict[str, Any] = {"seed": seed, "controls": True, "status": "done", "task": task, "pgr": 0.5}
        for arm, score in scores.items():
            key = f"{task} {arm}" if arm == "zero_shot" else f"{task} {arm}{seed}"
            row[f"{arm}_key"] = None if score is None else key
            if score is not None:
                num_right = round(score * num_items) + (0 if arm == "zero_shot" else seed)
                right = np.arange(num_items) < num_right
                predictions[key] = pl.DataFrame({"key": key, "id": ids, "group": ids, "correct": right})
        rows.append(row)
    common = {"setting": "generation", "family": "chess", "weak": "xs", "strong": "s", "method": "naive"}
    sizes = {"weak_params": 10, "strong_params": 100}
    results = pl.DataFrame([common | sizes | row for row in rows], schema_overrides={"zero_shot_key": pl.String})
    return results.cast({"shuffled_key": pl.String}), pl.concat(predictions.values())


def test_the_floor_is_the_best_of_supervisor_and_controls() -> None:
    row = pgr_table(resample(*with_controls(zero_shot=0.6, shuffled=0.55))).row(0, named=True)
    step = 1 / 2000  # the mean of seeds 0, 1, 2
    assert row["gain"] == pytest.approx(0.2) and row["gain_low"] < 0.2 < row["gain_high"]
    assert row["floor"] == pytest.approx(0.6) and row["floor_low"] < 0.6 < row["floor_high"]
    assert row["floor_of"] == "supervisor, zero-shot, shuffled"
    assert row["pgr_above_floor"] == pytest.approx((0.1 + step) / (0.3 + step)) and row["pgr"] == pytest.approx(0.5)
    assert row["pgr_above_floor_low"] < row["pgr_above_floor"] < row["pgr_above_floor_high"]
    assert row["no_headroom"] is False and row["label_sensitive"] is True and row["controls_reason"] is None
    [verdict] = controls.verdicts(pgr_table(resample(*with_controls(zero_shot=0.6, shuffled=0.55)))).values()
    assert verdict.endswith("their PGR above the floor measures what the labels taught.")


def test_a_task_whose_controls_do_as_well_is_told_in_plain_words() -> None:
    table = pgr_table(resample(*with_controls(zero_shot=0.9, shuffled=0.7)))
    for row in table.to_dicts():
        assert row["label_sensitive"] is False and row["no_headroom"] is True
        assert row["pgr_above_floor"] is None and "no pgr_above_floor" in row["reason"] and row["pgr"] is not None
    [low] = (
        pgr_table(resample(*with_controls(zero_shot=0.75, shuffled=0.6)))
        .filter(pl.col("task").is_not_null())
        .to_dicts()
    )
    assert low["no_headroom"] is False and low["above_untrained"] is False, "students below what they started from"
    assert low["controls_reason"].startswith("the untrained model does as well as the student")
    assert list(controls.verdicts(table).values()) == [
        "The untrained model does as well as the ceiling; its PGR does not measure what supervision adds. "
        "Shuffled labels do as well as the supervisor's; its PGR does not measure generalization."
    ]


def test_without_controls_nothing_vouches_for_a_pgr() -> None:
    results, predictions = with_controls(zero_shot=None, shuffled=None)
    row = pgr_table(resample(results, predictions)).row(0, named=True)
    assert row["floor"] is None and row["no_headroom"] is None and row["label_sensitive"] is None
    assert "no result yet" in row["controls_reason"]
    bare = results.drop("zero_shot_key", "shuffled_key", "controls")
    table = pgr_table(resample(bare, predictions))
    assert list(controls.verdicts(table).values()) == ["The study has no controls, so nothing vouches for its PGR."]
    half = pgr_table(resample(*with_controls(zero_shot=None, shuffled=0.55))).row(0, named=True)
    assert (
        half["floor_of"] == "supervisor, shuffled" and half["no_headroom"] is None and half["label_sensitive"] is True
    )


def test_a_control_that_fails_on_one_task_fails_in_the_pooled_row() -> None:
    good, bad = with_controls(zero_shot=0.4, shuffled=0.5, task="good"), with_controls(zero_shot=0.4, shuffled=0.8)
    table = pgr_table(resample(pl.concat([good[0], bad[0]]), pl.concat([good[1], bad[1]])))
    pooled = table.filter(pl.col("task").is_null()).row(0, named=True)
    assert pooled["label_sensitive"] is False and pooled["controls_reason"].startswith("chess-mate: shuffled labels")
    # the floor is the best of each task: the supervisor's 0.5 of one, shuffled labels' 0.8 of the other
    assert pooled["floor"] == pytest.approx(0.65 + 0.0005)


# --- medians and methods ------------------------------------------------------------------------------------------


def tasks(ratios: list[float], *, gaps: list[float] | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A study of as many tasks, each with its own PGR."""
    parts = []
    for i, ratio in enumerate(ratios):
        gap = gaps[i] if gaps else 0.4
        levels = np.array([0.4, 0.4 + ratio * gap, 0.4 + gap])
        right = np.arange(1000)[None, None, :] < (1000 * levels[:, None, None]).round()
        results, predictions = frames(Truth(num_items=1000), right, task=f"t{i}")
        named = [
            pl.format("t{}-{}", pl.lit(i), f"{side}_key").alias(f"{side}_key")
            for side in ("weak", "student", "ceiling")
        ]
        parts.append(
            (results.with_columns(named), predictions.with_columns(pl.format("t{}-{}", pl.lit(i), "key").alias("key")))
        )
    return pl.concat(part[0] for part in parts), pl.concat(part[1] for part in parts)


def test_the_pooled_median_is_over_tasks_and_says_what_it_leaves_out() -> None:
    row = pgr_table(resample(*tasks([0.1, 0.2, 0.9]))).filter(pl.col("task").is_null()).row(0, named=True)
    assert row["pgr"] == pytest.approx(0.4) and row["pgr_median"] == pytest.approx(0.2)
    assert row["pgr_median_low"] < 0.2 < row["pgr_median_high"] and row["num_left_out"] == 0
    assert row["pgr_new_tasks_low"] is None, "three tasks cannot enclose the median over all tasks"
    table = pgr_table(resample(*tasks([0.1, 0.2, 0.9, 0.5], gaps=[0.4, 0.4, 0.4, -0.2])))
    row = table.filter(pl.col("task").is_null()).row(0, named=True)
    assert row["num_left_out"] == 1 and row["pgr_median"] == pytest.approx(0.2)
    assert table.filter(pl.col("task") == "t3")["num_left_out"].to_list() == [1]
    spread = [0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9]
    row = pgr_table(resample(*tasks(spread))).filter(pl.col("task").is_null()).row(0, named=True)
    assert row["pgr_new_tasks_low"] < row["pgr_median_low"] < 0.5 < row["pgr_median_high"] < row["pgr_new_tasks_high"]
    assert row["pgr_new_tasks_low"] < 0.35 and row["pgr_new_tasks_high"] > 0.65


def test_methods_are_compared_with_naive_in_pairs_and_corrected_for_their_number() -> None:
    truth = Truth(num_replicates=5, gap=0.2, replicate_sd=0.02)
    right = truth.draw(np.random.default_rng(3))
    results, predictions = frames(truth, right)
    studies = [(results, predictions)]
    rng = np.random.default_rng(0)
    for method, share in (("better", 0.05), ("same", 0.0), ("shuffled", -0.3)):
        changed = (
            right[1] | (rng.random(right[1].shape) < share)
            if share >= 0
            else right[1] & (rng.random(right[1].shape) > -share)
        )
        students = frames(truth, np.stack([right[0], changed, right[2]]))
        key = (
            pl.when(pl.col("key").str.starts_with("student")).then(pl.col("key") + method).otherwise("key").alias("key")
        )
        of_method = students[0].with_columns(pl.lit(method).alias("method"), pl.col("student_key") + method)
        studies.append((of_method, students[1].with_columns(key).filter(pl.col("key").str.ends_with(method))))
    samples = resample(
        pl.concat(study[0] for study in studies), pl.concat(study[1] for study in studies), num_resamples=50
    )
    table = method_table(samples).filter(pl.col("task").is_not_null())
    assert table["method"].to_list() == ["better", "same"] and table["num_methods"].to_list() == [2, 2]
    better, same = table.to_dicts()
    naive = pgr_table(samples).row(0, named=True)
    width = naive["student_score_high"] - naive["student_score_low"]
    assert better["difference_high"] - better["difference_low"] < width / 3, "the replicates' own noise cancels"
    assert (
        better["difference_low"] > 0
        and better["p_holm"] == pytest.approx(2 * better["p_value"])
        and better["p_holm"] < 0.01
    )
    assert (same["difference"], same["p_value"], same["p_holm"]) == (0, 1, 1)


def test_holm_by_hand() -> None:
    rows: list[dict[str, Any]] = [{"p_value": p} for p in (0.03, 0.01, 0.04, None)]
    methods._adjust(rows)
    assert [row.get("p_holm") for row in rows] == pytest.approx([0.06, 0.03, 0.06, None])


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
    by_method = {
        row["method"]: row for row in stopping.copying_table(table_of(rows), curves, pl.DataFrame()).to_dicts()
    }
    assert (
        by_method["combined"]["more_than_naive"] == pytest.approx(-0.3) and by_method["naive"]["more_than_naive"] == 0
    )
    assert by_method["combined"]["label_loss"] == pytest.approx(0.4) and by_method["combined"][
        "truth_loss"
    ] == pytest.approx(0.6)
    assert by_method["naive"]["truth_loss"] is None
    more = [{"method": "naive", "task": "u", "agreement_when_weak_wrong": 0.2, "student_key": "u", "status": "done"}]
    over_tasks = stopping.copying_table(table_of(rows + more), curves, pl.DataFrame()).filter(
        pl.col("method") == "combined"
    )
    assert over_tasks["more_than_naive"].to_list() == pytest.approx([-0.3]), (
        "a task that naive students alone have does not count"
    )
    stopped = pl.DataFrame({"key": ["naive", "combined"], "best_step": [None, 1]})
    early = stopping.copying_table(table_of(rows), curves, stopped).filter(pl.col("method") == "combined")
    assert early["label_loss"].to_list() == pytest.approx([0.5]), "the losses of the step whose weights predict"


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
    assert row["pgr_difference_low"] < 0.5 < row["pgr_difference_high"]
    assert "b (B) against a (A)" in page.read_text() and (tmp_path / "both/figures/compare.svg").exists()
    assert pl.read_csv(tmp_path / "both/tables/compare.csv")["pgr_difference"].to_list() == [0.5, 0.5]
    same = compare.compare(*[resample(*tables.read_study(tmp_path / "a"))] * 2)
    assert same["pgr_difference"].to_list() == [0.0, 0.0]
    assert same["pgr_difference_high"].to_list() == pytest.approx([0.0, 0.0], abs=1e-6)


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
    page = write_report(
        tmp_path / "out", facts={"store": evil}, study_text=f"name: {evil}", description=f"About {evil}"
    ).read_text()
    assert "<h1>&lt;script&gt;alert(1)&lt;/SCRIPT&gt;</h1>\n<p>About &lt;script" in page, (
        "the description is under the title"
    )
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


@pytest.mark.parametrize("module", ["w2s_ray.analysis.pgr", "w2s_ray.analysis.report"])
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
    wrong, half, right = [0.1] * 4 + [0.9] * 4, [0.9, 0.1] * 4, [0.9] * 4 + [0.1] * 4
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
        has_pair = kind != "one size"
        assert (tmp_path / "out/figures/classification-score.svg").exists() == has_pair
        assert not (tmp_path / "out/figures/classification-pgr.svg").exists()
        assert ("There is one seed only" in page) == has_pair


@pytest.mark.parametrize("axis", ["compute", "fraction"])
def test_the_size_axis_can_be_another(store: Store, tmp_path: Path, axis: str) -> None:
    study_cell = cell()
    for fit in (study_cell.supervisor, study_cell.student, study_cell.ceiling):
        commit(store, fit, [0.9] * 7 + [0.1], tmp_path)
    write_results([study_cell], study="x", store=store, out=tmp_path / "out")
    page = write_report(tmp_path / "out", axis=axis).read_text()
    assert {"compute": "pretraining compute", "fraction": "fraction of the largest"}[axis] in page


def test_the_precision_to_expect_by_hand() -> None:
    """Per item the variance is 1.5 * 3/16 * 0.4 = 0.1125, of which replicates share 0.7; between replicates 1.5 * 0.01^2."""
    one = pgr_half_width(2000, gap=0.1, num_seeds=1)
    assert one == pytest.approx(1.96 * (0.1125 / 2000) ** 0.5 / 0.1, rel=1e-3)
    items, between = 0.7 * 0.1125 / 2000, (1.5e-4 + 0.3 * 0.1125 / 2000) / 5
    quantile = critical_value(between / (items + between), num_replicates=5, num_groups=2000)
    assert pgr_half_width(2000, gap=0.1, num_seeds=5) == pytest.approx(quantile * (items + between) ** 0.5 / 0.1)
    widths = [pgr_half_width(2000, gap=0.1, num_seeds=num) for num in (2, 3, 5, 10)]
    assert widths == sorted(widths, reverse=True) and widths[0] > 3 * widths[1], "two replicates say little"
    grouped = pgr_half_width(2000, gap=0.1, num_seeds=1, num_groups=34)
    assert grouped / one == pytest.approx((1 + (2000 / 34 - 1) * 0.1) ** 0.5 * 2.035 / 1.96, rel=1e-3)


def test_the_precision_to_expect_is_that_of_the_report() -> None:
    """Forecast from the noise of one simulated study, checked against the mean width of the intervals of others."""
    truth = Truth(num_replicates=5, gap=0.2, replicate_sd=0.01)
    rng = np.random.default_rng(0)
    noises, widths = [], []
    for _ in range(30):
        results, predictions = frames(truth, truth.draw(rng), n_test=truth.num_items)
        samples = resample(results, predictions, num_resamples=1)
        noises.append(measured_noise(samples)["t"])
        row = pgr_table(samples).row(0, named=True)
        widths.append((row["pgr_high"] - row["pgr_low"]) / 2)
    mean = Noise(*np.mean([(n.per_item, n.per_replicate, n.one_replicate_per_item) for n in noises], axis=0))
    assert pgr_half_width(2000, gap=0.2, num_seeds=5, noise=mean) == pytest.approx(np.mean(widths), rel=0.15)
    assert mean.per_replicate == pytest.approx(1.5e-4 + 1.5 * 0.2 * 0.15 / 2000, rel=0.35)


def test_the_precision_is_measured_once_the_store_has_replicates(store: Store, tmp_path: Path) -> None:
    cells = [cell(seed=seed) for seed in (0, 1)]
    truth = Truth(num_replicates=2, num_items=8)
    right = truth.draw(np.random.default_rng(0))
    for k, study_cell in enumerate(cells):
        for i, fit in enumerate((study_cell.supervisor, study_cell.student, study_cell.ceiling)):
            is_one = np.arange(8) < 4  # the truth of these items
            commit(store, fit, np.where(right[i, k] == is_one, 0.9, 0.1).tolist(), tmp_path)
    study = SimpleNamespace(name="x")
    keys = {fit.key for c in cells for fit in (c.supervisor, c.student, c.ceiling)}
    plan: Any = SimpleNamespace(cells=cells, study=study)
    noise = measured_on_store(plan, store=store, done=keys)["toy"]
    scores = right.mean(axis=2)
    values = scores[1] - 0.5 * scores[0] - 0.5 * scores[2]
    assert noise.per_replicate == pytest.approx(values.var(ddof=1))
    assert measured_on_store(plan, store=store, done=keys - {cells[1].student.key}) == {}, "one seed tells nothing"


def test_a_learning_curve_of_many_points_is_thinned_and_keeps_its_end() -> None:
    rows = [
        {
            "setting": "classification", "family": "f", "task": "t", "strong": "big", "strong_params": 2, "method": method,
            "weak": "small", "weak_params": 1, "seed": seed, "role": role, "line": line, "epoch": point / 100,
            "test_accuracy": 0.5 + point / 4000, "train_loss": 0.1, "train_accuracy": 0.9, "strong_number": 1,
            "weak_number": 0, "floor": 0.6, "fails": None,
        }
        for role, line, method in (("student", "small", "naive"), ("ceiling", "ceiling", "truth"))
        for seed in range(8)
        for point in range(1, 1001)
    ]  # fmt: skip
    figure = charts.learning_chart(pl.DataFrame(rows))
    assert figure is not None
    drawn = [row for values in figure.to_dict()["datasets"].values() for row in values]
    assert len(drawn) <= 2 * MAX_CURVE_POINTS, "16,000 points would be too many to draw"
    assert max(row["epoch"] for row in drawn) == 10.0, "where training ended is shown"
