"""From a task to a study of it, for `w2s new study`.

Promises: nothing is written here; the study that comes back was planned, and each of its replicates can be dealt.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from w2s_ray.errors import InputError
from w2s_ray.families import Family, load_family
from w2s_ray.fit import Setting
from w2s_ray.planning import Plan, expand
from w2s_ray.study import study_of
from w2s_ray.tasks import Deal, Task, facts_of_replicates, load_task, read_task
from w2s_ray.tasks.draft import in_yaml

FAMILIES: dict[Setting, str | None] = {"classification": "minilm", "comparison": "minilm", "generation": None}
"""The default: a family that needs no hub and reads English. None of those writes English."""
SIZES = {"minilm": ("d1", "d2", "d4")}
"""Sizes that are apart enough for a first curve. Default: all of a family."""
PROBE = "{tune: head, epochs: 8, learning_rate: 0.003, weight_decay: 0.1, max_tokens: 128, evals_per_epoch: 1}"
WHOLE = "{epochs: 2, batch_size: 32, warmup_fraction: 0.1, max_grad_norm: 1.0}"
NUM_SEEDS = 3
MOST_ROWS = 2000
"""In a half and in the test set of a first study. More is a matter of patience."""
FEWEST_ROWS = 20
SPARE = 0.9
"""So much of what there is goes into the halves: rows that are too long for a model are dropped later."""


@dataclass(frozen=True)
class StudyDraft:
    """A study that can be planned but is not written yet."""

    path: Path
    text: str
    plan: Plan


def draft_study(task_given: str, *, family: str | None, sizes: tuple[str, ...], out: Path | None) -> StudyDraft:
    """A study of one task, which lies beside the task's YAML unless `out` says where."""
    task = load_task(task_given, base=Path.cwd())
    is_file = task_given.endswith((".yaml", ".yml"))
    ladder = load_family(family or _default_family(task), base=Path.cwd())
    path = out or (Path(task_given).parent if is_file else Path()) / f"{task.name}-study.yaml"
    num_train, num_test = _rows_of_parts(task)
    training = PROBE if ladder.pooling == "mean" else WHOLE
    text = (
        f"# A study of {task_given}. `w2s plan {path.name}` shows what it will run and what that costs.\n"
        f"name: {in_yaml(task.name)}\n"
        f"description: {in_yaml(' '.join(task.description.split()))} # one sentence for the top of the report\n"
        "grids:\n"
        f"  - family: {in_yaml(_place(family or ladder.name, path))}"
        " # `w2s families` lists others; or models: [{name: ..., path: ...}, ...], weak to strong\n"
        f"    sizes: [{', '.join(map(in_yaml, sizes or _default_sizes(ladder)))}] # weak to strong; every pair weak <= strong is a cell\n"
        f"    tasks: [{in_yaml(_place(task_given, path))}]\n"
        "    methods: [naive] # `w2s methods` lists others, such as confidence\n"
        f"    seeds: {NUM_SEEDS} # replicates, each with halves of its own; more of them give narrower intervals\n"
        f"    split: {{num_train: {num_train}, num_test: {num_test}}} # rows in each half and in the test set; "
        f"{len(read_task(task).rows):,} rows can be used\n"
        f"    training: {training}\n"
        "# compute: {gpus_per_worker: 1} # where there are GPUs\n"
    )
    return StudyDraft(path, text, expand(study_of(text, path), path=path, deal_rows=True))


def _default_family(task: Task) -> str:
    family = FAMILIES[task.setting]
    if family is None:
        raise InputError(
            f"{task.path}: a generation needs models that can write, and none that write English come with the package; choose "
            "a family of the hub with --family, such as pythia or qwen2.5, or chess for chess (`w2s families`)"
        )
    return family


def _default_sizes(family: Family) -> tuple[str, ...]:
    return SIZES.get(family.name, tuple(size.size for size in family.sizes))


def _place(given: str, study: Path) -> str:
    """A name as it is; a path as the study's folder sees it."""
    if not given.endswith((".yaml", ".yml")):
        return given
    return os.path.relpath(Path(given).absolute(), study.absolute().parent)


def _rows_of_parts(task: Task) -> tuple[int, int]:
    """(rows of a half, rows of the test set), so that every replicate can be dealt."""
    rows = read_task(task).rows
    try:
        largest = facts_of_replicates(rows, Deal(), seeds=[None])
        num_test = _round_down(min(MOST_ROWS, largest["test"].num_rows))
        num_train = _round_down(min(MOST_ROWS, int(SPARE * min(largest[half].num_rows for half in "AB"))))
        while num_train >= FEWEST_ROWS <= num_test:
            if _can_be_dealt(task, num_train, num_test):
                return num_train, num_test
            num_train = _round_down(int(SPARE * num_train))
    except InputError:  # not even two rows of each class
        pass
    raise InputError(
        f"{task.path}: {len(rows):,} rows can be used, which is too few for a study: each half and the test set need at least "
        f"{FEWEST_ROWS} rows with both labels equally often. `w2s tasks {task.path.name}` tells what was left out"
    )


def _can_be_dealt(task: Task, num_train: int, num_test: int) -> bool:
    """Whether every replicate of the study has so many rows."""
    how = Deal(num_train=num_train, num_test=num_test)
    try:
        return bool(facts_of_replicates(read_task(task).rows, how, seeds=range(NUM_SEEDS)))
    except InputError:
        return False


def _round_down(num: int) -> int:
    """To two digits, and even: 1,234 is 1,200."""
    step = 10 ** max(0, len(str(num)) - 2)
    rounded = num // step * step
    return rounded - rounded % 2
