"""Tables from a store with Fits made by hand: every number computed on paper, every gap with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from w2s_ray import prediction_parts
from w2s_ray import results as results_module
from w2s_ray.analysis import tables
from w2s_ray.analysis.bootstrap import resample
from w2s_ray.analysis.pgr import pgr_table
from w2s_ray.analysis.report import write_report
from w2s_ray.fit import Method
from w2s_ray.left_out import NOT_ASKED_FOR
from w2s_ray.planning import Cell, Controls
from w2s_ray.results import write_results
from w2s_ray.store import Store
from w2s_ray.tasks import RowCounts
from w2s_ray.tasks.shapes import Dropped

from fits import cell, commit, fit


def test_a_cell_by_hand(store: Store, tmp_path: Path) -> None:
    study_cell = cell()
    commit(store, study_cell.supervisor, [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9], tmp_path)  # 4 of 8
    commit(store, study_cell.student, [0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9], tmp_path)  # 6 of 8
    commit(store, study_cell.ceiling, [0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.9], tmp_path)  # 7 of 8
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert (row["weak_score"], row["student_score"], row["ceiling_score"]) == (0.5, 0.75, 0.875)
    assert row["pgr"] == pytest.approx(2 / 3)
    assert row["agreement"] == 0.75 and row["agreement_when_weak_right"] == 1.0
    assert row["agreement_when_weak_wrong"] == 0.5
    assert row["n_test"] == 8 and row["status"] == "done" and row["zero_shot_score"] is None
    assert row["weak_flops"] == 6e9


def test_agreement_on_half_b_and_of_the_control_by_hand(store: Store, tmp_path: Path) -> None:
    plain = cell()
    shuffled = fit(size="m", method=Method("shuffled"))
    study_cell = replace(plain, controls=Controls(zero_shot=None, shuffled=shuffled))
    labels = {"b0": 0.9, "b1": 0.1, "b2": 0.9, "b3": 0.1}  # right on b0 and b3
    commit(store, plain.supervisor, [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9], tmp_path, half_b=labels)
    answers = {"b3": 0.2, "b1": 0.2, "b0": 0.8}  # b2 was held out
    commit(store, plain.student, [0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9], tmp_path, half_b=answers)
    commit(store, shuffled, [0.9] * 8, tmp_path, half_b=dict.fromkeys(labels, 0.7))
    commit(store, plain.ceiling, [0.9] * 4 + [0.1] * 4, tmp_path)
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()

    def agreement(name: str) -> list[float | None]:
        return [row[f"{name}{when}"] for when in ("", "_when_weak_right", "_when_weak_wrong")]

    assert row["half_b_weak_score"] == 0.5
    assert agreement("half_b_agreement") == [1.0, 1.0, 1.0]
    assert agreement("half_b_shuffled_agreement") == [1 / 3, 0.5, 0.0], "on the rows of the student"
    assert agreement("agreement") == [0.75, 1.0, 0.5] and agreement("shuffled_agreement") == [0.5, 0.5, 0.5]
    kept = pl.read_parquet(tmp_path / "out" / "half_b.parquet")
    assert kept.group_by("role").len().sort("role").rows() == [("control", 4), ("student", 3), ("supervisor", 4)]
    assert kept.filter(pl.col("role") == "student")["correct"].to_list() == [True, False, True]
    again = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert again == [row], "the tables of an earlier report are reused"


def test_a_fit_that_kept_nothing_of_half_b_has_nulls_there(store: Store, tmp_path: Path) -> None:
    study_cell = cell()
    for trained in (study_cell.supervisor, study_cell.ceiling, study_cell.student):
        commit(store, trained, [0.9] * 4 + [0.1] * 4, tmp_path)
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["status"] == "done" and row["agreement"] == 1.0
    assert all(value is None for name, value in row.items() if "half_b" in name or name.startswith("shuffled"))


def test_answers_to_rows_outside_half_b_are_damage(store: Store, tmp_path: Path) -> None:
    study_cell = cell()
    for trained in (study_cell.supervisor, study_cell.ceiling):
        commit(store, trained, [0.9] * 4 + [0.1] * 4, tmp_path)
    commit(store, study_cell.student, [0.9] * 8, tmp_path, half_b={"b0": 0.5, "x": 0.5})
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["status"] == "damaged" and "2 predictions for 4 rows of B, and 1 ids are in both" in row["reason"]


def test_what_has_no_result_has_a_reason_and_nulls(store: Store, tmp_path: Path) -> None:
    missing, failed, level = cell(seed=0), cell(seed=1), cell(seed=2)
    store.write_failure(failed.supervisor, kind="nan", reason="the loss is nan at step 3", detail="")
    for trained in (level.supervisor, level.student, level.ceiling):
        commit(store, trained, [0.9] * 7 + [0.1], tmp_path)
    rows = write_results([missing, failed, level], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert [row["status"] for row in rows] == ["missing", "failed", "done"]
    assert rows[0]["reason"] == "not run yet" and "step 3" in rows[1]["reason"]
    assert rows[2]["reason"] == "no PGR: the ceiling is not above the supervisor"
    assert all(row["pgr"] is None for row in rows) and rows[0]["weak_score"] is None
    table = pgr_table(resample(*tables.read_study(tmp_path / "out")))
    assert table["num_dropped"].to_list() == [2, 2] and table["gap_too_small"].to_list() == [True, True]


def test_rows_left_out_are_counted_with_their_reasons(store: Store, tmp_path: Path) -> None:
    """Of 30 rows 4 are doubles and 3 too long; the parts have 13 of the others."""
    study_cell, out = cell(), tmp_path / "out"
    for trained in (study_cell.supervisor, study_cell.ceiling, study_cell.student):
        commit(store, trained, [0.9] * 4 + [0.1] * 4, tmp_path, {"num_too_long": 3})
    dropped = Dropped()
    dropped["the same row again"] += 4
    write_results([study_cell], study="x", store=store, out=out, rows={"toy": RowCounts(26, dropped)})
    table = pl.read_parquet(out / "left_out.parquet")
    assert table.select("task", "num_rows").rows() == [("toy", 10), ("toy", 4), ("toy", 3)]
    assert table["reason"].to_list() == [
        NOT_ASKED_FOR,
        "the same row again",
        "longer than 64 tokens for a model of the grid",
    ]
    assert table["share"].to_list() == pytest.approx([10 / 30, 4 / 30, 3 / 30])
    page = write_report(out).read_text()
    assert "Rows left out" in page and "the same row again" in page
    write_results([study_cell], study="x", store=store, out=out)
    assert pl.read_parquet(out / "left_out.parquet").rows() == [("toy", table["reason"][2], 3, None)], (
        "without its files"
    )


def test_one_answer_to_everything_is_no_score(store: Store, tmp_path: Path) -> None:
    constant, fine = cell(), cell(seed=1)
    for each in (constant, fine):
        commit(
            store,
            each.supervisor,
            [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9],
            tmp_path,
            half_b={"b0": 0.9, "b1": 0.1, "b2": 0.2, "b3": 0.3},
        )
        commit(store, each.ceiling, [0.9] * 4 + [0.1] * 4, tmp_path)
    commit(store, fine.student, [0.9] * 3 + [0.1] * 5, tmp_path)
    commit(store, constant.student, [0.5 + 1e-7 * (i % 2) for i in range(8)], tmp_path)
    out = tmp_path / "out"
    row, other = write_results([constant, fine], study="x", store=store, out=out).to_dicts()
    assert row["status"] == "constant" and row["n_test"] == 8
    assert (
        row["reason"]
        == f"the student {constant.student.folder} gives every test item the same answer: probability 0.5000"
    )
    assert row["student_score"] is None and row["pgr"] is None and row["agreement"] is None
    assert (row["weak_score"], row["ceiling_score"], row["half_b_weak_score"]) == (0.5, 1.0, 0.75)
    assert other["status"] == "done" and other["pgr"] == pytest.approx(0.75)
    assert pgr_table(resample(*tables.read_study(out)))["num_dropped"].to_list() == [1, 1]
    page = write_report(out).read_text()
    assert constant.student.folder in page and "constant" in page


def test_a_report_of_constant_answers_only(store: Store, tmp_path: Path) -> None:
    study_cell = cell()
    for trained in (study_cell.supervisor, study_cell.ceiling, study_cell.student):
        commit(store, trained, [0.9] * 8, tmp_path)
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["status"] == "constant" and {row[f"{side}_score"] for side in ("weak", "student", "ceiling")} == {None}
    page = write_report(tmp_path / "out").read_text()
    assert "Nothing is done yet" not in page and "gives every test item the same answer" in page


@pytest.mark.parametrize("name", ["zero_shot", "shuffled"])
def test_an_untrained_model_and_a_control_may_answer_always_the_same(store: Store, tmp_path: Path, name: str) -> None:
    plain = cell()
    study_cell = replace(plain, student=fit(size="m", method=Method(name)))
    commit(store, plain.supervisor, [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9], tmp_path)
    commit(store, plain.ceiling, [0.9] * 4 + [0.1] * 4, tmp_path)
    commit(store, study_cell.student, [0.9] * 8, tmp_path)
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["status"] == "done" and row["student_score"] == 0.5


def test_a_student_of_a_failed_supervisor_is_blocked(store: Store, tmp_path: Path) -> None:
    study_cell = cell()
    with_other_supervisor = Cell("toy", "naive", 0, fit(size="m", half="A"), study_cell.student, study_cell.ceiling)
    for trained in (with_other_supervisor.supervisor, study_cell.ceiling):
        commit(store, trained, [0.9] * 7 + [0.1], tmp_path)
    store.write_failure(study_cell.supervisor, kind="nan", reason="bad", detail="")
    [row] = write_results([with_other_supervisor], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["status"] == "blocked" and study_cell.supervisor.folder in row["reason"]


@pytest.mark.parametrize("num_rows", [7, 9])
def test_predictions_that_do_not_match_the_truth_are_damage(store: Store, tmp_path: Path, num_rows: int) -> None:
    study_cell = cell()
    for trained in (study_cell.supervisor, study_cell.ceiling):
        commit(store, trained, [0.9] * 8, tmp_path)
    commit(store, study_cell.student, [0.9] * num_rows, tmp_path)
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["status"] == "damaged" and f"{num_rows} predictions" in row["reason"] and row["pgr"] is None


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"id": ["i0"] * 8, "probability": [0.9] * 8}, "1 ids are in both"),
        ({"id": [f"i{i}" for i in range(8)], "probability": [0.9] * 7 + [float("nan")]}, "not probabilities"),
        ({"id": [f"i{i}" for i in range(8)], "p": [0.9] * 8}, "no column probability"),
    ],
)
def test_foreign_predictions_are_damage_and_the_advice_helps(
    store: Store, tmp_path: Path, table: dict[str, list[object]], problem: str
) -> None:
    study_cell = cell()
    for trained in (study_cell.supervisor, study_cell.ceiling):
        commit(store, trained, [0.9] * 8, tmp_path)
    folder = tmp_path / "foreign"
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "test.parquet")
    pq.write_table(pa.table({"step": [1], "another": ["x"]}), folder / "curve.parquet")
    store.commit(study_cell.student, folder)
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["status"] == "damaged" and problem in row["reason"] and row["student_score"] is None
    assert "remove this folder" in row["reason"] and "verify" not in row["reason"]


def test_families_that_share_size_names_are_not_pooled(store: Store, tmp_path: Path) -> None:
    first, second = cell(), cell(seed=1)
    for study_cell in (first, second):
        commit(store, study_cell.supervisor, [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9], tmp_path)
        commit(store, study_cell.student, [0.9] * 4 + [0.1] * 4, tmp_path)
        commit(store, study_cell.ceiling, [0.9] * 4 + [0.1] * 4, tmp_path)
    cells = [first, replace(second, family="another")]
    results = write_results(cells, study="x", store=store, out=tmp_path / "out")
    table = pgr_table(resample(results, pl.read_parquet(tmp_path / "out/predictions.parquet")))
    assert table.filter(pl.col("task").is_null())["family"].to_list() == ["toy", "another"]
    assert table["num_seeds"].to_list() == [1] * 4


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_reads_a_fit_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = cell(), cell(seed=1)
    for trained in (old.supervisor, old.ceiling, old.student):
        commit(store, trained, [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9], tmp_path)
    first = write_results([old], study="x", store=store, out=tmp_path / "out")
    files = files_in(tmp_path / "out")
    read = []
    read_file = Store.read_file
    monkeypatch.setattr(Store, "read_file", lambda *a: read.append(a[1]) or read_file(*a))
    again = write_results([old], study="x", store=store, out=tmp_path / "out")
    assert not read and again.equals(first)
    assert files_in(tmp_path / "out") == files
    for trained in (new.supervisor, new.ceiling, new.student):
        commit(store, trained, [0.9] * 7 + [0.1], tmp_path)
    write_results([old, new], study="x", store=store, out=tmp_path / "out")
    assert set(read) == {new.supervisor.folder, new.ceiling.folder, new.student.folder}
    Path(store.storage.path("fits", old.student.folder, "done.json")).unlink()
    (tmp_path / "out" / "runs.parquet").write_bytes(b"PAR1")
    rows = write_results([old, new], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert [row["status"] for row in rows] == ["missing", "done"]


def test_full_parts_stay_as_they_are(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five cells of three Fits of eight predictions come one after the other, and a part is full with 30 rows."""
    monkeypatch.setattr(prediction_parts, "PART_ROWS", 30)
    monkeypatch.setattr(results_module, "PART_ROWS", 30)
    cells = [cell(seed=seed) for seed in range(5)]
    out, before = tmp_path / "out", dict[str, bytes]()
    for number, each in enumerate(cells, start=1):
        for trained in (each.supervisor, each.ceiling, each.student):
            commit(store, trained, [0.9] * (3 + number % 2) + [0.1] * 4 + [0.8] * (1 - number % 2), tmp_path)
        results = write_results(cells[:number], study="x", store=store, out=out)
        parts = {name: content for name, content in files_in(out).items() if name.startswith("predictions.parquet/")}
        full = {name for name in before if pl.read_parquet(out / name).height >= 30}
        assert all(parts[name] == before[name] for name in full & before.keys()), "what is full is not written again"
        before = {name: parts[name] for name in parts if pl.read_parquet(out / name).height >= 30}
    assert len(parts) == 4 and len(before) == 3
    whole = pl.read_parquet(out / "predictions.parquet")
    assert whole.height == 15 * 8 and whole["key"].n_unique() == 15
    at_once = write_results(cells, study="x", store=store, out=tmp_path / "at once")
    assert at_once.equals(results)
    # a Fit that was run again, in a full part
    again = cells[0].student
    store.storage.delete_folder(f"fits/{again.folder}")
    (tmp_path / "again").mkdir()
    commit(store, again, [0.9] * 4 + [0.6] * 4, tmp_path / "again")
    assert write_results(cells, study="x", store=store, out=out)["student_score"].to_list()[0] == 0.5
    whole = pl.read_parquet(out / "predictions.parquet")
    assert whole.height == 15 * 8 and whole.filter(pl.col("key") == again.key)["correct"].sum() == 4


@pytest.mark.parametrize("lost", ["predictions.parquet", "half_b.parquet", "a page of predictions.parquet"])
def test_a_lost_part_is_read_again(store: Store, tmp_path: Path, lost: str) -> None:
    study_cell = cell()
    for trained in (study_cell.supervisor, study_cell.ceiling, study_cell.student):
        commit(store, trained, [0.9] * 4 + [0.1] * 4, tmp_path)
    first = write_results([study_cell], study="x", store=store, out=tmp_path / "out")
    files = files_in(tmp_path / "out")
    path = tmp_path / "out" / lost.split()[-1] / "00001.parquet"
    if lost.startswith("a page"):
        path.write_bytes(path.read_bytes()[:4] + bytes(400) + path.read_bytes()[404:])
    else:
        path.unlink()
    assert write_results([study_cell], study="x", store=store, out=tmp_path / "out").equals(first)
    assert files_in(tmp_path / "out") == files


def test_a_fit_that_was_run_again_is_read_again(store: Store, tmp_path: Path) -> None:
    study_cell = cell()
    for trained in (study_cell.supervisor, study_cell.ceiling, study_cell.student):
        commit(store, trained, [0.9] * 4 + [0.1] * 4, tmp_path)
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["student_score"] == 1.0
    store.storage.delete_folder(f"fits/{study_cell.student.folder}")
    (tmp_path / "again").mkdir()
    commit(store, study_cell.student, [0.9] * 4 + [0.6] * 4, tmp_path / "again")
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["student_score"] == 0.5


def test_labels_flipped_on_disk_are_damage(store: Store, tmp_path: Path) -> None:
    study_cell = cell()
    for trained in (study_cell.supervisor, study_cell.ceiling, study_cell.student):
        commit(store, trained, [0.9] * 4 + [0.1] * 4, tmp_path)
    [path] = Path(store.storage.path("tasks")).glob("*/*.parquet")
    truth = pq.read_table(path)
    flipped = pa.array([1 - label for label in truth["label"].to_pylist()], pa.int8())
    pq.write_table(truth.set_column(truth.schema.get_field_index("label"), "label", flipped), path)
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["status"] == "damaged" and "is not what was written" in row["reason"] and row["ceiling_score"] is None


def test_runs_name_the_versions(store: Store, tmp_path: Path) -> None:
    study_cell = cell()
    versions = {"w2s_ray": "0.2", "torch": "2.9", "transformers": "5.1", "deepspeed": "0.18", "ray": "2.50"}
    commit(store, study_cell.supervisor, [0.9] * 8, tmp_path, {"versions": versions})
    commit(store, study_cell.ceiling, [0.9] * 8, tmp_path)
    write_results([study_cell], study="x", store=store, out=tmp_path / "out")
    runs = pl.read_parquet(tmp_path / "out" / "runs.parquet").sort("role", descending=True).to_dicts()
    assert [{name: run[name] for name in versions} for run in runs] == [versions, dict.fromkeys(versions)]


def test_a_truncated_file_is_damage(store: Store, tmp_path: Path) -> None:
    study_cell = cell()
    for trained in (study_cell.supervisor, study_cell.ceiling, study_cell.student):
        commit(store, trained, [0.9] * 8, tmp_path)
    Path(store.storage.path("fits", study_cell.student.folder, "test.parquet")).write_bytes(b"PAR1")
    [row] = write_results([study_cell], study="x", store=store, out=tmp_path / "out").to_dicts()
    assert row["status"] == "damaged" and "verify --repair" in row["reason"]
