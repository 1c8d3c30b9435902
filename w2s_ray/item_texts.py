"""The texts of test items, for the page that shows them: the table item_texts.parquet.

Texts come from the task's own files, as far as they are on this machine; nothing is downloaded. The table is bounded: at most
MAX_ITEMS items of a task, and texts of at most MAX_CHARACTERS characters, the rest of which is cut and marked by `…`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from w2s_ray import tasks
from w2s_ray.errors import InputError
from w2s_ray.fit import Data

MAX_ITEMS = 5000
MAX_CHARACTERS = 2000
ITEM_TEXTS: dict[str, Any] = {
    "task": pl.String,
    "id": pl.String,
    "text": pl.String,
    "first": pl.String,
    "second": pl.String,
    "label": pl.Int8,
    "fingerprint": pl.String,
}
"""`text`: the item, or the prompt of its completions. `first`, `second`: the completions of a comparison; in generation, `first`
is the right one. `label`: null in generation. `fingerprint`: of the task's definition and files."""


def item_texts(
    data: Iterable[Data], *, test_ids: Mapping[str, Iterable[str]], at_hand: Container[str], earlier: Path
) -> pl.DataFrame:
    """Texts of the test items of these tasks. `test_ids`: task -> ids. `at_hand`: tasks whose files were read just now, so that
    they need no download. `earlier`: such a table; what it has of the same files is not read again."""
    by_task = {own.task: own for own in data}
    known = _earlier(earlier)
    parts = [pl.DataFrame(schema=ITEM_TEXTS)]
    for task, ids in sorted(test_ids.items()):
        wanted = set(sorted(ids)[:MAX_ITEMS])
        of_files = known.filter((pl.col("task") == task) & (pl.col("fingerprint") == by_task[task].fingerprint))
        have = of_files.filter(pl.col("id").is_in(list(wanted)))
        parts.append(have if have.height == len(wanted) else _read(by_task[task], wanted, at_hand))
    return pl.concat(parts).sort("task", "id")


def _read(data: Data, wanted: set[str], at_hand: Container[str]) -> pl.DataFrame:
    try:
        task = tasks.load_pinned(data.source, commits=data.commits)
        rows = tasks.read_task(task).rows if data.task in at_hand or tasks.is_here(task) else []
    except (InputError, OSError):  # moved or changed since; the report can do without texts
        rows = []
    texts = [
        {
            "task": data.task,
            "id": row["id"],
            "text": _cut(row["text"]),
            "first": _cut(row["completions"][0]) if row["completions"] else None,
            "second": _cut(row["completions"][1]) if len(row["completions"]) == 2 else None,
            "label": row["label"],
            "fingerprint": data.fingerprint,
        }
        for row in rows
        if row["id"] in wanted
    ]
    return pl.DataFrame(texts, schema=ITEM_TEXTS)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


def _earlier(path: Path) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        return pl.DataFrame(schema=ITEM_TEXTS)
    return table if table.schema == pl.Schema(ITEM_TEXTS) else pl.DataFrame(schema=ITEM_TEXTS)
