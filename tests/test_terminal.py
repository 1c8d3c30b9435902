"""What the verbs print: in a pipe, at a terminal of 80 columns, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from w2s_ray import cli
from w2s_ray.cli import console
from w2s_ray.cli.pgr import WIDTH, pgr_facts, print_pgr
from w2s_ray.cli.report import print_report
from w2s_ray.families import family_names
from w2s_ray.methods import PARAMS
from w2s_ray.tasks import task_names

from driver import w2s


def as_json(*arguments: object, exit_code: int = 0) -> Any:
    """The one JSON document on standard output."""
    result = CliRunner().invoke(cli.app, [*map(str, arguments), "--json"])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A terminal of 80 columns."""
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_color_system", None)
    monkeypatch.setattr(console.out, "_width", 80)
    monkeypatch.setattr(console.out, "_height", 24)
    yield


# --- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "names"), [("tasks", task_names()), ("families", family_names()), ("methods", list(PARAMS))]
)
def test_a_pipe_gets_a_line_for_each_name(command: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = w2s(command).output.splitlines()
    begins = [line.split()[0] for line in lines]
    assert [name for name in names if begins.count(name) != 1] == []
    assert not any("…" in line or line.endswith(" ") for line in lines)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("command", "names"), [("tasks", task_names()), ("families", family_names())])
def test_a_terminal_gets_whole_names_in_its_width(command: str, names: list[str]) -> None:
    lines = w2s(command).output.splitlines()
    assert max(map(len, lines)) <= 80
    begins = {line.split()[0] for line in lines if line.strip()}
    assert set(names) <= begins and not any("…" in line for line in lines)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_lines_broken_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    sentence, path = "Words that go on and on. " * 9, "/a/long/path" * 10
    console.out.print(sentence)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines).split() == sentence.split() and max(map(len, lines)) <= 80
    console.out.print(f"report: {path}")
    assert capsys.readouterr().out == f"report: {path}\n", "it can be copied"


def finding(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """How a finding is printed, after its task."""
    found = [{"task": "toy", "sentences": ["It rises [by 0.1]. " * 9]}]
    print_report({"pgr": [], "cells_by_status": {}, "findings": found, "report": "report.html"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  toy" and lines[-1] == "report: report.html"
    assert " ".join(lines[1:-1]).split() == ("It rises [by 0.1]. " * 9).split()
    return lines[1:-1]


@pytest.mark.usefixtures("terminal")
def test_at_a_terminal_a_finding_stands_below_its_task(capsys: pytest.CaptureFixture[str]) -> None:
    lines = finding(capsys)
    assert len(lines) > 1 and all(line.startswith("    ") and len(line.rstrip()) <= 80 for line in lines)


def test_in_a_pipe_a_finding_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    [line] = finding(capsys)
    assert line.startswith("    It") and line == line.rstrip()


def test_a_pipe_gets_each_sentence_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.out.print("Words that go on and on. " * 9)
    assert len(capsys.readouterr().out.splitlines()) == 1


# --- JSON ---------------------------------------------------------------------------------------------------------


def test_catalogues_as_json() -> None:
    assert [task["name"] for task in as_json("tasks")] == list(task_names())
    assert [family["name"] for family in as_json("families")] == list(family_names())
    methods = [method["name"] for kind in as_json("methods").values() for method in kind]
    assert set(methods) <= set(PARAMS) and "naive" in methods
    task = as_json("tasks", "sentiment")
    assert task["setting"] == "classification" and task["parts"]["test"]["num_rows"] > 100
    assert {size["size"] for size in as_json("families", "chess")["sizes"]} == {"xs", "s", "m", "l"}
    assert "max_weight" in as_json("methods", "confidence")["parameters"]


def test_explain_and_verify_as_json(folder: Path, tmp_path: Path) -> None:
    study, store = folder / "study.yaml", tmp_path / "store"
    store.mkdir()
    cells = as_json("explain", study, "--store", store)["cells"]
    assert len(cells) == 3 and any("small->big/naive/0" in cell for cell in cells)
    facts = as_json("explain", study, "small->big", "--store", store)
    assert facts["cell"].endswith("small->big/naive/0")
    assert [(fit["role"], fit["state"], fit["nearest"]) for fit in facts["fits"]] == [
        ("supervisor", "todo", None),
        ("student", "todo", None),
        ("ceiling", "todo", None),
    ]
    assert as_json("verify", "--store", store) == {"checked": 0, "damaged": {}, "moved_aside_to": {}}
    (store / "fits" / "toy-x").mkdir(parents=True)
    (store / "fits" / "toy-x" / "done.json").write_text(
        '{"key": "k", "files": {"test.parquet": {"size": 1, "sha256": "0"}}}'
    )
    damaged = as_json("verify", "--store", store, exit_code=1)
    assert damaged["checked"] == 1 and "toy-x" in damaged["damaged"]
    assert "quarantine/toy-x" in as_json("verify", "--store", store, "--repair")["moved_aside_to"]["toy-x"]


def test_a_report_as_json(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    facts = as_json("report", folder / "study.yaml", "--store", store, "--out", tmp_path / "out")
    assert facts["study"] == "tiny" and facts["cells_by_status"] == {"missing": 3} and facts["fits_done"] == 0
    assert Path(facts["report"]).exists()


# --- the PGR table ------------------------------------------------------------------------------------------------


ROW = {
    "setting": "classification", "task": "toy", "family": "tiny", "weak": "small", "strong": "big", "method": "naive",
    "weak_score": 0.7, "student_score": 0.75, "ceiling_score": 0.8, "pgr": 0.5, "pgr_low": 0.4, "pgr_high": 0.6,
    "num_seeds": 3, "reason": None, "fails": None,
}  # fmt: skip


def lines_of(rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_pgr(rows)
    return capsys.readouterr().out.splitlines()


def test_the_table_has_every_value_or_why_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "gap_too_small: the ceiling is not clearly above the supervisor with 3 replicates; more seeds may tell"
    nulls = {"pgr": None, "pgr_low": None, "pgr_high": None}
    rows = [
        ROW,
        ROW | nulls | {"strong": "bigger", "reason": reason},
        ROW | nulls | {"strong": "biggest", "reason": reason},
        ROW | {"weak": "other", "pgr_low": None, "pgr_high": None, "fails": "not clearly above shuffled labels"},
        ROW | nulls | {"task": "second", "weak_score": None},
    ]
    lines = lines_of(rows, capsys)
    assert lines[0] == "PGR of toy, tiny" and lines[1].split() == [
        "pair",
        "weak",
        "student",
        "ceiling",
        "PGR",
        "(95",
        "%)",
    ]
    assert lines[2].split() == ["small", "->", "big", "0.700", "0.750", "0.800", "0.50", "(0.40", "to", "0.60)"]
    assert lines[3].endswith("none [1]") and lines[4].endswith("none [1]")
    assert lines[5].endswith("0.50 (no interval) [2]")
    assert lines[6] == "PGR of second, tiny" and lines[8].split()[3] == "-" and "not all done" in lines[8]
    notes = " ".join(line.strip() for line in lines[9:])
    assert notes == f"[1] {reason} [2] not clearly above shuffled labels"
    assert max(map(len, lines)) <= WIDTH


def test_methods_are_told_apart_and_a_long_table_ends(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of([ROW | {"method": f"method-{i}"} for i in range(50)], capsys)
    assert lines[1].split()[1] == "method" and lines[2].split()[3] == "method-0"
    assert lines[-1] == "  and 10 more lines in pgr.parquet" and len(lines) == 43


def test_the_rows_come_from_the_tables_just_written(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"strong": "small"}, ROW | {"task": None}]
    pl.DataFrame(rows, infer_schema_length=None).drop("fails").with_columns(
        label_sensitive=pl.lit(False), no_headroom=pl.lit(None, pl.Boolean), above_untrained=pl.lit(None, pl.Boolean)
    ).write_parquet(tmp_path / "pgr.parquet")
    [row] = pgr_facts(tmp_path)
    assert (row["weak"], row["strong"], row["pgr"]) == ("small", "big", 0.5)
    assert row["fails"] == "not clearly above shuffled labels"
