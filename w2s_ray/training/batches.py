"""How rows are cut into batches and padded.

Training batches follow an order that the seed fixes. Evaluation batches depend on the rows alone, never on how the Fit is
executed: a row's padding, and with it the last bits of its prediction, goes with its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from w2s_ray.fit import EVAL_BATCH_TOKENS
from w2s_ray.training.distributed import device, rank, sum_over_ranks, world_size
from w2s_ray.training.engine import Engine
from w2s_ray.training.rows import Rows


def epoch_order(num_rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def eval_batches(rows: Rows) -> list[list[int]]:
    """Row numbers in batches of similar length, from short rows to long ones."""
    lengths = rows.lengths
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(rows)), key=lambda i: (lengths[i], rows.ids[i])):
        if (len(batches[-1]) + 1) * lengths[i] * len(rows.sequences[i]) > EVAL_BATCH_TOKENS and batches[-1]:
            batches.append([])
        batches[-1].append(i)
    return batches


def evaluate_in_batches(
    engine: Engine, rows: Rows, compute: Callable[[list[int]], torch.Tensor], *, width: int, dtype: torch.dtype
) -> np.ndarray:
    """[row, width], the same on every rank, of `compute` on row numbers. Whole batches go to the ranks in turn."""
    engine.eval()
    values = torch.zeros((len(rows), width), dtype=dtype, device=device())
    batches = eval_batches(rows)
    with torch.no_grad():
        for first in range(0, len(batches), world_size()):
            index = first + rank()
            is_own = index < len(batches)
            chosen = batches[index if is_own else first]  # under ZeRO-3 every rank must take part in every pass
            output = compute(chosen)
            if is_own:
                values[chosen] = output.to(dtype)
    values = sum_over_ranks(values)
    engine.train()
    return values.cpu().numpy()


def pad(token_lists: list[list[int]], *, pad_id: int, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(input ids, attention mask), padded to the longest row. An empty row keeps one pad that is not masked."""
    length = max(1, max(map(len, token_lists), default=1))
    ids = torch.full((len(token_lists), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(token_lists), length), dtype=torch.long)
    for row, tokens in enumerate(token_lists):
        used = max(1, len(tokens))
        where = slice(length - used, length) if left else slice(0, used)
        mask[row, where] = 1
        if tokens:
            ids[row, where] = torch.tensor(tokens, dtype=torch.long)
    return ids.to(device()), mask.to(device())


def stack_or_pad(sequences: list[Any], *, are_features: bool, pad_id: int) -> tuple[torch.Tensor, ...]:
    """The tensors that a model takes: features of a probe as they are, tokens with their attention mask."""
    if are_features:
        return (torch.from_numpy(np.stack(sequences)).to(device()),)
    return pad(sequences, pad_id=pad_id)
