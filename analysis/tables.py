"""Reads the tables of `w2s report`, checks their columns and writes tables of the same kind.

A file that is missing, damaged or not such a table raises one `TableError` that names the file and the column.
"""

from __future__ import annotations

from pathlib import Path

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
    try:
        table = pl.read_parquet(path, glob=False)
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file; `w2s report STUDY` writes it") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(f"{path}: not a parquet file ({str(error).partition(chr(10))[0]})") from error
    for name, dtype in schema.items():
        if name not in table.columns:
            raise TableError(f"{path}: no column '{name}'; this is not a table that `w2s report` wrote")
        if table.schema[name] != dtype:
            raise TableError(f"{path}: column '{name}' has type {table.schema[name]}; expected {dtype}")
    return table


def read_study(out: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Results and predictions of a study. `out`: their folder, or the results file with the predictions beside it."""
    results = out if out.suffix == ".parquet" else out / "results.parquet"
    return read(results, RESULTS), read(results.with_name("predictions.parquet"), PREDICTIONS)


def read_optional(path: Path) -> pl.DataFrame:
    """A table that the report can do without; empty if the file does not exist."""
    return read(path, {}) if path.exists() else pl.DataFrame()


def write(table: pl.DataFrame, path: Path) -> None:
    """Write a parquet file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    table.write_parquet(temporary)
    temporary.replace(path)
