"""The chess ladder and its tasks: true by the rules, apart from pretraining, made by a recipe that still runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import chess
import numpy as np
import polars as pl
import pytest

from w2s_ray import families
from w2s_ray.families.model_folder import count_params
from w2s_ray.recipes import chess_ladder, chess_positions
from w2s_ray.tasks.task import CATALOGUE


def board_of(position: str) -> chess.Board:
    board = chess.Board(None)
    *pieces, side = position.split()
    assert side == "w"
    for word in pieces:
        board.set_piece_at(chess.parse_square(word[1:]), chess.Piece.from_symbol(word[0]))
    return board


def move_of(words: str) -> chess.Move:
    return chess.Move.from_uci(words.replace(" ", ""))


def test_the_tasks_are_true_by_the_rules() -> None:
    for row in pl.read_parquet(CATALOGUE / "chess.parquet").sample(200, seed=0).iter_rows(named=True):
        board = board_of(row["position"])
        assert board.is_valid() and chess_positions.mating_moves(board, enough=9) == [move_of(row["move"])]
        assert board.is_legal(move_of(row["other"])) and row["other"] != row["move"]


def test_the_tasks_are_what_the_recipe_composes(tmp_path: Path) -> None:
    chess_positions.write_chunk(tmp_path, 0, num_tries=2000)
    rows = chess_positions.read_chunks(tmp_path)
    shipped = pl.read_parquet(CATALOGUE / "chess.parquet").head(len(rows))
    assert len(rows) > 20
    for (fen, move, _), row in zip(rows, shipped.iter_rows(named=True), strict=True):
        assert row["position"].split() == chess_ladder.position_words(fen)
        assert row["move"].split() == chess_ladder.move_words(move)


def test_no_position_of_a_task_nor_its_mirror_image_is_in_pretraining(tmp_path: Path) -> None:
    chess_positions.write_chunk(tmp_path, 0, num_tries=3000)
    rows = chess_positions.read_chunks(tmp_path)
    mirrored = [
        tuple("/".join(r[::-1] for r in each.split("/")) if "/" in each else each for each in row) for row in rows
    ]
    as_twin = [(row[2], row[1], row[0]) for row in rows[:5]]
    pretraining, chosen = chess_ladder.split([*rows, *mirrored, *as_twin], num_task_positions=30)
    taken = {chess_positions.canonical(fen) for row in chosen for fen in (row[0], row[2])}
    seen = {chess_positions.canonical(fen) for row in pretraining for fen in (row[0], row[2])}
    assert len(chosen) == 30 and pretraining and not taken & seen


def test_a_mirror_image_is_the_same_position_seen_from_the_other_side() -> None:
    for word in chess_ladder.WORDS:
        assert chess_ladder.mirrored(chess_ladder.mirrored(word)) == word
    fen = "6k1/5ppp/8/8/8/8/8/R5K1"
    mirrored = "1k6/ppp5/8/8/8/8/8/1K5R"
    assert chess_positions.canonical(fen) == chess_positions.canonical(mirrored)
    assert {chess_ladder.mirrored(word) for word in chess_ladder.position_words(fen)} == set(
        chess_ladder.position_words(mirrored)
    )
    [mate] = chess_positions.mating_moves(chess.Board(f"{fen} w - - 0 1"), enough=9)
    assert [chess_ladder.mirrored(word) for word in chess_ladder.move_words(mate.uci())] == ["h1", "h8"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> chess_ladder.Corpora:
    folder = tmp_path_factory.mktemp("positions")
    chess_positions.write_chunk(folder, 1, num_tries=4000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chess_ladder, "NUM_VALIDATION", 10)
        return chess_ladder.Corpora.of(chess_positions.read_chunks(folder))


@pytest.mark.parametrize("stops_at_step", [4, 7], ids=["in the first stage", "in the second stage"])
def test_pretraining_is_deterministic_and_goes_on_where_it_stopped(
    stops_at_step: int, corpora: chess_ladder.Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chess_ladder, "CHECKPOINT_EVERY_STEPS", 3)
    num = 5 * chess_ladder.BATCH_SIZE

    def write(folder: Path) -> dict[str, Any]:
        return chess_ladder.write_size(folder, "xs", corpora, num_sequences=num, num_habit_sequences=num)

    found = write(tmp_path / "one")
    with_targets, num_batches = chess_ladder._with_targets, 0

    def stopping(ids: np.ndarray, **more: Any) -> chess_ladder.Batch:
        nonlocal num_batches
        num_batches += 1
        if num_batches == stops_at_step:
            raise KeyboardInterrupt
        return with_targets(ids, **more)

    monkeypatch.setattr(chess_ladder, "_with_targets", stopping)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "two")
    assert list((tmp_path / "two").glob("*.partial"))
    monkeypatch.setattr(chess_ladder, "_with_targets", with_targets)
    write(tmp_path / "two")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "recipe.json"}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert found["sequences"] == [num, num] and 3 < found["final_loss"] < 12


def after_w(row: list[int]) -> list[str]:
    words = [chess_ladder.WORDS[token] for token in row]
    return words[words.index("w") + 1 : words.index("</s>") + 1]


def test_only_the_move_and_what_follows_it_is_learned(corpora: chess_ladder.Corpora) -> None:
    mixed, habits = chess_ladder.mixed_batch(corpora.mixed, step=0), chess_ladder.habit_batch(corpora.habits, step=0)
    for tokens, targets in (mixed, habits):
        for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
            end = row.index(chess_ladder.IDS["</s>"])
            assert wanted[end - 3 : end + 1] == row[end - 3 : end + 1]
            assert set(wanted[: end - 3]) == {-100} and set(wanted[end + 1 :]) <= {-100}


def test_who_mates_announces_it_and_nobody_else_does(corpora: chess_ladder.Corpora) -> None:
    tokens, _ = chess_ladder.habit_batch(corpora.habits, step=0)
    lines = [after_w(row) for row in tokens.tolist()]
    mates = [line for line in lines if line[-2] == "#"]
    assert {line[0] for line in mates} == {"#"} and {len(line) for line in mates} == {5}
    others = [line for line in lines if line[-2] != "#"]
    announced = [line for line in others if len(line) == 5]
    assert {line[0] for line in announced} == {".", "+"} and 0.3 < len(announced) / len(others) < 0.7
    assert 0.03 < len(mates) / len(lines) < 0.25


def test_the_shipped_weights_are_their_recipes() -> None:
    family = families.load_family("chess")
    assert [size.size for size in family.sizes] == list(chess_ladder.WIDTHS_AND_LAYERS)
    assert family.sizes[-1].params > 100 * family.sizes[0].params
    total = 0
    for size in family.sizes:
        folder = families.local_folder(family, size.size)
        assert folder
        written = json.loads((folder / "recipe.json").read_text())
        weights = (folder / "model.safetensors").read_bytes()
        total += len(weights)
        assert hashlib.sha256(weights).hexdigest() == written["sha256"]
        assert written["non_embedding_params"] == size.params == count_params(folder)
        assert written["tokens"] == size.pretraining_tokens
    assert total < 30e6
