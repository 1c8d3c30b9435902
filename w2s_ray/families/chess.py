"""The recipe of the chess ladder and its tasks: `python -m w2s_ray.families.chess POSITIONS [OUT] [--sequences N]`.

POSITIONS is what `python -m w2s_ray.families.composed` wrote. A position is text, a piece a word, White to move:
`kg8 pf7 Kg1 Qh5 w`. The ladder is pretrained on players of mixed strength: after such a position comes a move, often the
one that mates and often another, and what came of it: `h5 h7 #` mate, `+` check, `.` neither. So each rung knows mates as
well as its size allows, and fine-tuning has to elicit that: from a position to its mating move (chess-mate), and to the better of
two moves (chess-moves).

Promises: no position of a task, nor its mirror image, is in pretraining; deterministic on one kind of machine; an
interrupted rung goes on from its last checkpoint. Measured on two shared CPU cores: 26 minutes to compose 454,642 positions
on both, then 7, 15, 30 and 59 minutes on one core for xs, s, m and l. All rungs read the same 1.6 million sequences.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import chess
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from w2s_ray.families import composed

SEED = 20231214
WIDTHS_AND_LAYERS = {"xs": (24, 2), "s": (48, 3), "m": (96, 4), "l": (168, 5)}
PEAK_RATES = {"xs": 6e-3, "s": 4e-3, "m": 2.5e-3, "l": 1.5e-3}
STARTING_SPREADS = {"xs": 0.1, "s": 0.08, "m": 0.06, "l": 0.05}
"""Standard deviation of the first weights; with the usual 0.02 the small rungs idle for a tenth of the time."""
NUM_SEQUENCES = 1_600_000
BATCH_SIZE = 128
WARMUP_STEPS = 100
SHARES = (0.5, 0.3, 0.2)
"""Of pretraining: the mating move, another move in the same position, a move in the twin without a mate."""
CHECKS_SHARE = 0.5
"""Of the other moves that check, where there are some: what looks like a mate must be told from one."""
CHECKPOINT_EVERY_STEPS = 500
NUM_VALIDATION = 2000
NUM_TASK_POSITIONS = 16_000

PIECES = "kqrbnpKQRBNP"  # also their order in a position
SPECIAL = ["<pad>", "<unk>", "</s>", "w", "#", "+", "."]
WORDS = [
    *SPECIAL,
    *(f"{piece}{square}" for piece in PIECES for square in chess.SQUARE_NAMES),
    *chess.SQUARE_NAMES,
    *(f"{square}{piece}" for square in chess.SQUARE_NAMES[56:] for piece in "qrbn"),
]
IDS = {word: i for i, word in enumerate(WORDS)}
MAX_TOKENS = 10 + 1 + 4
"""Pieces, `w`, from, to, verdict and the end."""


# --- positions as words -------------------------------------------------------------------------------------------


def position_words(fen: str) -> list[str]:
    """Black first, kings first, then by square; `w` ends the position."""
    pieces = chess.Board(f"{fen} w - - 0 1").piece_map().items()
    ordered = sorted((PIECES.index(piece.symbol()), square, piece.symbol()) for square, piece in pieces)
    return [f"{symbol}{chess.SQUARE_NAMES[square]}" for _, square, symbol in ordered] + ["w"]


def move_words(uci: str) -> list[str]:
    """`e7e8q` -> `e7 e8q`."""
    return [uci[:2], uci[2:]]


def verdict(board: chess.Board, move: chess.Move) -> str:
    if not board.gives_check(move):
        return "."
    board.push(move)
    is_mate = not any(board.generate_legal_moves())
    board.pop()
    return "#" if is_mate else "+"


def other_move(
    fen: str, rng: np.random.Generator, *, besides: str = "", checks_share: float = CHECKS_SHARE
) -> tuple[str, str] | None:
    """A legal move that does not mate, often one that checks: (move, verdict)."""
    board = chess.Board(f"{fen} w - - 0 1")
    moves = sorted(move.uci() for move in board.generate_legal_moves() if move.uci() != besides)
    if not moves:
        return None
    checks = [uci for uci in moves if board.gives_check(chess.Move.from_uci(uci))]
    among = checks if checks and rng.random() < checks_share else moves
    uci = among[int(rng.integers(len(among)))]
    return uci, verdict(board, chess.Move.from_uci(uci))


def mirrored(word: str) -> str:
    """The word of the left-right mirror image."""
    at = 1 if len(word) == 3 and word[0] in PIECES and word[1] in "abcdefgh" else 0
    if word in SPECIAL:
        return word
    return word[:at] + chr(ord("a") + ord("h") - ord(word[at])) + word[at + 1 :]


# --- the corpus ---------------------------------------------------------------------------------------------------


def sequences(rows: list[tuple[str, str, str]], seed: list[int]) -> np.ndarray:
    """[row, kind, token] ids: the mating move, another move, a move in the twin; a missing kind repeats the first."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((len(rows), len(SHARES), MAX_TOKENS), dtype=np.int16)
    for i, (fen, mate, twin) in enumerate(rows):
        position = position_words(fen)
        lines = [[*position, *move_words(mate), "#"]]
        for where, words, besides in ((fen, position, mate), (twin, position_words(twin), "")):
            found = other_move(where, rng, besides=besides)
            lines.append([*words, *move_words(found[0]), found[1]] if found else lines[0])
        for kind, line in enumerate(lines):
            ids[i, kind, : len(line) + 1] = [IDS[word] for word in [*line, "</s>"]]
    return ids


def corpus(rows: list[tuple[str, str, str]]) -> np.ndarray:
    """The sequences of all rows; the same however many processes there are."""
    parts = [rows[i : i + 5000] for i in range(0, len(rows), 5000)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = [pool.submit(sequences, part, [SEED, 1, i]) for i, part in enumerate(parts)]
        return np.concatenate([each.result() for each in track(found, description="corpus")])


def split(
    rows: list[tuple[str, str, str]], *, num_task_positions: int
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """(pretraining, tasks): the tasks take the first rows, and pretraining keeps what touches none of them."""
    tasks, rest = rows[:num_task_positions], rows[num_task_positions:]
    taken = {composed.canonical(fen) for row in tasks for fen in (row[0], row[2])}
    return [row for row in rest if not {composed.canonical(row[0]), composed.canonical(row[2])} & taken], tasks


# --- pretraining --------------------------------------------------------------------------------------------------


def tokenizer() -> PreTrainedTokenizerFast:
    whole = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


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
        initializer_range=STARTING_SPREADS[size],
        bos_token_id=None,
        eos_token_id=IDS["</s>"],
        pad_token_id=IDS["<pad>"],
    )
    return LlamaForCausalLM(config)


def batch(ids: np.ndarray, mirror: np.ndarray, *, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, targets) of one step, from its number alone. Only what follows `w` is learned: positions are random."""
    rng = np.random.default_rng([SEED, 2, step])
    chosen = ids[rng.integers(len(ids), size=BATCH_SIZE), rng.choice(len(SHARES), BATCH_SIZE, p=SHARES)]
    flip = rng.random(BATCH_SIZE) < 0.5
    chosen = np.where(flip[:, None], mirror[chosen], chosen).astype(np.int64)
    after = np.cumsum(chosen == IDS["w"], axis=1) - (chosen == IDS["w"]) > 0
    targets = np.where(after & (chosen != IDS["<pad>"]), chosen, -100)
    return torch.from_numpy(chosen), torch.from_numpy(targets)


def pretrain(size: str, ids: np.ndarray, *, num_sequences: int, partial: Path) -> tuple[LlamaForCausalLM, float]:
    """A rung that has read the corpus, and its last loss."""
    num_steps = max(1, num_sequences // BATCH_SIZE)
    model = new_model(size)
    mirror = np.array([IDS[mirrored(word)] for word in WORDS], dtype=np.int16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATES[size], betas=(0.9, 0.98), weight_decay=0.01)
    parameters = list(model.parameters())
    first = 0
    if partial.exists():
        first = _load(partial, model, optimizer)
    for step in track(range(first, num_steps), description=size):
        tokens, targets = batch(ids, mirror, step=step)
        rate = PEAK_RATES[size] * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + np.cos(np.pi * step / num_steps))
        optimizer.param_groups[0]["lr"] = rate
        logits = model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % CHECKPOINT_EVERY_STEPS == 0:
            _save(partial, model, optimizer, step=step + 1)
            print(f"{size} step {step + 1} of {num_steps}: loss {float(loss.detach()):.4f}", flush=True)
    return model, float(loss.detach())


def _save(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, *, step: int) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for i, parameter in enumerate(model.parameters()):
        state = optimizer.state[parameter]
        tensors |= {f"{i}.weight": parameter.detach(), f"{i}.m": state["exp_avg"], f"{i}.v": state["exp_avg_sq"]}
    save_file(tensors, path.with_suffix(".tmp"), metadata={"step": str(step)})
    path.with_suffix(".tmp").replace(path)


@torch.no_grad()
def _load(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(file.get_tensor(f"{i}.weight"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": file.get_tensor(f"{i}.m"),
                "exp_avg_sq": file.get_tensor(f"{i}.v"),
            }
    return step


@torch.no_grad()
def greedy_mates(model: LlamaForCausalLM, ids: np.ndarray) -> float:
    """Share of positions whose mating move is what the model says first, without any fine-tuning."""
    tokens = torch.from_numpy(ids[:, 0].astype(np.int64))
    said = model(input_ids=tokens).logits.argmax(-1)
    rows, at = (tokens == IDS["w"]).nonzero(as_tuple=True)
    both = (said[rows, at] == tokens[rows, at + 1]) & (said[rows, at + 1] == tokens[rows, at + 2])
    return float(both.float().mean())


def write_rung(folder: Path, size: str, ids: np.ndarray, *, num_sequences: int, num_positions: int) -> dict[str, Any]:
    """Pretrain one size and write its folder, with the recipe that made it."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial.safetensors"
    validation, training = ids[:NUM_VALIDATION], ids[NUM_VALIDATION:]
    model, loss = pretrain(size, training, num_sequences=num_sequences, partial=partial)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    partial.unlink(missing_ok=True)
    num_steps = max(1, num_sequences // BATCH_SIZE)
    recipe = {
        "recipe": "python -m w2s_ray.families.chess",
        "seed": SEED,
        "width_and_layers": WIDTHS_AND_LAYERS[size],
        "peak_rate": PEAK_RATES[size],
        "positions": num_positions,
        "sequences": num_steps * BATCH_SIZE,
        "tokens": int(num_steps * BATCH_SIZE * (ids[:, 0] != IDS["<pad>"]).sum(1).mean()),
        "non_embedding_params": sum(p.numel() for name, p in model.named_parameters() if "embed" not in name),
        "final_loss": round(loss, 4),
        "greedy_mates_before_fine_tuning": round(greedy_mates(model, validation), 4),
        "torch": torch.__version__,
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    return recipe


# --- tasks --------------------------------------------------------------------------------------------------------


def write_tasks(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    """chess-mate and chess-moves over the same positions."""
    rng = np.random.default_rng([SEED, 3])
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[Any]] = {"position": [], "move": [], "other": [], "pieces": []}
    for fen, mate, _ in rows:
        found = other_move(fen, rng, besides=mate, checks_share=1.0)
        if found is None:
            continue
        position = position_words(fen)
        columns["position"].append(" ".join(position))
        columns["move"].append(" ".join(move_words(mate)))
        columns["other"].append(" ".join(move_words(found[0])))
        columns["pieces"].append(len(position) - 1)
    table = pa.table(columns | {"pieces": pa.array(columns["pieces"], pa.int8())})
    pq.write_table(table, folder / "chess.parquet", compression="zstd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("positions", type=Path, metavar="POSITIONS")
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parents[1], help="default: the package")
    parser.add_argument("--sizes", nargs="+", choices=WIDTHS_AND_LAYERS, default=list(WIDTHS_AND_LAYERS))
    parser.add_argument("--sequences", type=int, default=NUM_SEQUENCES)
    parser.add_argument("--task-positions", type=int, default=NUM_TASK_POSITIONS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = composed.read_chunks(options.positions)
    pretraining, tasks = split(rows, num_task_positions=options.task_positions)
    write_tasks(options.out / "tasks", tasks)
    ids = corpus(pretraining)
    for size in options.sizes:
        folder = options.out / "families" / "chess" / size
        recipe = write_rung(folder, size, ids, num_sequences=options.sequences, num_positions=len(rows))
        print(f"{size}: {recipe}")


if __name__ == "__main__":
    main()
