"""Tasks as data: where rows come from, how a row becomes text and label, how rows are dealt out.

A task is one YAML entry beside its files (parquet, csv or jsonl). Promises: what is wrong is an `InputError` that
names the file, the column and the row; the text of a row never depends on other rows; rows that share a group stay in
one part; both classes are equally frequent in every part; and the dealing depends on the rows' ids alone, not on their
order in the file, nor on the process.
"""

from __future__ import annotations

import hashlib
import re
import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from w2s_ray.errors import InputError, nearest
from w2s_ray.fit import canonical_json

SHIPPED = Path(__file__).parent
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
SUFFIXES = (".parquet", ".csv", ".jsonl")
MEAN_OVER_NUM_ROWS = 1000


class Task(BaseModel):
    """A task's YAML, checked, and where it lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{NAME}$")
    setting: Literal["classification"]
    description: str = ""
    licence: str = "unknown"
    standin: bool = False
    """Made for trying the instrument out; not a result about the world."""
    train: str
    """File of rows, relative to the YAML."""
    test: str | None = None
    """File of test rows; without it the test set is taken from the rows of `train`."""
    template: str = "{text}"
    """The text of a row, from its columns in braces."""
    label: str = "label"
    """Column with 0 or 1 (or false and true)."""
    group: str | None = None
    """Column whose equal values stay in one part (a question, a premise); none: each row by itself."""
    id: str | None = None
    """Column with unique ids; none: the hash of the text."""
    path: Path

    @property
    def files(self) -> dict[str, Path]:
        named = {"train": self.train, "test": self.test}
        return {part: self.path.parent / name for part, name in named.items() if name is not None}

    @property
    def columns(self) -> list[str]:
        """The columns that this task reads."""
        used = [name for _, name, _, _ in string.Formatter().parse(self.template) if name]
        return list(dict.fromkeys([*used, self.label, *(c for c in (self.group, self.id) if c)]))


@dataclass(frozen=True)
class Shape:
    """What can be told of a task's size without reading all of it."""

    num_rows: int
    num_test: int | None
    """Rows of its own test file, if it has one."""
    mean_characters: float


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
    said = task.model_dump(exclude={"path", "name", "description", "licence", "standin", "train", "test"})
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
    texts = _texts(task, _read(task, task.files["train"]).slice(0, MEAN_OVER_NUM_ROWS))
    mean = sum(map(len, texts)) / max(1, len(texts))
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


def _texts(task: Task, table: pa.Table) -> list[str]:
    try:
        return [task.template.format(**row).strip() for row in table.to_pylist()]
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(
            f"{task.path}: template: {task.template!r} can't be filled from the columns ({error})"
        ) from error


def _labels(task: Task, path: Path, table: pa.Table) -> list[int]:
    labels = table.column(task.label).to_pylist()
    for row, label in enumerate(labels):
        if isinstance(label, str) or label not in (0, 1):
            raise InputError(f"{path}: row {row + 1}, column '{task.label}': given {label!r}, allowed are 0 and 1")
    return [int(label) for label in labels]


@lru_cache(maxsize=256)
def check(task: Task) -> None:
    """Read every row once and refuse the first bad one. Rows are counted from 1, without a header."""
    for path in task.files.values():
        table = _read(task, path)
        if table.num_rows == 0:
            raise InputError(f"{path}: has no rows")
        _labels(task, path, table)
        for row, text in enumerate(_texts(task, table)):
            if not text:
                raise InputError(f"{path}: row {row + 1}: the text is empty (template {task.template!r})")


def read_rows(task: Task) -> pa.Table:
    """All rows: id, text, group, label, part (`train` or `test`). Of rows with one id the first stays; where
    their labels disagree, none does. A row of `train` whose id is also in `test` is dropped."""
    check(task)
    rows: dict[str, dict[str, Any]] = {}
    contradictory = set()
    for part, path in reversed(task.files.items()):
        table = _read(task, path)
        texts, labels = _texts(task, table), _labels(task, path, table)
        groups = [str(g) for g in table.column(task.group).to_pylist()] if task.group else texts
        ids = table.column(task.id).to_pylist() if task.id else [_hash(text)[:16] for text in texts]
        for id_, text, group, label in zip(map(str, ids), texts, groups, labels, strict=True):
            before = rows.setdefault(id_, {"id": id_, "text": text, "group": group, "label": label, "part": part})
            if before["label"] != label:
                contradictory.add(id_)
    kept = [row for row in rows.values() if row["id"] not in contradictory]
    types = {"id": pa.string(), "text": pa.string(), "group": pa.string(), "label": pa.int8(), "part": pa.string()}
    return pa.Table.from_pylist(kept, schema=pa.schema(types))


# --- dealing ------------------------------------------------------------------------------------------------------


def deal(rows: pa.Table, *, split_seed: int, num_train: int | None, num_test: int | None) -> dict[str, pa.Table]:
    """Halves A and B and the test set: disjoint in groups and texts, each with as many rows of label 1 as of label 0.

    The test set is taken first, so it stays the same when the halves grow. Groups come in the order of their hash.
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
                f"split: {wanted[name] or 2} rows with balanced classes are wanted in {name}, but only {len(part)} are "
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
        a, b = find(f"group:{row['group']}"), find(f"text:{row['text']}")
        leader[max(a, b)] = min(a, b)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: _hash(f"{split_seed}:{row['id']}")):
        groups.setdefault(find(f"group:{row['group']}"), []).append(row)
    return sorted(groups.values(), key=lambda group: min(_hash(f"{split_seed}:group:{row['group']}") for row in group))


def _take(
    groups: list[list[dict[str, Any]]], num_rows: int | None
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Rows from the front until each class has half of `num_rows` (None: as many as the rarer class has), and the
    groups that were not touched."""
    per_class = (
        num_rows // 2 if num_rows is not None else min(sum(r["label"] == c for g in groups for r in g) for c in (0, 1))
    )
    taken: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for index, group in enumerate(groups):
        if min(len(taken[0]), len(taken[1])) >= per_class:
            return taken[0] + taken[1], groups[index:]
        for row in group:
            if len(taken[row["label"]]) < per_class:
                taken[row["label"]].append(row)
    size = min(len(taken[0]), len(taken[1]))
    return taken[0][:size] + taken[1][:size], []


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
