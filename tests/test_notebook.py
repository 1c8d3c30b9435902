"""The door for notebooks: tables and figures of a finished study, and docs/notebook.ipynb cell by cell."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import w2s_ray as w2s
from w2s_ray.analysis.report import write_report
from w2s_ray.planning import load_plan
from w2s_ray.results import write_results

from trained import train

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
STUDY = {
    "name": "quickstart",
    "grids": [
        {
            "family": "chess",
            "sizes": ["xs", "s"],
            "pairs": [["xs", "s"]],
            "tasks": ["chess-mate"],
            "seeds": 2,
            "split": {"num_train": 64, "num_test": 64},
            "training": {"epochs": 1, "batch_size": 32, "max_tokens": 32, "evals_per_epoch": 1},
        }
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small study of a ready-made task has run; its tables and report are in w2s-out/quickstart."""
    place = tmp_path_factory.mktemp("place")
    (place / "study.yaml").write_text(yaml.safe_dump(STUDY))
    plan = load_plan(place / "study.yaml")
    store = train(plan.fits, place / "w2s-store")
    out = place / "w2s-out" / "quickstart"
    write_results(plan.cells, study="quickstart", store=store, out=out)
    write_report(out)
    return place


def test_the_notebook_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell in its order; what a cell ends with can be shown."""
    monkeypatch.chdir(place)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, Any] = {}
    shown = {cell["id"]: run_cell("".join(cell["source"]), names) for cell in notebook["cells"] if is_code(cell)}
    assert shown["pairs"].height == 1 and shown["status"]["status"].to_list() == ["done"]
    assert "$schema" in shown["chart"].to_dict()
    assert shown["side"].columns[-2:] == ["correct_of_supervisor", "completion_of_supervisor"]
    assert shown["facts"][0] > 0


def is_code(cell: dict[str, Any]) -> bool:
    return cell["cell_type"] == "code"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell and return what its last line gives, as a notebook shows it."""
    *statements, last = ast.parse(source).body
    exec(compile(ast.Module(statements, []), "cell", "exec"), names)
    assert isinstance(last, ast.Expr)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_predictions_stand_beside_their_texts(place: Path) -> None:
    report = w2s.load(place / "w2s-out" / "quickstart")
    bare, beside = report.predictions(), report.predictions(with_text=True)
    assert beside.drop("text", "completions").equals(bare)
    right = beside.filter("correct").with_columns(pl.col("completions").list.first().str.strip_chars().alias("first"))
    assert beside["text"].null_count() == 0 and (right["completion"] == right["first"]).all()
    assert set(report.predictions("B")["role"].cast(pl.String)) >= {"supervisor", "student"}


def test_texts_of_a_task_of_ones_own_need_its_study(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.parquet").touch()
    predictions = w2s.load(place / "w2s-out" / "quickstart").predictions()
    predictions.with_columns(pl.lit("mine").cast(pl.Categorical).alias("task")).write_parquet(
        out / "predictions.parquet"
    )
    with pytest.raises(w2s.InputError, match=r'the task mine does not ship .*study="STUDY.yaml"'):
        w2s.load(out).predictions(with_text=True)


def test_what_is_not_there_is_refused_with_what_is(place: Path) -> None:
    out = place / "w2s-out" / "quickstart"
    with pytest.raises(w2s.InputError, match=r"quickstar: no results.parquet there \(did you mean '.*quickstart'\?\)"):
        w2s.load(place / "w2s-out" / "quickstar")
    report = w2s.load(out)
    assert "generation-score" in report.figures
    with pytest.raises(w2s.InputError, match=r"no figure of the name 'scores'.*did you mean 'score'"):
        report.figure("scores")


def test_plan_and_run_refuse_as_the_command_line_does(tmp_path: Path) -> None:
    with pytest.raises(w2s.InputError, match=r"qickstart: no such file \(did you mean 'quickstart'\?\)"):
        w2s.plan("qickstart")
    with pytest.raises(w2s.InputError, match=r"qickstart: no such file"):
        w2s.run("qickstart", store=str(tmp_path / "store"))
    with pytest.raises(w2s.InputError, match=r"--address ray://here:1: allowed are 'auto' and host:port"):
        w2s.run("quickstart", store=str(tmp_path / "store"), out=tmp_path / "out", address="ray://here:1")
    assert not list(tmp_path.iterdir())


def test_the_door_is_light(place: Path) -> None:
    """Neither Ray nor torch is imported to read what a study found; a function stays a function beside its module."""
    code = (
        "import sys, w2s_ray as w2s; light = 'polars' not in sys.modules;"
        f"s = w2s.load({str(place / 'w2s-out' / 'quickstart')!r}); s.pgr, s.cells, s.predictions(with_text=True);"
        "import w2s_ray.planning, w2s_ray.cli.run;"
        "print(light, callable(w2s.plan), callable(w2s.run), 'ray' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True", "False", "False"]
