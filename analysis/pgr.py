"""PGR over seeds and tasks with 95 % intervals: `python -m analysis.pgr OUT [--out DIR]`.

    PGR = (student - supervisor) / (ceiling - supervisor)        Burns et al. 2023, section 3

The estimate is the ratio of the sums over seeds and tasks. `pgr_median` is the median of the cells' own ratios. Intervals
come from `analysis.bootstrap`. Where the interval of the gap (ceiling - supervisor) reaches 0, the ratio means nothing:
`gap_too_small` is set and PGR is null.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from analysis import tables
from analysis.bootstrap import PAIR, SIDES, Sample, interval, run_script

SCHEMA = {
    "setting": pl.String,
    "task": pl.String,
    "family": pl.String,
    "weak": pl.String,
    "strong": pl.String,
    "method": pl.String,
    "weak_params": pl.Int64,
    "strong_params": pl.Int64,
    **{f"{side}_score{end}": pl.Float64 for side in SIDES for end in ("", "_low", "_high")},
    "gap": pl.Float64,
    "gap_low": pl.Float64,
    "gap_high": pl.Float64,
    "gap_too_small": pl.Boolean,
    "pgr": pl.Float64,
    "pgr_low": pl.Float64,
    "pgr_high": pl.Float64,
    "pgr_median": pl.Float64,
    "num_tasks": pl.Int64,
    "num_seeds": pl.Int64,
    "num_cells": pl.Int64,
    "num_dropped": pl.Int64,
    "reason": pl.String,
}
"""`task` is null in rows that pool all tasks. `num_dropped` counts the row's cells that have no result."""


def pgr_table(samples: list[Sample]) -> pl.DataFrame:
    """One row for each (setting, task, family, weak, strong, method), and one for each such pair and method over tasks."""
    return pl.DataFrame([_row(sample) for sample in samples], schema=SCHEMA)


def _row(sample: Sample) -> dict[str, Any]:
    cells, done = sample.cells, sample.done
    row: dict[str, Any] = dict.fromkeys(SCHEMA) | {
        **{name: cells[name][0] for name in (*PAIR, "weak_params", "strong_params")},
        "task": sample.task,
        "num_tasks": done["task"].n_unique(),
        "num_seeds": done["seed"].n_unique(),
        "num_cells": done.height,
        "num_dropped": cells.height - done.height,
        "reason": sample.reason,
    }
    if sample.scores is None:
        return row
    for side, values in zip(SIDES, sample.scores, strict=True):
        row[f"{side}_score"], row[f"{side}_score_low"], row[f"{side}_score_high"] = interval(values)
    row["gap"], row["gap_low"], row["gap_high"] = interval(sample.gap)
    row["gap_too_small"] = sample.gap_too_small
    row["pgr_median"] = done["pgr"].median()
    if row["gap_too_small"]:
        row["reason"] = "gap_too_small: the ceiling is not clearly above the supervisor"
        return row
    row["pgr"], row["pgr_low"], row["pgr_high"] = interval(sample.pgr)
    return row


def _write(samples: list[Sample], folder: Path) -> None:
    table = pgr_table(samples)
    tables.write(table, folder / "pgr.parquet")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160):
        print(table.select(*PAIR, "task", "gap", "pgr", "pgr_low", "pgr_high", "num_seeds", "reason"))


if __name__ == "__main__":
    run_script("PGR with 95 % intervals from a study's tables; writes pgr.parquet.", _write)
