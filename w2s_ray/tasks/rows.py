"""From a task's files to its rows: read, unfold into items, fill the templates, drop what can't be used.

`read_rows`, and `check` in promises.py, share one pass over a task's files (`read_task`), whose result is kept for the last
task.

Between the files and `read_rows` a row is a dict. To make an Arrow column from Python values, pyarrow imports pandas, which
takes longer than all else that `w2s plan` does for a small study.

Promises: a bad row is an `InputError` that names the file, the row and the column, and the first bad row is the one named;
a row's text never depends on other rows or on its place in the file; no row is left out without being counted, but those
that the task itself leaves out (`where`, `max_rows`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from w2s_ray.errors import InputError, nearest
from w2s_ray.tasks.encoding import check_text
from w2s_ray.tasks.grouping import group_keys, join
from w2s_ray.tasks.shapes import Dropped, Item, as_lines, unfold, value
from w2s_ray.tasks.task import Task, columns_of, files, load_test_task

ROWS = pa.schema(
    {
        "id": pa.string(),
        "text": pa.string(),
        "completions": pa.list_(pa.string()),
        "group": pa.string(),
        "label": pa.int8(),
        "difficulty": pa.float32(),
        "part": pa.string(),
    }
)
"""`text`: the prompt, where there are completions. `label`: 0 or 1; in a comparison, 1 means that the first completion is
the better one; null in a generation, whose one completion is the right one. `difficulty`: null where a task has none.
`part`: `train` or `test`."""
Row = dict[str, Any]
"""A row as ROWS says, with its `number` in its file. Before rows are grouped, `group` has the values of the task's group
columns."""
MAX_CLASSES_SHOWN = 20
OPTIONAL_PUZZLE_COLUMNS = ("GameId", "GameUrl", "PuzzleId")
"""Lichess has published puzzles in two schemas, each with some of these columns."""
NEAR_TEST = "in a group with a row of the test file"
"""Why a training row is left out."""


def read_rows(task: Task) -> pa.Table:
    """All rows of a task, with the columns of ROWS.

    Each id appears once: of rows with equal ids the first is kept, test rows before training rows. Ids whose rows disagree
    about the right answer are dropped altogether, and so is a comparison of a text with itself. Training rows that share a
    group or a text with a row of the test file are dropped.
    """
    return pa.Table.from_pylist(read_task(task).rows, schema=ROWS)


@dataclass(frozen=True)
class TaskRows:
    """What one pass over files gives."""

    rows: list[Row]
    dropped: Dropped
    file_of: dict[str, str]
    """`train` or `test` -> its file, for messages."""


@lru_cache(maxsize=1)  # rows can take hundreds of megabytes, and Fits that run one after another mostly share a task
def read_task(task: Task) -> TaskRows:
    """Read all files of a task and fill its templates."""
    test_task = load_test_task(task)
    own = {name: read_part(task, name) for name in task.sources}
    reasons = Dropped()
    for items in own.values():
        reasons.take_over(items.dropped)
    file_of = {name: items.file for name, items in own.items()}
    rows = _grouped([items.rows(name) for name, items in own.items()], task)
    if test_task:
        others = [read_part(test_task, name) for name in test_task.sources]
        rows = [*_grouped([items.rows("test") for items in others], test_task), *rows]
        file_of["test"] = others[0].file
    # test rows come first, so that a row in both parts stays in the test set
    rows = _without_duplicates(rows, reasons, file_of)
    return TaskRows(_without_rows_near_the_test_file(rows, reasons, file_of), reasons, file_of)


def _grouped(task_parts: list[list[Row]], task: Task) -> list[Row]:
    """The rows of all parts, the last part first, with a group for each in place of the values of its group columns."""
    rows = [row for part in reversed(task_parts) for row in part]
    parts = [row["part"] for row in rows]
    columns = zip(*(row["group"] for row in rows), strict=True)
    keys = [group_keys(values, parts, task.group_by) for values in columns]
    groups = keys[0] if len(keys) == 1 else join(list(zip(*keys, strict=True)))
    return [row | {"group": group} for row, group in zip(rows, groups, strict=True)]


def place(row: Row, file_of: dict[str, str]) -> str:
    """`data.csv: row 7`."""
    return f"{file_of[row['part']]}: row {row['number']}"


def _without_duplicates(rows: list[Row], reasons: Dropped, file_of: dict[str, str]) -> list[Row]:
    first_of: dict[str, Row] = {}
    answers: dict[str, Any] = {}
    reason_of: dict[str, str] = {}
    is_first: list[bool] = []
    for row in rows:
        id_, completions, label = row["id"], row["completions"], row["label"]
        is_comparison = len(completions) == 2
        answer = completions[1 - label] if is_comparison else (label, *completions)
        is_first.append(id_ not in answers)
        first = first_of.setdefault(id_, row)
        if first["text"] != row["text"] or (is_comparison and set(first["completions"]) != set(completions)):
            raise InputError(
                f"{place(row, file_of)}: has the id '{id_}', which another row with another text has too "
                f"({place(first, file_of)}); ids must be unique, or leave out 'id'"
            )
        if is_comparison and completions[0] == completions[1]:
            reason_of[id_] = "both completions are the same"
        elif answers.setdefault(id_, answer) != answer:
            reason_of[id_] = "the same row again, with another right answer (all of them are left out)"
    kept = []
    for row, comes_first in zip(rows, is_first, strict=True):
        reason = reason_of.get(row["id"], "" if comes_first else "the same row again")
        if not reason:
            kept.append(row)
            continue
        reasons[reason] += 1
        reasons.first.setdefault(reason, place(row, file_of))
    return kept


def _without_rows_near_the_test_file(rows: list[Row], reasons: Dropped, file_of: dict[str, str]) -> list[Row]:
    """Without the training rows that share a group or a text with a row of the test file."""
    if len({row["part"] for row in rows}) == 1:
        return rows
    groups = join([[f"group:{row['group']}", *_texts_shown(row["text"], row["completions"])] for row in rows])
    of_test = {group for row, group in zip(rows, groups, strict=True) if row["part"] == "test"}
    kept = []
    for row, group in zip(rows, groups, strict=True):
        if row["part"] == "test" or group not in of_test:
            kept.append(row)
        else:
            reasons[NEAR_TEST] += 1
            reasons.first.setdefault(NEAR_TEST, place(row, file_of))
    return kept


def _texts_shown(text: str, completions: tuple[str, ...]) -> list[str]:
    """What no two parts may share: a text, or in a comparison the prompt with either completion."""
    return [f"text:{text}\0{completion}" for completion in (completions if len(completions) == 2 else [""])]


# --- one part -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartItems:
    """The items of a task's `train` or `test` part, and what the templates and columns make of them."""

    task: Task
    items: list[Item]
    dropped: Dropped
    """The rows that the shape can't use."""
    file: str
    """The part's file in error messages, or the first of its files."""

    def rows(self, part: str) -> list[Row]:
        """The rows of these items, not yet grouped."""
        if not self.items:
            raise InputError(f"{self.file}: no row can be used")
        labels, difficulties = self.labels(), self.difficulties()
        texts, completions = self.fill(self.task.template), self.completions()
        ids = self._ids(texts, completions)
        columns = [self.column(name, may_be_null=False) for name in self.task.group_columns]
        groups = (
            list(zip(*columns, strict=True))
            if columns
            else [(text or id_,) for text, id_ in zip(texts, ids, strict=True)]
        )
        if self.task.setting == "comparison" and self.task.label_column is None:
            # show the two in an order drawn from the row's id
            for i, id_ in enumerate(ids):
                if int(text_hash(f"order:{id_}"), 16) % 2:
                    completions[i], labels[i] = completions[i][::-1], 1 - (labels[i] or 0)
        numbers = [item.row for item in self.items]
        values = zip(
            ids,
            texts,
            completions,
            [list(map(str, group)) for group in groups],
            labels,
            difficulties,
            numbers,
            strict=True,
        )
        names = [*(name for name in ROWS.names if name != "part"), "number", "part"]
        return [dict(zip(names, [*row, part], strict=True)) for row in values]

    def fill(self, template: str) -> list[str]:
        """A template's text for every item. Only the prompt of a comparison may be empty, and then for all items."""
        task = self.task
        for name in columns_of(template):
            for item in self.items:
                if item.fields.get(name, "") is None:
                    raise InputError(
                        f"{self.file}: row {item.row}, column '{name}': has no value, and the text would say 'None' "
                        f"(template {template!r}); fill it, or leave the row out"
                    )
        try:
            texts = [template.format(**item.fields) for item in self.items]
            if task.remove is not None:
                texts = [re.sub(r"  +", " ", re.sub(task.remove, " ", text)) for text in texts]
            texts = [text.strip() for text in texts]
        except (KeyError, IndexError, ValueError, AttributeError, TypeError, re.error) as error:
            raise InputError(
                f"{task.path}: template: {template!r} can't be filled from the columns ({error})"
            ) from error
        if template or task.setting != "comparison":
            for item, text in zip(self.items, texts, strict=True):
                if not text:
                    raise InputError(f"{self.file}: row {item.row}: the text is empty (template {template!r})")
        return texts

    def completions(self) -> list[tuple[str, ...]]:
        columns = [self.fill(template) for template in self.task.completions]
        return list(zip(*columns, strict=True)) if columns else [()] * len(self.items)

    def labels(self) -> list[int | None]:
        """Labels from the shape or from the label column. Without either, a comparison's label is 1 (the first completion
        is the better one) and a generation has none."""
        task = self.task
        if task.label_column is None:
            default = 1 if task.setting == "comparison" else None
            return [default if item.label is None else item.label for item in self.items]
        labels: list[int | None] = []
        for item, label in zip(self.items, self.column(task.label_column), strict=True):
            if task.positive or task.negative:
                label = int(label in task.positive)
            if isinstance(label, str) or label not in (0, 1):
                raise InputError(
                    f"{self.file}: row {item.row}, column '{task.label_column}': given {label!r}, allowed are 0 and 1"
                    f"{self._how_to_name_classes(task.label_column)}"
                )
            labels.append(int(label))
        return labels

    def _how_to_name_classes(self, column: str) -> str:
        values = list(dict.fromkeys(str(entry) for entry in self.column(column) if entry not in (None, "")))
        if not 2 <= len(values) <= MAX_CLASSES_SHOWN:
            return ""
        return (
            f". The column has the values {', '.join(values)}: list in {self.task.path.name} those that mean 1 under 'positive:' "
            "and those that mean 0 under 'negative:'"
        )

    def difficulties(self) -> list[float | None]:
        name = self.task.difficulty
        if name is None:
            return [None] * len(self.items)
        difficulties: list[float | None] = []
        for item, number in zip(self.items, self.column(name), strict=True):
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise InputError(f"{self.file}: row {item.row}, column '{name}': given {number!r}, allowed are numbers")
            difficulties.append(float(np.float32(number)))  # as it is in a table
        return difficulties

    def column(self, name: str, *, may_be_null: bool = True) -> list[Any]:
        """The values of a column, or of a nested field such as `choices.text`."""
        values = []
        for item in self.items:
            try:
                values.append(value(item.fields, name))
            except (KeyError, TypeError) as error:
                raise InputError(f"{self.file}: row {item.row}: has no value at '{name}'") from error
            if values[-1] is None and not may_be_null:
                raise InputError(f"{self.file}: row {item.row}: has no value at '{name}'")
        return values

    def _ids(self, texts: list[str], completions: list[tuple[str, ...]]) -> list[str]:
        if self.task.id is None:
            compared = completions if self.task.setting == "comparison" else [()] * len(texts)
            contents = ["\0".join([text, *sorted(pair)]) for text, pair in zip(texts, compared, strict=True)]
            return [text_hash(content)[:16] for content in contents]
        ids = [str(id_) for id_ in self.column(self.task.id, may_be_null=False)]
        if self.task.shape.choices:  # a question becomes two items
            return [f"{id_}-{item.label}" for id_, item in zip(ids, self.items, strict=True)]
        return ids


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- files --------------------------------------------------------------------------------------------------------


def read_part(task: Task, part: str, *, limit: int | None = None) -> PartItems:
    """The items of a part; with `limit`, those of the first rows of its first file."""
    items: list[Item] = []
    reasons = Dropped()
    for path, rows in _raw_rows(task, part, limit=limit):
        try:
            file_items, file_reasons = unfold(task.shape, rows)
        except (ValueError, ModuleNotFoundError) as error:
            raise InputError(f"{path}: {error}") from error
        for item in file_items:
            if _has_known_label(task, item):
                items.append(_join_lines(task, item))
            else:
                file_reasons["the label is none of 'positive' and 'negative'"] += 1
                file_reasons.note_first(f"row {item.row}")
        reasons.take_over(file_reasons, file=str(path))
    paths = files(task)[part]
    more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return PartItems(task=task, items=items, dropped=reasons, file=f"{paths[0]}{more}")


def _has_known_label(task: Task, item: Item) -> bool:
    """Whether the label is among `positive` and `negative`. Without them every label passes here and is checked later."""
    if item.label is not None or task.label_column is None or not (task.positive or task.negative):
        return True
    return value(item.fields, task.label_column) in (*task.positive, *task.negative)


def _join_lines(task: Task, item: Item) -> Item:
    if not task.lines:
        return item
    return replace(item, fields=item.fields | {name: as_lines(item.fields[name]) for name in task.lines})


def _raw_rows(task: Task, part: str, *, limit: int | None) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Each file with its rows, after `where` and `max_rows`."""
    paths = files(task)[part]
    max_per_file = None if task.max_rows is None else -(-task.max_rows // len(paths))
    for path in paths:
        table = _read_columns(task, path)
        if table.num_rows == 0:
            raise InputError(f"{path}: has no rows")
        if task.where is not None:
            values = table.column(task.where.column).to_pylist()
            table = table.filter(pa.array([entry in task.where.among for entry in values]))
        if max_per_file is not None and table.num_rows > max_per_file:
            table = table.take(pa.array([i * table.num_rows // max_per_file for i in range(max_per_file)]))
        yield path, table.slice(0, limit).to_pylist()
        if limit is not None:
            return


def _read_columns(task: Task, path: Path) -> pa.Table:
    """The columns of a file that the task names."""
    try:
        table = read_file(path, header=task.header)
    except FileNotFoundError as error:
        raise InputError(f"{task.path}: no such file: {path}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: can't be read as {path.suffix[1:]}: {error}") from error
    for column in task.columns:
        if table.column_names.count(column) > 1:
            raise InputError(
                f"{path}: column '{column}' is there {table.column_names.count(column)} times; rename all but one"
            )
        if column not in table.column_names:
            raise InputError(
                f"{path}: no column '{column}'{nearest(column, table.column_names)}, which {task.path.name} names; "
                f"there are: {', '.join(table.column_names)}"
            )
    optional = OPTIONAL_PUZZLE_COLUMNS if task.shape.puzzle else ()
    names = dict.fromkeys((*task.columns, *(column for column in optional if column in table.column_names)))
    columns = table.select(list(names))
    check_text(columns, path)
    return columns


def read_file(path: Path, *, header: tuple[str, ...] | None = None) -> pa.Table:
    """A data file as it is. `header`: the column names of a csv or tsv that has no line with them."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:  # pq.read_table imports pandas
            return file.read()
    if path.suffix in (".csv", ".tsv"):
        import pyarrow.csv

        is_csv = path.suffix == ".csv"
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=header),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="," if is_csv else "\t",
                quote_char='"' if is_csv else False,  # quotation marks in a tsv are text
                newlines_in_values=is_csv,
            ),
        )
    import pyarrow.json

    with pa.input_stream(path, compression="detect") as stream:
        return pyarrow.json.read_json(stream, read_options=pyarrow.json.ReadOptions(block_size=2**26))
