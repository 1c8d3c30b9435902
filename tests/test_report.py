"""Tables and figures of the report beside PGR: agreement, calibration, stopping, scaling axes, controls and their marks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from w2s_ray.analysis import (
    agreement,
    charts,
    controls,
    findings,
    labels,
    markdown,
    report,
    scaling,
    sections,
    stopping,
)
from w2s_ray.analysis.answers import Share, Term, estimate, read_answers
from w2s_ray.analysis.bootstrap import Sample, resample
from w2s_ray.analysis.captions import captions
from w2s_ray.analysis.charts.difficulty import largest_by_difficulty
from w2s_ray.analysis.charts.parts import COLOURS
from w2s_ray.analysis.difficulty import difficulty_table
from w2s_ray.analysis.methods import method_table
from w2s_ray.analysis.pgr import pgr_table


def results_of(*rows: dict[str, Any]) -> pl.DataFrame:
    """Rows of results.parquet. A Fit's key is given, or made of its side, method, sizes and seed."""
    whole = []
    for row in rows:
        row = {
            "study": "x", "setting": "classification", "task": "t", "family": "f", "method": "naive", "weak": "s",
            "strong": "m", "weak_params": 10, "strong_params": 100, "seed": 0, "weak_score": 0.6, "student_score": 0.7,
            "ceiling_score": 0.8, "pgr": 0.5, "agreement": 0.8, "agreement_when_weak_right": 0.9,
            "agreement_when_weak_wrong": 0.5, "status": "done", "reason": None,
        } | row  # fmt: skip
        place = f"{row['task']} {row['seed']}"
        keys = {
            "weak_key": f"weak {row['weak']} {place}",
            "student_key": f"{row['method']} {row['weak']} {row['strong']} {place}",
            "ceiling_key": f"ceiling {row['strong']} {place}",
        }
        whole.append(keys | row)
    texts = ("reason", "zero_shot_key", "shuffled_key")
    nulls = {"floor_score": pl.Float64} | dict.fromkeys(texts, pl.String)
    return pl.DataFrame(
        whole, schema_overrides={n: t for n, t in nulls.items() if n in whole[0]}, infer_schema_length=None
    )


def predictions_of(labels: list[int], **probabilities: list[float]) -> pl.DataFrame:
    """Rows of predictions.parquet. Names stand for keys, with `_` for a blank."""
    parts = []
    for name, probability in sorted(probabilities.items()):
        part = {
            "key": name.replace("_", " "),
            "task": "t",
            "id": [f"i{i:05d}" for i in range(len(labels))],
            "probability": pl.Series(probability, dtype=pl.Float32),
            "label": pl.Series(labels, dtype=pl.Int8),
        }
        parts.append(
            pl.DataFrame(part).with_columns(((pl.col("probability") > 0.5) == (pl.col("label") == 1)).alias("correct"))
        )
    return pl.concat(parts).with_columns(pl.lit(None, pl.String).alias("completion"), pl.col("id").alias("group"))  # fmt: skip


def pgr_of(*rows: dict[str, Any]) -> pl.DataFrame:
    """Rows of pgr.parquet."""
    common = {
        "setting": "classification", "task": "t", "family": "f", "weak": "s", "strong": "m", "method": "naive",
        "gap": 0.2, "gap_low": 0.15, "gap_too_small": False, "no_headroom": False, "above_untrained": True, "label_sensitive": True, "controls_reason": None, "num_cells": 1,
        "pgr": 0.5, "pgr_above_floor_low": 0.1,
    }  # fmt: skip
    types = {
        "task": pl.String,
        "no_headroom": pl.Boolean,
        "above_untrained": pl.Boolean,
        "label_sensitive": pl.Boolean,
        "controls_reason": pl.String,
    }
    return pl.DataFrame([common | row for row in rows], schema_overrides=types, infer_schema_length=None)


# --- inverse scaling ------------------------------------------------------------------------------------------------


def test_seeds_that_are_alike_make_one_step_not_ten() -> None:
    rows = [
        {"seed": seed, "strong": str(params), "strong_params": params, "agreement_when_weak_wrong": wrong}
        for seed in range(10)
        for params, wrong in ((100, 0.6), (1000, 0.5 if seed else 0.7))
    ]
    steps = agreement.inverse_scaling(results_of(*rows), {}).filter(pl.col("when") == "wrong")
    [row] = steps.to_dicts()
    assert (row["steps_down"], row["steps_up"], row["num_replicates"]) == (1, 0, 10)
    assert row["p_value"] == 1.0, "one contrast proves nothing, in however many seeds"
    level = agreement.inverse_scaling(results_of(*rows), {}).filter(pl.col("when") == "right")
    assert level.select("steps_down", "steps_up", "p_value").row(0) == (0, 0, None)


def test_the_slope_of_agreement_by_hand() -> None:
    """Where the supervisor is wrong (items 0 to 3), the student of 100 agrees on 3 of 4 items and that of 1,000 on 1 of 4."""
    results = results_of({}, {"strong": "l", "strong_params": 1000})
    predictions = predictions_of(
        [1, 1, 1, 1, 0, 0, 0, 0],
        weak_s_t_0=[0.1] * 8,
        naive_s_m_t_0=[0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.9],
        naive_s_l_t_0=[0.1, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1],
    )
    table = agreement.inverse_scaling(results, read_answers(predictions))
    slopes = dict(table.select("when", "slope").iter_rows())
    assert slopes["wrong"] == pytest.approx(-0.5) and slopes["right"] == pytest.approx(0.25)
    assert (table["slope_low"] < table["slope"]).all() and (table["slope"] < table["slope_high"]).all()


@pytest.mark.parametrize("num_replicates", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_intervals_of_agreement_cover_the_truth(num_replicates: int, spread: float) -> None:
    """Replicates answer the same items, ten to a group, and differ in their true rates."""
    rng, covered, num_simulations = np.random.default_rng(1), 0, 400
    for _ in range(num_simulations):
        group_rates = rng.beta(7, 3, 60) - 0.7
        replicates = {}
        for seed in range(num_replicates):
            rate = 0.7 + rng.normal(0, spread)
            hits = rng.binomial(10, np.clip(rate + group_rates, 0, 1)).astype(float)
            value = hits.sum() / 600
            replicates[seed] = [Term("t", 1.0, Share(value, (hits - value * 10) / 600))]
        _, low, high = estimate(replicates)
        covered += low <= 0.7 <= high
    assert covered / num_simulations >= 0.925


def test_twins_of_a_seed_are_one_replicate() -> None:
    same = {"agreement_when_weak_wrong": 0.5}
    cells = [
        {"strong": str(p), "strong_params": p, "swapped": swapped, "weak_key": f"w{swapped}", "student_key": f"{p}{swapped}"} | same
        for p in (100, 1000) for swapped in (False, True)
    ]  # fmt: skip
    table = agreement.inverse_scaling(results_of(*cells), {})
    assert table["num_replicates"].to_list() == [1, 1] and table["steps_down"].to_list() == [0, 0]


# --- imitation ------------------------------------------------------------------------------------------------------


def test_imitated_mistakes_beside_shuffled_and_noise() -> None:
    cell = {"shuffled_key": "shuffled", "method": "naive"}
    results = results_of(cell, cell | {"method": "noise"})
    predictions = predictions_of(
        [1, 1, 1, 1, 0, 0],
        weak_s_t_0=[0.1, 0.1, 0.1, 0.1, 0.1, 0.1],  # wrong on the first four
        naive_s_m_t_0=[0.1, 0.1, 0.1, 0.9, 0.1, 0.1],
        noise_s_m_t_0=[0.1, 0.9, 0.9, 0.9, 0.1, 0.1],
        shuffled=[0.1, 0.1, 0.9, 0.9, 0.9, 0.9],
    )
    [row] = agreement.imitation_table(results, read_answers(predictions), {}).to_dicts()
    assert (row["method"], row["agreement"], row["shuffled"], row["noise"]) == ("naive", 0.75, 0.5, 0.25)
    assert (row["more_than_shuffled"], row["more_than_noise"]) == (0.25, 0.5)
    assert row["more_than_noise_low"] < 0.5 < row["more_than_noise_high"]
    alone_results = results.filter(pl.col("method") == "naive").drop("shuffled_key")
    [alone] = agreement.imitation_table(alone_results, read_answers(predictions), {}).to_dicts()
    assert alone["agreement"] == 0.75 and alone["shuffled"] is None and alone["more_than_noise"] is None


def test_mistakes_are_compared_on_the_rows_of_half_b_that_the_student_learned_from() -> None:
    cell = {"shuffled_key": "shuffled", "method": "naive"}
    test = predictions_of([1, 0], weak_s_t_0=[0.1, 0.1], naive_s_m_t_0=[0.9, 0.1], shuffled=[0.1, 0.1])
    half_b = predictions_of(
        [1, 1, 1, 1, 0, 0],
        weak_s_t_0=[0.1, 0.1, 0.1, 0.1, 0.1, 0.1],  # wrong on the first four
        naive_s_m_t_0=[0.1, 0.1, 0.9, 0.9, 0.1, 0.1],
        shuffled=[0.9, 0.9, 0.9, 0.1, 0.9, 0.9],
    )
    is_held_out = (pl.col("key") == "naive s m t 0") & (pl.col("id") == "i00003")
    answers, of_half_b = read_answers(test), read_answers(half_b.filter(~is_held_out))
    table = agreement.imitation_table(results_of(cell), answers, of_half_b)
    assert table["part"].to_list() == ["test set", "half B"]
    assert table["agreement"].to_list() == [0.0, pytest.approx(2 / 3)]
    assert table["shuffled"].to_list() == [1.0, 0.0], "on half B without the row that the student held out"
    lacking = read_answers(half_b.filter((pl.col("key") != "shuffled") | (pl.col("id") != "i00000")))
    [row] = agreement.imitation_table(results_of(cell), {}, lacking).to_dicts()
    assert row["agreement"] == 0.5 and row["shuffled"] is None, "the control did not answer all rows of the student"
    chart = charts.imitation_chart(
        table.with_columns(pl.lit(None, pl.String).alias("fails"), weak_number=0, weak_size=10, strong_size=100),
        axis="params",
    )
    assert chart is not None
    [drawn] = chart.to_dict()["datasets"].values()
    assert {(row["panel"], row["learned_from"], round(row["share"], 2)) for row in drawn} == {
        ("t: naive, test set", "its supervisor", 0.0),
        ("t: naive, test set", "shuffled labels", 1.0),
        ("t: naive, half B", "its supervisor", 0.67),
        ("t: naive, half B", "shuffled labels", 0.0),
    }


@pytest.mark.parametrize("share_of_pool", [0.5, 1.0])
def test_the_interval_on_half_b_counts_items_that_replicates_share(share_of_pool: float) -> None:
    """Agreement of students with supervisors that are always wrong, on halves dealt from one pool: true share 0.7."""
    rng, num_pool, held = np.random.default_rng(0), 400, []
    for _ in range(100):
        latent, rows, cells = rng.standard_normal(num_pool), [], []
        for seed in range(3):
            half = np.sort(rng.choice(num_pool, round(share_of_pool * num_pool), replace=False))
            own = rng.standard_normal(len(half))
            agrees = 0.9**0.5 * latent[half] + 0.1**0.5 * own < 0.5244  # a normal variable is, with probability 0.7
            for key, wrong in ((f"weak s t {seed}", np.ones(len(half), bool)), (f"naive s m t {seed}", agrees)):
                probability = np.where(wrong, 0.1, 0.9)
                ids = [f"i{i:05d}" for i in half]
                rows.append(pl.DataFrame({"key": key, "id": ids, "probability": probability}))
            cells.append({"seed": seed})
        table = pl.concat(rows).with_columns(
            task=pl.lit("t"), label=pl.lit(1, pl.Int8), group="id", completion=None, correct=pl.col("probability") > 0.5
        )
        [row] = agreement.imitation_table(results_of(*cells), {}, read_answers(table)).to_dicts()
        held.append(row["agreement_low"] <= 0.7 <= row["agreement_high"])
    assert 0.9 < np.mean(held) <= 0.99


# --- misfit ---------------------------------------------------------------------------------------------------------


def test_misfit_and_gain_are_squared_errors_and_may_fall_on_either_side() -> None:
    """Under 0-1 accuracy a gain above the disagreement is impossible; under squared loss both sides are possible."""
    results = results_of({}, {"strong": "l", "strong_params": 1000})
    predictions = predictions_of(
        [1, 1, 0, 0],
        weak_s_t_0=[0.6, 0.6, 0.4, 0.4],
        naive_s_m_t_0=[0.8, 0.8, 0.2, 0.2],  # nearer to the truth, with the same answers
        naive_s_l_t_0=[0.4, 0.8, 0.4, 0.4],
    )
    by_size = {row["strong"]: row for row in agreement.misfit_table(results, read_answers(predictions)).to_dicts()}
    assert by_size["m"]["misfit"] == pytest.approx(0.04) and by_size["m"]["gain"] == pytest.approx(0.16 - 0.04)
    assert by_size["m"]["gain"] > by_size["m"]["misfit"], "no such point exists under accuracy"
    assert by_size["l"]["misfit"] == pytest.approx(0.02) and by_size["l"]["gain"] == pytest.approx((0.32 - 0.4) / 4)


# --- unlike Fits stay apart -----------------------------------------------------------------------------------------

GENERATIVE = {"method": "generative", "weak_key": "own weak", "ceiling_key": "own ceiling", "weak_score": 0.9, "ceiling_score": 1.0}  # fmt: skip


def test_generatives_own_models_are_no_ground_truth() -> None:
    results = results_of({}, GENERATIVE, {"method": "generative(epochs=2)"} | {k: v for k, v in GENERATIVE.items() if k != "method"})  # fmt: skip
    ladder = sections._ladder(results)
    assert ladder is not None and "generative" in ladder.note
    assert [[cell.text for cell in row[4:]] for row in ladder.rows] == [["0.600", "–"], ["–", "0.800"]]
    point = {"epoch": 1.0, "test_accuracy": 0.5, "train_loss": 0.1, "train_accuracy": 0.5}
    curves = pl.DataFrame([{"key": key} | point for key in ("own ceiling", "ceiling m t 0", "naive s m t 0")])
    learning = agreement.learning_table(results, curves)
    assert learning["role"].to_list() == ["student", "ceiling"]
    everyone = {name: [0.9, 0.1] for name in ("own_weak", "own_ceiling", "weak_s_t_0", "ceiling_m_t_0", "naive_s_m_t_0", "generative_s_m_t_0")}  # fmt: skip
    items = pl.DataFrame({"task": "t", "id": ["i00000", "i00001"], "difficulty": [1.0, 2.0]})
    table = difficulty_table(results, predictions_of([1, 0], **everyone), items)
    assert table.filter(pl.col("role") != "student")["num_seeds"].to_list() == [1, 1, 1, 1]
    assert set(table.filter(pl.col("role") == "student")["method"]) == {"naive", "generative"}


def test_a_plain_supervisor_of_generative_learned_from_the_truth() -> None:
    own = GENERATIVE | {"method": "generative(supervisor=plain)", "weak_key": "plain"}
    roles = agreement.fits_by_role(results_of(own))
    assert dict(roles.filter(pl.col("role") != "student").select("role", "method").iter_rows()) == {
        "supervisor": "truth",
        "ceiling": "generative",
    }
    predictions = predictions_of([1, 0], plain=[0.9, 0.1], own_ceiling=[0.9, 0.1], **{own["method"] + "_s_m_t_0": [0.9, 0.1]})  # fmt: skip
    chart = charts.calibration_chart(agreement.calibration_table(results_of(own), predictions, pl.DataFrame()))
    assert chart is not None
    drawn = [row for rows in chart.to_dict()["datasets"].values() for row in rows if "role" in row]
    assert {row["role"] for row in drawn} == {"supervisor", "student", "ceiling"}


def test_calibration_is_of_each_method_with_controls_apart() -> None:
    results = results_of({}, {"method": "shuffled"}, GENERATIVE, {"zero_shot_key": "untrained", "seed": 1})
    predictions = predictions_of(
        [1, 0, 0, 1],
        weak_s_t_0=[0.92, 0.98, 0.1, 1.0],
        naive_s_m_t_0=[0.95, 0.05, 0.05, 0.95],
        shuffled_s_m_t_0=[0.55, 0.55, 0.55, 0.55],
        own_weak=[0.65, 0.65, 0.65, 0.65],
        untrained=[0.45, 0.45, 0.45, 0.45],
    )
    table = agreement.calibration_table(results, predictions, pl.DataFrame())
    bins = {key: part["bin"].to_list() for key, part in table.partition_by("role", "method", as_dict=True).items()}
    assert bins == {
        ("control", "zero_shot"): [4],
        ("student", "naive"): [0, 9],
        ("student", "shuffled"): [5],
        ("supervisor", "generative"): [6],
        ("supervisor", "truth"): [1, 9],
    }
    supervisor = table.filter(pl.col("method") == "truth")
    assert supervisor["num_items"].to_list() == [1, 3] and supervisor["was"][1] == pytest.approx(2 / 3)
    assert supervisor["said"].to_list() == pytest.approx([0.1, (0.92 + 0.98 + 1) / 3])
    chart = charts.calibration_chart(table)
    assert chart is not None
    drawn = [row for rows in chart.to_dict()["datasets"].values() for row in rows if "role" in row]
    assert {(row["role"], row["of"]) for row in drawn} == {("student", "naive"), ("supervisor", "naive")}


def test_supervisors_on_the_test_set_and_on_half_b_by_hand() -> None:
    results = results_of({}, {"method": "shuffled"}, GENERATIVE)
    test = predictions_of([1, 0], weak_s_t_0=[0.75, 0.25], own_weak=[0.9, 0.9], naive_s_m_t_0=[0.9, 0.1])
    half_b = predictions_of([1, 1, 0, 0], weak_s_t_0=[0.75, 0.25, 0.75, 0.25], naive_s_m_t_0=[0.9, 0.9, 0.9, 0.9])
    on_test, on_half_b = agreement.supervisors_table(results, test, half_b).to_dicts()
    assert (on_test["part"], on_test["score"], on_test["num_items"]) == ("test set", 1.0, 2)
    assert (on_test["brier"], on_test["ece"]) == (pytest.approx(0.0625), pytest.approx(0.25))
    assert (on_half_b["part"], on_half_b["score"], on_half_b["num_items"]) == ("half B", 0.5, 4)
    assert (on_half_b["brier"], on_half_b["ece"]) == (pytest.approx((0.0625 + 0.5625) / 2), pytest.approx(0.25))
    table = agreement.calibration_table(results, test, half_b)
    assert table.filter(pl.col("part") == "half B")["role"].unique().sort().to_list() == ["student", "supervisor"]
    chart = charts.calibration_chart(table)
    assert chart is not None
    drawn = [row for rows in chart.to_dict()["datasets"].values() for row in rows if "role" in row]
    assert {row["part"] for row in drawn} == {"test set"}


def test_the_caption_of_calibration_speaks_of_the_test_set_alone() -> None:
    place = {"setting": "classification", "family": "toy", "task": "toy", "role": "student", "method": "naive"}
    rows = [
        place | {"part": part, "bin": 5, "num_items": 10, "said": 0.5, "was": was}
        for part, was in ((agreement.TEST, 0.6), (agreement.HALF_B, 0.9))
    ]
    [caption] = captions({"calibration": pl.DataFrame(rows)}, ["classification-calibration"]).values()
    assert "students 0.10." in caption


def test_auroc_by_hand_counts_ties_half() -> None:
    results = results_of({"zero_shot_key": "untrained"})
    predictions = predictions_of(
        [1, 1, 0, 0],
        weak_s_t_0=[0.9, 0.4, 0.4, 0.1],  # of four pairs three are in order and one is tied
        naive_s_m_t_0=[0.2, 0.3, 0.1, 0.15],  # all in order, though no item passes the threshold
        untrained=[0.5, 0.5, 0.5, 0.5],
    )
    table = agreement.scores_table(results, predictions)
    auroc = {(row["role"], row["method"]): row["auroc"] for row in table.to_dicts()}
    assert auroc == {("supervisor", "truth"): 0.875, ("student", "naive"): 1.0, ("control", "zero_shot"): 0.5}
    one_class = agreement.scores_table(results, predictions.filter(pl.col("label") == 1))
    assert one_class["auroc"].is_null().all() and one_class["score"].is_not_null().all()


# --- stopping -------------------------------------------------------------------------------------------------------


def stopping_study() -> tuple[pl.DataFrame, pl.DataFrame]:
    """(results, curves) of two seeds. Student and ceiling are best on held-out rows at step 2, and both predict at the last."""
    results = results_of(
        {"student_score": 0.65, "ceiling_score": 0.85}, {"seed": 1, "student_score": 0.65, "ceiling_score": 0.85}
    )
    curve = {"step": [1, 2, 3], "validation_accuracy": [0.7, 0.9, 0.9], "test_accuracy": [0.75, 0.7, 0.65]}
    ceiling = {"step": [1, 2, 3], "validation_accuracy": [0.5, 0.6, 0.5], "test_accuracy": [0.95, 0.9, 0.85]}
    curves = pl.concat(
        pl.DataFrame(points).with_columns(pl.lit(f"{name} t {seed}").alias("key"))
        for seed in (0, 1)
        for name, points in (("naive s m", curve), ("ceiling m", ceiling))
    )
    return results, curves


def test_where_to_stop_by_hand() -> None:
    results, curves = stopping_study()
    table = stopping.stopping_table(results, curves, pl.DataFrame(), pgr_of({}))
    by_rule = {row["rule"]: row for row in table.to_dicts()}
    assert {rule: row["score"] for rule, row in by_rule.items()} == pytest.approx(
        {"final": 0.65, "stopped": 0.7, "oracle": 0.75}
    )
    assert {rule: row["ceiling_score"] for rule, row in by_rule.items()} == pytest.approx(
        {"final": 0.85, "stopped": 0.9, "oracle": 0.95}
    ), "one rule for student and ceiling"
    assert by_rule["stopped"]["pgr"] == pytest.approx(0.1 / 0.3) and by_rule["stopped"]["num_seeds"] == 2
    assert by_rule["oracle"]["pgr"] == pytest.approx(0.15 / 0.35) and by_rule["oracle"]["needs_ground_truth"]
    assert table.filter("is_result")["rule"].to_list() == ["final"], "where nothing stops, the last weights predict"
    without = stopping.stopping_table(results, curves.drop("validation_accuracy"), pl.DataFrame(), pgr_of({}))
    assert set(without["rule"]) == {"final", "oracle"}, "nothing was held out, so nothing says where to stop"
    unclear = stopping.stopping_table(results, curves, pl.DataFrame(), pgr_of({"gap_too_small": True}))
    assert unclear["pgr"].is_null().all() and unclear["reason"].str.starts_with("gap_too_small").all()


def test_fits_that_stop_by_validation_predict_at_their_best_point() -> None:
    """Their scores are those of the point that validation chose, and the last point is told from the curves."""
    results, curves = stopping_study()
    results = results.with_columns(pl.lit(0.7).alias("student_score"), pl.lit(0.9).alias("ceiling_score"))
    runs = pl.DataFrame({"key": [*results["student_key"], *results["ceiling_key"]], "best_step": [2] * 4})
    table = stopping.stopping_table(results, curves, runs, pgr_of({}))
    by_rule = {row["rule"]: row for row in table.to_dicts()}
    assert table.filter("is_result")["rule"].to_list() == ["stopped"]
    assert (by_rule["stopped"]["score"], by_rule["stopped"]["ceiling_score"]) == (0.7, 0.9)
    assert (by_rule["final"]["score"], by_rule["final"]["ceiling_score"]) == pytest.approx((0.65, 0.85))
    assert by_rule["final"]["pgr"] == pytest.approx(0.05 / 0.25)


def test_a_rule_whose_gap_is_within_its_error_gives_no_pgr() -> None:
    """The gap is .30 where the models stop and .25 at the last step, known to .26."""
    results, curves = stopping_study()
    table = stopping.stopping_table(results, curves, pl.DataFrame(), pgr_of({"gap": 0.3, "gap_low": 0.04}))
    has_pgr = {row["rule"]: row["pgr"] is not None for row in table.to_dicts()}
    assert has_pgr == {"final": False, "stopped": True, "oracle": True}


# --- labels ---------------------------------------------------------------------------------------------------------


def test_the_labels_that_students_learned_from() -> None:
    results = results_of({"shuffled_key": "shuffled"}, {"method": "ensemble", "shuffled_key": "shuffled"})
    runs = pl.DataFrame(
        {
            "key": ["naive s m t 0", "ensemble s m t 0", "shuffled", "ceiling m t 0"],
            "label_score": [0.7, 0.8, 0.5, None],
            "ensemble_score": [None, 0.75, None, None],
            "labellers": [["weak s t 0"], ["weak s t 0", "other"], [], []],
        }
    )
    predictions = predictions_of([1, 1, 0, 0], weak_s_t_0=[0.9, 0.9, 0.1, 0.9], other=[0.9, 0.1, 0.9, 0.1])
    table = labels.label_table(results, runs, read_answers(predictions))
    by_method = {row["method"]: row for row in table.to_dicts()}
    assert set(by_method) == {"naive", "ensemble", "shuffled"}, "ceilings learned from the truth"
    assert by_method["naive"]["labels_right"] == 0.7 and by_method["naive"]["labeller_score"] == 0.75
    ensemble = by_method["ensemble"]
    assert (ensemble["num_labellers"], ensemble["labeller_score"], ensemble["best_labeller_score"]) == (2, 0.625, 0.75)
    assert ensemble["labels_right"] == 0.8 and ensemble["ensemble_score"] == 0.75
    assert by_method["shuffled"]["weak"] is None and by_method["shuffled"]["labels_right"] == 0.5
    assert by_method["shuffled"]["labeller_score"] is None
    known = predictions_of([1, 1, 0, 0], weak_s_t_0=[0.9, 0.9, 0.1, 0.9])
    [ensemble] = (
        labels.label_table(results, runs, read_answers(known)).filter(pl.col("method") == "ensemble").to_dicts()
    )
    assert ensemble["num_labellers"] == 2, "members without predictions are counted"
    assert ensemble["labeller_score"] is None and ensemble["best_labeller_score"] is None, (
        "and not passed over in a mean"
    )
    assert labels.label_table(results, pl.DataFrame(), {}).is_empty(), "tables of an earlier version"


# --- scaling --------------------------------------------------------------------------------------------------------


def steps_of_one_size(*, num_resamples: int = 40) -> list[Sample]:
    """A ladder like pythia-410m-steps: one number of parameters, eight amounts of pretraining."""
    rng = np.random.default_rng(0)
    samples = []
    flops = [10.0**power for power in np.linspace(18, 21, 6)]
    for i, weak in enumerate(flops):
        for strong in flops[i:]:
            score = 0.5 + 0.05 * (np.log10(strong) - 18) + 0.01 * (np.log10(weak) - 18)
            student = score + rng.normal(0, 0.003, 1 + num_resamples)
            row = {
                "setting": "classification", "family": "f", "method": "naive", "weak": f"{weak:g}", "strong": f"{strong:g}",
                "weak_params": 10**8, "strong_params": 10**8, "weak_flops": weak, "strong_flops": strong, "status": "done",
            }  # fmt: skip
            level = np.ones_like(student)
            samples.append(Sample(pl.DataFrame([row]), None, np.stack([0.4 * level, student, 0.9 * level]), None))
    return samples


def test_sizes_of_the_same_parameters_give_a_curve_of_compute() -> None:
    samples = steps_of_one_size()
    fits, curves = scaling.fit_scaling(samples, axis="compute")
    slope = fits.filter((pl.col("target") == "score") & (pl.col("form") == "log-linear") & (pl.col("parameter") == "b"))
    assert slope["value"][0] == pytest.approx(0.05, abs=0.01) and set(fits["axis"]) == {"compute"}
    assert set(curves["target"]) == {"pgr", "score"} and curves["strong_size"].min() >= 1e18
    figure = charts.fit_chart(
        curves.with_columns(pl.lit(0).alias("weak_number"), pl.lit(None, pl.String).alias("fails")), axis="compute"
    )
    assert figure is not None and "pretraining compute" in str(figure.to_dict())
    by_params, none = scaling.fit_scaling(samples)
    assert none.is_empty() and by_params["reason"].str.contains("same parameters").all()


def test_inverse_scaling_on_the_axis_of_compute() -> None:
    sizes = {"weak_params": 100, "strong_params": 100, "weak_flops": 1e18}
    rows = [sizes | {"strong": s, "strong_flops": f, "agreement_when_weak_wrong": a} for s, f, a in (("m", 1e19, 0.6), ("l", 1e20, 0.5))]  # fmt: skip
    table = agreement.inverse_scaling(results_of(*rows), {}, axis="compute")
    assert table.filter(pl.col("when") == "wrong")["steps_down"].to_list() == [1]
    assert agreement.inverse_scaling(results_of(*rows), {}).is_empty(), "the sizes don't differ in parameters"


def test_the_band_holds_the_disagreement_of_the_forms() -> None:
    """Scores that bend at the last student: forms that fit the data alike go apart beyond them."""
    samples = []
    sizes = [1e4, 1e5, 1e6, 1e7, 1e8]
    rng = np.random.default_rng(0)
    for i, weak in enumerate(sizes):
        for strong in sizes[i:]:
            score = 0.95 / (1 + np.exp(2 - 0.45 * np.log10(strong))) + rng.normal(0, 0.002)
            row = {"setting": "c", "family": "f", "method": "naive", "weak": f"{weak:g}", "strong": f"{strong:g}",
                   "weak_params": int(weak), "strong_params": int(strong), "status": "done"}  # fmt: skip
            student = score + np.append(0, rng.normal(0, 0.002, 40))
            level = np.ones_like(student)
            samples.append(Sample(pl.DataFrame([row]), None, np.stack([0.3 * level, student, 0.97 * level]), None))
    fits, curves = scaling.fit_scaling(samples)
    shares = fits.filter(pl.col("target") == "score").unique("form")
    assert shares["weight"].sum() == pytest.approx(1) and (shares["weight"] > 0).sum() > 1
    best = shares.sort("held_out_rmse")
    assert best["weight"].is_sorted(descending=True), "the better a form predicts, the more it counts"
    drawn = curves.filter(pl.col("target") == "score")
    widths = drawn.select("weak", "strong_size", (pl.col("high") - pl.col("low")).alias("width"))
    inside = widths.filter(pl.col("strong_size").is_between(1e5, 1e7))["width"].max()
    assert widths["width"].max() > 3 * inside, "beyond the data the forms disagree, and the band says so"
    assert ((drawn["low"] <= drawn["value"]) & (drawn["value"] <= drawn["high"])).mean() > 0.95


# --- controls -------------------------------------------------------------------------------------------------------


SHUFFLED = "Shuffled labels do as well as the supervisor's; its PGR does not measure generalization"
UNTRAINED = "The untrained model does as well as the ceiling; its PGR does not measure what supervision adds"
NOT_RUN = {"no_headroom": None, "above_untrained": None, "label_sensitive": None, "pgr_above_floor_low": None}
LEVEL = "The student is not clearly above the floor, so nothing shows what its labels taught"
VOUCHED = "Students beat their controls; their PGR above the floor measures what the labels taught"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"label_sensitive": False, "controls_reason": SHUFFLED}], SHUFFLED),
        ([{"label_sensitive": False, "controls_reason": f"{UNTRAINED}. {SHUFFLED}"}], f"{UNTRAINED}. {SHUFFLED}"),
        ([{"label_sensitive": False, "controls_reason": SHUFFLED}, {"strong": "l"}], f"{SHUFFLED} (s to m). {VOUCHED} (s to l)"),
        ([{"label_sensitive": False, "controls_reason": SHUFFLED, "method": "noise"}, {}], VOUCHED),
        ([{}], VOUCHED),
        ([{"pgr_above_floor_low": -0.1}], LEVEL),
        ([{"pgr_above_floor_low": None}, {"strong": "l"}], f"{LEVEL} (s to m). {VOUCHED} (s to l)"),
        ([{"no_headroom": None, "above_untrained": None}], f"No untrained model tells what pretraining alone gives. {VOUCHED}"),
        ([{"label_sensitive": None}], "No students of shuffled labels vouch for its PGR"),
        ([NOT_RUN], "No controls were run, so nothing vouches for its PGR"),
        ([NOT_RUN | {"controls_reason": "the study has no controls, so nothing vouches for its PGR"}], "The study has no controls, so nothing vouches for its PGR"),
        ([{"gap_too_small": True}], "No ceiling is clearly above its supervisor, so there is no PGR"),
    ],
)  # fmt: skip
def test_each_task_gets_a_verdict(rows: list[dict[str, Any]], sentence: str) -> None:
    assert list(controls.verdicts(pgr_of(*rows)).values()) == [f"{sentence}."]


def test_families_are_judged_one_by_one() -> None:
    """Each has its own untrained and shuffled models."""
    table = pgr_of({}, {"family": "g", "label_sensitive": False, "controls_reason": SHUFFLED})
    assert list(controls.verdicts(table).values()) == [f"{VOUCHED}.", f"{SHUFFLED}."]


def test_a_table_without_controls_vouches_for_nothing() -> None:
    bare = pgr_of({}).drop("no_headroom", "label_sensitive", "controls_reason", "pgr_above_floor_low")
    [verdict] = controls.verdicts(bare).values()
    assert "nothing vouches" in verdict


def test_rows_that_fail_a_control_are_marked() -> None:
    pgr = pgr_of(
        {"label_sensitive": False}, {"strong": "l"}, {"task": None, "label_sensitive": False, "no_headroom": True}
    )
    rows = controls.marked(results_of({}, {"strong": "l"}, {"task": "other"}), pgr)
    assert rows["fails"].to_list() == ["not clearly above shuffled labels", None, None]
    pairs = controls.marked(pl.DataFrame({"setting": ["classification"], "family": "f", "method": "naive", "weak": "s", "strong": "m"}), pgr)  # fmt: skip
    assert pairs["fails"].to_list() == ["ceiling not clearly above untrained; not clearly above shuffled labels"]
    families = controls.marked(pl.DataFrame({"setting": ["classification"], "family": "f", "method": "naive"}), pgr)
    assert families["num_failing"].to_list() == [1]


def planted_study(folder: Path, *, with_controls: bool) -> None:
    """A study of five seeds whose shuffled students do as well as its own; the tables that `w2s report` would write."""
    rng, num_items = np.random.default_rng(0), 300
    labels = rng.integers(0, 2, num_items)

    def answers(rate: float) -> list[float]:
        return list(np.where(rng.random(num_items) < rate, labels, 1 - labels) * 0.8 + 0.1)

    rows, given = [], {}
    sizes = {"s": 10, "m": 100, "l": 1000}
    for seed in range(5):
        for weak, strong in (("s", "m"), ("s", "l"), ("m", "l")):
            rate = {"weak": 0.6 if weak == "s" else 0.7, "student": 0.75, "ceiling": 0.95, "zero_shot": 0.55, "shuffled": 0.74}  # fmt: skip
            keys = {side: f"{side}_{weak}_{strong}_{seed}" for side in rate}
            given |= {key: answers(rate[side]) for side, key in keys.items() if with_controls or side in ("weak", "student", "ceiling")}  # fmt: skip
            row = {
                "seed": seed,
                "weak": weak,
                "strong": strong,
                "weak_params": sizes[weak],
                "strong_params": sizes[strong],
            }
            row |= {f"{side}_key": key.replace("_", " ") for side, key in keys.items()}
            row |= {f"{side}_score": rate[side] for side in ("weak", "student", "ceiling")}
            row |= {"controls": with_controls, "floor_score": 0.74 if with_controls else None, "swapped": False}
            if with_controls:
                row |= {"zero_shot_score": 0.55, "shuffled_score": 0.74}
            else:
                row |= {"zero_shot_key": None, "shuffled_key": None}
            rows.append(row)
    folder.mkdir(exist_ok=True)
    predictions = predictions_of(list(labels), **given).with_columns(pl.col("key").cast(pl.Categorical))
    results_of(*rows).write_parquet(folder / "results.parquet")
    predictions.write_parquet(folder / "predictions.parquet")
    runs = {"key": ["a", "b", "c"], "machine": "x", "host": "h", "workers": 1, "zero_stage": 1, "tokens": 1, "flops": 1, "train_s": 1.0}  # fmt: skip
    pl.DataFrame(runs).with_columns(pl.Series("torch", ["2.13", "2.14", "2.14"]), pl.lit("5.23").alias("transformers")).write_parquet(folder / "runs.parquet")  # fmt: skip
    points = {
        "epoch": [1.0, 2.0],
        "step": [1, 2],
        "test_accuracy": [0.6, 0.7],
        "train_loss": 0.1,
        "train_accuracy": 0.9,
    }
    keys = [row[f"{side}_key"] for row in rows for side in ("student", "ceiling")]
    pl.concat(pl.DataFrame(points).with_columns(pl.lit(key).alias("key")) for key in keys).write_parquet(folder / "curves.parquet")  # fmt: skip


def test_without_controls_the_first_paragraph_says_that_nothing_vouches(tmp_path: Path) -> None:
    planted_study(tmp_path / "out", with_controls=False)
    page = report.write_report(tmp_path / "out").read_text()
    assert "nothing vouches for its PGR" in page.split("</dl>")[0]
    assert "Without controls there is no floor" in page.split("</dl>")[0]
    assert "The Fits of this study mix versions: torch 2.13 (1 Fits), 2.14 (2 Fits)." in page


def test_floors_and_crosses_are_drawn(tmp_path: Path) -> None:
    planted_study(tmp_path / "out", with_controls=True)
    page = report.write_report(tmp_path / "out").read_text()
    first = page.split("</dl>")[0]
    assert "Shuffled labels do as well as the supervisor" in first and "does not measure generalization" in first
    for name in ("score", "pgr", "pairs", "agreement", "misfit", "learning"):
        figure = (tmp_path / f"out/figures/classification-{name}.svg").read_text()
        assert "× fails a control" in figure, name
        assert (">floor<" in figure) == (name in ("score", "learning")), name
    for name in ("results", "pgr", "scores", "agreement", "misfit", "learning", "imitation"):
        table = pl.read_csv(tmp_path / f"out/tables/{name}.csv")
        assert "not clearly above shuffled labels" in table["fails"].to_list(), name
    assert "Imitated mistakes" in page and "Scores of all models" in page


def test_an_interval_without_an_end_is_drawn_to_the_edge() -> None:
    """Fieller's interval may be unbounded, or so wide that it would squeeze all others."""
    common = {"family": "f", "weak": "s", "task": "t", "weak_size": 1.0, "weak_number": 0, "fails": None, "pgr": 0.5}
    rows = [
        common | {"strong": "m", "strong_size": 10.0, "method": "naive", "pgr_low": -9.0, "pgr_high": 0.7},
        common | {"strong": "l", "strong_size": 100.0, "method": "naive", "pgr_low": 0.3, "pgr_high": None},
    ]
    figure = charts.pgr_chart(pl.DataFrame(rows), axis="params")
    assert figure is not None
    drawn = [row for values in figure.to_dict()["datasets"].values() for row in values]
    assert [(row["low"], row["high"]) for row in drawn] == [(-0.5, 0.7), (0.3, 1.6)]
    assert [row["pgr_low"] for row in drawn] == [-9.0, 0.3], "the tooltip tells the numbers as they are"


def test_a_list_of_methods_tells_naive_students_controls_and_values_beyond_its_edge_apart() -> None:
    common = {
        "family": "f",
        "weak": "s",
        "strong": "m",
        "task": "t",
        "weak_size": 1.0,
        "strong_size": 10.0,
        "fails": None,
    }
    pgr = {"confidence": 0.6, "naive": 0.5, "naive(rows=0.5)": 0.4, "noise(errors=longest)": -0.7, "strong_on_a": 1.8}
    rows = [common | {"method": m, "pgr": p, "pgr_low": p - 0.1, "pgr_high": p + 0.3} for m, p in pgr.items()]
    figure = charts.methods_list(pl.DataFrame(rows))
    assert figure is not None
    spec = figure.to_dict()
    marks = [row for values in spec["datasets"].values() for row in values if "method" in row]
    drawn = {row["method"]: (row["kind"], row["shape"]) for row in marks}
    assert drawn == {
        "confidence": ("other method", "circle"),
        "naive": ("naive", "circle"),
        "naive(rows=0.5)": ("naive", "circle"),
        "noise(errors=longest)": ("control", "triangle-left"),
        "strong_on_a": ("control", "triangle-right"),
    }
    points = spec["concat"][0]["layer"][-1]["encoding"]["x"]["scale"]
    assert points["domain"] == [-0.5, 1.6] and not points["nice"], (
        "points at the edge lie where their intervals are cut"
    )


def test_the_axis_decides_which_student_is_the_largest(tmp_path: Path) -> None:
    """m has fewer parameters than l and saw more compute."""
    out = tmp_path / "out"
    planted_study(out, with_controls=True)
    flops = {"s": 1e15, "m": 1e18, "l": 1e17}
    results = pl.read_parquet(out / "results.parquet").with_columns(
        pl.col(side).replace_strict(flops, return_dtype=pl.Float64).alias(f"{side}_flops")
        for side in ("weak", "strong")
    )
    results.write_parquet(out / "results.parquet")
    ids = pl.read_parquet(out / "predictions.parquet")["id"].unique().sort()
    items = pl.DataFrame({"task": "t", "id": ids}).with_columns(
        pl.int_range(pl.len()).cast(pl.Float32).alias("difficulty")
    )
    items.write_parquet(out / "items.parquet")
    for axis, largest in (("params", "l"), ("compute", "m")):
        report.write_report(out, axis=axis)
        figure = (out / "figures/classification-difficulty.svg").read_text()
        assert f"f, {largest}" in figure and f"f, {'l' if largest == 'm' else 'm'}" not in figure
        found = pl.read_parquet(out / "findings.parquet")
        assert found.select("weak", "strong").rows() == [("s", largest)]


def test_of_many_methods_naive_alone_is_drawn_by_difficulty() -> None:
    one = {"setting": "classification", "family": "f", "task": "t", "weak": "s", "strong": "l", "weak_size": 1.0, "strong_size": 2.0,
           "difficulty": 1.0, "score": 0.5, "fails": None}  # fmt: skip
    students = [one | {"role": "student", "method": method} for method in ("a", "b", "c", "naive", "told")]
    students[-1]["fails"] = "not clearly above shuffled labels"
    ceiling = one | {"role": "ceiling", "method": "truth", "weak": None, "weak_size": None}
    few, many = (
        pl.DataFrame([*rows, ceiling], infer_schema_length=None).with_columns(floor=0.1)
        for rows in (students[:4], students)
    )
    assert largest_by_difficulty(few).height == 5
    assert largest_by_difficulty(many)["method"].to_list() == ["naive", "truth"]
    [of_few], [of_many] = (
        captions({"difficulty": rows}, ["classification-difficulty"]).values() for rows in (few, many)
    )
    assert "Of 5 methods only naive is drawn" in of_many and "is drawn, to keep" not in of_few
    assert "red cross" not in of_many, "of what is not drawn"


# --- findings -------------------------------------------------------------------------------------------------------


def ladder_of(num_seeds: int = 1, **students: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(results, predictions) of students of s, by size, at these scores: supervisor .5, ceilings .9. Answers are nested."""
    num_items = 1000
    names = [f"i{i:05d}" for i in range(num_items)]
    rows, answers = [], {}
    for seed in range(num_seeds):
        for strong, score in students.items():
            row = {"seed": seed, "strong": strong, "strong_params": {"m": 100, "l": 1000}[strong]}
            keys = {"weak_key": (0.5, f"weak {seed}"), "student_key": (score, f"{strong} {seed}"), "ceiling_key": (0.9, f"top {strong} {seed}")}  # fmt: skip
            for rate, key in keys.values():
                answers[key] = [i < round(rate * num_items) + seed for i in range(num_items)]
            rows.append(row | {column: key for column, (_, key) in keys.items()} | {"controls": False})
    predictions = pl.concat(
        pl.DataFrame({"key": key, "id": names, "group": names, "correct": right}) for key, right in answers.items()
    )
    return results_of(*rows), predictions


def found_in(results: pl.DataFrame, predictions: pl.DataFrame, methods: pl.DataFrame | None = None) -> dict[str, Any]:
    samples = resample(results, predictions, num_resamples=50)
    tried = method_table(samples) if methods is None else methods
    return findings.findings_table(samples, pgr_table(samples), tried).row(0, named=True)


def test_a_finding_tells_the_widest_pair_and_how_pgr_moves_with_size() -> None:
    row = found_in(*ladder_of(m=0.6, l=0.8))
    assert (row["weak"], row["strong"], row["smaller_student"]) == ("s", "l", "m")
    assert row["pgr"] == pytest.approx(0.75) and row["pgr_change"] == pytest.approx(0.5)
    assert row["finding"].startswith(
        "PGR is 0.75 (0.71 to 0.79) from s to l, the widest pair that has one (2 of 2 have), in one replicate. "
    )
    assert (
        "Without controls there is no floor" in row["finding"]
        and "From student m to l it rises by 0.50 (" in row["finding"]
    )
    falling, level = found_in(*ladder_of(2, m=0.8, l=0.6))["finding"], found_in(*ladder_of(m=0.7, l=0.7))["finding"]
    assert "in 2 replicates" in falling and "From student m to l it falls by 0.50 (" in falling
    assert "From student m to l it does not clearly change: +0.00" in level
    assert "No other student of s has one" in found_in(*ladder_of(l=0.7))["finding"]


def test_pairs_and_methods_as_markdown() -> None:
    pgr = pgr_table(resample(*ladder_of(m=0.6, l=0.8), num_resamples=50))
    header, _, small, large = markdown.pairs_table(pgr).splitlines()
    assert header == (
        "| task | pair | supervisor | untrained | shuffled | student | ceiling | PGR | PGR above the floor |"
    )
    task = pgr["task"][0]
    assert small.startswith(f"| {task} | s → m | .500 | – | – | .600 | .900 | 0.25 (") and small.endswith(" | – |")
    assert large.startswith(f"| {task} | s → l | .500 | – | – | .800 | .900 | 0.75 (")
    assert markdown.methods_table(pgr).splitlines()[2].startswith("| s → m | `naive` | 0.25 (")
    header, _, row = markdown.methods_table(pgr.filter(pl.col("strong") == "m")).splitlines()
    assert header == f"| method | {task}, s → m |" and row.startswith("| `naive` | 0.25 ("), "one pair needs no column"


def test_an_interval_has_no_minus_zero() -> None:
    assert findings.interval_text((-0.004, -0.4, None)) == "0.00 (-0.40 to unknown)"
    assert findings.interval_text((-0.004, -0.4, 0.4), sign="+") == "+0.00 (-0.40 to +0.40)"


def test_a_finding_without_pgr_says_so() -> None:
    results, predictions = ladder_of(l=0.7)
    level = predictions.with_columns(correct=pl.col("id") < "i00500")
    row = found_in(results, level)
    assert row["pgr"] is None and row["finding"].startswith("No pair of different sizes has a PGR. Sizes that lie")
    assert row["verdict"] == "No ceiling is clearly above its supervisor, so there is no PGR."


def test_a_finding_names_the_methods_that_do_better() -> None:
    tried = pl.DataFrame(
        {"setting": "classification", "task": "t", "family": "f", "weak": "s", "strong": "l",
         "method": ["good", "lucky", "worse"], "difference": [0.1, 0.1, -0.1], "p_holm": [0.01, 0.2, 0.01]}
    )  # fmt: skip
    assert found_in(*ladder_of(l=0.7), tried)["finding"].endswith(
        "Clearly better than naive there, of 3 other methods: good."
    )
    none = tried.with_columns(p_holm=pl.lit(1.0))
    found = found_in(*ladder_of(l=0.7), none)["finding"]
    assert found.endswith("None of 3 other methods is clearly better than naive there.")
    assert found.startswith("PGR is 0.50 (") and " from s to l, in one replicate. " in found, (
        "one pair is not the widest"
    )


def test_sentences_name_the_family_where_a_task_has_several() -> None:
    rows = [{"task": "t", "family": "f", "verdict": "a", "finding": "b"}, {"task": "t", "family": "g", "verdict": "c", "finding": "d"}]  # fmt: skip
    assert findings.sentences(pl.DataFrame(rows)) == [("t, f", ["a", "b"]), ("t, g", ["c", "d"])]
    assert findings.sentences(pl.DataFrame(rows[:1]))[0][0] == "t"


# --- figures and the page -------------------------------------------------------------------------------------------


def supervisor_scales(part: Any) -> list[dict[str, list[str]]]:
    """The colour scales of supervisors anywhere in a figure's specification."""
    if isinstance(part, list):
        return [scale for entry in part for scale in supervisor_scales(entry)]
    if not isinstance(part, dict):
        return []
    own = [part["scale"]] if part.get("title") == "supervisor" and "scale" in part else []
    return own + supervisor_scales(list(part.values()))


def test_a_supervisor_has_one_colour_in_all_figures_and_every_figure_a_caption(tmp_path: Path) -> None:
    out = tmp_path / "out"
    planted_study(out, with_controls=True)
    page = report.write_report(out).read_text()
    specs = json.loads(page.split('id="specs">')[1].split("</script>")[0])
    scales = {name: supervisor_scales(spec) for name, spec in specs.items()}
    for kind in ("score", "pgr", "agreement", "misfit", "learning"):
        assert scales[f"classification-{kind}"], kind
        for scale in scales[f"classification-{kind}"]:
            colours = dict(zip(scale["domain"], scale["range"], strict=True))
            assert colours.pop("ceiling", "black") == "black"
            assert colours.items() <= {"s": COLOURS[0], "m": COLOURS[1], "l": COLOURS[2]}.items()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.S)
    assert len(captions) == page.count("<figure>") and all(len(caption) > 80 for caption in captions)
    assert "Here PGR goes from" in page and "A red cross" in page
    assert re.search(r"clearly above its floor for \d of 3 pairs", page)
    assert page.count("<td>all tasks</td>") == 0, "with one task, the rows over all tasks would say the same twice"
