"""How large a task is, as far as this can be told without reading all of it. Cost estimates and listings use it."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache

from w2s_ray.tasks.rows import read_part
from w2s_ray.tasks.task import Task, files, is_here, load_test_task

NUM_SAMPLED_ROWS = 1000


@dataclass(frozen=True)
class Size:
    """A task's size, before duplicates and contradictions are dropped."""

    num_rows: int
    """Items of `train`."""
    num_test: int | None
    """Items of the task's own test file or of its `test_of` task; None where the test set is taken from `train`."""
    mean_characters: float
    """Mean length of all that a model reads for one row, over the first rows."""


@lru_cache(maxsize=256)
def size(task: Task) -> Size:
    part = read_part(task, "train", limit=NUM_SAMPLED_ROWS)
    # a model reads the prompt once with each completion
    lengths = [
        sum(len(text) + len(completion) for completion in completions) or len(text)
        for text, completions in zip(part.fill(task.template), part.completions(), strict=True)
    ]
    items_per_row = task.shape.items_per_row
    num_test = round(_count_rows(task, "test") * items_per_row) if task.test else None
    if (test_task := load_test_task(task)) is not None:
        test_size = size(test_task)
        num_test = test_size.num_rows + (test_size.num_test or 0)
    return Size(
        num_rows=round(_count_rows(task, "train") * items_per_row),
        num_test=num_test,
        mean_characters=sum(lengths) / max(1, len(lengths)),
    )


def num_rows(task: Task) -> int | None:
    """Rows in all files of a task, from parquet metadata or by counting lines. None where the files would have to be
    downloaded first."""
    if not is_here(task):
        return None
    return sum(_count_rows(task, part) for part in task.sources)


def _count_rows(task: Task, part: str) -> int:
    count = 0
    for path in files(task)[part]:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            count += int(pq.read_metadata(path).num_rows)
            continue
        has_header = path.suffix in (".csv", ".tsv") and task.header is None
        open_file = gzip.open if path.suffix == ".gz" else open
        with open_file(path, "rb") as file:
            count += sum(1 for line in file if line.strip()) - has_header
    return min(count, task.max_rows or count)
