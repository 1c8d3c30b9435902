"""Tasks as data: where rows come from, how a row becomes text and label, how rows are dealt out.

A task is one YAML entry beside its files (parquet, csv or jsonl), of one of three settings:

    classification    a text and a label, 0 or 1
    generation        a prompt and its right completion
    comparison        a prompt (which may be empty) and two completions, one of them better

Promises: what is wrong is an `InputError` that names the file, the column and the row; the text of a row never depends
on other rows; rows that share a group or a text stay in one part; both labels are equally frequent in every part; and the
dealing depends on the rows' ids alone, not on their order in the file, nor on the process.
"""

from __future__ import annotations

import hashlib
import math
import re
import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from w2s_ray.errors import InputError, nearest
from w2s_ray.fit import Setting, canonical_json

SHIPPED = Path(__file__).parent
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
SUFFIXES = (".parquet", ".csv", ".jsonl")
MEAN_OVER_NUM_ROWS = 1000
NUM_COMPLETIONS: dict[Setting, int] = {"classification": 0, "generation": 1, "comparison": 2}
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
"""`text` is the prompt where there are completions. `label`: 0 or 1; in a comparison, 1 where the first completion is the
better one; null in a generation, whose one completion is the right one. `difficulty`: null where a task has none. `part`:
`train` or `test`."""


class Task(BaseModel):
    """A task's YAML, checked, and where it lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{NAME}$")
    setting: Setting
    description: str = ""
    licence: str = "unknown"
    train: str
    """File of rows, relative to the YAML."""
    test: str | None = None
    """File of test rows; without it the test set is taken from the rows of `train`."""
    template: str = "{text}"
    """The text of a row, from its columns in braces; the prompt where there are completions, and then it may be empty."""
    completions: tuple[str, ...] = ()
    """Templates: the right completion (generation), or the two that are compared (comparison)."""
    label: str | None = None
    """Column with 0 or 1 (or false and true), default `label`. In a comparison 1 says that the first completion is the
    better one; without it, it always is, and the two are shown in an order that the row's id decides."""
    group: str | None = None
    """Column whose equal values stay in one part (a question, a premise); none: each row by itself."""
    id: str | None = None
    """Column with unique ids; none: the hash of the text (and of the compared completions)."""
    difficulty: str | None = None
    """Column with a number, more for the harder (Elo, pieces, steps): to learn from some rows and be tested on all."""
    path: Path

    @model_validator(mode="after")
    def _of_one_setting(self) -> Task:
        wanted = NUM_COMPLETIONS[self.setting]
        if len(self.completions) != wanted:
            raise ValueError(f"{self.setting} takes {wanted} completions, given {len(self.completions)}")
        if self.setting == "generation" and self.label:
            raise ValueError("generation takes no label: its completion is the right one")
        return self

    @property
    def label_column(self) -> str | None:
        return self.label or ("label" if self.setting == "classification" else None)

    @property
    def files(self) -> dict[str, Path]:
        named = {"train": self.train, "test": self.test}
        return {part: self.path.parent / name for part, name in named.items() if name is not None}

    @property
    def columns(self) -> list[str]:
        """The columns that this task reads."""
        templates = "".join((self.template, *self.completions))
        used = [name for _, name, _, _ in string.Formatter().parse(templates) if name]
        named = (self.label_column, self.group, self.id, self.difficulty)
        return list(dict.fromkeys([*used, *(column for column in named if column)]))


@dataclass(frozen=True)
class Shape:
    """What can be told of a task's size without reading all of it."""

    num_rows: int
    num_test: int | None
    """Rows of its own test file, if it has one."""
    mean_characters: float
    """Of all that a model reads for one row."""


def task_names() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_task(name_or_path: str | Path, *, base: Path | None = None) -> Task:
    """A shipped task by name, or a task YAML by path, relative to `base`."""
    given = str(name_or_path)
    if re.fullmatch(NAME, given) and not given.endswith((".yaml", ".yml")):
        path = SHIPPED / f"{given}.yaml"
        if not path.exists():
            raise InputError(
                f"unknown task '{given}'{nearest(given, task_names())}; shipped: {', '.join(task_names())}; "
                "or give the path of a task YAML"
            )
    else:
        path = _inside(base, given, what="task") if not Path(given).is_absolute() else Path(given)
    content = _read_yaml(path)
    known = [field for field in Task.model_fields if field != "path"]
    for key in content:
        if key not in known:
            raise InputError(f"{path}: unknown key '{key}'{nearest(str(key), known)}; allowed: {', '.join(known)}")
    try:
        task = Task.model_validate(content | {"path": path.resolve()})
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    for part, name in (("train", task.train), ("test", task.test)):
        if name is not None and not (_inside(task.path.parent, name, what=part)).name.endswith(SUFFIXES):
            raise InputError(f"{path}: {part}: given '{name}', allowed are files ending in {', '.join(SUFFIXES)}")
    return task


def _inside(base: Path | None, name: str, *, what: str) -> Path:
    """A path below `base`, or InputError: names must not lead out of the folder that they are written in."""
    root = (base or Path.cwd()).resolve()
    path = (root / name).resolve()
    if Path(name).is_absolute() or "\0" in name or not path.is_relative_to(root):
        raise InputError(f"{what} '{name}': leads out of {root}; allowed are paths below it")
    return path


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such task file; shipped tasks: {', '.join(task_names())}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a task is a mapping with 'name', 'setting' and 'train'")
    return content


@lru_cache(maxsize=256)
def fingerprint(task: Task) -> str:
    """SHA-256 over what the task says (not what it is called) and over its files' content."""
    # nothing is learned from a row's difficulty; where it chooses rows, a Fit's data say so themselves
    said = task.model_dump(exclude={"path", "name", "description", "licence", "train", "test", "difficulty"})
    content = {part: hashlib.sha256(path.read_bytes()).hexdigest() for part, path in task.files.items()}
    return hashlib.sha256(canonical_json({"task": said, "files": content}).encode()).hexdigest()


def num_rows(task: Task) -> int:
    """Rows in all files, without reading them where the format tells."""
    return sum(_num_rows(path) for path in task.files.values())


def _num_rows(path: Path) -> int:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip()) - (path.suffix == ".csv")


@lru_cache(maxsize=256)
def shape(task: Task) -> Shape:
    table = _read(task, task.files["train"]).slice(0, MEAN_OVER_NUM_ROWS)
    texts, completions = _filled(task, table, task.template), _completions(task, table)
    read = [
        sum(len(text) + len(each) for each in row) or len(text) for text, row in zip(texts, completions, strict=True)
    ]
    mean = sum(read) / max(1, len(read))
    num_test = _num_rows(task.files["test"]) if task.test else None
    return Shape(num_rows=_num_rows(task.files["train"]), num_test=num_test, mean_characters=mean)


# --- rows ---------------------------------------------------------------------------------------------------------


def _read(task: Task, path: Path) -> pa.Table:
    """The columns that the task names, of one file."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
        elif path.suffix == ".csv":
            import pyarrow.csv

            table = pyarrow.csv.read_csv(path)
        else:
            import pyarrow.json

            table = pyarrow.json.read_json(path)
    except FileNotFoundError as error:
        raise InputError(f"{task.path}: no such file: {path}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: can't be read as {path.suffix[1:]}: {error}") from error
    for column in task.columns:
        if column not in table.column_names:
            raise InputError(
                f"{path}: no column '{column}'{nearest(column, table.column_names)}, which {task.path.name} names; "
                f"there are: {', '.join(table.column_names)}"
            )
    return table.select(task.columns)


def _filled(task: Task, table: pa.Table, template: str) -> list[str]:
    try:
        return [template.format(**row).strip() for row in table.to_pylist()]
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"{task.path}: template: {template!r} can't be filled from the columns ({error})") from error


def _completions(task: Task, table: pa.Table) -> list[tuple[str, ...]]:
    columns = [_filled(task, table, template) for template in task.completions]
    return list(zip(*columns, strict=True)) if columns else [()] * table.num_rows


def _labels(task: Task, path: Path, table: pa.Table) -> list[int | None]:
    """The label column, or what stands for it: 1 (the first is better) in a comparison, none in a generation."""
    if task.label_column is None:
        return [1 if task.setting == "comparison" else None] * table.num_rows
    labels = table.column(task.label_column).to_pylist()
    for row, label in enumerate(labels):
        if isinstance(label, str) or label not in (0, 1):
            raise InputError(
                f"{path}: row {row + 1}, column '{task.label_column}': given {label!r}, allowed are 0 and 1"
            )
    return [int(label) for label in labels]


def _difficulties(task: Task, path: Path, table: pa.Table) -> list[float | None]:
    if task.difficulty is None:
        return [None] * table.num_rows
    values = table.column(task.difficulty).to_pylist()
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{path}: row {row + 1}, column '{task.difficulty}': given {value!r}, allowed are numbers")
    return [float(value) for value in values]


@lru_cache(maxsize=256)
def check(task: Task) -> None:
    """Read every row once and refuse the first bad one. Rows are counted from 1, without a header."""
    for path in task.files.values():
        table = _read(task, path)
        if table.num_rows == 0:
            raise InputError(f"{path}: has no rows")
        _labels(task, path, table)
        _difficulties(task, path, table)
        for template in (task.template, *task.completions):
            if not template and task.setting == "comparison":
                continue
            for row, text in enumerate(_filled(task, table, template)):
                if not text:
                    raise InputError(f"{path}: row {row + 1}: the text is empty (template {template!r})")


def read_rows(task: Task) -> pa.Table:
    """All rows, as ROWS says. Of rows with one id the first stays; where they disagree about what is right, none does,
    nor does a comparison of a text with itself. A row of `train` whose id is also in `test` is dropped."""
    check(task)
    rows: dict[str, dict[str, Any]] = {}
    answers: dict[str, Any] = {}
    contradictory = set()
    for part, path in reversed(task.files.items()):
        table = _read(task, path)
        texts, completions = _filled(task, table, task.template), _completions(task, table)
        labels, difficulties = _labels(task, path, table), _difficulties(task, path, table)
        ids = (
            table.column(task.id).to_pylist()
            if task.id
            else [
                _hash("\0".join([text, *sorted(shown)]) if task.setting == "comparison" else text)[:16]
                for text, shown in zip(texts, completions, strict=True)
            ]
        )
        groups = (
            table.column(task.group).to_pylist() if task.group else [t or i for t, i in zip(texts, ids, strict=True)]
        )
        columns = (map(str, ids), texts, completions, groups, labels, difficulties)
        for id_, text, shown, group, label, difficulty in zip(*columns, strict=True):
            answer = shown[1 - (label or 0)] if task.setting == "comparison" else (label, *shown)
            if answers.setdefault(id_, answer) != answer or (len(shown) == 2 and shown[0] == shown[1]):
                contradictory.add(id_)
            if task.setting == "comparison" and task.label_column is None and int(_hash(f"order:{id_}"), 16) % 2:
                shown, label = shown[::-1], 0
            found = {"id": id_, "text": text, "completions": shown, "group": str(group), "label": label}
            rows.setdefault(id_, found | {"difficulty": difficulty, "part": part})
    return pa.Table.from_pylist([row for row in rows.values() if row["id"] not in contradictory], schema=ROWS)


# --- dealing ------------------------------------------------------------------------------------------------------


def deal(
    rows: pa.Table,
    *,
    split_seed: int,
    num_train: int | None,
    num_test: int | None,
    difficulty: tuple[float, float] = (-math.inf, math.inf),
) -> dict[str, pa.Table]:
    """Halves A and B and the test set: disjoint in groups and texts, each with as many rows of label 1 as of label 0
    (a generation has no labels to balance).

    The test set is taken first, from rows of any difficulty, so it stays the same when the halves grow, and when they are
    dealt from rows of some range of `difficulty` alone. Groups come in the order of their hash.
    """
    ordered = _by_group(rows.to_pylist(), split_seed=split_seed)
    has_test = any(row["part"] == "test" for group in ordered for row in group)
    if has_test:
        # a group that touches the test file belongs to the test set with all its rows
        candidates = [[r for r in group if r["part"] == "test"] for group in ordered]
        rest = [group for group, test_rows in zip(ordered, candidates, strict=True) if not test_rows]
        test, _ = _take([group for group in candidates if group], num_test)
    else:
        test, rest = _take(ordered, num_test if num_test is not None else rows.num_rows // 5)
    if difficulty != (-math.inf, math.inf):
        low, high = difficulty
        rest = [[row for row in group if low <= row["difficulty"] <= high] for group in rest]
        rest = [group for group in rest if group]
    if num_train is None:
        halves = [_take(rest[half::2], None)[0] for half in (0, 1)]
        size = min(map(len, halves))
        parts = {name: _take([[row] for row in half], size)[0] for name, half in zip("AB", halves, strict=True)}
    else:
        first, others = _take(rest, num_train)
        parts = {"A": first, "B": _take(others, num_train)[0]}
    parts["test"] = test
    wanted = {"A": num_train, "B": num_train, "test": num_test}
    for name, part in parts.items():
        if len(part) < (wanted[name] or 2) // 2 * 2:
            raise InputError(
                f"split: {wanted[name] or 2} rows with balanced labels are wanted in {name}, but only {len(part)} are "
                f"left of {rows.num_rows}; lower split.num_train or split.num_test"
            )
    return {name: pa.Table.from_pylist(part, schema=rows.schema) for name, part in parts.items()}


def _by_group(rows: list[dict[str, Any]], *, split_seed: int) -> list[list[dict[str, Any]]]:
    """Groups, merged where they share a text, in the order of their hash under the seed; rows likewise within."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for row in rows:
        for shown in row["completions"] if len(row["completions"]) == 2 else [""]:
            a, b = find(f"group:{row['group']}"), find(f"text:{row['text']}\0{shown}")
            leader[max(a, b)] = min(a, b)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: _hash(f"{split_seed}:{row['id']}")):
        groups.setdefault(find(f"group:{row['group']}"), []).append(row)
    return sorted(groups.values(), key=lambda group: min(_hash(f"{split_seed}:group:{row['group']}") for row in group))


def _take(
    groups: list[list[dict[str, Any]]], num_rows: int | None
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Rows from the front until each label has its share of `num_rows` (None: as many as the rarest label has), and the
    groups that were not touched."""
    labels = {row["label"] for group in groups for row in group} or {None}
    labels |= {0, 1} if labels != {None} else set()
    if num_rows is None:
        per_label = min(sum(r["label"] == label for g in groups for r in g) for label in labels)
    else:
        per_label = num_rows // len(labels)
    taken: dict[int | None, list[dict[str, Any]]] = {label: [] for label in sorted(labels, key=str)}
    for index, group in enumerate(groups):
        if min(map(len, taken.values())) >= per_label:
            return [row for rows in taken.values() for row in rows], groups[index:]
        for row in group:
            if len(taken[row["label"]]) < per_label:
                taken[row["label"]].append(row)
    size = min(map(len, taken.values()))
    return [row for rows in taken.values() for row in rows[:size]], []


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
