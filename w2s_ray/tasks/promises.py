"""What a task's YAML promises of its rows, checked once before anything runs: rows of both labels, texts that differ, groups that
can be split, a test set apart from training.

What is wrong with a single row (an empty text, a label that is none) is refused where rows are read (`rows.py`). Here the rows are
looked at together. A message names the first row at fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from w2s_ray.errors import InputError
from w2s_ray.tasks.rows import Row, TaskRows, place, read_task
from w2s_ray.tasks.shapes import Dropped
from w2s_ray.tasks.task import Task

MAX_CHARACTERS = 60
"""So much of a text is shown."""


@dataclass(frozen=True)
class RowCounts:
    """How many rows a task has."""

    num_usable: int
    dropped: Dropped

    @property
    def num_read(self) -> int:
        return self.num_usable + self.dropped.total()


@lru_cache(maxsize=256)
def check(task: Task) -> RowCounts:
    """Read every row, refuse the first bad one and a broken promise, and count the rows.

    The cache remembers that a task is good without keeping its rows, for studies whose grids share many tasks.
    """
    read = read_task(task)
    _check_rows_are_left(read)
    _check_texts_differ(task, read)
    _check_labels(task, read)
    _check_groups(task, read)
    return RowCounts(len(read.rows), read.dropped)


def _check_rows_are_left(read: TaskRows) -> None:
    for part, file in read.file_of.items():
        if not any(row["part"] == part for row in read.rows):
            raise InputError(f"{file}: no row can be used. Left out: {_in_words(read.dropped)}")


def _check_texts_differ(task: Task, read: TaskRows) -> None:
    first, *others = read.rows
    if others and all(_shown(row) == _shown(first) for row in others):
        raise InputError(
            f"{task.path}: template: all {len(read.rows):,} rows have the same text "
            f"({first['text'][:MAX_CHARACTERS]!r}, {place(first, read.file_of)}); name a column that differs between rows"
        )


def _shown(row: Row) -> tuple[str, ...]:
    return (row["text"], *sorted(row["completions"]))


def _check_labels(task: Task, read: TaskRows) -> None:
    """Rows of both labels in training and in the test file. Where an order is drawn for each row, dealing will tell."""
    is_drawn = task.label_column is None and not task.shape.gives_label
    if task.setting == "generation" or is_drawn:
        return
    for part, file in read.file_of.items():
        rows = [row for row in read.rows if row["part"] == part]
        if len({row["label"] for row in rows}) > 1:
            continue
        left_out = f". Left out: {_in_words(read.dropped)}" if read.dropped else ""
        advice = (
            "; leave out 'label' if the first completion is always the better one"
            if task.setting == "comparison"
            else ""
        )
        raise InputError(
            f"{file}: all {len(rows):,} rows that can be used have label {rows[0]['label']}, from "
            f"{place(rows[0], read.file_of)} on; needed are rows of both labels{advice}{left_out}"
        )


def _check_groups(task: Task, read: TaskRows) -> None:
    groups = {row["group"] for row in read.rows if row["part"] == "train"}
    parts = ["half A", "half B"] if "test" in read.file_of else ["half A", "half B", "the test set"]
    if task.group_columns and len(groups) < len(parts):
        raise InputError(
            f"{task.path}: group: {', '.join(map(repr, task.group_columns))} makes {len(groups)} group(s) of "
            f"{len(read.rows):,} rows, the first from {place(read.rows[0], read.file_of)} on. A group stays in one part, so "
            f"needed are at least {len(parts)} ({', '.join(parts)})"
        )


def _in_words(dropped: Dropped) -> str:
    return "; ".join(f"{count:,} rows, {reason} (first: {dropped.first[reason]})" for reason, count in dropped.items())
