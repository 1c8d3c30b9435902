"""Rows of a task that no model sees, and why: the table left_out.parquet.

Promises: a row is counted once. What only the tokenizers can tell (too long) was counted when the first Fit was trained; before,
it is missing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from w2s_ray.fit import Data
from w2s_ray.tasks import RowCounts

LEFT_OUT: dict[str, Any] = {
    "task": pl.String,
    "reason": pl.String,
    "num_rows": pl.Int64,
    "share": pl.Float64,
}
"""`share`: of all rows of the task; null where its files were not at hand."""
NOT_ASKED_FOR = "in no part: the split takes no more, or equally many rows of each label are taken"


@dataclass(frozen=True)
class Dealt:
    """What is known of one deal of a task."""

    num_rows: int
    """In all parts together."""
    num_too_long: int | None
    """None where no Fit recorded it."""


def left_out(dealt: Mapping[Data, Dealt], counts: Mapping[str, RowCounts]) -> pl.DataFrame:
    """A row for each task and reason. `counts`: task -> what was read from its files, as far as they are at hand.

    Of several deals of a task (replicates, grids) the one that leaves out the fewest rows is counted.
    """
    rows: dict[tuple[str, str], int] = {}
    for task in sorted({data.task for data in dealt} & counts.keys()):
        rows |= {(task, reason): num for reason, num in counts[task].dropped.items()}
    for data, deal in dealt.items():
        found = {f"longer than {data.max_tokens:,} tokens for a model of the grid": deal.num_too_long or 0}
        if data.task in counts and deal.num_too_long is not None:
            found[NOT_ASKED_FOR] = counts[data.task].num_usable - deal.num_too_long - deal.num_rows
        for reason, num in found.items():
            place = (data.task, reason)
            rows[place] = min(num, rows.get(place, num))
    table = [
        {
            "task": task,
            "reason": reason,
            "num_rows": num,
            "share": num / counts[task].num_read if task in counts else None,
        }
        for (task, reason), num in rows.items()
        if num
    ]
    return pl.DataFrame(table, schema=LEFT_OUT).sort("task", "num_rows", "reason", descending=[False, True, False])
