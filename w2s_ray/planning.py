"""From a study to its cells, and from the cells to the DAG of Fits.

Promises: no Ray, no torch, and nothing is written. A Fit that several cells need appears once, and parents come before their
children. What the Fits cost is in `cost.py`, where they stand in the store in `status.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from w2s_ray import families, methods, tasks
from w2s_ray.errors import InputError, nearest
from w2s_ray.families import Family
from w2s_ray.fit import Data, Execution, Fit, Method, Model, Setting, Training
from w2s_ray.methods import PARAMS
from w2s_ray.methods.chains import zero_shot
from w2s_ray.methods.pair import Ladder, Pair
from w2s_ray.methods.params import Circumstance
from w2s_ray.methods.transforms import shuffled
from w2s_ray.readings import earlier_seeds
from w2s_ray.study import MAX_CELLS, Compute, Grid, Study, find_study, load_study, resolve_method

LORA_RANK, LORA_RATE = 8, 10
"""Adapters take about ten times the learning rate of the whole model (Schulman et al. 2025, "LoRA without regret")."""


@dataclass(frozen=True)
class Controls:
    """What the strong model does without a supervisor: the floor under a cell's PGR."""

    zero_shot: Fit | None
    """Untrained; None where the model cannot answer untrained."""
    shuffled: Fit | None
    """Trained on permuted truth."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid. It needs three Fits: a supervisor, a student and a ceiling."""

    family: str
    method: str
    """The student's method, with those parameters that are not at their defaults."""
    seed: int
    supervisor: Fit
    student: Fit
    ceiling: Fit
    label: str | None = None
    """The grid's label, if it has one."""
    is_swapped: bool = False
    """Whether this is the twin of the seed's replicate, with halves A and B exchanged."""
    controls: Controls | None = None
    """None if the grid leaves controls out."""

    @property
    def task(self) -> str:
        """The task's name in tables, with the grid's label if it has one: `chess-mate (easy)`."""
        return task_label(self.student.data, self.label)

    @property
    def name(self) -> str:
        weak, strong = self.supervisor.model.size, self.student.model.size
        return f"{self.task}/{self.family}/{weak}->{strong}/{self.method}/{self.seed}{'-swapped' if self.is_swapped else ''}"

    @property
    def fits(self) -> tuple[Fit, ...]:
        """The Fits that the cell needs, without their ancestors."""
        controls = (self.controls.zero_shot, self.controls.shuffled) if self.controls else ()
        return (self.supervisor, self.ceiling, self.student, *(fit for fit in controls if fit))


def task_label(data: Data, label: str | None) -> str:
    return f"{data.task} ({label})" if label else data.task


@dataclass(frozen=True)
class Plan:
    study: Study
    path: Path
    cells: tuple[Cell, ...]
    executions: dict[Model, Execution] = field(repr=False)
    rows: dict[str, tasks.RowCounts] = field(default_factory=dict, repr=False)
    """Task -> rows that can be used, and why others can't."""
    parts: dict[str, dict[str, tasks.PartFacts]] = field(default_factory=dict, repr=False)
    """Task -> rows and groups of the first replicate's parts. Empty unless rows were dealt."""
    tokens: dict[tuple[str, str], families.TokenFacts] = field(default_factory=dict, repr=False)
    """(task, model) -> what the model's tokenizer makes of the task, for one model of each tokenizer. Empty unless rows were dealt,
    and without tokenizers that lie elsewhere."""

    @cached_property
    def fits(self) -> tuple[Fit, ...]:
        """Every Fit once, parents before their children."""
        unique: dict[str, Fit] = {}
        for cell in self.cells:
            for fit in cell.fits:
                if fit.key in unique:
                    continue
                if any(parent.key not in unique for parent in fit.parents):  # else all its ancestors are there
                    for ancestor in reversed(fit.ancestors):
                        unique.setdefault(ancestor.key, ancestor)
                unique[fit.key] = fit
        return tuple(unique.values())


def load_plan(study: str | Path, *, trust_remote_code: bool = False, deal_rows: bool = False) -> Plan:
    """Read a study, given by path or name, and expand it. `deal_rows` deals every replicate of every task, and refuses a split that
    does not fit."""
    path = find_study(study)
    return expand(load_study(path), path=path, trust_remote_code=trust_remote_code, deal_rows=deal_rows)


def check_splits(study: str | Path) -> None:
    """Refuse a study of which a split cannot be dealt, as far as the rows are on this machine. Models need not be."""
    path = find_study(study)
    base = path.absolute().parent
    for i, grid in enumerate(load_study(path).grids):
        for j, name in enumerate(grid.tasks):
            where = f"{path}: grids[{i}]"
            if tasks.is_here(_load_task(name, base=base, where=f"{where}.tasks[{j}]")):
                _parts(_data(name, grid, {}, base=base, where=f"{where}.tasks[{j}]"), grid, where=where)


def expand(study: Study, *, path: Path, trust_remote_code: bool = False, deal_rows: bool = False) -> Plan:
    base = path.absolute().parent
    families_and_sizes = [_family(grid, where=f"{path}: grids[{i}]", base=base) for i, grid in enumerate(study.grids)]
    pairs = [
        _pairs(grid, sizes, where=f"{path}: grids[{i}].pairs")
        for i, (grid, (_, sizes)) in enumerate(zip(study.grids, families_and_sizes, strict=True))
    ]
    _check_num_cells(study, pairs, path=path)
    cells: dict[str, Cell] = {}
    executions: dict[Model, Execution] = {}
    rows: dict[str, tasks.RowCounts] = {}
    parts: dict[str, dict[str, tasks.PartFacts]] = {}
    tokens: dict[tuple[str, str], families.TokenFacts] = {}
    dealt: dict[Any, dict[str, tasks.PartFacts]] = {}  # grids often share a task and its split
    for i, (grid, (family, sizes), grid_pairs) in enumerate(zip(study.grids, families_and_sizes, pairs, strict=True)):
        models = {size: families.model(family, size, trust_remote_code=trust_remote_code) for size in sizes}
        for size, model in models.items():
            executions[model] = _execution(study.compute, family, size)
        trainings = {size: _training(grid, study.compute, family, size) for size in sizes}
        for task_index, name in enumerate(grid.tasks):
            where = f"{path}: grids[{i}].tasks[{task_index}]"
            data = _data(name, grid, models, base=base, where=where)
            rows[data.task] = tasks.check(tasks.load_pinned(data.source, commits=data.commits))
            if deal_rows:
                split = (data.source, data.tokenizers, data.max_tokens, grid.split, grid.seed_list)
                if split not in dealt:
                    found, too_long = _tokens(data, models, where=where)
                    tokens |= found
                    dealt[split] = _parts(data, grid, where=f"{path}: grids[{i}]", too_long=too_long)
                parts.setdefault(task_label(data, grid.label), dealt[split])
            circumstances = _circumstances(data.setting, family, grid)
            _check_setting(data, circumstances, family=family, where=where)
            words = [
                _method(entry, circumstances, sizes=list(sizes), where=f"{path}: grids[{i}].methods[{j}]")
                for j, entry in enumerate(grid.methods)
            ]
            used = sizes[: 1 + max(sizes.index(size) for pair in grid_pairs for size in pair)]  # no method goes higher
            ladder = Ladder(used, data, data, models, trainings, grid.ceiling_split, grid.split.fresh)
            of_grid = _cells(
                grid, grid_pairs, words, circumstances, ladder=ladder, family=family.name, where=f"{path}: grids[{i}]"
            )
            for cell in of_grid:
                earlier = cells.setdefault(cell.name, cell)
                if earlier is not cell and _keys(earlier) != _keys(cell):
                    raise InputError(
                        f"{path}: grids[{i}]: an earlier grid has the cell {cell.name} too, with other settings. The "
                        "results could not tell the two apart; give one of the grids a 'label'"
                    )
    return Plan(
        study=study,
        path=path,
        cells=tuple(cells.values()),
        executions=executions,
        rows=rows,
        parts=parts,
        tokens=tokens,
    )


def _check_num_cells(study: Study, pairs: list[list[tuple[str, str]]], *, path: Path) -> None:
    num_cells = sum(
        len(grid_pairs) * len(grid.tasks) * len(grid.methods) * len(grid.seed_list) * (2 if grid.split.swap else 1)
        for grid, grid_pairs in zip(study.grids, pairs, strict=True)
    )
    if num_cells > MAX_CELLS:
        raise InputError(
            f"{path}: the grids have {num_cells:,} cells; one study may have at most {MAX_CELLS:,}. "
            "Name fewer sizes, tasks, methods or seeds, or split the study"
        )


def _family(grid: Grid, *, where: str, base: Path) -> tuple[Family, tuple[str, ...]]:
    """The family and the chosen sizes, weak to strong."""
    try:
        if grid.models is not None:
            family = families.from_models(grid.models, base=base)
        else:
            family = families.load_family(str(grid.family), base=base)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    order = [size.size for size in family.sizes]
    sizes = grid.sizes or tuple(order)
    for size in sizes:
        if size not in order:
            hint = nearest(size, order)
            raise InputError(f"{where}.sizes: no size '{size}' in {family.name}{hint}; allowed: {', '.join(order)}")
    if list(sizes) != sorted(sizes, key=order.index):
        right = ", ".join(sorted(sizes, key=order.index))
        raise InputError(f"{where}.sizes: given [{', '.join(sizes)}], but sizes go weak to strong: [{right}]")
    return family, sizes


def _pairs(grid: Grid, sizes: tuple[str, ...], *, where: str) -> list[tuple[str, str]]:
    if grid.pairs == "all":
        return [(weak, strong) for weak in sizes for strong in sizes]
    if grid.pairs == "weak<=strong":
        return [(weak, strong) for i, weak in enumerate(sizes) for strong in sizes[i:]]
    for weak, strong in grid.pairs:
        for size in (weak, strong):
            if size not in sizes:
                raise InputError(f"{where}: no size '{size}'{nearest(size, sizes)}; allowed: {', '.join(sizes)}")
        if sizes.index(strong) < sizes.index(weak):
            raise InputError(
                f"{where}: [{weak}, {strong}] has its strong model weaker than its weak one; "
                f"the order is {', '.join(sizes)}. Write [{strong}, {weak}], or 'all' for every pair in both directions"
            )
    if not grid.pairs or len(set(grid.pairs)) < len(grid.pairs):
        raise InputError(f"{where}: needs at least one pair, and each pair once")
    return list(grid.pairs)


def _execution(compute: Compute, family: Family, size: str) -> Execution:
    """The family's shape for GPUs where the study leaves it open; one worker and ZeRO-1 on CPUs. One worker has nobody to share
    states with, so it does without ZeRO, unless it offloads."""
    entry, on_gpu = family.size(size), compute.gpus_per_worker > 0
    knobs = compute.model_dump(exclude={"precision", "usd_per_worker_hour", "fits_per_pack"})
    if compute.workers == "auto":
        knobs["workers"] = entry.gpus if on_gpu else 1
    if compute.zero_stage == "auto":
        is_alone = knobs["workers"] == 1 and compute.offload == "none"
        knobs["zero_stage"] = 0 if is_alone else entry.zero_stage if on_gpu else 1
    if compute.micro_batch_size == "auto":
        knobs["micro_batch_size"] = None
    return Execution(**knobs)


def _training(grid: Grid, compute: Compute, family: Family, size: str) -> Training:
    """The study's hyper-parameters, with the family's values where it says `auto`."""
    wanted, entry = grid.training, family.size(size)
    values = wanted.model_dump(exclude={"max_tokens"}) | {"precision": compute.precision}
    if wanted.learning_rate == "auto":
        values["learning_rate"] = entry.learning_rate * (LORA_RATE if wanted.tune == "lora" else 1)
    if wanted.optimizer == "auto":
        values["optimizer"] = entry.optimizer
    if compute.precision == "auto":
        values["precision"] = "bf16" if compute.gpus_per_worker else "fp32"
    values["lora_rank"] = (wanted.lora_rank or LORA_RANK) if wanted.tune == "lora" else 0
    return Training(**values)


def _load_task(name: str, *, base: Path, where: str) -> tasks.Task:
    try:
        return tasks.load_task(name, base=base)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _data(name: str, grid: Grid, models: dict[str, Model], *, base: Path, where: str) -> Data:
    task = _load_task(name, base=base, where=where)
    try:
        commits = tasks.resolve_commits(task)
        tasks.check(tasks.load_pinned(str(task.path), commits=commits))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    tokenizers = {model.tokenizer: (model.source, model.revision) for model in models.values()}
    least, most = grid.split.difficulty.min, grid.split.difficulty.max
    is_limited = least is not None or most is not None
    if is_limited and task.difficulty is None:
        raise InputError(f"{where}: split.difficulty: '{task.name}' names no difficulty column in {task.path.name}")
    return Data(
        fingerprint=tasks.fingerprint(task),
        setting=task.setting,
        split_seed=grid.split.seed,
        num_train=grid.split.num_train,
        num_test=grid.split.num_test,
        max_tokens=grid.training.max_tokens,
        tokenizers=tuple(sorted(tokenizers)),
        task=task.name,
        source=str(task.path),
        tokenizer_sources=tuple(tokenizers[key] for key in sorted(tokenizers)),
        commits=commits,
        difficulty=_difficulty_range(str(task.difficulty), least, most) if is_limited else None,
        rows_per_group=grid.split.rows_per_group,
    )


def _difficulty_range(column: str, least: float | None, most: float | None) -> tuple[str, float, float]:
    """Open ends become the largest finite numbers, since canonical JSON has no infinity."""
    largest = sys.float_info.max
    return column, -largest if least is None else least, largest if most is None else most


def _circumstances(setting: Setting, family: Family, grid: Grid) -> list[Circumstance]:
    """Where a grid would use its methods on a task: what a method may refuse."""
    circumstances: list[Circumstance] = [setting]
    if family.pooling == "mean":
        circumstances.append("encoder")
    if grid.training.tune != "all":
        circumstances.append("probe" if grid.training.tune == "head" else "lora")
    return circumstances


def _check_setting(data: Data, circumstances: list[Circumstance], *, family: Family, where: str) -> None:
    if data.setting == "generation" and "encoder" in circumstances:
        raise InputError(
            f"{where}: task '{data.task}' needs a decoder that can generate; family {family.name} has encoders only. "
            "Choose a decoder family (`w2s families`)"
        )
    if data.setting == "generation" and "probe" in circumstances:
        raise InputError(
            f"{where}: task '{data.task}' is a generation, which a linear probe cannot learn; use training.tune: all"
        )


def _method(entry: str | dict[str, Any], circumstances: list[Circumstance], *, sizes: list[str], where: str) -> Method:
    """A method as the study writes it, or InputError where it makes no sense."""
    method = Method(*resolve_method(entry))
    if reason := methods.refusal(method, circumstances):
        raise InputError(f"{where}: '{method.name}' doesn't go with a {circumstances[0]}: {reason}")
    through = dict(method.params).get("through", "auto")
    for size in through if through != "auto" else ():
        if size not in sizes:
            raise InputError(f"{where}.through: no size '{size}'{nearest(size, sizes)}; allowed: {', '.join(sizes)}")
    return method


def _cells(
    grid: Grid,
    pairs: list[tuple[str, str]],
    words: list[Method],
    circumstances: list[Circumstance],
    *,
    ladder: Ladder,
    family: str,
    where: str,
) -> Iterator[Cell]:
    for seed, replicate in _replicates(grid, ladder):
        controls = {
            strong: _controls(grid, words, circumstances, Pair(replicate, strong, strong, seed))
            for strong in dict.fromkeys(strong for _, strong in pairs)
        }
        for method in words:
            for weak, strong in pairs:
                try:
                    fits = methods.cell_fits(method, Pair(replicate, weak, strong, seed))
                except InputError as error:
                    raise InputError(f"{where}.{error}") from error
                yield Cell(
                    family=family,
                    method=method_label(method),
                    seed=seed,
                    supervisor=fits.supervisor,
                    student=fits.student,
                    ceiling=fits.ceiling,
                    label=grid.label,
                    is_swapped=replicate.data.is_swapped,
                    controls=controls[strong],
                )


def _replicates(grid: Grid, ladder: Ladder) -> Iterator[tuple[int, Ladder]]:
    """(seed, the ladder with that replicate's halves)."""
    seeds = grid.seed_list
    for number, seed in enumerate(seeds):
        own = _data_of_seed(ladder.data, grid, seed)
        earlier = earlier_seeds(seeds, number) if grid.split.per_seed else ()
        for is_swapped in (False, True) if grid.split.swap else (False,):
            yield seed, replace(ladder, data=replace(own, is_swapped=is_swapped), earlier=earlier, made={})


def _data_of_seed(data: Data, grid: Grid, seed: int) -> Data:
    return replace(data, halves_seed=seed) if grid.split.per_seed else data


def _controls(grid: Grid, words: list[Method], circumstances: list[Circumstance], pair: Pair) -> Controls | None:
    """The controls that the grid's models can have. A method that is listed serves as a control, too."""
    if not grid.controls and not any(word.name == "zero_shot" for word in words):
        return None
    can_answer = methods.refusal(Method("zero_shot"), circumstances) is None
    return Controls(
        zero_shot=zero_shot.fit_of(pair) if can_answer else None,
        shuffled=shuffled.control_of(pair) if grid.controls else None,
    )


def _keys(cell: Cell) -> tuple[str, str, str]:
    return cell.supervisor.key, cell.student.key, cell.ceiling.key


@cache
def method_label(method: Method) -> str:
    """Readable and unique within a study, e.g. `confidence(max_weight=0.75)`."""
    defaults = PARAMS[method.name]().model_dump()
    shown = {name: "+".join(value) if isinstance(value, tuple) else value for name, value in method.params}
    inside = ", ".join(f"{name}={value}" for name, value in shown.items() if value != defaults[name])
    return f"{method.name}({inside})" if inside else method.name


def _parts(data: Data, grid: Grid, *, where: str, too_long: frozenset[int] = frozenset()) -> dict[str, tasks.PartFacts]:
    """Rows and groups of each part of the first replicate. Refuses a split that a replicate cannot have.

    `too_long`: places of the rows that are left out since they are too long, as far as that is known.
    """
    rows = _rows(data)
    short = [row for place, row in enumerate(rows) if place not in too_long]
    how = tasks.Deal.of(replace(data, num_fresh=grid.split.fresh))
    try:
        return tasks.facts_of_replicates(short, how, seeds=grid.seed_list if grid.split.per_seed else [None])
    except InputError as error:
        left_out = f" ({len(too_long):,} rows are longer than {data.max_tokens:,} tokens)" if too_long else ""
        raise InputError(f"{where}: task '{data.task}'{left_out}: {error}") from error


def _rows(data: Data) -> list[tasks.Row]:
    return tasks.read_task(tasks.load_pinned(data.source, commits=data.commits)).rows


def _tokens(
    data: Data, models: dict[str, Model], *, where: str
) -> tuple[dict[tuple[str, str], families.TokenFacts], frozenset[int]]:
    """What each tokenizer of the grid makes of a task, and the places of rows that are too long for any, as far as known.
    Refuses a tokenizer that does not know the task's words."""
    shown = [
        [f"{row['text']} {completion}".strip() for completion in row["completions"]] or [row["text"]]
        for row in _rows(data)
    ]
    found, too_long = {}, frozenset[int]()
    for model in {
        model.tokenizer: model for model in reversed(models.values())
    }.values():  # the first of each tokenizer
        facts = families.token_facts(Path(model.source), shown, max_tokens=data.max_tokens)
        if facts is None:
            continue
        if facts.share_unknown > families.MAX_UNKNOWN:
            raise InputError(
                f"{where}: the tokenizer of {model.name} does not know {facts.share_unknown:.0%} of the tokens of task "
                f"'{data.task}', such as {facts.unknown!r} in {shown[facts.unknown_row][0][:80]!r}; allowed are "
                f"{families.MAX_UNKNOWN:.0%}. Choose a family that was made for such texts (`w2s families`)"
            )
        found[data.task, model.name] = facts
        too_long |= facts.too_long or frozenset()
    return found, too_long
