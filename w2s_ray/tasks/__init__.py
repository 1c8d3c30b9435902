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

import gzip
import hashlib
import math
import re
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from w2s_ray import hub
from w2s_ray.errors import InputError, nearest
from w2s_ray.fit import Setting, canonical_json
from w2s_ray.tasks.shapes import Item, Shape, as_lines, unfold, value

SHIPPED = Path(__file__).parent
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".jsonl.gz")
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


class Hub(BaseModel):
    """A data set of the hub. By default its parquet export is read, which every data set has in one layout, those whose
    own files can only be read by a script among them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    revision: str = "refs/convert/parquet"
    config: str = "*"
    files: str = "{config}/{split}/*.parquet"
    """Where a split's files lie in the repository."""

    def pattern(self, split: str) -> str:
        return self.files.format(config=self.config, split=split)


class Where(BaseModel):
    """Rows whose column has one of some values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    among: tuple[Any, ...] = Field(min_length=1)


class Task(BaseModel):
    """A task's YAML, checked, and where it lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{NAME}$")
    setting: Setting
    description: str = ""
    licence: str = "unknown"
    hub: Hub | None = None
    """Where the rows come from, if not from files beside the YAML."""
    train: str
    """File of rows, relative to the YAML, or its https address; of the hub, a split."""
    test: str | None = None
    """File, or split, of test rows; without it the test set is taken from the rows of `train`."""
    test_of: str | None = None
    """Another task, by name or path, all of whose rows are the test set: to be tested where nothing was learned from."""
    header: tuple[str, ...] | None = None
    """Names of the columns of csv and tsv files that have none."""
    max_rows: int | None = Field(default=None, ge=1)
    """Of each file set, so many rows are taken, spread evenly; default all."""
    shape: Shape = Shape()
    """How rows become items, where a row is not one."""
    lines: tuple[str, ...] = ()
    """Columns that hold lists (of turns, of messages), which become lines of text."""
    remove: str | None = None
    """Regular expression of what is cut out of texts."""
    where: Where | None = None
    """Which rows are taken; default all."""
    template: str = "{text}"
    """The text of a row, from its columns in braces; the prompt where there are completions, and then it may be empty."""
    completions: tuple[str, ...] = ()
    """Templates: the right completion (generation), or the two that are compared (comparison)."""
    label: str | None = None
    """Column with 0 or 1 (or false and true), default `label`. In a comparison 1 says that the first completion is the
    better one; without it, it always is, and the two are shown in an order that the row's id decides."""
    positive: tuple[Any, ...] = ()
    """Values of the label column that mean 1, where they are not 0 and 1."""
    negative: tuple[Any, ...] = ()
    """Those that mean 0; rows with any other value are left out."""
    group: str | None = None
    """Column whose equal values stay in one part (a question, a premise); none: each row by itself."""
    id: str | None = None
    """Column with unique ids; none: the hash of the text (and of the compared completions)."""
    difficulty: str | None = None
    """Column with a number, more for the harder (Elo, pieces, steps): to learn from some rows and be tested on all."""
    path: Path
    test_revision: str | None = None
    """Of the task that the test set is of; a plan fixes it."""

    @model_validator(mode="after")
    def _of_one_setting(self) -> Task:
        wanted = NUM_COMPLETIONS[self.setting]
        if len(self.completions) != wanted:
            raise ValueError(f"{self.setting} takes {wanted} completions, given {len(self.completions)}")
        if self.test is not None and self.test_of is not None:
            raise ValueError("test and test_of: allowed is one of them")
        if self.setting == "generation" and self.label:
            raise ValueError("generation takes no label: its completion is the right one")
        return self

    @property
    def label_column(self) -> str | None:
        told = bool({"choices", "ordered", "preference", "scores"} & self.shape.model_fields_set)
        return None if told else self.label or ("label" if self.setting == "classification" else None)

    @property
    def sources(self) -> dict[str, str]:
        """Part -> file or split."""
        return {part: name for part, name in (("train", self.train), ("test", self.test)) if name is not None}

    @property
    def columns(self) -> list[str]:
        """The columns of its files that this task reads."""
        templates = "".join((self.template, *self.completions))
        filled = [name for _, name, _, _ in string.Formatter().parse(templates) if name]
        named = [self.label_column, self.group, self.id, self.difficulty]
        used = [name for name in (*filled, *named) if name and re.split(r"[.\[]", name)[0] not in self.shape.made]
        where = (self.where.column,) if self.where else ()
        read = [re.split(r"[.\[]", name)[0] for name in (*used, *self.shape.columns, *where)]
        return list(dict.fromkeys(read))


@dataclass(frozen=True)
class Size:
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
    known = [field for field in Task.model_fields if field not in ("path", "test_revision")]
    for key in content:
        if key not in known:
            raise InputError(f"{path}: unknown key '{key}'{nearest(str(key), known)}; allowed: {', '.join(known)}")
    try:
        task = Task.model_validate(content | {"path": path.resolve()})
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    for part, name in task.sources.items() if task.hub is None else ():
        if name.startswith("https://"):
            continue
        if not (_inside(task.path.parent, name, what=part)).name.endswith(SUFFIXES):
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


def of(source: str, *, commits: tuple[str | None, str | None]) -> Task:
    """The task of a plan, wherever it is worked on: of the commits that were planned with, whatever a branch is by now."""
    task = load_task(source)
    if task.hub is not None and commits[0] is not None:
        task = task.model_copy(update={"hub": task.hub.model_copy(update={"revision": commits[0]})})
    return task.model_copy(update={"test_revision": commits[1]})


def pinned(task: Task) -> tuple[str | None, str | None]:
    """The commits that its revision, and that of the task that its test set is of, stand for now; None for what is no
    repository of the hub, or has a copy here."""
    other = tested_on(task)
    return _commit(task), _commit(other) if other else None


def _commit(task: Task) -> str | None:
    if task.hub is None or hub.copy_of(task.hub.id, kind="dataset") is not None:
        return None
    return hub.commit_of(task.hub.id, task.hub.revision, kind="dataset")


def tested_on(task: Task) -> Task | None:
    """The task that the test set is of, if it is another."""
    if task.test_of is None:
        return None
    other = load_task(task.test_of, base=task.path.parent)
    if other.setting != task.setting or other.test_of is not None:
        raise InputError(
            f"{task.path}: test_of: '{other.name}' is a {other.setting} of its own; allowed is a {task.setting}"
        )
    if other.hub is not None and task.test_revision is not None:
        other = other.model_copy(update={"hub": other.hub.model_copy(update={"revision": task.test_revision})})
    return other


@lru_cache(maxsize=256)
def files(task: Task) -> dict[str, list[Path]]:
    """Part -> files; those of the hub are fetched where they are not on this machine."""
    if task.hub is None:
        return {
            part: [hub.fetched(name) if name.startswith("https://") else task.path.parent / name]
            for part, name in task.sources.items()
        }
    patterns = {part: task.hub.pattern(split) for part, split in task.sources.items()}
    copy = hub.copy_of(task.hub.id, kind="dataset")
    found = {}
    for part, pattern in patterns.items():
        if copy is not None:
            found[part] = hub.matching(copy, [pattern])
        else:
            commit = hub.commit_of(task.hub.id, task.hub.revision, kind="dataset")
            found[part] = hub.files_of(task.hub.id, commit, patterns=[pattern])
        if not found[part]:
            where = copy or f"{task.hub.id} at {task.hub.revision}"
            raise InputError(
                f"{task.path}: {part}: no file {pattern} in {where}; has its layout or its splits changed?"
            )
    return found


@lru_cache(maxsize=256)
def fingerprint(task: Task) -> str:
    """SHA-256 over what the task says (not what it is called) and over its files' content, or over their commit."""
    # nothing is learned from a row's difficulty; where it chooses rows, a Fit's data say so themselves
    apart = {"path", "name", "description", "licence", "train", "test", "difficulty", "hub", "test_of", "test_revision"}
    said = task.model_dump(exclude=apart)
    for later in ("header", "max_rows", "shape", "lines", "remove", "where", "positive", "negative"):
        if later not in task.model_fields_set:  # came after the first stores were filled
            del said[later]
    if (other := tested_on(task)) is not None:
        said["test_of"] = fingerprint(other)
    if task.hub is not None and (commit := _commit(task)) is not None:
        splits = {part: task.hub.pattern(split) for part, split in task.sources.items()}
        return hashlib.sha256(
            canonical_json({"task": said, "hub": [task.hub.id, commit], "splits": splits}).encode()
        ).hexdigest()
    content = {}
    for part, paths in files(task).items():
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        content[part] = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return hashlib.sha256(canonical_json({"task": said, "files": content}).encode()).hexdigest()


def num_rows(task: Task) -> int | None:
    """Rows in all files, without reading them where the format tells; None where they are not on this machine."""
    elsewhere = any(name.startswith("https://") for name in task.sources.values())
    if elsewhere or (task.hub is not None and hub.copy_of(task.hub.id, kind="dataset") is None):
        return None
    return sum(_num_rows(task, part) for part in task.sources)


def _num_rows(task: Task, part: str) -> int:
    count = 0
    for path in files(task)[part]:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            count += int(pq.read_metadata(path).num_rows)
        else:
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rb") as file:
                header = path.suffix == ".csv" and task.header is None
                count += sum(1 for line in file if line.strip()) - header
    return min(count, task.max_rows or count)


@lru_cache(maxsize=256)
def size(task: Task) -> Size:
    items = _items(task, "train", limit=MEAN_OVER_NUM_ROWS)
    texts, completions = _filled(task, items, task.template), _completions(task, items)
    read = [
        sum(len(text) + len(each) for each in row) or len(text) for text, row in zip(texts, completions, strict=True)
    ]
    mean = sum(read) / max(1, len(read))
    per_row = task.shape.items_per_row
    num_test = round(_num_rows(task, "test") * per_row) if task.test else None
    if (other := tested_on(task)) is not None:
        num_test = size(other).num_rows + (size(other).num_test or 0)
    return Size(num_rows=round(_num_rows(task, "train") * per_row), num_test=num_test, mean_characters=mean)


# --- rows ---------------------------------------------------------------------------------------------------------


def _read(task: Task, path: Path) -> pa.Table:
    """The columns that the task names, of one file."""
    try:
        table = _read_file(task, path)
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
    return table.select([*task.columns, *(c for c in ALSO if c in table.column_names and task.shape.puzzle)])


ALSO = ("GameId", "GameUrl", "PuzzleId")
"""Columns of Lichess puzzles, which one schema has and the other has not."""


def _read_file(task: Task, path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path)
    if path.suffix in (".csv", ".tsv"):
        import pyarrow.csv

        quote = '"' if path.suffix == ".csv" else False  # quotation marks in a tsv are text
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=task.header),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="," if path.suffix == ".csv" else "\t", quote_char=quote, newlines_in_values=bool(quote)
            ),
        )
    import pyarrow.json

    with pa.input_stream(path, compression="detect") as stream:
        return pyarrow.json.read_json(stream, read_options=pyarrow.json.ReadOptions(block_size=2**26))


def _items(task: Task, part: str, *, limit: int | None = None) -> list[Item]:
    """The items of a part, those of the first `limit` rows; what is wrong names the file and the row."""
    found: list[Item] = []
    for path, rows in _rows(task, part, limit=limit):
        try:
            items, _ = unfold(task.shape, rows)
        except (ValueError, ModuleNotFoundError) as error:
            raise InputError(f"{path}: {error}") from error
        found += [_in_lines(task, item) for item in items if item.label is not None or _is_labelled(task, item)]
    return found


def _in_lines(task: Task, item: Item) -> Item:
    if not task.lines:
        return item
    return replace(item, fields=item.fields | {name: as_lines(item.fields[name]) for name in task.lines})


def _rows(task: Task, part: str, *, limit: int | None) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    paths = files(task)[part]
    most = task.max_rows if len(paths) == 1 or task.max_rows is None else -(-task.max_rows // len(paths))
    for path in paths:
        table = _read(task, path)
        if table.num_rows == 0:
            raise InputError(f"{path}: has no rows")
        if task.where is not None:
            column = table.column(task.where.column).to_pylist()
            table = table.filter(pa.array([each in task.where.among for each in column]))
        if most is not None and table.num_rows > most:
            table = table.take(pa.array([i * table.num_rows // most for i in range(most)]))
        yield path, table.slice(0, limit).to_pylist()
        if limit is not None:
            return


def _is_labelled(task: Task, item: Item) -> bool:
    """Whether a row's label is one that counts; where nothing is said of values, all are, and the wrong ones refused."""
    if task.label_column is None or not (task.positive or task.negative):
        return True
    return value(item.fields, task.label_column) in (*task.positive, *task.negative)


def _filled(task: Task, items: list[Item], template: str) -> list[str]:
    try:
        texts = [template.format(**item.fields) for item in items]
        if task.remove is not None:
            texts = [re.sub(r"  +", " ", re.sub(task.remove, " ", text)) for text in texts]
        return [text.strip() for text in texts]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{task.path}: template: {template!r} can't be filled from the columns ({error})") from error


def _completions(task: Task, items: list[Item]) -> list[tuple[str, ...]]:
    columns = [_filled(task, items, template) for template in task.completions]
    return list(zip(*columns, strict=True)) if columns else [()] * len(items)


def _labels(task: Task, where: str, items: list[Item]) -> list[int | None]:
    """What the shape says, or the label column, or what stands for it: 1 (the first is better) in a comparison, none in a
    generation."""
    if task.label_column is None:
        without = 1 if task.setting == "comparison" else None
        return [item.label if item.label is not None else without for item in items]
    labels: list[int | None] = []
    for item in items:
        label = value(item.fields, task.label_column)
        if task.positive or task.negative:
            label = int(label in task.positive)
        if isinstance(label, str) or label not in (0, 1):
            raise InputError(
                f"{where}: row {item.row}, column '{task.label_column}': given {label!r}, allowed are 0 and 1"
            )
        labels.append(int(label))
    return labels


def _difficulties(task: Task, where: str, items: list[Item]) -> list[float | None]:
    if task.difficulty is None:
        return [None] * len(items)
    found: list[float | None] = []
    for item in items:
        number = value(item.fields, task.difficulty)
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise InputError(
                f"{where}: row {item.row}, column '{task.difficulty}': given {number!r}, allowed are numbers"
            )
        found.append(float(number))
    return found


@lru_cache(maxsize=256)
def check(task: Task) -> None:
    """Read every row once and refuse the first bad one. Rows are counted from 1, without a header."""
    if (other := tested_on(task)) is not None:
        check(other)
    for part in task.sources:
        where = _name(task, part)
        items = _items(task, part)
        if not items:
            raise InputError(f"{where}: no row can be used")
        _labels(task, where, items)
        _difficulties(task, where, items)
        for template in (task.template, *task.completions):
            if not template and task.setting == "comparison":
                continue
            for item, text in zip(items, _filled(task, items, template), strict=True):
                if not text:
                    raise InputError(f"{where}: row {item.row}: the text is empty (template {template!r})")


def _name(task: Task, part: str) -> str:
    """A part's file in messages, or its first one."""
    paths = files(task)[part]
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} (and {len(paths) - 1} more)"


def dropped(task: Task) -> dict[str, int]:
    """How many rows the task's shape can't use, and why."""
    counts: Counter[str] = Counter()
    for part in task.sources:
        for _, rows in _rows(task, part, limit=None):
            counts += unfold(task.shape, rows)[1]
    return dict(counts)


def read_rows(task: Task) -> pa.Table:
    """All rows, as ROWS says. Of rows with one id the first stays; where they disagree about what is right, none does,
    nor does a comparison of a text with itself. A row of `train` whose id is also in `test` is dropped."""
    check(task)
    rows: dict[str, dict[str, Any]] = {}
    answers: dict[str, Any] = {}
    contradictory = set()
    parts = [(part, task, part) for part in reversed(task.sources)]
    if (other := tested_on(task)) is not None:
        parts = [*(("test", other, part) for part in reversed(other.sources)), *parts]
    for part, source, its_part in parts:
        for row in _filled_rows(source, its_part):
            id_, shown = row["id"], row["completions"]
            answer = shown[1 - (row["label"] or 0)] if task.setting == "comparison" else (row["label"], *shown)
            if answers.setdefault(id_, answer) != answer or (len(shown) == 2 and shown[0] == shown[1]):
                contradictory.add(id_)
            if task.setting == "comparison" and source.label_column is None and int(_hash(f"order:{id_}"), 16) % 2:
                row |= {"completions": shown[::-1], "label": 1 - (row["label"] or 0)}
            rows.setdefault(id_, row | {"part": part})
    return pa.Table.from_pylist([row for row in rows.values() if row["id"] not in contradictory], schema=ROWS)


def _filled_rows(task: Task, part: str) -> Iterator[dict[str, Any]]:
    """The items of a part with their texts, as ROWS says."""
    where, items = _name(task, part), _items(task, part)
    texts, completions = _filled(task, items, task.template), _completions(task, items)
    labels, difficulties = _labels(task, where, items), _difficulties(task, where, items)
    ids = (
        [_own_id(task, item) for item in items]
        if task.id
        else [
            _hash("\0".join([text, *sorted(shown)]) if task.setting == "comparison" else text)[:16]
            for text, shown in zip(texts, completions, strict=True)
        ]
    )
    groups = (
        [value(item.fields, task.group) for item in items]
        if task.group
        else [t or i for t, i in zip(texts, ids, strict=True)]
    )
    columns = (map(str, ids), texts, completions, map(str, groups), labels, difficulties)
    for row in zip(*columns, strict=True):
        yield dict(zip(("id", "text", "completions", "group", "label", "difficulty"), row, strict=True))


def _own_id(task: Task, item: Item) -> str:
    """The row's id; of the two items of a question, with the answer that it shows."""
    own = str(value(item.fields, str(task.id)))
    return f"{own}-{item.label}" if task.shape.choices else own


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
