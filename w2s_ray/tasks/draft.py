"""From a data file to the YAML of a task over it, for `w2s new task`.

What the user says of the columns counts; of the rest, what is plain from names and values is taken, and what is not is asked.

Promises: nothing is written here, and nothing is guessed: where two columns or two values would do, `ask` decides. The text
that comes back was read by the project's own loader, rows and all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from w2s_ray.errors import InputError, nearest
from w2s_ray.tasks.encoding import check_text
from w2s_ray.tasks.rows import read_file, read_task
from w2s_ray.tasks.shapes import ASSISTANT
from w2s_ray.tasks.task import SUFFIXES, Task, task_of

TEXT_NAMES = ("text", "sentence", "review", "comment", "content", "message", "body")
LABEL_NAMES = ("label", "labels", "class", "target", "y")
PROMPT_NAMES = ("prompt", "question", "instruction", "input", "query")
"""Names from which a column's part is plain."""
POSITIVE_WORDS = ("positive", "pos", "yes", "y", "true", "1", "right", "correct", "good")
"""Of two classes, the one that is called so means 1."""
MAX_CLASSES = 20
"""With more values than this a column is no label."""

Ask = Callable[[str, str, Sequence[str]], str]
"""(question, the option that would have answered it, what may be chosen) -> the answer."""


@dataclass(frozen=True)
class Wishes:
    """What the user says of a data file. The rest is looked up in it."""

    text: tuple[str, ...] = ()
    """Columns, or one template with columns in braces."""
    label: str | None = None
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    completion: str | None = None
    group: str | None = None

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(option, column) of each column that is named."""
        single = [
            (f"--{name}", getattr(self, name))
            for name in ("label", "prompt", "chosen", "rejected", "completion", "group")
        ]
        texts = [("--text", column) for column in self.text if "{" not in column]
        return [(option, column) for option, column in (*single, *texts) if column is not None]


@dataclass(frozen=True)
class Draft:
    """A task that is proven but not written yet."""

    path: Path
    text: str
    task: Task
    num_rows: int
    """Rows that can be used."""
    dropped: dict[str, int]
    """Reason -> rows that can't."""


def draft_task(data: Path, wishes: Wishes, *, out: Path | None, ask: Ask) -> Draft:
    """A task over the rows of `data`. Its YAML lies beside the data, unless `out` says where."""
    file = DataFile(data, _read(data))
    for option, column in wishes.columns:
        file.check_column(column, option=option)
    path = out or data.parent / f"{_name(_stem(data))}.yaml"
    text = _header(file, path) + "\n".join([*_fields(file, wishes, ask), _group(file, wishes)]) + "\n"
    task = task_of(text, path)
    rows = read_task(task)
    return Draft(path, text, task, num_rows=len(rows.rows), dropped=dict(rows.dropped))


# --- the file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataFile:
    """A data file's columns and what they hold."""

    path: Path
    table: pa.Table

    @cached_property
    def columns(self) -> list[str]:
        return list(self.table.column_names)

    def check_column(self, column: str, *, option: str) -> None:
        if column not in self.columns:
            hint = nearest(column, self.columns)
            raise InputError(
                f"{self.path}: {option}: no column '{column}'{hint}; there are: {', '.join(map(str, self.columns))}"
            )
        if re.search(r"[][{}.:!]", column) or not column:
            raise InputError(
                f"{self.path}: column '{column}': a task can't name it, since one of [ ] {{ }} . : ! is part of its name, or "
                "it has none; rename it"
            )

    def values(self, column: str) -> dict[Any, int]:
        """Each string, number or truth value of a column with its number of rows, in their order. Nulls and empty strings
        are no values."""
        kind = self.table.column(column).type
        if pa.types.is_nested(kind) or pa.types.is_decimal(kind) or pa.types.is_temporal(kind):
            return {}
        counts = self.table.column(column).value_counts().to_pylist()
        there = {entry["values"]: entry["counts"] for entry in counts if entry["values"] not in (None, "")}
        return dict(sorted(there.items()))

    def texts(self) -> list[str]:
        """The columns of words: most of their values have a space. Without any, all columns of strings."""
        strings = [
            column
            for column in self.columns
            if pa.types.is_string(kind := self.table.column(column).type) or pa.types.is_large_string(kind)
        ]
        of_words = [column for column in strings if self._has_words(column)]
        return of_words or strings

    def _has_words(self, column: str) -> bool:
        values = [value for value in self.table.column(column).slice(0, 1000).to_pylist() if value]
        return 2 * sum(" " in value.strip() for value in values) > len(values)

    def named(self, names: Sequence[str], *, among: Iterable[str] | None = None) -> str | None:
        """The one column that has such a name, or None."""
        found = [column for column in (self.columns if among is None else among) if column.lower() in names]
        return found[0] if len(found) == 1 else None


def _read(path: Path) -> pa.Table:
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path}: given '{path.name}', allowed are files ending in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".csv":
            _check_commas(path)
        table = read_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: can't be read as {path.suffix[1:]}: {error}") from error
    for column in table.column_names:
        if table.column_names.count(column) > 1:
            raise InputError(f"{path}: column '{column}' is there more than once; rename all but one")
    if table.num_rows == 0:
        raise InputError(f"{path}: has no rows")
    check_text(table, path)
    return table


def _check_commas(path: Path) -> None:
    """Refuses a CSV whose header has semicolons or tabs for commas, as spreadsheets write in some countries."""
    with path.open("rb") as file:
        header = file.readline()
    for separator, word in ((b";", "semicolons"), (b"\t", "tabs")):
        if separator in header and b"," not in header:
            swap = f"csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter={separator.decode()!r}))"
            raise InputError(
                f"{path}: its columns are separated by {word}, a csv has commas. Convert the file: "
                f'python3 -c "import csv, sys; {swap}" < {path} > commas.csv'
            )


def _stem(data: Path) -> str:
    return next(data.name.removesuffix(suffix) for suffix in reversed(SUFFIXES) if data.name.endswith(suffix))


def _name(stem: str) -> str:
    """A task's name from that of a file: `My Reviews` is `my-reviews`."""
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:64] or "my-task"


# --- the YAML -----------------------------------------------------------------------------------------------------


def _header(file: DataFile, path: Path) -> str:
    data = file.path.absolute()
    train = os.path.relpath(data, path.absolute().parent)
    return (
        f"# A task over {file.path.name}: {file.table.num_rows:,} rows. `w2s tasks {path.name}` shows it filled in;\n"
        "# `w2s schema task` has all keys.\n"
        f"name: {in_yaml(_name(path.stem))}\n"
        'description: "" # one sentence for tables and reports: what is asked of a row\n'
        "licence: unknown # of the data\n"
        f"train: {in_yaml(train if not train.startswith('..') else str(data))}\n"
        "# test: more-rows.csv # test rows of their own; without them a fifth of the rows is the test set\n"
    )


def _fields(file: DataFile, wishes: Wishes, ask: Ask) -> list[str]:
    """The lines that depend on the setting."""
    if wishes.chosen or wishes.rejected:
        return _comparison(file, wishes, ask)
    if wishes.completion:
        return _generation(file, wishes, ask)
    if not (wishes.text or wishes.label or wishes.positive or wishes.prompt):
        if {"chosen", "rejected"} <= set(file.columns):
            return _comparison(file, wishes, ask)
        if "completion" in file.columns and file.named(PROMPT_NAMES):
            return _generation(file, wishes, ask)
    return _classification(file, wishes, ask)


def _classification(file: DataFile, wishes: Wishes, ask: Ask) -> list[str]:
    label = wishes.label or _label_column(file, wishes, ask)
    classes = _classes(file, label, wishes, ask)
    texts = wishes.text or (_text_column(file, ask, taken=(label, wishes.group)),)
    template = "\n".join(text if "{" in text else _field(file, text) for text in texts)
    return [
        "setting: classification # of a text: 0 or 1",
        f"template: {in_yaml(template)} # what a model reads of a row, with columns in braces",
        f"label: {in_yaml(label)}",
        *classes,
    ]


def _comparison(file: DataFile, wishes: Wishes, ask: Ask) -> list[str]:
    chosen, rejected = (
        getattr(wishes, name)
        or (
            name if name in file.columns else ask(f"Which column has the {what} completion?", f"--{name}", file.texts())
        )
        for name, what in (("chosen", "better"), ("rejected", "worse"))
    )
    lines = ["setting: comparison # of two completions: which is the better one"]
    if shape := _shape_of_dialogues(file, chosen):
        fields = ["{prompt}", "{chosen}", "{rejected}"]
        lines.append(
            f"shape: {{{shape}: [{in_yaml(chosen)}, {in_yaml(rejected)}]}} # prompt and answer of each dialogue"
        )
    else:
        prompt = wishes.prompt or file.named(PROMPT_NAMES)
        fields = [_field(file, prompt) if prompt else "", _field(file, chosen), _field(file, rejected)]
    return [
        *lines,
        f"template: {in_yaml(fields[0])} # the prompt, which may be empty",
        f"completions: [{in_yaml(fields[1])}, {in_yaml(fields[2])}] # the better one first; models see them in a drawn order",
    ]


def _shape_of_dialogues(file: DataFile, column: str) -> str | None:
    """The shape that takes whole dialogues apart, where the column holds them."""
    entries = file.table.column(column)
    if pa.types.is_list(entries.type) and pa.types.is_struct(entries.type.value_type):
        return "messages"
    is_transcript = all(isinstance(entry, str) and ASSISTANT in entry for entry in entries.slice(0, 100).to_pylist())
    return "transcripts" if is_transcript else None


def _generation(file: DataFile, wishes: Wishes, ask: Ask) -> list[str]:
    completion = wishes.completion or "completion"
    others = [column for column in file.texts() if column != completion]
    prompt = (
        wishes.prompt
        or file.named(PROMPT_NAMES)
        or _only(others)
        or ask("Which column has the prompt?", "--prompt", others)
    )
    return [
        "setting: generation # of the right completion",
        f"template: {in_yaml(_field(file, prompt))} # the prompt",
        f"completions: [{in_yaml(_field(file, completion))}]",
    ]


def _group(file: DataFile, wishes: Wishes) -> str:
    about = "rows that share a value stay in one part"
    if wishes.group:
        return f"group: {in_yaml(wishes.group)} # {about}"
    repeating = [column for column in file.columns if MAX_CLASSES < len(file.values(column)) < file.table.num_rows]
    hint = f"; columns whose values repeat: {', '.join(repeating)}" if repeating else ""
    return f"# group: COLUMN # {about}, such as all of one document{hint}"


# --- what is plain, and what is asked -----------------------------------------------------------------------------


def _only(columns: Sequence[str]) -> str | None:
    return columns[0] if len(columns) == 1 else None


def _label_column(file: DataFile, wishes: Wishes, ask: Ask) -> str:
    values = {column: len(file.values(column)) for column in file.columns if column not in wishes.text}
    of_two = [column for column, num in values.items() if num == 2]
    may_be = of_two or [column for column, num in values.items() if 2 <= num <= MAX_CLASSES]
    if not may_be:
        raise InputError(
            f"{file.path}: no column can be a label: none has from 2 to {MAX_CLASSES} different values. A classification needs a "
            "column with classes (--label); a comparison two columns with completions (--chosen, --rejected)"
        )
    return (
        file.named(LABEL_NAMES, among=may_be) or _only(may_be) or ask("Which column has the label?", "--label", may_be)
    )


def _text_column(file: DataFile, ask: Ask, *, taken: tuple[str | None, ...]) -> str:
    texts = [column for column in file.texts() if column not in taken]
    if not texts:
        raise InputError(f"{file.path}: no column of texts besides the label; there are: {', '.join(file.columns)}")
    return file.named(TEXT_NAMES, among=texts) or _only(texts) or ask("Which column has the text?", "--text", texts)


def _classes(file: DataFile, label: str, wishes: Wishes, ask: Ask) -> list[str]:
    """`positive:` and `negative:`, where the label is not 0 and 1 in every row."""
    values = file.values(label)
    if not wishes.positive and set(values) == {0, 1}:
        if sum(values.values()) == file.table.num_rows:
            return []
        return ["positive: [1]", "negative: [0] # rows without a label are left out"]
    if not 2 <= len(values) <= MAX_CLASSES and not (wishes.positive and wishes.negative):
        raise InputError(
            f"{file.path}: column '{label}' has {len(values):,} different values; a label has from 2 to {MAX_CLASSES}. Give "
            "another --label, or name the values that mean 1 with --positive and those that mean 0 with --negative"
        )
    positive = _values_of(file, label, wishes.positive, option="--positive") or [_positive_value(label, values, ask)]
    negative = _values_of(file, label, wishes.negative, option="--negative")
    negative = negative or [value for value in values if value not in positive]
    if not negative:
        raise InputError(f"{file.path}: --positive: takes all values of column '{label}'; none is left to mean 0")
    if both := [value for value in positive if value in negative]:
        raise InputError(f"{file.path}: --negative: {both[0]!r} is among --positive, too")
    return [
        f"positive: [{', '.join(map(in_yaml, positive))}] # values that mean 1",
        f"negative: [{', '.join(map(in_yaml, negative))}] # values that mean 0; rows with other values are left out",
    ]


def _positive_value(label: str, values: dict[Any, int], ask: Ask) -> Any:
    named = [value for value in values if _word(value).lower() in POSITIVE_WORDS]
    if len(values) == 2 and len(named) == 1:
        return named[0]
    shown = {_word(value): value for value in values}
    return shown[ask(f"Which value of '{label}' means 1?", "--positive", list(shown))]


def _values_of(file: DataFile, label: str, given: tuple[str, ...], *, option: str) -> list[Any]:
    """The values of the label column that are written so at the command line."""
    shown = {_word(value): value for value in file.values(label)}
    for word in given:
        if word not in shown:
            raise InputError(
                f"{file.path}: {option}: no row has {word!r} in column '{label}'{nearest(word, shown)}; there are: "
                f"{', '.join(list(shown)[:MAX_CLASSES])}"
            )
    return [shown[word] for word in given]


def _word(value: Any) -> str:
    """A value as one writes it at the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field(file: DataFile, column: str) -> str:
    file.check_column(column, option="a column")
    return f"{{{column}}}"


def in_yaml(value: Any) -> str:
    """A value as YAML writes it within a line."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]
