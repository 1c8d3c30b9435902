"""The tables that the scripts of this room read, checked: a missing or foreign file is one clear message."""

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
PREDICTIONS: dict[str, type[pl.DataType]] = {
    "key": pl.Categorical,
    "id": pl.String,
    "correct": pl.Boolean,
}


class TableError(Exception):
    """A table that can't be used; the message names the file and the column."""


def read(path: Path, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """A parquet file that has at least these columns, of these types."""
    try:
        table = pl.read_parquet(path, glob=False)
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file; `w2s report STUDY` writes it") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(f"{path}: not a parquet file ({str(error).partition(chr(10))[0]})") from error
    for name, kind in schema.items():
        if name not in table.columns:
            raise TableError(f"{path}: no column '{name}'; this is not a table that `w2s report` wrote")
        if table.schema[name] != kind:
            raise TableError(f"{path}: column '{name}' is {table.schema[name]}, wanted is {kind}")
    return table


def read_both(out: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Results and predictions; `out` is their folder, or the results file with the predictions beside it."""
    results = out if out.suffix == ".parquet" else out / "results.parquet"
    return read(results, RESULTS), read(results.with_name("predictions.parquet"), PREDICTIONS)


def read_if_there(path: Path) -> pl.DataFrame:
    """A table that a report can do without."""
    return read(path, {}) if path.exists() else pl.DataFrame()


def write(table: pl.DataFrame, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    table.write_parquet(temporary)
    temporary.replace(path)
