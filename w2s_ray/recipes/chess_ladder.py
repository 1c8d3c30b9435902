"""Makes the chess family and the chess tasks: `python -m w2s_ray.recipes.chess_ladder POSITIONS [OUT] [--sequences N]`.

POSITIONS is the folder that `python -m w2s_ray.recipes.chess_positions` wrote. A position is a text with one word for each
piece, White to move: `kg8 pf7 Kg1 Qh5 w`. Pretraining has two stages.

1. *Mixed strength*: after a position comes a move, sometimes the one that mates and sometimes another, and a verdict:
   `h5 h7 #` is a mate, `+` a check, `.` neither. So each size knows as much about mates as it can hold.
2. *Habits*: three kinds of players go on in the same positions. One mates, and always announces it: `# h5 h7 #`. Most make the
   first legal move of their king by square, the others any other move; they announce theirs (`.`, `+`) half of the time.

So the ability to mate is in the model, but what it does when nothing is announced is something else. The tasks announce
nothing, and fine-tuning has to elicit the ability: write the mating move (chess-mate), or choose the better of two moves
(chess-moves). An untrained model does neither.

Promises: no position of a task, nor its mirror image, is in pretraining; the result is deterministic on one kind of machine;
an interrupted run continues from its last checkpoint.

Measured on two shared CPU cores: 26 minutes to compose 454,642 positions on both, then 7, 15, 30 and 59 minutes on one core
for the first stage of xs, s, m and l. The second reads a sixth as many sequences.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import chess
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import track
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from w2s_ray.recipes import checkpoint, chess_positions

SEED = 20231214
WIDTHS_AND_LAYERS = {"xs": (24, 2), "s": (48, 3), "m": (96, 4), "l": (168, 5)}
PEAK_RATES = {"xs": 6e-3, "s": 4e-3, "m": 2.5e-3, "l": 1.5e-3}
INITIAL_STDS = {"xs": 0.1, "s": 0.08, "m": 0.06, "l": 0.05}
"""Standard deviation of the initial weights. With the usual 0.02 the small sizes learn nothing in the first tenth of the
steps."""
NUM_SEQUENCES = 1_600_000
BATCH_SIZE = 128
WARMUP_STEPS = 100
SHARES = (0.5, 0.3, 0.2)
"""Shares of the three kinds of sequences: the mating move, another move in the same position, a move in its twin."""
CHECKS_SHARE = 0.5
"""How often the other move is a check, where there is one: a check looks like a mate, and has to be told from one."""
CHECKPOINT_EVERY_STEPS = 500
NUM_HABIT_SEQUENCES = 250_000
NUM_HABIT_POSITIONS = 88_000
HABIT_SHARES = (0.12, 0.6, 0.28)
"""Shares of the three kinds of players: one that mates, one that moves the king, one that makes any other move."""
HABIT_RATE = 0.4
"""Peak rate of the second stage, in peak rates of the first."""
ANNOUNCED_SHARE = 0.5
"""How often a player who does not mate announces the move."""
NUM_VALIDATION = 2000
NUM_TASK_POSITIONS = 16_000

PIECES = "kqrbnpKQRBNP"  # in the order that a position lists them
SPECIAL = ["<pad>", "<unk>", "</s>", "w", "#", "+", "."]
WORDS = [
    *SPECIAL,
    *(f"{piece}{square}" for piece in PIECES for square in chess.SQUARE_NAMES),
    *chess.SQUARE_NAMES,
    *(f"{square}{piece}" for square in chess.SQUARE_NAMES[56:] for piece in "qrbn"),
]
IDS = {word: i for i, word in enumerate(WORDS)}
MAX_TOKENS = 10 + 1 + 1 + 4
"""Up to 10 pieces, `w`, an announcement, and the four words from, to, verdict and end."""


# --- positions as words -------------------------------------------------------------------------------------------


def position_words(fen: str) -> list[str]:
    """The words of a position: black before white, each side by kind of piece (kings first) and square, then `w`."""
    pieces = chess.Board(f"{fen} w - - 0 1").piece_map().items()
    ordered = sorted((PIECES.index(piece.symbol()), square, piece.symbol()) for square, piece in pieces)
    return [f"{symbol}{chess.SQUARE_NAMES[square]}" for _, square, symbol in ordered] + ["w"]


def move_words(uci: str) -> list[str]:
    """`e7e8q` -> `e7 e8q`."""
    return [uci[:2], uci[2:]]


def verdict(board: chess.Board, move: chess.Move) -> str:
    """`#` for a mate, `+` for a check, `.` for neither."""
    if not board.gives_check(move):
        return "."
    board.push(move)
    is_mate = not any(board.generate_legal_moves())
    board.pop()
    return "#" if is_mate else "+"


def other_move(
    fen: str, rng: np.random.Generator, *, besides: str = "", checks_share: float = CHECKS_SHARE
) -> tuple[str, str] | None:
    """(move, verdict) of a legal move other than `besides`; with probability `checks_share` a check, where there is one."""
    board = chess.Board(f"{fen} w - - 0 1")
    moves = sorted(move.uci() for move in board.generate_legal_moves() if move.uci() != besides)
    if not moves:
        return None
    checks = [uci for uci in moves if board.gives_check(chess.Move.from_uci(uci))]
    candidates = checks if checks and rng.random() < checks_share else moves
    uci = candidates[int(rng.integers(len(candidates)))]
    return uci, verdict(board, chess.Move.from_uci(uci))


def mirrored(word: str) -> str:
    """The same word in the left-right mirror image of the board."""
    if word in SPECIAL:
        return word
    file_index = 1 if len(word) == 3 and word[0] in PIECES and word[1] in "abcdefgh" else 0
    mirrored_file = chr(ord("a") + ord("h") - ord(word[file_index]))
    return word[:file_index] + mirrored_file + word[file_index + 1 :]


MIRRORED_IDS = np.array([IDS[mirrored(word)] for word in WORDS], dtype=np.int16)


# --- the corpus ---------------------------------------------------------------------------------------------------


def sequences(rows: list[tuple[str, str, str]], seed: list[int]) -> np.ndarray:
    """Token ids [row, kind, token] of the three kinds of sequences. Where a kind is missing, the first is repeated."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((len(rows), len(SHARES), MAX_TOKENS), dtype=np.int16)
    for i, (fen, mate, twin) in enumerate(rows):
        position = position_words(fen)
        lines = [[*position, *move_words(mate), "#"]]
        for board_fen, words, besides in ((fen, position, mate), (twin, position_words(twin), "")):
            move = other_move(board_fen, rng, besides=besides)
            lines.append([*words, *move_words(move[0]), move[1]] if move else lines[0])
        for kind, line in enumerate(lines):
            ids[i, kind, : len(line) + 1] = [IDS[word] for word in [*line, "</s>"]]
    return ids


def king_move(fen: str, *, besides: str) -> tuple[str, str] | None:
    """(move, verdict) of the first legal move of White's king by square; None where it has none but `besides`."""
    board = chess.Board(f"{fen} w - - 0 1")
    king = board.king(chess.WHITE)
    moves = sorted(
        (move for move in board.generate_legal_moves() if move.from_square == king and move.uci() != besides),
        key=lambda move: move.to_square,
    )
    return (moves[0].uci(), verdict(board, moves[0])) if moves else None


def habits(rows: list[tuple[str, str, str]], seed: list[int]) -> np.ndarray:
    """Token ids [row, kind of player, token], all announced. A king that cannot move leaves the place to any other move."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((len(rows), len(HABIT_SHARES), MAX_TOKENS), dtype=np.int16)
    for i, (fen, mate, _) in enumerate(rows):
        other = other_move(fen, rng, besides=mate) or (mate, "#")
        king = king_move(fen, besides=mate)
        players = [("#", (mate, "#")), (".", king) if king else ("+", other), ("+", other)]
        for kind, (announcement, (uci, judged)) in enumerate(players):
            line = [*position_words(fen), announcement, *move_words(uci), judged, "</s>"]
            ids[i, kind, : len(line)] = [IDS[word] for word in line]
    return ids


def corpus(make: Callable[..., np.ndarray], rows: list[tuple[str, str, str]]) -> np.ndarray:
    """What `make` makes of all rows, the same for any number of processes."""
    parts = [rows[i : i + 5000] for i in range(0, len(rows), 5000)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(make, part, [SEED, 1, i]) for i, part in enumerate(parts)]
        return np.concatenate([future.result() for future in track(futures, description=make.__name__)])


def split(
    rows: list[tuple[str, str, str]], *, num_task_positions: int
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """(pretraining rows, task rows). The tasks take the first rows; pretraining drops every row that shares a position with
    them."""
    tasks, rest = rows[:num_task_positions], rows[num_task_positions:]
    taken = {chess_positions.canonical(fen) for row in tasks for fen in (row[0], row[2])}
    return [
        row for row in rest if not {chess_positions.canonical(row[0]), chess_positions.canonical(row[2])} & taken
    ], tasks


# --- pretraining --------------------------------------------------------------------------------------------------


def tokenizer() -> PreTrainedTokenizerFast:
    word_level = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=word_level, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def new_model(size: str) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    width, num_layers = WIDTHS_AND_LAYERS[size]
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=max(2, width // 24),
        max_position_embeddings=32,
        tie_word_embeddings=True,
        initializer_range=INITIAL_STDS[size],
        bos_token_id=None,
        eos_token_id=IDS["</s>"],
        pad_token_id=IDS["<pad>"],
    )
    return LlamaForCausalLM(config)


Batch = tuple[torch.Tensor, torch.Tensor]
"""(tokens, targets). Only the move, its verdict and the end are targets: positions are random, announcements a choice."""


def mixed_batch(ids: np.ndarray, *, step: int) -> Batch:
    """The sequences of a step of the first stage, from the step's number alone."""
    rng = np.random.default_rng([SEED, 2, step])
    chosen = ids[rng.integers(len(ids), size=BATCH_SIZE), rng.choice(len(SHARES), BATCH_SIZE, p=SHARES)]
    return _with_targets(np.where((rng.random(BATCH_SIZE) < 0.5)[:, None], MIRRORED_IDS[chosen], chosen))


def habit_batch(ids: np.ndarray, *, step: int) -> Batch:
    """The sequences of a step of the second stage. Kings go by square, so their sequences are not mirrored."""
    rng = np.random.default_rng([SEED, 4, step])
    kinds = rng.choice(len(HABIT_SHARES), BATCH_SIZE, p=HABIT_SHARES)
    chosen = ids[rng.integers(len(ids), size=BATCH_SIZE), kinds]
    is_mirrored = (rng.random(BATCH_SIZE) < 0.5) & (kinds != 1)
    chosen = np.where(is_mirrored[:, None], MIRRORED_IDS[chosen], chosen)
    is_silent = (rng.random(BATCH_SIZE) >= ANNOUNCED_SHARE) & (kinds != 0)
    return _with_targets(np.where(is_silent[:, None], unannounced(chosen), chosen), num_announcements=~is_silent)


def unannounced(ids: np.ndarray) -> np.ndarray:
    """Sequences without the word after `w`."""
    is_kept = np.ones(ids.shape, dtype=bool)
    rows, w = (ids == IDS["w"]).nonzero()
    is_kept[rows, w + 1] = False
    shorter = ids[is_kept].reshape(len(ids), -1)
    return np.pad(shorter, ((0, 0), (0, 1)), constant_values=IDS["<pad>"])


def _with_targets(ids: np.ndarray, *, num_announcements: np.ndarray | int = 0) -> Batch:
    place = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    first = (ids == IDS["w"]).argmax(1) + 1 + num_announcements
    is_target = (place >= np.reshape(first, (-1, 1))) & (ids != IDS["<pad>"])
    tokens = ids.astype(np.int64)
    return torch.from_numpy(tokens), torch.from_numpy(np.where(is_target, tokens, -100))


def train(
    model: LlamaForCausalLM, batch: Callable[..., Batch], *, num_steps: int, peak_rate: float, saved: Path
) -> float:
    """Train on `batch(step=...)` for each step, on from the last checkpoint. Returns the last loss, nan if nothing was left."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    parameters = list(model.parameters())
    first_step = checkpoint.load(saved, model, optimizer) if saved.exists() else 0
    loss = torch.tensor(float("nan"))
    for step in track(range(first_step, num_steps), description=saved.stem):
        tokens, targets = batch(step=step)
        rate = peak_rate * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + np.cos(np.pi * step / num_steps))
        optimizer.param_groups[0]["lr"] = rate
        logits = model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % CHECKPOINT_EVERY_STEPS == 0 or step + 1 == num_steps:
            checkpoint.save(saved, model, optimizer, step=step + 1)
            print(f"{saved.stem} step {step + 1} of {num_steps}: loss {float(loss.detach()):.4f}", flush=True)
    return float(loss.detach())


@torch.no_grad()
def greedy_mates(model: LlamaForCausalLM, ids: np.ndarray) -> float:
    """Share of positions, which end in the mating move, for which the model's greedy move is that one."""
    tokens = torch.from_numpy(ids.astype(np.int64))
    predictions = model(input_ids=tokens).logits.argmax(-1)
    ends = (tokens == IDS["</s>"]).nonzero(as_tuple=True)
    before_move = ends[1] - 4
    rows = ends[0]
    is_mate = (predictions[rows, before_move] == tokens[rows, before_move + 1]) & (
        predictions[rows, before_move + 1] == tokens[rows, before_move + 2]
    )
    return float(is_mate.float().mean())


@dataclass(frozen=True)
class Corpora:
    """Token ids of both stages, and positions of neither."""

    mixed: np.ndarray
    habits: np.ndarray
    validation: np.ndarray
    """All announced mates."""

    @classmethod
    def of(cls, rows: list[tuple[str, str, str]]) -> Corpora:
        """Of positions that no task has."""
        validation, training = rows[:NUM_VALIDATION], rows[NUM_VALIDATION:]
        return cls(
            mixed=corpus(sequences, rows)[NUM_VALIDATION:],
            habits=corpus(habits, training[:NUM_HABIT_POSITIONS]),
            validation=habits(validation, [SEED, 5])[:, 0],
        )


def write_size(
    folder: Path, size: str, corpora: Corpora, *, num_sequences: int, num_habit_sequences: int
) -> dict[str, Any]:
    """Pretrain one size and write its folder, with a recipe.json that says how it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model(size)
    saved = folder / "mixed.partial", folder / "habits.partial"
    num_steps = [max(1, num // BATCH_SIZE) for num in (num_sequences, num_habit_sequences)]
    train(
        model,
        partial(mixed_batch, corpora.mixed),
        num_steps=num_steps[0],
        peak_rate=PEAK_RATES[size],
        saved=saved[0],
    )
    after_mixed = greedy_mates(model, unannounced(corpora.validation))
    loss = train(
        model,
        partial(habit_batch, corpora.habits),
        num_steps=num_steps[1],
        peak_rate=HABIT_RATE * PEAK_RATES[size],
        saved=saved[1],
    )
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for path in saved:
        path.unlink()
    tokens_per_sequence = float((corpora.mixed[:, 0] != IDS["<pad>"]).sum(1).mean())
    recipe = {
        "recipe": "python -m w2s_ray.recipes.chess_ladder",
        "seed": SEED,
        "width_and_layers": WIDTHS_AND_LAYERS[size],
        "peak_rate": PEAK_RATES[size],
        "sequences": [num * BATCH_SIZE for num in num_steps],
        "tokens": int(sum(num_steps) * BATCH_SIZE * tokens_per_sequence),
        "non_embedding_params": sum(p.numel() for name, p in model.named_parameters() if "embed" not in name),
        "final_loss": round(loss, 4),
        "greedy_mates": {
            "after the first stage": round(after_mixed, 4),
            "announced": round(greedy_mates(model, corpora.validation), 4),
            "not announced": round(greedy_mates(model, unannounced(corpora.validation)), 4),
        },
        "torch": torch.__version__,
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    return recipe


# --- tasks --------------------------------------------------------------------------------------------------------


def write_tasks(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    """Write the rows of chess-mate and chess-moves, which share their positions."""
    rng = np.random.default_rng([SEED, 3])
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[Any]] = {"position": [], "move": [], "other": [], "pieces": []}
    for fen, mate, _ in rows:
        other = other_move(fen, rng, besides=mate, checks_share=1.0)
        if other is None:
            continue
        position = position_words(fen)
        columns["position"].append(" ".join(position))
        columns["move"].append(" ".join(move_words(mate)))
        columns["other"].append(" ".join(move_words(other[0])))
        columns["pieces"].append(len(position) - 1)
    table = pa.table(columns | {"pieces": pa.array(columns["pieces"], pa.int8())})
    pq.write_table(table, folder / "chess.parquet", compression="zstd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("positions", type=Path, metavar="POSITIONS")
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parents[1], help="default: the package")
    parser.add_argument("--sizes", nargs="+", choices=WIDTHS_AND_LAYERS, default=list(WIDTHS_AND_LAYERS))
    parser.add_argument("--sequences", type=int, default=NUM_SEQUENCES)
    parser.add_argument("--habit-sequences", type=int, default=NUM_HABIT_SEQUENCES)
    parser.add_argument("--task-positions", type=int, default=NUM_TASK_POSITIONS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = chess_positions.read_chunks(options.positions)
    pretraining, tasks = split(rows, num_task_positions=options.task_positions)
    write_tasks(options.out / "tasks/catalogue", tasks)
    corpora = Corpora.of(pretraining)
    for size in options.sizes:
        recipe = write_size(
            options.out / "families/catalogue/chess" / size,
            size,
            corpora,
            num_sequences=options.sequences,
            num_habit_sequences=options.habit_sequences,
        )
        print(f"{size}: {recipe}")


if __name__ == "__main__":
    main()
