"""A trained Fit's predictions of rows of its task."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from w2s_ray.fit import Fit
from w2s_ray.training.engine import Engine
from w2s_ray.training.rows import PreparedTask, Rows
from w2s_ray.training.settings import setting_of


def predict_rows(engine: Engine, fit: Fit, task: PreparedTask, rows: Rows) -> pa.Table:
    """id and probability (of label 1, or that the first completion is the better one) of every row.

    In a generation: id, completion, and the completion's probability.
    """
    return pa.table({"id": pa.array(rows.ids, pa.string())} | setting_of(fit).predict(engine, rows, task, fit))


def write_predictions(path: Path, predictions: pa.Table) -> None:
    """Sorted by id, so that the bytes depend on nothing else."""
    pq.write_table(predictions.sort_by("id"), path)
