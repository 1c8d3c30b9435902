"""A task's YAML entry: which files its rows come from and how a row becomes text and label.

A task has one of three settings:

    classification    a text and a label, 0 or 1
    generation        a prompt and its right completion
    comparison        a prompt (which may be empty) and two completions, one of them better

Promises: a mistake in the YAML is an `InputError` that names the file and the field; a task reads the files that it names,
wherever they lie, and no others; its fingerprint depends on the YAML's meaning and on the content of its files, not on names, paths
or prose.
"""

from __future__ import annotations

import hashlib
import re
import string
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from w2s_ray import hub
from w2s_ray.errors import InputError, nearest
from w2s_ray.fit import Setting, canonical_json
from w2s_ray.tasks.grouping import GroupBy
from w2s_ray.tasks.shapes import Shape

CATALOGUE = Path(__file__).parent / "catalogue"
"""The folder of the tasks that ship."""
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".jsonl.gz")
NUM_COMPLETIONS: dict[Setting, int] = {"classification": 0, "generation": 1, "comparison": 2}
NOT_IN_FINGERPRINT = {
    # names, prose and places
    *("path", "name", "description", "licence"),
    # the content of the files, or their commit, is hashed instead
    *("train", "test", "hub", "test_of", "test_revision"),
    # difficulty changes no row; where it selects rows, `Data.difficulty` is part of the Fit's identity
    "difficulty",
}
IN_FINGERPRINT_IF_SET = ("header", "max_rows", "shape", "lines", "remove", "where", "positive", "negative", "group_by")
"""Fields that were added later. Left out when unset, so that older tasks keep their fingerprint."""


MEANT = {
    **dict.fromkeys(("file", "files", "data", "path", "dataset", "rows"), "train"),
    **dict.fromkeys(("text", "prompt", "input"), "template"),
}
"""What people write -> the key that they mean."""


def _as_list(given: Any) -> Any:
    """One value where a list belongs."""
    return [given] if isinstance(given, str | int | float) else given


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=str | tuple[str, ...])]
Values = Annotated[tuple[Any, ...], BeforeValidator(_as_list, json_schema_input_type=Any)]


class Hub(BaseModel):
    """A data set on the Hugging Face hub.

    The default is the hub's parquet export. It has the same layout for every data set and also covers data sets whose
    own files need a loading script.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str
    revision: str = "refs/convert/parquet"
    config: str = "*"
    files: str = "{config}/{split}/*.parquet"
    """Glob pattern of a split's files in the repository."""

    def pattern(self, split: str) -> str:
        return self.files.format(config=self.config, split=split)


class Where(BaseModel):
    """A filter: keep rows whose column has one of these values."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    column: str
    among: Values = Field(min_length=1)


class Task(BaseModel):
    """A validated task YAML."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=f"^{NAME}$")
    setting: Setting
    description: str = ""
    licence: str = "unknown"
    hub: Hub | None = None
    """The data set to read. Default: files beside the YAML."""
    train: str
    """A file, absolute or relative to the YAML, or its https address. With `hub`, the name of a split."""
    test: str | None = None
    """A file or split of test rows. Default: the test set is taken from the rows of `train`."""
    test_of: str | None = None
    """Another task, by name or path. All its rows become the test set, to measure transfer to other data."""
    header: tuple[str, ...] | None = None
    """Column names, for csv and tsv files without a header line."""
    max_rows: int | None = Field(default=None, ge=1)
    """Take at most this many rows of `train` and of `test`, evenly spaced. Default: all."""
    shape: Shape = Shape()
    """How rows become items, where a row is not an item by itself."""
    lines: Texts = ()
    """Columns with lists (of turns, of messages) to join into lines of text."""
    remove: str | None = None
    """A regular expression; every match is cut out of the texts."""
    where: Where | None = None
    """Which rows to take. Default: all."""
    template: str = "{text}"
    """The text of a row, with its columns in braces. Where there are completions, this is the prompt; in a comparison it may
    be empty."""
    completions: Texts = ()
    """Templates of the right completion (generation) or of the two completions to compare (comparison)."""
    label: str | None = None
    """Column with 0 or 1 (or false and true); the default in a classification is `label`. In a comparison, 1 means that
    the first completion is the better one. A comparison without a label column always has the better one first, and the
    two are then shown in an order drawn from the row's id."""
    positive: Values = ()
    """Values of the label column that mean 1, where they are not 0 and 1."""
    negative: Values = ()
    """Values of the label column that mean 0. Rows with any value outside `positive` and `negative` are left out."""
    group: str | tuple[str, ...] | None = None
    """Column with what rows share (a question, a premise), or several such columns. Rows that share a value stay in one part.
    Default: each text is a group."""
    group_by: GroupBy = "value"
    """How to compare the values of `group` (`tasks/grouping.py`). Default: equal values."""
    id: str | None = None
    """Column with unique ids. Default: a hash of the text (and of the completions in a comparison)."""
    difficulty: str | None = None
    """Column with a number that grows with difficulty (Elo, pieces, steps). Studies can train on a range of it."""
    path: Path
    test_revision: str | None = None
    """Commit of the `test_of` task's data set; set by a plan, not in the YAML."""

    @model_validator(mode="after")
    def _fields_fit_the_setting(self) -> Task:
        num_completions = NUM_COMPLETIONS[self.setting]
        if len(self.completions) != num_completions:
            raise ValueError(f"{self.setting} takes {num_completions} completions, given {len(self.completions)}")
        if self.test is not None and self.test_of is not None:
            raise ValueError("given both test and test_of; give one of them")
        if self.group_by != "value" and not self.group:
            raise ValueError("given group_by without group")
        if self.setting == "generation" and self.label:
            raise ValueError("generation takes no label: its completion is the right one")
        if self.train == self.test:
            raise ValueError(
                f"given {self.test!r} as train and as test; the test rows must be others, or leave out test"
            )
        if len(self.completions) > len(set(self.completions)):
            raise ValueError(f"both completions are {self.completions[0]!r}; the two must differ")
        if bool(self.positive) != bool(self.negative):
            raise ValueError("given one of positive and negative; name the label's values for both")
        if both := [value for value in self.positive if value in self.negative]:
            raise ValueError(f"{both[0]!r} is in positive and in negative")
        for name, template in (("template", self.template), *(("completions", text) for text in self.completions)):
            if not _fields_of(template) and not (name == "template" and self._may_have_a_constant_prompt):
                raise ValueError(f"{name}: {template!r} names no column; did you mean '{{{template}}}'?")
        return self

    @property
    def _may_have_a_constant_prompt(self) -> bool:
        """A comparison may have no prompt, or one sentence for all rows. A single word is a column without its braces."""
        return self.setting == "comparison" and (not self.template or " " in self.template.strip())

    @property
    def label_column(self) -> str | None:
        """The column to read labels from; None where the shape gives the label, or the setting has none."""
        if self.shape.gives_label:
            return None
        return self.label or ("label" if self.setting == "classification" else None)

    @property
    def group_columns(self) -> tuple[str, ...]:
        return (self.group,) if isinstance(self.group, str) else self.group or ()

    @property
    def sources(self) -> dict[str, str]:
        """Part (`train`, `test`) -> file or split."""
        return {part: name for part, name in (("train", self.train), ("test", self.test)) if name is not None}

    @property
    def columns(self) -> list[str]:
        """The columns to read from the files. Of a nested name such as `choices.text` this is the column `choices`."""
        fields = [field for template in (self.template, *self.completions) for field in _fields_of(template)]
        fields += [field for field in (self.label_column, *self.group_columns, self.id, self.difficulty) if field]
        columns = [column for column in map(_top_level, fields) if column not in self.shape.added_fields]
        columns += map(_top_level, (*self.shape.columns, *((self.where.column,) if self.where else ())))
        return list(dict.fromkeys(columns))


def _fields_of(template: str) -> list[str]:
    """The columns that a template names, in its order."""
    return [field for _, field, _, _ in string.Formatter().parse(template) if field]


def columns_of(template: str) -> list[str]:
    """The columns that a template reads."""
    return list(dict.fromkeys(map(_top_level, _fields_of(template))))


def _top_level(field: str) -> str:
    return re.split(r"[.\[]", field)[0]


NOT_IN_YAML = ("path", "test_revision")
"""Fields that are set here and by a plan."""


def schema() -> dict[str, Any]:
    """JSON Schema of a task file, for editors. A field's docstring is its description."""
    content = Task.model_json_schema()
    content["properties"] = {key: value for key, value in content["properties"].items() if key not in NOT_IN_YAML}
    content["required"] = [key for key in content["required"] if key not in NOT_IN_YAML]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **content}


# --- loading ------------------------------------------------------------------------------------------------------


def task_names() -> list[str]:
    """The names of the tasks that ship."""
    return sorted(path.stem for path in CATALOGUE.glob("*.yaml"))


def load_task(name_or_path: str | Path, *, base: Path | None = None) -> Task:
    """A shipped task by name, or a task YAML by its path relative to `base`."""
    given = str(name_or_path)
    if given.endswith(SUFFIXES):
        raise InputError(f"'{given}' is a data file, not a task; write a task over it with: w2s new task {given}")
    if re.fullmatch(NAME, given) and not given.endswith((".yaml", ".yml")):
        path = CATALOGUE / f"{given}.yaml"
        if not path.exists():
            beside = {file.stem: file.name for file in (base or Path.cwd()).glob("*.yaml")}
            raise InputError(
                f"unknown task '{given}'{nearest(given, task_names(), files=beside)}; shipped: {', '.join(task_names())}; "
                "or give the path of a task YAML"
            )
    else:
        path = _place(base, given, what="task")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such task file; shipped tasks: {', '.join(task_names())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error})") from error
    return task_of(text, path)


def task_of(text: str, path: Path) -> Task:
    """The task that a YAML's text describes; its files are found from `path`, where the YAML lies or will lie."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a task must be a mapping with 'name', 'setting' and 'train'")
    if "grids" in content:
        raise InputError(f"{path}: is a study, not a task; see what it runs with: w2s plan {path}")
    allowed = [field for field in Task.model_fields if field not in NOT_IN_YAML]
    for key in content:
        if key not in allowed:
            hint = f" (did you mean '{MEANT[key]}'?)" if key in MEANT else nearest(str(key), allowed)
            raise InputError(f"{path}: unknown key '{key}'{hint}; allowed: {', '.join(allowed)}")
    try:
        task = Task.model_validate(content | {"path": path.resolve()})
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    if task.hub is None:
        _check_file_names(task)
    return task


def _check_file_names(task: Task) -> None:
    for part, name in task.sources.items():
        if name.startswith("https://"):
            continue
        if not _place(task.path.parent, name, what=part).name.endswith(SUFFIXES):
            raise InputError(f"{task.path}: {part}: given '{name}', allowed are files ending in {', '.join(SUFFIXES)}")


def _place(base: Path | None, name: str, *, what: str) -> Path:
    """The path `name`, seen from the folder `base`."""
    if "\0" in name:
        raise InputError(f"{what} {name!r}: has a NUL character, which no path may have")
    return (base or Path.cwd()) / name


def load_test_task(task: Task) -> Task | None:
    """The task named by `test_of`, which provides the test set; None where the task has its own."""
    if task.test_of is None:
        return None
    test_task = load_task(task.test_of, base=task.path.parent)
    if test_task.setting != task.setting or test_task.test_of is not None:
        raise InputError(
            f"{task.path}: test_of: '{test_task.name}' can't be the test set; allowed is a {task.setting} task "
            "without a test_of of its own"
        )
    return test_task if task.test_revision is None else _at_commit(test_task, task.test_revision)


# --- commits of the hub -------------------------------------------------------------------------------------------


def resolve_commits(task: Task) -> tuple[str | None, str | None]:
    """The commits that the revisions of the task and of its `test_of` task point to now. None for local files, and for a
    data set that has a copy on this machine."""
    test_task = load_test_task(task)
    return _commit(task), _commit(test_task) if test_task else None


def load_pinned(source: str, *, commits: tuple[str | None, str | None]) -> Task:
    """A plan's task at the commits it was planned with, wherever its branches point by now."""
    commit, test_commit = commits
    task = load_task(source)
    if commit is not None:
        task = _at_commit(task, commit)
    return task.model_copy(update={"test_revision": test_commit})


def _at_commit(task: Task, commit: str) -> Task:
    if task.hub is None:
        return task
    return task.model_copy(update={"hub": task.hub.model_copy(update={"revision": commit})})


def _commit(task: Task) -> str | None:
    if task.hub is None or hub.local_copy(task.hub.id, kind="dataset") is not None:
        return None
    return hub.commit_of(task.hub.id, task.hub.revision, kind="dataset")


# --- files --------------------------------------------------------------------------------------------------------


def is_here(task: Task) -> bool:
    """Whether all files of a task lie on this machine beside its YAML, or in a copy of the hub, so that nothing is downloaded."""
    if any(name.startswith("https://") for name in task.sources.values()):
        return False
    if task.hub is not None and hub.local_copy(task.hub.id, kind="dataset") is None:
        return False
    test_task = load_test_task(task)
    return test_task is None or is_here(test_task)


@lru_cache(maxsize=256)
def files(task: Task) -> dict[str, list[Path]]:
    """Part -> files on this machine. Files that are not here yet are downloaded."""
    if task.hub is None:
        return {
            part: [hub.fetch_url(name) if name.startswith("https://") else task.path.parent / name]
            for part, name in task.sources.items()
        }
    copy = hub.local_copy(task.hub.id, kind="dataset")
    paths: dict[str, list[Path]] = {}
    for part, split in task.sources.items():
        pattern = task.hub.pattern(split)
        if copy is not None:
            paths[part] = hub.matching_files(copy, pattern)
        else:
            commit = hub.commit_of(task.hub.id, task.hub.revision, kind="dataset")
            paths[part] = hub.fetch_files(task.hub.id, commit, pattern=pattern)
        if not paths[part]:
            place = copy or f"{task.hub.id} at {task.hub.revision}"
            raise InputError(
                f"{task.path}: {part}: no file {pattern} in {place}; has its layout or its splits changed?"
            )
    return paths


@lru_cache(maxsize=256)
def fingerprint(task: Task) -> str:
    """SHA-256 of the task's definition and of its files' content, or of their commit on the hub."""
    unset = {field for field in IN_FINGERPRINT_IF_SET if field not in task.model_fields_set}
    definition = task.model_dump(exclude=NOT_IN_FINGERPRINT | unset)
    if (test_task := load_test_task(task)) is not None:
        definition["test_of"] = fingerprint(test_task)
    content: dict[str, Any]
    if task.hub is not None and (commit := _commit(task)) is not None:
        splits = {part: task.hub.pattern(split) for part, split in task.sources.items()}
        content = {"task": definition, "hub": [task.hub.id, commit], "splits": splits}
    else:
        content = {"task": definition, "files": {part: _digest(paths) for part, paths in files(task).items()}}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _digest(paths: list[Path]) -> str:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
