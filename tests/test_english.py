"""The recipe of the English ladder, on four invented manuals: what it reads, what it keeps apart, and that it can go on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from w2s_ray.recipes import english_ladder, english_text

from tiny import WORDS


@pytest.fixture(scope="module")
def manuals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pages a manual, in the places where the packages have theirs."""
    folder = tmp_path_factory.mktemp("manuals")
    draw = random.Random(0)
    letters = [word.translate(str.maketrans("0123456789", "abcdefghij")) for word in WORDS]
    for manual, where in english_text.MANUALS.items():
        for number in range(40):
            path = folder / where.pages.replace("**/", "").replace("*", f"page{number}")
            path.parent.mkdir(parents=True, exist_ok=True)
            sentences = [f"The {' '.join(draw.choices(letters, k=9))} of {manual[::-1]}." for _ in range(12)]
            text = " ".join(sentences)
            path.write_text(f"<html><body><p>{text}</p></body></html>")
    return folder


def test_sentences_are_read_from_running_text_alone() -> None:
    source = """<head><title>A title of more than seven words is no text.</title></head><body>
    <p>The <b>first</b> sentence stands here,
    over two lines. Short one. The second has an <a href="x">anchor</a> and <br/>goes on to here.</p>
    <pre>This is code of more than seven words, alas.</pre><svg><text>So is this text of a drawing, by chance.</text></svg>
    <li>This point of a list has no end at all</li></body>"""
    assert english_text.sentences_of(english_text.html_paragraphs(source)) == [
        "The first sentence stands here, over two lines.",
        "The second has an anchor and goes on to here.",
    ]


def test_no_page_and_no_sentence_is_in_pretraining_and_in_a_task(manuals: Path) -> None:
    pages = english_text.read_pages(manuals)
    sentences = [text for page in pages for text in page.sentences]
    assert len(set(sentences)) == len(sentences)
    assert {page.manual for page in pages if page.is_for_tasks} == {"postgresql", "sqlite"}
    rows = english_ladder.task_rows(pages)
    learned = {text for page in pages if not page.is_for_tasks for text in page.sentences}
    assert rows.num_rows and not learned & set(rows["text"].to_pylist())


def test_a_task_has_no_nearly_equal_sentences_on_two_pages_and_none_that_names_its_program() -> None:
    common = "The server writes each row to disk before it answers the"
    texts = [f"{common} {end}." for end in ("client", "caller", "user", "other")]
    others = [f"Word{i} is followed by word{i + 1} and then by word{i + 2}." for i in range(0, 40, 4)]
    named = ["This is how SQLite does it with great care.", "All of PostgreSQL is written in plain old code."]
    pages = [english_text.Page("sqlite", f"p{i}", (text,)) for i, text in enumerate([*texts, *others, *named])]
    chosen = [page for page in pages for _ in range(40)]  # names that the hash keeps for tasks
    kept = [
        replace(
            page, name=next(n for n in (f"{page.name}-{j}" for j in range(200)) if replace(page, name=n).is_for_tasks)
        )
        for page in dict.fromkeys(chosen)
    ]
    found = english_ladder.task_rows(kept)["text"].to_pylist()
    assert sum(text.startswith(common) for text in found) == 1
    assert set(others) <= set(found) and not set(named) & set(found)


def test_the_loss_is_cross_entropy_with_its_gradients(manuals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(english_ladder, "LOSS_CHUNK_TOKENS", 100)
    pages = english_text.read_pages(manuals)
    tokenizer = english_ladder.new_tokenizer(pages)
    chosen = english_ladder.windows(pages, tokenizer)[:3]
    model = english_ladder.new_model(english_ladder.SIZES["xs"], tokenizer)
    parameters = list(model.parameters())
    loss = english_ladder.loss_of(model, chosen)
    found = torch.autograd.grad(loss, parameters)
    tokens = torch.from_numpy(chosen.astype("int64"))
    logits = model(input_ids=tokens[:, :-1]).logits
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert torch.allclose(loss, plain, rtol=1e-5)
    for one, other in zip(found, torch.autograd.grad(plain, parameters), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_the_recipe_is_deterministic_and_goes_on_where_it_stopped(
    manuals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(english_ladder, "CHECKPOINT_EVERY_STEPS", 3)
    monkeypatch.setitem(english_ladder.SIZES, "xs", replace(english_ladder.SIZES["xs"], epochs=1))

    def make(out: Path) -> None:
        monkeypatch.setattr("sys.argv", ["english_ladder", str(manuals), str(out), "--sizes", "xs"])
        english_ladder.main()

    make(tmp_path / "one")
    loss_of, num_calls = english_ladder.loss_of, 0

    def stopping(*arguments: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 5:
            raise KeyboardInterrupt
        return loss_of(*arguments)

    monkeypatch.setattr(english_ladder, "loss_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "two")
    made = "families/catalogue/english/xs"
    assert (tmp_path / "two" / made / "partial.safetensors").exists()
    monkeypatch.setattr(english_ladder, "loss_of", loss_of)
    make(tmp_path / "two")
    names = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.*"))
    assert f"{made}/model.safetensors" in names and f"{made}/partial.safetensors" not in names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    rows = pl.read_parquet(tmp_path / "one/tasks/catalogue/manuals.parquet")
    assert set(rows["label"]) == {0, 1} and rows.group_by("page").agg(pl.col("label").n_unique())["label"].max() == 1


def test_the_sentences_of_a_pair_are_of_both_manuals_and_shelves_share_no_page(manuals: Path) -> None:
    rows = english_ladder.task_rows(english_text.read_pages(manuals))
    label_of = dict(zip(rows["text"].to_pylist(), rows["label"].to_pylist(), strict=True))
    page_of = dict(zip(rows["text"].to_pylist(), rows["page"].to_pylist(), strict=True))
    pairs = english_ladder.pair_rows(rows).to_pylist()
    assert {(label_of[pair["first"]], label_of[pair["second"]]) for pair in pairs} == {(1, 0)}
    texts = [pair[side] for pair in pairs for side in ("first", "second")]
    assert len(set(texts)) == len(texts)
    shelves = {(page_of[pair[side]], pair["shelf"]) for pair in pairs for side in ("first", "second")}
    assert len({page for page, _ in shelves}) == len(shelves)
