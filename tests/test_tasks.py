"""How rows are dealt out: groups stay together, classes are balanced, order does not matter."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from w2s_ray import tasks
from w2s_ray.errors import InputError
from w2s_ray.recipes import sentiment
from w2s_ray.tasks.grouping import group_keys
from w2s_ray.tasks.near_duplicates import near_duplicates


def save(folder: Path, rows: list[dict[str, Any]], **more: Any) -> tasks.Task:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    (folder / "t.yaml").write_text(
        yaml.safe_dump({"name": "t", "setting": "classification", "train": "t.parquet"} | more)
    )
    return tasks.load_task("t.yaml", base=folder)


def grouped_rows(num: int = 300) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [{"text": f"row {i}", "label": int(draw.random() < 0.7), "q": f"g{draw.randrange(80)}"} for i in range(num)]


@pytest.mark.parametrize("num_train", [None, 40])
def test_parts_are_balanced_and_disjoint_in_groups(tmp_path: Path, num_train: int | None) -> None:
    rows = tasks.read_rows(save(tmp_path, grouped_rows(), group="q"))
    parts = tasks.deal(rows, tasks.Deal(seed=0, num_train=num_train, num_test=30))
    assert parts["test"].num_rows == 30 and parts["A"].num_rows == parts["B"].num_rows
    for part in parts.values():
        assert sum(part["label"].to_pylist()) * 2 == part.num_rows > 0
    groups = [set(part["group"].to_pylist()) for part in parts.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    rows = grouped_rows()
    ids = []
    for folder in ("one", "two"):
        read = tasks.read_rows(save(tmp_path / folder, rows, group="q"))
        parts = tasks.deal(read, tasks.Deal(seed=3, num_train=40, num_test=30))
        ids.append({name: part["id"].to_pylist() for name, part in parts.items()})
        random.Random(1).shuffle(rows)
    assert ids[0] == ids[1]


def test_halves_of_easy_rows_leave_the_test_set_as_it_is(tmp_path: Path) -> None:
    rows = [row | {"elo": 100.0 * (i % 10)} for i, row in enumerate(grouped_rows(600))]
    read = tasks.read_rows(save(tmp_path, rows, group="q", difficulty="elo"))
    whole = tasks.deal(read, tasks.Deal(seed=0, num_train=40, num_test=60))
    easy = tasks.deal(read, tasks.Deal(seed=0, num_train=40, num_test=60, difficulty=(0.0, 400.0)))
    assert easy["test"].equals(whole["test"]) and max(easy["test"]["difficulty"].to_pylist()) == 900
    for half in "AB":
        assert max(easy[half]["difficulty"].to_pylist()) <= 400 < max(whole[half]["difficulty"].to_pylist())
        assert sum(easy[half]["label"].to_pylist()) * 2 == easy[half].num_rows == 40


@pytest.mark.parametrize(("column", "message"), [("word", "allowed are numbers"), ("elos", "did you mean 'elo'")])
def test_a_difficulty_that_is_no_number_is_refused(tmp_path: Path, column: str, message: str) -> None:
    rows = [row | {"elo": 1.0, "word": "hard"} for row in grouped_rows()]
    with pytest.raises(InputError, match=message):
        tasks.check(save(tmp_path, rows, difficulty=column))


def test_a_nested_field_that_a_row_lacks_is_named(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0, "meta": {"q": "x"}}, {"text": "b", "label": 1, "meta": None}]
    with pytest.raises(InputError, match=r"t\.parquet: row 2: has no value at 'meta\.q'"):
        tasks.check(save(tmp_path, rows, group="meta.q"))


def test_a_difficulty_does_not_change_what_a_task_is(tmp_path: Path) -> None:
    rows = [row | {"elo": 1.0} for row in grouped_rows()]
    assert tasks.fingerprint(save(tmp_path, rows)) == tasks.fingerprint(save(tmp_path, rows, difficulty="elo"))


def test_the_test_set_stays_when_the_halves_grow(tmp_path: Path) -> None:
    rows = tasks.read_rows(save(tmp_path, grouped_rows(), group="q"))
    small = tasks.deal(rows, tasks.Deal(seed=0, num_train=20, num_test=30))["test"]
    large = tasks.deal(rows, tasks.Deal(seed=0, num_train=60, num_test=30))["test"]
    assert small.equals(large)
    assert not small.equals(tasks.deal(rows, tasks.Deal(seed=1, num_train=20, num_test=30))["test"])


def test_one_text_in_two_groups_joins_them(tmp_path: Path) -> None:
    rows = [{"text": f"t{i // 2}", "n": i, "label": (i // 2) % 2, "q": f"g{i}"} for i in range(80)]
    read = tasks.read_rows(save(tmp_path, rows, group="q", id="n"))
    parts = tasks.deal(read, tasks.Deal(seed=0, num_train=10, num_test=10))
    texts = [set(part["text"].to_pylist()) for part in parts.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


def test_doubles_stay_once_and_contradictions_go(tmp_path: Path) -> None:
    rows = [("a", 0), ("a", 0), ("b", 1), ("c", 0), ("c", 1)]
    read = tasks.read_rows(save(tmp_path, [{"text": text, "label": label} for text, label in rows]))
    assert sorted(read["text"].to_pylist()) == ["a", "b"]


def test_no_row_goes_without_being_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["t0", "t1"], "label": [0, 1], "q": ["g0", "g1"]}), tmp_path / "test.parquet")
    rows = [("a", 0, "x"), ("a", 0, "x"), ("c", 0, "x"), ("c", 1, "x"), ("d", 1, "g1"), ("t0", 0, "y"), ("e", 0, "y")]
    table = [dict(zip(("text", "label", "q"), row, strict=True)) for row in rows]
    task = save(tmp_path, table, group="q", test="test.parquet")
    assert tasks.read_rows(task)["text"].to_pylist() == ["t0", "t1", "a", "e"]
    assert tasks.read_task(task).dropped == {
        "the same row again": 2,  # a, and t0 which is in the test file
        "the same row again, with another right answer (all of them are left out)": 2,
        "in a group with a row of the test file": 1,
    }
    pairs = [{"a": "x", "b": "x"}, {"a": "x", "b": "y"}]
    same = save(tmp_path, pairs, setting="comparison", template="", completions=["{a}", "{b}"])
    assert tasks.read_rows(same).num_rows == 1 and tasks.read_task(same).dropped == {"both completions are the same": 1}


def test_ids_that_start_anew_in_each_split_take_no_training_rows(tmp_path: Path) -> None:
    def split(name: str, num: int) -> list[dict[str, Any]]:
        return [{"text": f"{name} {i}", "label": i % 2, "q": i // 4} for i in range(num)]

    pq.write_table(pa.Table.from_pylist(split("test", 40)), tmp_path / "test.parquet")
    rows = split("train", 200)
    by_value = save(tmp_path, rows, test="test.parquet", group="q")
    assert tasks.read_task(by_value).dropped == {"in a group with a row of the test file": 40}
    by_part = save(tmp_path, rows, test="test.parquet", group="q", group_by="part")
    assert tasks.read_task(by_part).dropped == {} and tasks.read_rows(by_part).num_rows == 240
    parts = tasks.deal(tasks.read_rows(by_part), tasks.Deal())
    assert parts["A"].num_rows + parts["B"].num_rows == 200


GAME = " ".join(f"{i}. e{i} {i}... d{i}" for i in range(1, 12))


@pytest.mark.parametrize(
    ("group_by", "first", "second", "apart"),
    [
        ("first_sentence", "I baked a cake. It burnt.", "I baked a cake", "I baked a pie. It burnt."),
        ("bag_of_words", "The cat, not the dog", "the dog not the cat", "the cat not a dog"),
        (
            "prompt",
            "\n\nHuman: hi\n\nAssistant: yes",
            "\n\nHuman: hi\n\nAssistant: no",
            "\n\nHuman: ho\n\nAssistant: no",
        ),
        ("phrase", "a film of great wit and charm", "film of great wit and", "a film of great dullness and gloom"),
        ("phrase", "a film of great wit and charm", "wit and", "film of"),  # the others begin alike, see below
        ("beginning", GAME, f"{GAME} 12. Qh5", f"{GAME}2. Qh5"),
        ("beginning", GAME, f"{GAME} 12. Qh5", GAME[:30]),  # a short opening is no sign of one game
    ],
)
def test_what_belongs_together_by_its_words(group_by: Any, first: str, second: str, apart: str) -> None:
    others = ["a film of no charm whatever"] if group_by == "phrase" else []
    values = [second, apart, *others, first]
    for order in (values, values[::-1]):
        keys = dict(zip(order, group_keys(order, ["train"] * len(order), group_by), strict=True))
        assert keys[first] == keys[second] != keys[apart]


def test_rows_that_share_a_value_of_any_group_column_are_one_group(tmp_path: Path) -> None:
    rows = [
        {"text": f"{a} {b}", "label": i % 2, "a": a, "b": b} for i, (a, b) in enumerate(["xy", "yz", "pq", "zx", "rs"])
    ]
    read = tasks.read_rows(save(tmp_path, rows, group=["a", "b"]))
    assert read["group"].to_pylist() == ["x", "x", "p", "x", "r"]
    with pytest.raises(InputError, match="given group_by without group"):
        save(tmp_path, rows, group_by="phrase")


def test_near_duplicates_are_found_fast() -> None:
    draw = random.Random(0)
    words = [f"word{i}" for i in range(2000)]

    def table(texts: list[str]) -> pa.Table:
        ids = [f"i{i}" for i in range(len(texts))]
        return pa.table({"id": ids, "text": [f"{t} Is it good?" for t in texts], "completions": [[] for _ in texts]})

    texts = [" ".join(draw.choices(words, k=40)) for _ in range(20_000)]
    near = [text.replace(text.split()[20], "another", 1) for text in texts[:50]]
    half_changed = [" ".join([*text.split()[:20], *draw.choices(words, k=20)]) for text in texts[50:100]]
    parts = {"A": table(texts[:10_000]), "test": table([*near, *half_changed, *texts[10_100:]])}
    began_s = time.process_time()
    found = near_duplicates(parts)
    assert time.process_time() - began_s < 10
    assert found == parts["test"]["id"].to_pylist()[:50]


def test_virtue_takes_its_wrong_traits_from_all_scenarios(tmp_path: Path) -> None:
    """One right trait and four wrong ones for each scenario, as in ETHICS; the task has no column that balances them."""
    rows = [{"text": f"s{i} {k}", "label": int(k == i % 5), "s": f"s{i}"} for i in range(200) for k in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    train = [row | {"text": f"train {row['text']}", "s": f"train {row['s']}"} for row in rows]
    read = tasks.read_rows(save(tmp_path, train, test="test.parquet", group="s"))
    test = tasks.deal(read, tasks.Deal())["test"].to_pylist()
    scenarios = [{row["group"] for row in test if row["label"] == label} for label in (0, 1)]
    assert len(test) == 400 and scenarios[0] == scenarios[1] and len(scenarios[0]) == 200


def test_a_test_file_is_the_test_set_and_nothing_else(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(20)], "label": [0, 1] * 10}), tmp_path / "test.parquet")
    rows = [{"text": f"row {i}", "label": i % 2} for i in range(10, 100)]
    parts = tasks.deal(
        tasks.read_rows(save(tmp_path, rows, test="test.parquet")), tasks.Deal(seed=0, num_train=None, num_test=None)
    )
    assert set(parts["test"]["text"].to_pylist()) == {f"row {i}" for i in range(20)}
    trained = {*parts["A"]["text"].to_pylist(), *parts["B"]["text"].to_pylist()}
    assert len(trained) >= 60 and not trained & {f"row {i}" for i in range(20)}, "rows of the test file are in no half"


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = save(tmp_path, grouped_rows())
    paths: list[str] = []
    open_file = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda path: paths.append(path.name) or open_file(path))
    tasks.check(task)
    assert tasks.read_rows(task).num_rows == 300 and tasks.read_task(task).dropped == {}
    assert paths == ["t.parquet"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_csv_tsv_and_jsonl_read_alike(tmp_path: Path, kind: str) -> None:
    rows = [{"a": "x", "b": "y", "label": 0}, {"a": "z", "b": "w", "label": 1}]
    texts = {"csv": "a,b,label\nx,y,0\nz,w,1\n", "jsonl": "\n".join(map(json.dumps, rows))}
    texts["tsv"] = texts["csv"].replace(",", "\t")
    (tmp_path / f"t.{kind}").write_text(texts[kind])
    task = save(tmp_path, rows, train=f"t.{kind}", template="{a} and {b}")
    assert tasks.read_rows(task)["text"].to_pylist() == ["x and y", "z and w"]
    assert tasks.num_rows(task) == tasks.size(task).num_rows == 2


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_without_a_header_line_every_line_is_a_row(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"t.{kind}").write_text("x,0\ny,1\n".replace(",", "," if kind == "csv" else "\t"))
    task = save(tmp_path, [], train=f"t.{kind}", header=["text", "label"])
    assert tasks.read_rows(task)["text"].to_pylist() == ["x", "y"]
    assert tasks.num_rows(task) == tasks.size(task).num_rows == 2


def test_the_fingerprint_is_of_content_not_of_names(tmp_path: Path) -> None:
    first = tasks.fingerprint(save(tmp_path, grouped_rows()))
    (tmp_path / "other").mkdir()
    assert tasks.fingerprint(save(tmp_path / "other", grouped_rows(), description="said otherwise")) == first
    assert tasks.fingerprint(save(tmp_path / "other", grouped_rows(299))) != first
    (tmp_path / "third").mkdir()
    assert tasks.fingerprint(save(tmp_path / "third", grouped_rows(), template="{q}: {text}")) != first


def test_the_sentiment_tasks_are_what_their_recipe_makes(tmp_path: Path) -> None:
    draw = random.Random(0)
    for name in sentiment.KINDS.values():
        lines = [f"{i // 3}_{i % 3}\t{draw.uniform(-4, 4):.3f}\tit&#39;s  {name} {i} " for i in range(60)]
        (tmp_path / f"{name}Snippets_GroundTruth.txt").write_bytes("\r\n".join(lines).encode())
    snippets = sentiment.read_snippets(tmp_path)
    assert len(snippets) == 120 and snippets[0][:3] == ("review", "review-0", "it's amazonReview 0")
    ratings = {row[2]: row[3] for row in snippets}
    pairs = sentiment.pair_up(snippets)
    assert pairs == sentiment.pair_up(snippets) and len(pairs) > 30
    assert all(ratings[high] - ratings[low] >= 1 for _, high, low in pairs)
    documents = {row[2]: row[1] for row in snippets}
    assert all(documents[high] == documents[low] == document for document, high, low in pairs)
    assert len({text for _, *two in pairs for text in two}) == 2 * len(pairs), "each snippet in one pair"


SPLITS = {"sentiment": (800, 2000), "sentiment-pairs": (700, 1400), "manuals-pairs": (1000, 1000)}


def test_the_shipped_tasks_are_large_enough_and_split_without_leaks() -> None:
    for name in (name for name in tasks.task_names() if tasks.num_rows(tasks.load_task(name)) is not None):
        rows = tasks.read_rows(tasks.load_task(name))
        num_train, num_test = SPLITS.get(name, (2000, 2000))
        parts = tasks.deal(rows, tasks.Deal(seed=0, num_train=num_train, num_test=num_test))
        assert [part.num_rows for part in parts.values()] == [num_train, num_train, num_test], name
        shown = [
            {f"{row['text']} {text}" for row in part.to_pylist() for text in row["completions"] or [""]}
            for part in parts.values()
        ]
        assert not (shown[0] & shown[1] or shown[0] & shown[2] or shown[1] & shown[2]), name
