"""Tasks over data sets of the hub, on folders laid out as the hub lays them out; and what is said without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from w2s_ray import cli, families, hub, tasks
from w2s_ray.errors import InputError
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.results import write_results
from w2s_ray.store import open_store
from w2s_ray.tasks.rows import read_task
from w2s_ray.tasks.shapes import Choices, Shape, unfold
from w2s_ray.training.pack import run_pack

from hub_rows import NUM, ROWS, SAME_FILES, URLS, _lichess, write
from tiny import save_model, save_task

EMBEDDED = {"chess-mate", "chess-moves", "manuals", "manuals-pairs", "sentiment", "sentiment-pairs"}
WRITTEN = {*ROWS, *SAME_FILES, *URLS}
LIKE_HARMLESS = {f"hh-{name}" for name in ("helpful-base", "helpful-online", "helpful-rejection-sampled")}


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(hub.FOLDER, str(tmp_path))
    forget_files()
    return tmp_path


def forget_files() -> None:
    """What this process remembers of a task's files, which a test has put in place or changed."""
    for cached_function in (hub.commit_of, tasks.files, tasks.fingerprint, tasks.check, read_task):
        cached_function.cache_clear()


def items(name: str, copies: Path) -> list[dict[str, Any]]:
    write(copies, name)
    if name == "hh-on-reward-bench":
        write(copies, "reward-bench")
    return list(tasks.read_rows(tasks.load_task(name)).to_pylist())


def test_every_task_that_ships_is_tried() -> None:
    assert set(tasks.task_names()) == EMBEDDED | WRITTEN | LIKE_HARMLESS


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_rows_become_items_of_both_labels_in_groups(name: str, copies: Path) -> None:
    rows = items(name, copies)
    task = tasks.load_task(name)
    assert len(rows) >= NUM // 2 and len({row["id"] for row in rows}) == len(rows)
    assert all("{" not in row["text"] and row["text"] == row["text"].strip() for row in rows)
    if task.setting == "generation":
        assert all(row["completions"][0] for row in rows)
    else:
        assert {row["label"] for row in rows} == {0, 1}
    dealt = tasks.deal(tasks.read_rows(task), tasks.Deal(seed=0, num_train=4, num_test=4))
    groups = [set(part["group"].to_pylist()) for part in dealt.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


@pytest.mark.parametrize("name", sorted(n for n in WRITTEN if tasks.load_task(n).shape.choices))
def test_a_question_shows_one_right_and_one_wrong_answer(name: str, copies: Path) -> None:
    rows = items(name, copies)
    assert sum(row["label"] for row in rows) * 2 == len(rows)


def test_the_same_rows_in_another_order_give_the_same_items(copies: Path) -> None:
    one = {row["id"]: row["text"] for row in items("hellaswag", copies)}
    repo, paths, make = ROWS["hellaswag"]
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, inside in enumerate(paths.values()):
        rows = [make(i + 1000 * number) for i in reversed(range(NUM))]
        pq.write_table(pa.Table.from_pylist(rows), copies / "datasets" / repo / inside)
    forget_files()
    other = {row["id"]: row["text"] for row in tasks.read_rows(tasks.load_task("hellaswag")).to_pylist()}
    assert one == other


# --- the known traps ----------------------------------------------------------------------------------------------


def test_openbookqa_shows_the_text_of_both_answers_and_never_a_letter(copies: Path) -> None:
    for row in items("openbookqa", copies):
        answer = row["text"].split("Proposed answer: ")[1].split("\n")[0]
        assert answer.startswith("option ")


def test_cosmos_qa_never_shows_none_of_the_above(copies: Path) -> None:
    rows = items("cosmos-qa", copies)
    assert not any("None of the above" in row["text"] for row in rows)
    task = tasks.load_task("cosmos-qa")
    assert tasks.read_task(task).dropped == {"the right answer is one that is never shown": NUM // 4 * 2}


def test_utilitarianism_shows_the_better_scenario_first_and_second(copies: Path) -> None:
    rows = items("ethics-utilitarianism", copies)
    assert len(rows) == 2 * NUM and 0.2 < sum(row["label"] for row in rows) / len(rows) < 0.8
    for row in rows:
        assert row["text"].startswith("1) I won") == bool(row["label"])


@pytest.mark.parametrize(("name", "num_dropped"), [("piqa", 1), ("hellaswag", 1), ("cola", 1)])
def test_rows_whose_label_is_kept_back_are_left_out(name: str, num_dropped: int, copies: Path) -> None:
    rows = items(name, copies)
    per_row = 2 if tasks.load_task(name).shape.choices else 1
    assert len(rows) == (2 * NUM - num_dropped) * per_row


def test_labels_that_are_text_are_numbers(copies: Path) -> None:
    right = [row["text"] for row in items("social-iqa", copies) if row["label"]]
    assert "Answer: B 1\n" in right[[f"Why {1}?" in text for text in right].index(True)]


def test_an_answer_that_looks_like_a_number_is_text(copies: Path) -> None:
    right = {row["text"] for row in items("sciq", copies) if row["label"]}
    assert "Q: How many 3?\nA: 3\nIs this the right answer?" in right
    wrong = [row["text"] for row in items("sciq", copies) if not row["label"] and "How many 2?" in row["text"]]
    assert wrong and "A: 2" not in wrong[0], "a distractor that is the answer but for its full stop"


def test_mc_taco_has_no_header_and_quotation_marks_are_text(copies: Path) -> None:
    rows = items("mc-taco", copies)
    assert len(rows) == 2 * NUM and any('He said "0' in row["text"] for row in rows)


def test_marks_of_wikihow_are_cut_out(copies: Path) -> None:
    assert not any("[" in row["text"] for row in items("hellaswag", copies))


def test_transcripts_that_differ_before_the_last_answer_are_left_out(copies: Path) -> None:
    rows = items("hh-rlhf", copies)
    assert len(rows) == 2 * NUM - 2
    assert tasks.read_task(tasks.load_task("hh-rlhf")).dropped == {
        "the two prompts differ": 1,
        "a completion is empty": 1,
    }
    for row in rows:
        assert row["text"].endswith("\n\nAssistant:") and row["completions"][1 - row["label"]].startswith("kind")


def test_a_test_set_of_another_task(copies: Path) -> None:
    write(copies, "hh-rlhf")
    rows = items("hh-on-reward-bench", copies)
    assert {row["part"] for row in rows} == {"train", "test"}
    test = [row for row in rows if row["part"] == "test"]
    assert len(test) == NUM and all(row["completions"][1 - row["label"]].startswith("well") for row in test)
    before = tasks.fingerprint(tasks.load_task("hh-on-reward-bench"))
    write(copies, "reward-bench", change=lambda row: row | {"chosen": row["chosen"] + "!"})
    forget_files()
    assert tasks.fingerprint(tasks.load_task("hh-on-reward-bench")) != before
    assert {row["label"] for row in test} == {0, 1}, "shown in an order that the row decides"


def test_ties_are_left_out(copies: Path) -> None:
    for name in ("helpsteer3", "shp"):
        items(name, copies)
        assert tasks.read_task(tasks.load_task(name)).dropped["a tie"] == 2 * NUM // 3
    for row in items("helpsteer3", copies):
        better, number = row["completions"][1 - row["label"]].split()
        assert better == ("one" if int(number) % 3 == 0 else "two")


@pytest.mark.parametrize("old", [True, False])
def test_both_schemas_of_lichess(old: bool) -> None:
    found, _ = unfold(Shape(puzzle=True), [_lichess(7, old=old)])
    fields = found[0].fields
    assert fields["move"] == "Rxe7" and fields["game"] == "game0007" and fields["rating"] == 1150.0
    assert " w " in fields["position"], "the opponent has moved"


def test_a_question_whose_choices_are_all_right_is_left_out() -> None:
    shape = Shape(choices=Choices(columns=("a", "b"), right="right", by="text"))
    found, dropped = unfold(shape, [{"a": "Yes.", "b": "yes", "right": "Yes."}, {"a": "x", "b": "y", "right": "z"}])
    assert not found and sum(dropped.values()) == 2


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_changed_column_is_named(copies: Path) -> None:
    write(copies, "boolq", change=lambda row: {"Question": row.pop("question"), **row})
    with pytest.raises(InputError, match=r"no column 'question'.*did you mean 'Question'"):
        tasks.read_rows(tasks.load_task("boolq"))


def test_a_missing_split_is_named(copies: Path) -> None:
    write(copies, "boolq")
    for path in (copies / "datasets/google/boolq/default/validation").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"test: no file \*/validation/\*.parquet"):
        tasks.files(tasks.load_task("boolq"))


def test_a_malformed_row_is_named(copies: Path) -> None:
    write(copies, "openbookqa", change=lambda row: row | ({"answerKey": "E"} if row["id"] == "q5" else {}))
    with pytest.raises(InputError, match=r"0000.parquet: row 6: ValueError: 'E' is not in list"):
        tasks.read_rows(tasks.load_task("openbookqa"))


def test_two_shapes_are_refused(tmp_path: Path) -> None:
    text = "name: t\nsetting: comparison\ntrain: t.csv\ntemplate: ''\ncompletions: ['{chosen}', '{rejected}']\n"
    (tmp_path / "t.yaml").write_text(text + "shape: {messages: [chosen, rejected], preference: p}\n")
    with pytest.raises(InputError, match="given messages and preference, allowed is one of them"):
        tasks.load_task("t.yaml", base=tmp_path)


@pytest.mark.parametrize("name", ["boolq", "mc-taco"])
def test_without_a_network_the_message_says_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(hub.FOLDER, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    forget_files()
    result = CliRunner().invoke(cli.app, ["tasks", name])
    message = str(result.exception)
    assert isinstance(result.exception, InputError) and "HF_HUB_OFFLINE is set" in message and hub.FOLDER in message


def test_offline_the_cache_knows_what_a_branch_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache as `hf download` leaves it: the branch's commit, and a snapshot of that commit."""
    commit = "c" * 40
    cached = tmp_path / "datasets--google--boolq"
    (cached / "refs/refs/convert").mkdir(parents=True)
    (cached / "refs/refs/convert/parquet").write_text(commit)
    write(tmp_path / "made", "boolq")
    (cached / "snapshots").mkdir()
    (tmp_path / "made/datasets/google/boolq").rename(cached / "snapshots" / commit)
    monkeypatch.delenv(hub.FOLDER, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    forget_files()
    task = tasks.load_task("boolq")
    assert tasks.resolve_commits(task) == (commit, None)
    pinned = tasks.load_pinned(str(task.path), commits=(commit, None))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    first = tasks.fingerprint(task)
    (cached / "refs/refs/convert/parquet").write_text("d" * 40)
    hub.commit_of.cache_clear()
    tasks.fingerprint.cache_clear()
    assert tasks.fingerprint(task) != first, "another commit is another task"
    assert tasks.fingerprint(pinned) == first


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub, without a network."""
    monkeypatch.delenv(hub.FOLDER, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.commit_of.cache_clear()
    return tmp_path / "cache"


def save_in_cache(cache: Path, repo: str, commit: str, *, name_or_path: str = "", word: str = "w0") -> None:
    """A model's branch and its tokenizer, as a download of them leaves them."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {word: 0}}}))
    config = {"name_or_path": name_or_path, "add_bos_token": False, "model_max_length": len(name_or_path)}
    (snapshot / "tokenizer_config.json").write_text(json.dumps(config))


def test_models_are_pinned_to_the_commit_of_their_branch(cache: Path) -> None:
    commit = "e" * 40
    save_in_cache(cache, "EleutherAI/pythia-14m", commit)
    model = families.model(families.load_family("pythia"), "14m")
    assert model.revision == commit and model.fingerprint == f"hub:EleutherAI/pythia-14m@{commit}"
    with pytest.raises(InputError, match=r"the cache has no revision 'main'.*hf download EleutherAI/pythia-31m"):
        families.model(families.load_family("pythia"), "31m")


def test_a_ladder_of_the_hub_keeps_its_fits_when_it_grows(cache: Path, tmp_path: Path) -> None:
    """Each size has its own id and commit, but all share one tokenizer."""
    for digit, size in enumerate(("14m", "31m", "70m")):
        save_in_cache(cache, f"EleutherAI/pythia-{size}", f"{digit}" * 40, name_or_path="x" * digit)
    save_in_cache(cache, "EleutherAI/pythia-160m", "3" * 40, word="another")
    save_task(tmp_path)

    def keys(*sizes: str) -> set[str]:
        grid = {"family": "pythia", "sizes": list(sizes), "tasks": ["toy.yaml"]}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "hub", "grids": [grid]}))
        return {fit.key for fit in load_plan(tmp_path / "study.yaml").fits}

    assert keys("14m", "31m") < keys("14m", "31m", "70m")
    assert not keys("14m", "31m") & keys("14m", "31m", "160m"), "another tokenizer drops other rows"


def test_a_model_of_the_hub_and_its_copy_have_one_tokenizer(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, commit = families.load_family("pythia"), "e" * 40
    save_in_cache(cache, "EleutherAI/pythia-14m", commit)
    of_hub = families.model(family, "14m").tokenizer
    copy = save_model(tmp_path / "models/EleutherAI/pythia-14m", "gpt_neox")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(cache / "models--EleutherAI--pythia-14m/snapshots" / commit / name, copy)
    monkeypatch.setenv(hub.FOLDER, str(tmp_path))
    assert families.model(family, "14m").tokenizer == of_hub


@pytest.mark.parametrize("task", ["boolq", "hh-rlhf"])
def test_a_study_of_hub_models_and_data_runs_from_copies(task: str, copies: Path) -> None:
    """The road that a study on Pythia takes, with tiny models of its architecture in the place of Pythia's."""
    write(copies, task)
    rows = tasks.read_task(tasks.load_task(task)).rows
    words = sorted({word for row in rows for text in (row["text"], *row["completions"]) for word in text.split()})
    for seed, size in enumerate(("14m", "31m")):
        save_model(copies / "models/EleutherAI" / f"pythia-{size}", "gpt_neox", seed=seed, words=words)
    grid = {
        "family": "pythia", "sizes": ["14m", "31m"], "pairs": [["14m", "31m"]], "tasks": [task],
        "split": {"num_train": 6, "num_test": 8}, "training": {"epochs": 1, "batch_size": 8, "max_tokens": 64},
    }  # fmt: skip
    path = copies / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "hub", "grids": [grid]}))
    plan = load_plan(path)
    store = open_store(copies / "store")
    run_pack(list(plan.fits), store_uri=store.uri, execution=Execution(), report=lambda event: None)
    assert [record["reason"] for record in store.read_failures().values()] == []
    table = write_results(plan.cells, study="hub", store=store, out=copies / "out")
    assert table["status"].to_list() == ["done"] and table["n_test"].to_list() == [8]


def test_an_id_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="allowed are names such as"):
        hub.local_copy("../secrets", kind="dataset")


@pytest.mark.parametrize("name", ["nlp", "reward_modeling", "chess"])
def test_the_studies_of_the_hub_are_planned_from_copies(name: str, copies: Path) -> None:
    """Every task and family of theirs is there and goes together; the rows of the copies are too few to run."""
    study = Path(__file__).parent.parent / "studies" / f"{name}.yaml"
    grids = yaml.safe_load(study.read_text())["grids"]
    for grid in grids:
        for size in families.load_family(grid["family"]).sizes:
            if size.size in grid["sizes"]:
                save_model(copies / "models" / size.source, "gpt_neox")
        for task in grid["tasks"]:
            write(copies, task)
    plan = load_plan(study)
    assert len(plan.cells) >= 50 and {fit.training.precision for fit in plan.fits} == {"bf16"}
    assert max(execution.workers for execution in plan.executions.values()) >= 1
