"""Reads the tables of `w2s report`, checks their columns and writes tables of the same kind.

Predictions are many: their table is a folder of parts, each with all rows of some Fits, and is read part by part (`Parts`).

A file that is missing, damaged or not such a table raises one `TableError` that names the file and the column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

RESULTS = {
    "setting": pl.String,
    "task": pl.String,
    "family": pl.String,
    "weak": pl.String,
    "strong": pl.String,
    "weak_params": pl.Int64,
    "strong_params": pl.Int64,
    "method": pl.String,
    "seed": pl.Int64,
    "weak_score": pl.Float64,
    "student_score": pl.Float64,
    "ceiling_score": pl.Float64,
    "pgr": pl.Float64,
    "weak_key": pl.String,
    "student_key": pl.String,
    "ceiling_key": pl.String,
    "status": pl.String,
    "reason": pl.String,
}
"""The columns of results.parquet that every script needs."""

PREDICTIONS: dict[str, type[pl.DataType]] = {
    "key": pl.Categorical,
    "id": pl.String,
    "correct": pl.Boolean,
}
"""The columns of predictions.parquet that every script needs."""


class TableError(Exception):
    """A table that can't be used. The message names the file and, where one is at fault, the column."""


def read(path: Path, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """Read a parquet file that must have at least these columns, of these types."""
    _check(path, schema)
    try:
        return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(f"{path}: not a parquet file ({str(error).partition(chr(10))[0]})") from error


def read_study(out: Path) -> tuple[pl.DataFrame, Parts]:
    """Results and predictions of a study. `out`: their folder, or the results file with the predictions beside it."""
    results = out if out.suffix == ".parquet" else out / "results.parquet"
    return read(results, RESULTS), read_parts(results.with_name("predictions.parquet"))


def read_optional(path: Path) -> pl.DataFrame:
    """A table that the report can do without; empty if the file does not exist."""
    return read(path, {}) if path.exists() else pl.DataFrame()


# --- predictions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """A table of predictions in parts, each of which has all rows of some Fits."""

    frames: tuple[pl.LazyFrame, ...]
    columns: frozenset[str]

    def each(self, *names: str) -> Iterator[pl.DataFrame]:
        """These columns of each part, as far as there are such columns. One part at a time is in memory."""
        for frame in self.frames:
            yield frame.select(name for name in names if name in self.columns).collect()

    @property
    def rows(self) -> pl.LazyFrame:
        """All parts together, to be collected by the streaming engine."""
        return pl.concat(self.frames)


Predictions = pl.DataFrame | Parts
"""What can be held in memory need not be in parts."""


def parts_of(predictions: Predictions) -> Parts:
    if isinstance(predictions, Parts):
        return predictions
    return Parts((predictions.lazy(),), frozenset(predictions.columns))


def read_parts(path: Path, *, optional: bool = False) -> Parts:
    """A table of predictions: a folder of parts, or a file that is the only part. `optional`: without one, there are no parts."""
    if optional and not path.exists():
        return Parts((), frozenset())
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise TableError(f"{path}: no parquet file in this folder; `w2s report STUDY` writes them")
    columns = [frozenset(_check(file, PREDICTIONS)) for file in files]
    return Parts(tuple(pl.scan_parquet(file, glob=False) for file in files), columns[0])


def _check(path: Path, schema: dict[str, type[pl.DataType]]) -> list[str]:
    """The columns of a parquet file, which must have at least these."""
    try:
        found = pl.scan_parquet(path, glob=False).collect_schema()
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file; `w2s report STUDY` writes it") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(f"{path}: not a parquet file ({str(error).partition(chr(10))[0]})") from error
    for name, dtype in schema.items():
        if name not in found:
            raise TableError(f"{path}: no column '{name}'; this is not a table that `w2s report` wrote")
        if found[name] != dtype:
            raise TableError(f"{path}: column '{name}' has type {found[name]}; expected {dtype}")
    return found.names()


def by_fit(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of some Fits with those of a Fit next to each other, in the order of their ids. `w2s report` writes them so."""
    is_next = (pl.col("key") != pl.col("key").shift()).fill_null(True)
    begins = rows.select(is_next.sum()).item() if rows.height else 0
    in_order = is_next | (pl.col("id") >= pl.col("id").shift())
    if begins == rows["key"].n_unique() and rows.select(in_order.all()).item():
        return rows
    return rows.sort(pl.col("key").cast(pl.String), "id", maintain_order=True)


def fit_slices(rows: pl.DataFrame) -> Iterator[tuple[str, slice]]:
    """Key and place of each Fit's rows, where those of a Fit are next to each other."""
    if rows.is_empty():
        return
    keys = rows["key"].cast(pl.Categorical).to_physical().to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])).tolist()
    names = rows["key"].gather(starts).cast(pl.String).to_list()
    yield from zip(names, map(slice, starts, [*starts[1:], rows.height]), strict=True)


def write(table: pl.DataFrame, path: Path) -> None:
    """Write a parquet file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    table.write_parquet(temporary)
    temporary.replace(path)
