"""Tables from a store with Fits made by hand: every number computed on paper, every gap with its reason."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.pgr import pgr_table
from analysis.report import write_report
from analysis.scaling import fit_scaling
from w2s_ray import store
from w2s_ray.fit import Fit
from w2s_ray.plan import Cell
from w2s_ray.results import write_results
from w2s_ray.store import Store

from fits import fit

TRUTH = [1, 1, 1, 1, 0, 0, 0, 0]


def commit(opened: Store, each: Fit, probabilities: list[float], folder: Path) -> None:
    folder = folder / each.key[:8]
    folder.mkdir()
    ids = [f"i{i}" for i in range(len(probabilities))]
    pq.write_table(pa.table({"id": ids, "probability": pa.array(probabilities, pa.float32())}), folder / "test.parquet")
    pq.write_table(pa.table({"step": [1], "test_accuracy": [0.5]}), folder / "curve.parquet")
    store.commit(opened, each, folder)


def write_truth(opened: Store, labels: list[int]) -> None:
    ids = [f"i{i}" for i in range(len(labels))]
    table = pa.table(
        {"id": [*ids, "x"], "half": ["test"] * len(labels) + ["A"], "label": pa.array([*labels, 1], pa.int8())}
    )
    store.write_truth(opened, store.truth_name(fit()), table)


def cell(seed: int = 0, weak: str = "s", strong: str = "m") -> Cell:
    supervisor = fit(size=weak, half="A", seed=seed)
    return Cell(
        "toy", "naive", seed, supervisor, fit(size=strong, labels=supervisor, seed=seed), fit(size=strong, seed=seed)
    )


@pytest.fixture
def opened(tmp_path: Path) -> Store:
    opened = store.open_store(tmp_path / "store")
    write_truth(opened, TRUTH)
    return opened


def test_a_cell_by_hand(opened: Store, tmp_path: Path) -> None:
    one = cell()
    commit(opened, one.supervisor, [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9], tmp_path)  # 4 of 8
    commit(opened, one.student, [0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9], tmp_path)  # 6 of 8
    commit(opened, one.ceiling, [0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.9], tmp_path)  # 7 of 8
    [row] = write_results([one], study="x", store=opened, out=tmp_path / "out").to_dicts()
    assert (row["weak_score"], row["student_score"], row["ceiling_score"]) == (0.5, 0.75, 0.875)
    assert row["pgr"] == pytest.approx(2 / 3)
    assert row["agreement"] == 0.75 and row["agreement_when_weak_right"] == 1.0
    assert row["agreement_when_weak_wrong"] == 0.5
    assert row["n_test"] == 8 and row["status"] == "done" and row["zero_shot_score"] is None
    assert row["weak_flops"] == 6 * 1000 * 1_000_000


def test_what_has_no_result_has_a_reason_and_nulls(opened: Store, tmp_path: Path) -> None:
    missing, failed, level = cell(seed=0), cell(seed=1), cell(seed=2)
    store.write_failure(opened, failed.supervisor, kind="nan", reason="the loss is nan at step 3", detail="")
    for each in (level.supervisor, level.student, level.ceiling):
        commit(opened, each, [0.9] * 8, tmp_path)
    rows = write_results([missing, failed, level], study="x", store=opened, out=tmp_path / "out").to_dicts()
    assert [row["status"] for row in rows] == ["missing", "failed", "done"]
    assert rows[0]["reason"] == "not run yet" and "step 3" in rows[1]["reason"]
    assert rows[2]["reason"] == "no PGR: the ceiling is not above the supervisor"
    assert all(row["pgr"] is None for row in rows) and rows[0]["weak_score"] is None
    table = pgr_table(
        pl.read_parquet(tmp_path / "out/results.parquet"), pl.read_parquet(tmp_path / "out/predictions.parquet")
    )
    assert table["num_dropped"].to_list() == [2, 2] and table["gap_too_small"].to_list() == [True, True]


def test_a_student_of_a_failed_supervisor_is_blocked(opened: Store, tmp_path: Path) -> None:
    one = cell()
    other = Cell("toy", "naive", 0, fit(size="m", half="A"), one.student, one.ceiling)
    for each in (other.supervisor, one.ceiling):
        commit(opened, each, [0.9] * 8, tmp_path)
    store.write_failure(opened, one.supervisor, kind="nan", reason="bad", detail="")
    [row] = write_results([other], study="x", store=opened, out=tmp_path / "out").to_dicts()
    assert row["status"] == "blocked" and one.supervisor.folder in row["reason"]


@pytest.mark.parametrize("num_rows", [7, 9])
def test_predictions_that_do_not_match_the_truth_are_damage(opened: Store, tmp_path: Path, num_rows: int) -> None:
    one = cell()
    for each in (one.supervisor, one.ceiling):
        commit(opened, each, [0.9] * 8, tmp_path)
    commit(opened, one.student, [0.9] * num_rows, tmp_path)
    [row] = write_results([one], study="x", store=opened, out=tmp_path / "out").to_dicts()
    assert row["status"] == "damaged" and f"{num_rows} predictions" in row["reason"] and row["pgr"] is None


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"id": ["i0"] * 8, "probability": [0.9] * 8}, "1 ids are in both"),
        ({"id": [f"i{i}" for i in range(8)], "probability": [0.9] * 7 + [float("nan")]}, "no probabilities"),
        ({"id": [f"i{i}" for i in range(8)], "p": [0.9] * 8}, "no column probability"),
    ],
)
def test_foreign_predictions_are_damage_and_the_advice_helps(
    opened: Store, tmp_path: Path, table: dict[str, list[object]], problem: str
) -> None:
    one = cell()
    for each in (one.supervisor, one.ceiling):
        commit(opened, each, [0.9] * 8, tmp_path)
    folder = tmp_path / "foreign"
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "test.parquet")
    pq.write_table(pa.table({"step": [1], "another": ["x"]}), folder / "curve.parquet")
    store.commit(opened, one.student, folder)
    [row] = write_results([one], study="x", store=opened, out=tmp_path / "out").to_dicts()
    assert row["status"] == "damaged" and problem in row["reason"] and row["student_score"] is None
    assert "remove this folder" in row["reason"] and "verify" not in row["reason"]


def test_families_that_share_size_names_are_not_pooled(opened: Store, tmp_path: Path) -> None:
    one, other = cell(), cell(seed=1)
    for each in (one, other):
        commit(opened, each.supervisor, [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9], tmp_path)
        commit(opened, each.student, [0.9] * 4 + [0.1] * 4, tmp_path)
        commit(opened, each.ceiling, [0.9] * 4 + [0.1] * 4, tmp_path)
    cells = [one, replace(other, family="another")]
    results = write_results(cells, study="x", store=opened, out=tmp_path / "out")
    table = pgr_table(results, pl.read_parquet(tmp_path / "out/predictions.parquet"))
    assert table.filter(pl.col("task").is_null())["family"].to_list() == ["toy", "another"]
    assert table["num_seeds"].to_list() == [1] * 4


def test_a_truncated_file_is_damage(opened: Store, tmp_path: Path) -> None:
    one = cell()
    for each in (one.supervisor, one.ceiling, one.student):
        commit(opened, each, [0.9] * 8, tmp_path)
    Path(opened.path("fits", one.student.folder, "test.parquet")).write_bytes(b"PAR1")
    [row] = write_results([one], study="x", store=opened, out=tmp_path / "out").to_dicts()
    assert row["status"] == "damaged" and "verify --repair" in row["reason"]


# --- intervals ----------------------------------------------------------------------------------------------------


def simulated(
    rng: np.random.Generator, *, num_items: int, scores: tuple[float, float, float]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One cell whose three models are right at the given rates, correlated over items."""
    common = rng.normal(size=num_items)
    results, predictions = [], []
    from scipy.stats import norm

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


@pytest.mark.parametrize("gap", [0.08, 0.2])
def test_intervals_cover_the_truth(gap: float) -> None:
    """True PGR 0.5, 2,000 items, 200 simulations: 95 % intervals cover it about 95 times in a hundred."""
    rng = np.random.default_rng(0)
    covered = flagged = 0
    for _ in range(200):
        table = pgr_table(*simulated(rng, num_items=2000, scores=(0.7, 0.7 + gap / 2, 0.7 + gap)), num_resamples=300)
        row = table.row(0, named=True)
        flagged += row["gap_too_small"]
        covered += not row["gap_too_small"] and row["pgr_low"] <= 0.5 <= row["pgr_high"]
    assert flagged == 0 and 0.91 <= covered / 200 <= 0.985


def test_a_gap_that_is_not_clear_gives_no_pgr() -> None:
    rng = np.random.default_rng(0)
    row = pgr_table(*simulated(rng, num_items=200, scores=(0.7, 0.7, 0.7))).row(0, named=True)
    assert row["gap_too_small"] and row["pgr"] is None and "gap_too_small" in row["reason"]


def test_the_scaling_fit_recovers_what_was_planted() -> None:
    sizes = {name: 10.0**i for i, name in enumerate("abcdef", start=3)}
    rows = [
        {"setting": "classification", "task": None, "family": "toy", "weak": w, "strong": s, "method": "naive", "weak_params": int(sizes[w]),
         "strong_params": int(sizes[s]), "pgr": 0.9 - 0.05 * np.log10(sizes[s]) + 0.02 * np.log10(sizes[w])}
        for w in sizes for s in sizes if w < s
    ]  # fmt: skip
    found = fit_scaling(pl.DataFrame(rows, schema_overrides={"task": pl.String}))
    assert found["value"].to_list() == pytest.approx([0.9, -0.05, 0.02])
    few = fit_scaling(pl.DataFrame(rows[:3], schema_overrides={"task": pl.String}))
    assert few["value"].to_list() == [None] * 3 and "at least 5" in few["reason"][0]


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_report_stands_alone_and_escapes_names(opened: Store, tmp_path: Path) -> None:
    one = cell()
    commit(opened, one.supervisor, [0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.9], tmp_path)
    commit(opened, one.student, [0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9], tmp_path)
    commit(opened, one.ceiling, [0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1], tmp_path)
    evil = "<script>alert(1)</SCRIPT>"
    write_results([one], study=evil, store=opened, out=tmp_path / "out")
    page = write_report(tmp_path / "out", facts={"store": evil}).read_text()
    assert evil not in page and "&lt;script&gt;alert(1)" in page
    assert "src=" not in page.split("<script")[0] and 'rel="stylesheet"' not in page
    assert len(re.findall("<script", page, re.I)) == 2 and len(re.findall("</script>", page, re.I)) == 2
    for name in ("score.svg", "score.png", "pgr.svg", "pgr.png"):
        assert (tmp_path / "out" / "figures" / f"classification-{name}").stat().st_size > 1000
    assert pl.read_csv(io.BytesIO((tmp_path / "out/tables/results.csv").read_bytes())).height == 1


def test_a_report_of_nothing_says_so(opened: Store, tmp_path: Path) -> None:
    write_results([cell()], study="x", store=opened, out=tmp_path / "out")
    page = write_report(tmp_path / "out").read_text()
    assert "Nothing is done yet" in page and "not run yet" in page
    write_results([], study="x", store=opened, out=tmp_path / "empty")
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
