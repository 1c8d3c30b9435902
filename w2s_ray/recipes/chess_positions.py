"""Composes chess positions with one mate in one: `python -m w2s_ray.recipes.chess_positions OUT [--chunks N]`.

Kings and a few other pieces are placed at random, White to move. A position is kept when exactly one move mates. Its *twin*
is the same position with one piece moved elsewhere and no mate in one. The work is divided into chunks. Each chunk depends
on its number alone, and one that is on disk is not made again, so the command can be stopped and started again.

Promises: the right move follows from the rules of chess (python-chess), not from an engine; a position and its mirror image
count as one (`canonical`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import chess
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

SEED = 20231214
TRIES_PER_CHUNK = 100_000
NUM_CHUNKS = 200
WHITE = ("Q", "R", "B", "N", "P")
WHITE_SHARES = (0.3, 0.25, 0.15, 0.15, 0.15)
BLACK = ("q", "r", "b", "n", "p")
BLACK_SHARES = (0.1, 0.2, 0.2, 0.2, 0.3)
EDGE_SHARE = 0.85
EDGE = [
    square for square in chess.SQUARES if chess.square_file(square) in (0, 7) or chess.square_rank(square) in (0, 7)
]
TWIN_TRIES = 20
COLUMNS = pa.schema({"fen": pa.string(), "move": pa.string(), "twin": pa.string()})


def compose(rng: np.random.Generator, *, num_tries: int) -> Iterator[tuple[str, str, str]]:
    """Try random placements; yield (FEN of the pieces, the only mating move, FEN of the twin) for each position kept."""
    for _ in range(num_tries):
        board = _place(rng)
        if board is None:
            continue
        mates = mating_moves(board, enough=2)
        if len(mates) != 1:
            continue
        twin = _twin(board, rng)
        if twin is not None:
            yield board.board_fen(), mates[0].uci(), twin.board_fen()


def mating_moves(board: chess.Board, *, enough: int) -> list[chess.Move]:
    """Moves that mate at once; the search stops after `enough` of them."""
    mates = []
    for move in board.generate_legal_moves():
        if board.gives_check(move):
            board.push(move)
            if not any(board.generate_legal_moves()):
                mates.append(move)
            board.pop()
            if len(mates) == enough:
                break
    return mates


def _place(rng: np.random.Generator) -> chess.Board | None:
    """A random placement; None where it breaks the rules. The black king is mostly on the edge, where mates are."""
    num_white, num_black = int(rng.integers(2, 5)), int(rng.integers(0, 5))
    symbols = ["k", "K", *rng.choice(WHITE, num_white, p=WHITE_SHARES), *rng.choice(BLACK, num_black, p=BLACK_SHARES)]
    squares = [int(square) for square in rng.permutation(64)]
    if rng.random() < EDGE_SHARE:
        king = EDGE[int(rng.integers(len(EDGE)))]
        squares.remove(king)
        squares.insert(0, king)
    board = chess.Board(None)
    for symbol, square in zip(symbols, squares, strict=False):
        if symbol in "Pp" and chess.square_rank(square) in (0, 7):
            return None
        board.set_piece_at(square, chess.Piece.from_symbol(str(symbol)))
    return None if board.was_into_check() else board


def _twin(board: chess.Board, rng: np.random.Generator) -> chess.Board | None:
    """The same position with one piece elsewhere and no mate in one; None where none was found in a few tries."""
    pieces = sorted(board.piece_map().items())
    for _ in range(TWIN_TRIES):
        square, piece = pieces[int(rng.integers(len(pieces)))]
        target = int(rng.integers(64))
        if board.piece_at(target) or (piece.piece_type == chess.PAWN and chess.square_rank(target) in (0, 7)):
            continue
        twin = board.copy(stack=False)
        twin.remove_piece_at(square)
        twin.set_piece_at(target, piece)
        has_moves = any(twin.generate_legal_moves())
        if has_moves and not twin.was_into_check() and not mating_moves(twin, enough=1):
            return twin
    return None


def canonical(fen: str) -> str:
    """One name for a position and its left-right mirror image."""
    return min(fen, "/".join(row[::-1] for row in fen.split("/")))


def write_chunk(folder: Path, chunk: int, *, num_tries: int = TRIES_PER_CHUNK) -> None:
    path = folder / f"{chunk:05d}.parquet"
    if path.exists():
        return
    rows = list(compose(np.random.default_rng([SEED, chunk]), num_tries=num_tries))
    columns = [[row[i] for row in rows] for i in range(len(COLUMNS))]
    partial = path.with_suffix(".partial")
    pq.write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=COLUMNS), partial)
    partial.replace(path)


def read_chunks(folder: Path) -> list[tuple[str, str, str]]:
    """All positions in the order of their chunks. Of a position and its mirror image only the first is kept."""
    seen: set[str] = set()
    rows = []
    for path in sorted(folder.glob("*.parquet")):
        for row in zip(*pq.read_table(path).to_pydict().values(), strict=True):
            key = canonical(row[0])
            if key not in seen:
                seen.add(key)
                rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the chunks")
    parser.add_argument("--chunks", type=int, default=NUM_CHUNKS, help=f"default {NUM_CHUNKS}")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        chunks = [pool.submit(write_chunk, options.out, chunk) for chunk in range(options.chunks)]
        for chunk in track(chunks, description="composing"):
            chunk.result()
    print(f"{len(read_chunks(options.out)):,} positions in {options.out}")


if __name__ == "__main__":
    main()
