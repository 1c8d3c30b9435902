"""Wrong input at the command line: exit code 2, one message that names file and field, nothing written, no traceback."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from w2s_ray import cli
from w2s_ray.errors import InputError
from w2s_ray.planning import load_plan
from w2s_ray.study import load_study
from w2s_ray.tasks.task import CATALOGUE

from tiny import save_model, save_study, save_task


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_study(folder)
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A study of one's own, which a test may spoil."""
    import shutil

    shutil.copytree(models, tmp_path / "study")
    return tmp_path / "study"


def refusal(folder: Path, command: str = "plan", *more: str, study: str = "study.yaml") -> str:
    """The message with which a command refuses; checks that nothing was written."""
    store = folder / "store"
    before = set(folder.rglob("*"))
    result = CliRunner().invoke(cli.app, [command, str(folder / study), "--store", str(store), *more])
    assert isinstance(result.exception, InputError), result.output
    assert set(folder.rglob("*")) == before, "something was written"
    return str(result.exception)


def with_grid(folder: Path, **grid: Any) -> str:
    save_study(folder, grid=grid)
    return refusal(folder)


def test_the_process_exits_with_2_and_no_traceback(folder: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "w2s_ray.cli", "plan", str(folder / "nosuch.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "nosuch.yaml: no such file" in done.stderr


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (0, "grids[0]: models 'cut': depth: given 0, which keeps nothing of"),
        (3, "grids[0]: models 'cut': depth: given 3, allowed: 0 to 2, the layers of"),
    ],
)
def test_a_model_can_be_cut_to_layers_that_it_has(tmp_path: Path, depth: int, expected: str) -> None:
    save_model(tmp_path / "bert", "bert")
    save_task(tmp_path)
    models = [{"name": "cut", "path": "bert", "depth": depth}, {"name": "whole", "path": "bert"}]
    content = {"name": "x", "grids": [{"models": models, "tasks": ["toy.yaml"]}]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    assert expected in refusal(tmp_path)


def test_a_task_or_data_where_a_study_belongs_is_told_apart(folder: Path) -> None:
    assert f"is a task, not a study; write a study of it with: w2s new study {folder / 'toy.yaml'}" in refusal(
        folder, study="toy.yaml"
    )
    (folder / "rows.csv").write_text("text,label\na b: c,1\n")
    assert f"w2s new task {folder / 'rows.csv'}" in refusal(folder, study="rows.csv")
    result = CliRunner().invoke(cli.app, ["tasks", str(folder / "study.yaml")])
    assert isinstance(result.exception, InputError)
    assert f"is a study, not a task; see what it runs with: w2s plan {folder / 'study.yaml'}" in str(result.exception)


def test_stopping_by_rows_held_out_needs_such_rows(folder: Path) -> None:
    assert "no rows are held out; set validation" in with_grid(folder, training={"stop": "validation"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "not valid YAML"),
        ("name: x\nname: y", "'name' is given twice"),
        ("- 1", "a study is a mapping"),
        ("name: x", "grids: missing"),
        ("name: x\ngrids: []", "grids"),
        ("name: '../x'\ngrids: [{family: chess, tasks: [t]}]", "name"),
        ("name: x\ngrid: []", "unknown key 'grid' (did you mean 'grids'?)"),
        ("name: x\ngrids: [{family: chess, tasks: [t], trainning: {}}]", "did you mean 'training'?"),
        ("name: x\ngrids: [{family: chess, tasks: [t], training: {epoch: 2}}]", "grids[0].training.epoch: unknown key"),
        (
            "name: x\ngrids: [{family: chess, tasks: [t], training: {epochs: two}}]",
            "grids[0].training.epochs: given 'two'",
        ),
        ("name: x\ngrids: [{family: chess, tasks: []}]", "grids[0].tasks"),
        ("name: x\ngrids: [{family: chess, tasks: [t, t]}]", "'t' is listed twice"),
        ("name: x\ngrids: [{family: chess, tasks: [t], seeds: 0}]", "grids[0].seeds: given 0"),
        ("name: x\ngrids: [{family: chess, tasks: [t], seeds: -1}]", "grids[0].seeds: given -1"),
        ("name: x\ngrids: [{family: chess, tasks: [t], seeds: [1, 1]}]", "a seed is listed twice"),
        ("name: x\ngrids: [{family: chess, tasks: [t], methods: [naiv]}]", "did you mean 'naive'?"),
        (
            "name: x\ngrids: [{family: chess, tasks: [t], methods: [{name: confidence, max_wait: 1}]}]",
            "did you mean 'max_weight'?",
        ),
        (
            "name: x\ngrids: [{family: chess, tasks: [t], methods: [{name: confidence, max_weight: 2}]}]",
            "less than or equal to 1",
        ),
        ("name: x\ngrids: [{tasks: [t]}]", "give either 'family' or 'models'"),
        ("name: x\ngrids: [{family: gtp2, tasks: [t]}]", "unknown family 'gtp2' (did you mean 'gpt2'?)"),
        ("name: x\ngrids: [{family: gpt2, sizes: [smal], tasks: [t]}]", "did you mean 'small'?"),
        ("name: x\ngrids: [{family: gpt2, sizes: [large, small], tasks: [t]}]", "weak to strong: [small, large]"),
        ("name: x\ngrids: [{family: gpt2, pairs: [[xl, small]], tasks: [t]}]", "has its strong model weaker"),
        ("name: x\ngrids: [{family: chess, tasks: [chess-mat]}]", "did you mean 'chess-mate'?"),
        ("name: x\ngrids: [{family: chess, tasks: ['../t.yaml']}]", "no such task file"),
        ("name: x\ngrids: [{family: chess, tasks: [nosuch.yaml]}]", "no such task file"),
        ("name: x\ngrids: [{family: chess, tasks: [chess-moves], seeds: 1000000}]", "10,000,000 cells"),
        ("name: x\ncompute: {zero_stage: 4}\ngrids: [{family: chess, tasks: [t]}]", "compute.zero_stage: given 4"),
        ("name: x\ncompute: {worker: 4}\ngrids: [{family: chess, tasks: [t]}]", "did you mean 'workers'?"),
    ],
)
def test_a_bad_study_is_refused(folder: Path, text: str, expected: str) -> None:
    (folder / "study.yaml").write_text(text)
    message = refusal(folder)
    assert expected in message and "study.yaml" in message


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("nosuch.yaml", "no such file; give the path"),
        ("stud.yaml", "did you mean 'study.yaml'?"),
        ("study", "did you mean 'study.yaml'?"),
        ("quickstrt.yaml", "did you mean 'quickstart'?"),
    ],
)
def test_a_missing_study_is_refused_with_those_there_are(folder: Path, given: str, hint: str) -> None:
    message = refusal(folder, study=given)
    assert hint in message and "methods, nlp, quickstart, reward_modeling" in message


def test_a_ready_made_study_goes_by_its_name_where_no_file_has_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert load_study("embedded").name == "embedded"
    (folder / "embedded").mkdir()  # a folder is no study
    assert load_study("embedded").name == "embedded"
    (folder / "embedded").rmdir()
    (folder / "study.yaml").rename(folder / "embedded")
    assert load_study("embedded").name == "tiny"


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("toy", "unknown task 'toy' (did you mean 'toy.yaml'?)"),
        ("tooy", "unknown task 'tooy' (did you mean 'toy.yaml'?)"),
        ("toy.parquet", "is a data file, not a task; write a task over it with: w2s new task toy.parquet"),
    ],
)
def test_a_task_beside_the_study_is_suggested_by_its_file(folder: Path, task: str, hint: str) -> None:
    assert hint in with_grid(folder, tasks=[task])


def test_one_word_is_a_list_of_one(folder: Path) -> None:
    save_study(folder, grid={"tasks": ["toy.yaml"], "methods": [{"name": "noise"}], "sizes": ["big"]})
    lists = load_plan(folder / "study.yaml")
    save_study(folder, grid={"tasks": "toy.yaml", "methods": {"name": "noise"}, "sizes": "big"})
    words = load_plan(folder / "study.yaml")
    assert [fit.key for fit in words.fits] == [fit.key for fit in lists.fits]
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(CliRunner().invoke(cli.app, ["schema"]).output)
    jsonschema.validate(yaml.safe_load((folder / "study.yaml").read_text()), schema)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "safetensors"),
    ],
)
def test_an_incomplete_model_folder_is_refused(folder: Path, name: str, expected: str) -> None:
    (folder / "small" / name).unlink()
    assert expected in refusal(folder)


def test_a_truncated_model_is_refused(folder: Path) -> None:
    (folder / "small" / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    assert "not a safetensors file" in refusal(folder)


def spoil(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def on(folder: Path) -> None:
        path = folder / "toy.yaml"
        path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text()))))

    return on


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda task: task | {"label": "lable"}, "which toy.yaml names; there are: text, label"),
        (lambda task: task | {"label": "labels"}, "did you mean 'label'?"),
        (lambda task: task | {"template": "{txt}"}, "did you mean 'text'?"),
        (lambda task: task | {"group": "question"}, "no column 'question'"),
        (lambda task: task | {"train": "nosuch.parquet"}, "no such file"),
        (lambda task: task | {"train": "../toy.parquet"}, "no such file"),
        (lambda task: task | {"train": "toy\0.parquet"}, "has a NUL character"),
        (lambda task: task | {"train": "toy.pickle"}, "allowed are files ending in"),
        (lambda task: task | {"setting": "chess"}, "setting"),
        (lambda task: task | {"templat": "{text}"}, "did you mean 'template'?"),
        (lambda task: task | {"file": "toy.parquet"}, "unknown key 'file' (did you mean 'train'?)"),
        (lambda task: task | {"data": "toy.parquet"}, "unknown key 'data' (did you mean 'train'?)"),
        (lambda task: task | {"path": "toy.parquet"}, "unknown key 'path' (did you mean 'train'?)"),
    ],
)
def test_a_bad_task_is_refused(folder: Path, change: Any, expected: str) -> None:
    spoil(change)(folder)
    assert expected in refusal(folder)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"text": "a", "label": 0}, {"text": " ", "label": 1}], "row 2: the text is empty"),
        ([{"text": "a", "label": 0}, {"text": "b", "label": 2}], "row 2, column 'label': given 2, allowed are 0 and 1"),
        ([{"text": "a", "label": "yes"}], "given 'yes', allowed are 0 and 1"),
        (
            [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}],
            "The column has the values yes, no: list in toy.yaml those that mean 1 under 'positive:'",
        ),
        ([{"text": t, "label": i} for i, t in enumerate("abc")], "The column has the values 0, 1, 2: list in toy.yaml"),
        ([{"text": "a", "label": None}], "given None"),
        ([{"txt": "a", "label": 1}], "no column 'text'"),
    ],
)
def test_a_bad_row_is_refused(folder: Path, rows: list[dict[str, Any]], expected: str) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / "toy.parquet")
    assert expected in refusal(folder)


def rows_of(text: str, label: str = "i % 2", num: int = 40, **more: str) -> list[dict[str, Any]]:
    """Rows by formula: `text` and `more` are templates of the row's number, `label` is an expression of it."""
    return [
        {"text": text.format(i=i), "label": eval(label, {"i": i})}
        | {name: eval(how, {"i": i}) for name, how in more.items()}
        for i in range(num)
    ]


@pytest.mark.parametrize(
    ("rows", "change", "expected"),
    [
        (rows_of("n{i}", "1"), {}, "toy.parquet: all 40 rows that can be used have label 1, from"),
        (rows_of("n{i}", "'abc'[i % 3]"), {"positive": ["a"]}, "given one of positive and negative"),
        (
            rows_of("n{i}", "'abc'[i % 3]"),
            {"positive": ["a"], "negative": ["A"]},
            "of both labels. Left out: 26 rows, the",
        ),
        (rows_of("n{i}", "'abc'[i % 3]"), {"positive": ["x"], "negative": ["y"]}, "no row can be used"),
        (rows_of("n{i}", "'ab'[i % 2]"), {"positive": ["a"], "negative": ["a"]}, "'a' is in positive and in negative"),
        (rows_of("same"), {}, "no row can be used. Left out: 40 rows, the same row again, with another right answer"),
        (rows_of("same", name="f'r{i}'"), {"id": "name"}, "all 40 rows have the same text ('same', "),
        (
            rows_of("n{i}", name="i // 2"),
            {"id": "name"},
            "row 2: has the id '0', which another row with another text has",
        ),
        (
            rows_of("n{i}", more="None if i == 3 else 'm'"),
            {"template": "{text} {more}"},
            "row 4, column 'more': has no value",
        ),
        (rows_of("n{i}", book="None if i == 3 else i"), {"group": "book"}, "row 4: has no value at 'book'"),
        (rows_of("n{i}", book="i // 20"), {"group": "book"}, "'book' makes 2 group(s) of 40 rows"),
        (rows_of("n{i}"), {"test": "toy.parquet"}, "given 'toy.parquet' as train and as test"),
        (
            rows_of("n{i}"),
            {"test": "copy.parquet"},
            "toy.parquet: no row can be used. Left out: 40 rows, the same row again",
        ),
        (rows_of("n{i}"), {"remove": "("}, "can't be filled from the columns"),
        (
            rows_of("n{i}"),
            {"setting": "comparison", "template": "", "completions": ["{text}", "{text}"]},
            "both completions are '{text}'",
        ),
        (
            rows_of("n{i}", other="f'n{i}'"),
            {"setting": "comparison", "template": "", "completions": ["{text}", "{other}"]},
            "Left out: 40 rows, both completions are the same (first: ",
        ),
        (
            rows_of("n{i}", "1", other="f'm{i}'"),
            {"setting": "comparison", "template": "", "completions": ["{text}", "{other}"], "label": "label"},
            "leave out 'label' if the first completion is always the better one",
        ),
    ],
)
def test_rows_that_break_what_the_task_promises_are_refused(
    folder: Path, rows: list[dict[str, Any]], change: dict[str, Any], expected: str
) -> None:
    for name in ("toy", "copy"):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    spoil(lambda task: task | change)(folder)
    assert expected in refusal(folder)


def test_a_plan_says_which_rows_are_left_out_and_why(folder: Path) -> None:
    """Of 300 rows 10 are there twice, and the last has 70 words where 64 tokens are allowed."""
    rows = [{"text": f"w{i % 40} w{i // 40}", "label": i % 2} for i in range(299)]
    long = {"text": " ".join(["w1"] * 70), "label": 1}
    pq.write_table(pa.Table.from_pylist([*rows, long, *rows[:10]]), folder / "toy.parquet")
    study = save_study(folder, grid={"training": {"max_tokens": 64}, "split": {"num_train": 40, "num_test": 40}})
    facts = json.loads(CliRunner().invoke(cli.app, ["plan", str(study), "--json"]).output)
    left_out = [{"reason": "the same row again", "num_rows": 10, "first": f"{folder / 'toy.parquet'}: row 301"}]
    assert facts["rows"] == {"toy": {"num_read": 310, "num_usable": 300, "left_out": left_out}}
    assert [row["share_too_long"] for row in facts["tokens"]] == [pytest.approx(1 / 300)]
    shown = " ".join(CliRunner().invoke(cli.app, ["plan", str(study)]).output.split())
    assert "toy: 300 of 310 can be used, and one replicate takes 120 of them" in shown
    assert "toy: 10 left out, the same row again (first: toy.parquet: row 301)" in shown
    assert "toy: 1 rows are longer than training.max_tokens for own-small" in shown
    save_study(folder, grid={"training": {"max_tokens": 64}, "split": {"num_train": 100, "num_test": 60}})
    load_plan(folder / "study.yaml", deal_rows=True)
    long_rows = [{"text": f"{row['text']} {'w1 ' * 70}", "label": row["label"]} for row in rows]
    pq.write_table(pa.Table.from_pylist([*rows[:100], *long_rows[100:]]), folder / "few.parquet")
    spoil(lambda task: task | {"train": "few.parquet"})(folder)
    message = refusal(folder)
    assert (
        "task 'toy' (199 rows are longer than 64 tokens): split: 100 rows with balanced labels are wanted in" in message
    )


def test_words_that_the_tokenizer_does_not_know_are_refused(folder: Path) -> None:
    """The tiny tokenizers know w0 to w39. Of one strange word in twenty, a plan warns."""
    from w2s_ray.training.data import prepare
    from w2s_ray.training.worker import TrainingFailed

    def save_rows(strange: int) -> None:
        for name in ("toy.parquet", f"{strange}.parquet"):
            words = [["plain" if place < strange else f"w{place}" for place in range(19)] for i in range(300)]
            rows = [
                {"text": " ".join([f"w{i % 40}", f"w{i // 40}", *words[i][1:]]), "label": i % 2} for i in range(300)
            ]
            pq.write_table(pa.Table.from_pylist(rows), folder / name)
        spoil(lambda task: task | {"train": f"{strange}.parquet"})(folder)

    save_rows(2)
    result = CliRunner().invoke(cli.app, ["plan", str(folder / "study.yaml"), "--json"])
    [tokens, *_] = json.loads(result.output)["tokens"]
    assert tokens["share_unknown"] == pytest.approx(1 / 20) and tokens["unknown"] == "plain", tokens
    shown = " ".join(CliRunner().invoke(cli.app, ["plan", str(folder / "study.yaml")]).output.split())
    assert "toy: 5% of its tokens are unknown to the tokenizer of own-small, such as 'plain'" in shown
    save_rows(11)
    assert "does not know 50% of the tokens of task 'toy', such as 'plain' in" in refusal(folder)
    fit = load_plan(folder / "study.yaml").fits[0]
    with pytest.raises(TrainingFailed, match="does not know 50% of the tokens of task 'toy'"):
        prepare(fit)


def test_english_on_the_chess_family_is_refused(folder: Path) -> None:
    (folder / "english.yaml").write_text("name: english\nsetting: classification\ntrain: english.csv\n")
    lines = [f"the actors of film number {i} were {'good' if i % 2 else 'bad'},{i % 2}" for i in range(400)]
    (folder / "english.csv").write_text("text,label\n" + "\n".join(lines))
    (folder / "study.yaml").write_text(
        "name: x\ngrids: [{family: chess, sizes: [xs, s], tasks: [english.yaml], split: {num_train: 50, num_test: 50}}]"
    )
    message = refusal(folder)
    assert "the tokenizer of chess-xs does not know" in message and "such as 'the'" in message


LINES = "text,label\n" + "".join(f"plain number {i},{i % 2}\n" for i in range(8))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "toy.csv",
            (LINES + "caf\xe9,1\n").encode("latin1"),
            "toy.csv: row 9, column 'text': is not UTF-8 (byte 0xe9)",
        ),
        (
            "toy.jsonl",
            '{"text": "caf\xe9", "label": 1}\n'.encode("latin1"),
            "toy.jsonl: row 1, column 'text': is not UTF-8",
        ),
        ("toy.csv", (LINES + "a\0b,1\n").encode(), "row 9, column 'text': has a NUL character"),
        ("toy.csv", b"text,text,label\na,b,0\nc,d,1\n", "column 'text' is there 2 times"),
    ],
)
def test_text_that_is_not_text_is_refused(folder: Path, name: str, content: bytes, expected: str) -> None:
    (folder / name).write_bytes(content)
    spoil(lambda task: task | {"train": name})(folder)
    assert expected in refusal(folder)


def test_a_byte_order_mark_is_no_part_of_a_name(folder: Path) -> None:
    from w2s_ray import tasks

    (folder / "toy.csv").write_bytes(LINES.encode("utf-8-sig"))
    spoil(lambda task: task | {"train": "toy.csv"})(folder)
    assert tasks.read_rows(tasks.load_task("toy.yaml", base=folder)).num_rows == 8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"template": "text"}, "template: 'text' names no column; did you mean '{text}'?"),
        (
            {"setting": "comparison", "template": "", "completions": ["chosen", "rejected"]},
            "completions: 'chosen' names no column; did you mean '{chosen}'?",
        ),
        ({"setting": "comparison", "template": "prompt", "completions": ["{a}", "{b}"]}, "did you mean '{prompt}'?"),
    ],
)
def test_a_template_without_a_column_is_refused(folder: Path, change: dict[str, Any], expected: str) -> None:
    spoil(lambda task: task | change)(folder)
    assert expected in refusal(folder)


def test_a_file_that_is_not_what_its_name_says_is_refused(folder: Path) -> None:
    (folder / "toy.parquet").write_text("text,label\n")
    assert "toy.parquet: can't be read as parquet" in refusal(folder)


@pytest.mark.parametrize("command", ["run", "report"])
def test_a_folder_for_the_report_that_cannot_be_written_is_refused(folder: Path, command: str) -> None:
    (folder / "taken").write_text("in the way")
    assert "nothing can be written to" in refusal(folder, command, "--out", str(folder / "taken" / "out"))


@pytest.mark.parametrize("command", ["report", "verify"])
def test_a_store_that_is_not_there_is_refused_where_it_is_only_read(folder: Path, command: str) -> None:
    assert "there is no such store" in refusal(folder, command)


def test_a_report_is_not_replaced_by_an_emptier_one(folder: Path) -> None:
    keys = [fit.key for fit in load_plan(folder / "study.yaml").fits]
    for name in ("out", "store"):
        (folder / name).mkdir()
    pq.write_table(pa.table({"key": keys[:3]}), folder / "out" / "runs.parquet")
    arguments = ["--out", str(folder / "out")]
    assert "has 3 Fit(s) of this study that the store" in refusal(folder, "report", *arguments)
    command = ["report", str(folder / "study.yaml"), "--store", str(folder / "store"), *arguments, "--force"]
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert (folder / "out" / "report.html").exists()


def test_a_store_that_cannot_be_written_is_refused(folder: Path) -> None:
    (folder / "store").write_text("in the way")
    assert "not writable" in refusal(folder, "run", "--out", str(folder / "out"))


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        ({"workers": 4096}, "needs 4096 worker(s) of 1 CPU(s)"),
        ({"cpus_per_worker": 1000}, "1 worker(s) of 1000 CPU(s)"),
        ({"gpus_per_worker": 1, "workers": 4096}, "1 GPU(s) each"),
    ],
)
def test_a_study_that_can_never_be_placed_is_refused(folder: Path, compute: dict[str, Any], expected: str) -> None:
    save_study(folder, compute=compute)
    message = refusal(folder, "run", "--out", str(folder / "out"))
    assert expected in message and "has" in message and "CPUs" in message


def test_a_model_that_no_node_can_hold_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2s_ray.scheduling.cluster.machine_gib", lambda: 1e-6)
    message = refusal(folder, "run", "--out", str(folder / "out"))
    assert "GiB of a node's memory, for 1 worker(s)" in message and "this machine has 1e-06 GiB" in message
    assert "compute.zero_stage: 3" in message and not (folder / "store").exists()


@pytest.mark.parametrize(
    ("compute", "tune", "on_gpu", "on_host"),
    [
        ({}, "all", 0, 20),
        ({"gpus_per_worker": 1}, "all", 16, 4),
        ({"gpus_per_worker": 1}, "lora", 4, 4),
        ({"gpus_per_worker": 1}, "head", 4, 0),
        ({"gpus_per_worker": 1, "workers": 4, "zero_stage": 2}, "all", 8, 4),
        ({"gpus_per_worker": 1, "workers": 4, "zero_stage": 3}, "all", 5, 0),
        ({"gpus_per_worker": 1, "workers": 4, "zero_stage": 3, "offload": "optimizer"}, "all", 2, 3),
        ({"gpus_per_worker": 1, "workers": 4, "zero_stage": 3, "offload": "parameters"}, "all", 1, 4),
    ],
)
def test_a_plan_says_what_a_worker_needs(
    folder: Path, compute: dict[str, Any], tune: str, on_gpu: float, on_host: float
) -> None:
    """In bytes per parameter."""
    study = save_study(folder, compute=compute, grid={"training": {"tune": tune}})
    facts = json.loads(CliRunner().invoke(cli.app, ["plan", str(study), "--json"]).output)
    num_params = max(fit.model.num_params for fit in load_plan(study).fits if fit.model.name == facts["largest_model"])
    assert facts["largest_gpu_gib_per_worker"] * 2**30 == pytest.approx(on_gpu * num_params)
    assert facts["largest_host_gib_per_worker"] * 2**30 == pytest.approx(on_host * num_params)


def test_more_rows_than_there_are_is_a_reason(folder: Path) -> None:
    from w2s_ray import tasks

    rows = tasks.read_rows(tasks.load_task("toy.yaml", base=folder))
    with pytest.raises(InputError, match="1000 rows with balanced labels are wanted"):
        tasks.deal(rows, tasks.Deal(seed=0, num_train=1000, num_test=20))


def test_the_schema_accepts_the_shipped_studies_and_refuses_others() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(CliRunner().invoke(cli.app, ["schema"]).output)
    for path in Path(__file__).parents[1].glob("studies/*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "grids": [], "extra": 1}, schema)


def test_the_schema_of_a_task_accepts_the_shipped_ones_and_refuses_others() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(CliRunner().invoke(cli.app, ["schema", "task"]).output)
    for path in CATALOGUE.glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    for wrong in ({"setting": "chess"}, {"file": "x.csv"}, {"path": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"name": "x", "setting": "classification", "train": "x.csv"} | wrong, schema)
    assert "0 or 1" in json.dumps(schema["properties"]["label"]["description"])


def test_a_bad_gap_is_refused(folder: Path) -> None:
    assert "--gap" in refusal(folder, "plan", "--gap", "2")


def test_one_mistake_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: x\ngrids: [{family: chess, tasks: [chess-mate], training: {epochs: 1500}}]")
    with pytest.raises(InputError) as refused:
        load_study(path)
    assert str(refused.value).splitlines() == [
        f"{path}: grids[0].training.epochs: given 1500: Input should be less than or equal to 1000"
    ]


def test_rays_client_is_refused_with_the_way_to_go(tmp_path: Path) -> None:
    arguments = ["run", str(save_study(tmp_path)), "--store", str(tmp_path / "store"), "--address", "ray://head:10001"]
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, InputError) and "w2s submit STUDY" in str(result.exception)
    assert not (tmp_path / "store").exists()


def test_a_split_that_does_not_fit_is_refused_with_the_largest_that_does(folder: Path) -> None:
    """400 rows in plenty of both labels: 318 beside a test set of 80."""
    save_study(folder, grid={"split": {"num_train": 1000, "num_test": 80}, "seeds": 3})
    more = {"plan": [], "run": ["--out", str(folder / "out")], "submit": ["--address", "http://127.0.0.1:1"]}
    for command, arguments in more.items():
        message = refusal(folder, command, *arguments)
        assert "grids[0]: task 'toy': split: 1000 rows with balanced labels are wanted in A" in message
        assert "(for seeds 0, 1, 2: 3 of 3)" in message
    named = re.search(r"largest split that fits every replicate: num_train: (\d+), num_test: (\d+)", message)
    assert named and int(named[2]) == 80
    split = {"num_train": int(named[1]), "num_test": 80}
    plan = load_plan(save_study(folder, grid={"split": split, "seeds": 3}), deal_rows=True)
    assert plan.parts["toy"]["A"].num_rows == split["num_train"] > 100
    assert "num_train" in with_grid(folder, split=split | {"num_train": split["num_train"] + 2}, seeds=3)


def test_a_replicate_that_cannot_be_dealt_is_refused_though_the_first_can(folder: Path) -> None:
    from w2s_ray import tasks

    rows = tasks.read_task(tasks.load_task("toy.yaml", base=folder)).rows
    for num_train in range(100, 0, -2):
        how = tasks.Deal(num_train=num_train, num_test=200)
        with contextlib.suppress(InputError):
            tasks.facts_of_replicates(rows, how, seeds=[0])
            break
    tasks.facts_of_replicates(rows, how, seeds=[0])
    with pytest.raises(
        InputError, match=r"\(for seeds? [1-9].*: \d+ of 40\). The largest split that fits every replicate"
    ):
        tasks.facts_of_replicates(rows, how, seeds=range(40))
