"""Study -> cells -> the DAG of Fits. What the Fits cost is in `cost.py`, what the store has of them in `status.py`.

Promises: no Ray, no torch, nothing written. A Fit that several cells need appears once. Fits come in an order in which
every Fit follows the one that labels for it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

from w2s_ray import families, tasks
from w2s_ray.errors import InputError, nearest
from w2s_ray.families import Family
from w2s_ray.fit import UNTRAINED, Data, Execution, Fit, Method, Model, Setting, Training
from w2s_ray.methods import PARAMS, refusal
from w2s_ray.study import MAX_CELLS, Compute, Grid, Study, load_study, resolve_method

TRUTH_METHOD = Method(name="naive")
"""Supervisors and ceilings learn from the truth by plain cross-entropy, whatever the students' method."""

LORA_RANK, LORA_RATE = 8, 10
"""Adapters take about ten times the rate that the whole model does (Schulman et al. 2025, "LoRA without regret")."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid; it needs three Fits (a supervisor, a student, a ceiling)."""

    family: str
    method: str
    """The student's method, with the parameters that are not its defaults."""
    seed: int
    supervisor: Fit
    student: Fit
    ceiling: Fit
    label: str | None = None
    """The grid's, where it has one."""

    @property
    def task(self) -> str:
        """The task's name in tables: with the grid's label, for grids that share a task."""
        task = self.student.data.task
        return f"{task} ({self.label})" if self.label else task

    @property
    def name(self) -> str:
        weak, strong = self.supervisor.model.size, self.student.model.size
        return f"{self.task}/{self.family}/{weak}->{strong}/{self.method}/{self.seed}"


@dataclass(frozen=True)
class Plan:
    study: Study
    path: Path
    cells: tuple[Cell, ...]
    executions: dict[Model, Execution] = field(repr=False)

    @cached_property
    def fits(self) -> tuple[Fit, ...]:
        """Every Fit once, supervisors before the students that they label for."""
        unique: dict[str, Fit] = {}
        for cell in self.cells:
            for fit in (cell.supervisor, cell.ceiling, cell.student):
                for needed in (*reversed(fit.ancestors), fit):
                    unique.setdefault(needed.key, needed)
        return tuple(unique.values())


def load_plan(path: str | Path, *, trust_remote_code: bool = False) -> Plan:
    """Read a study file and expand it."""
    return expand(load_study(path), path=Path(path), trust_remote_code=trust_remote_code)


def expand(study: Study, *, path: Path, trust_remote_code: bool = False) -> Plan:
    base = path.absolute().parent
    ladders = [_ladder(grid, where=f"{path}: grids[{i}]", base=base) for i, grid in enumerate(study.grids)]
    pairs = [
        _pairs(grid, sizes, where=f"{path}: grids[{i}].pairs")
        for i, (grid, (_, sizes)) in enumerate(zip(study.grids, ladders, strict=True))
    ]
    num_cells = sum(
        len(grid_pairs) * len(grid.tasks) * len(grid.methods) * len(grid.seed_list)
        for grid, grid_pairs in zip(study.grids, pairs, strict=True)
    )
    if num_cells > MAX_CELLS:
        raise InputError(
            f"{path}: the grids have {num_cells:,} cells; allowed are at most {MAX_CELLS:,} in one study. "
            "Name fewer sizes, tasks, methods or seeds, or split the study"
        )
    cells: dict[str, Cell] = {}
    executions: dict[Model, Execution] = {}
    for i, (grid, (family, sizes), grid_pairs) in enumerate(zip(study.grids, ladders, pairs, strict=True)):
        models = {size: families.model(family, size, trust_remote_code=trust_remote_code) for size in sizes}
        for size, model in models.items():
            executions[model] = _execution(study.compute, family, size)
        trainings = {size: _training(grid, study.compute, family, size) for size in sizes}
        for task_index, name in enumerate(grid.tasks):
            where = f"{path}: grids[{i}].tasks[{task_index}]"
            data = _data(name, grid, models, base=base, where=where)
            if data.setting == "generation" and family.pooling == "mean":
                raise InputError(
                    f"{where}: '{data.task}' wants moves written, and {family.name} are encoders; use decoders"
                )
            if data.setting == "generation" and grid.training.tune == "head":
                raise InputError(
                    f"{where}: '{data.task}' is a generation, which a probe can't learn; use training.tune: all"
                )
            methods = [
                _method(entry, data.setting, family=family, grid=grid, where=f"{path}: grids[{i}].methods[{j}]")
                for j, entry in enumerate(grid.methods)
            ]
            ladder = Ladder(sizes, data, models, trainings, grid.ceiling_split)
            for cell in _cells(grid, grid_pairs, methods, ladder=ladder, family=family.name):
                if _fits_of(cells.setdefault(cell.name, cell)) != _fits_of(cell):
                    raise InputError(
                        f"{path}: grids[{i}]: an earlier grid has the cell {cell.name} too, with other settings, and the "
                        "two could not be told apart in the results; give one of the grids a 'label'"
                    )
    return Plan(study=study, path=path, cells=tuple(cells.values()), executions=executions)


def _ladder(grid: Grid, *, where: str, base: Path) -> tuple[Family, tuple[str, ...]]:
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
    """The family's shape for GPUs where the study leaves it open; one worker and ZeRO-1 on CPUs."""
    entry = family.size(size)
    on_gpu = compute.gpus_per_worker > 0
    return Execution(
        workers=(entry.gpus if on_gpu else 1) if compute.workers == "auto" else compute.workers,
        cpus_per_worker=compute.cpus_per_worker,
        gpus_per_worker=compute.gpus_per_worker,
        zero_stage=(entry.zero_stage if on_gpu else 1) if compute.zero_stage == "auto" else compute.zero_stage,
        micro_batch_size=None if compute.micro_batch_size == "auto" else compute.micro_batch_size,
        offload=compute.offload,
        activation_checkpointing=compute.activation_checkpointing,
        attention=compute.attention,
        checkpoint_every_s=compute.checkpoint_every_s,
    )


def _training(grid: Grid, compute: Compute, family: Family, size: str) -> Training:
    wanted, entry = grid.training, family.size(size)
    auto_precision: Literal["bf16", "fp32"] = "bf16" if compute.gpus_per_worker else "fp32"
    auto_rate = entry.learning_rate * (LORA_RATE if wanted.tune == "lora" else 1)
    return Training(
        epochs=wanted.epochs,
        batch_size=wanted.batch_size,
        learning_rate=auto_rate if wanted.learning_rate == "auto" else wanted.learning_rate,
        optimizer=entry.optimizer if wanted.optimizer == "auto" else wanted.optimizer,
        weight_decay=wanted.weight_decay,
        warmup_fraction=wanted.warmup_fraction,
        schedule=wanted.schedule,
        max_grad_norm=wanted.max_grad_norm,
        precision=auto_precision if compute.precision == "auto" else compute.precision,
        evals_per_epoch=wanted.evals_per_epoch,
        tune=wanted.tune,
        validation=wanted.validation,
        lora_rank=(wanted.lora_rank or LORA_RANK) if wanted.tune == "lora" else 0,
    )


def _data(name: str, grid: Grid, models: dict[str, Model], *, base: Path, where: str) -> Data:
    try:
        task = tasks.load_task(name, base=base)
        commits = tasks.pinned(task)
        tasks.check(task)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    tokenizers = {model.tokenizer: (model.source, model.revision) for model in models.values()}
    least, most = grid.split.difficulty.min, grid.split.difficulty.max
    limited = least is not None or most is not None
    if limited and task.difficulty is None:
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
        difficulty=_range(str(task.difficulty), least, most) if limited else None,
    )


def _range(column: str, least: float | None, most: float | None) -> tuple[str, float, float]:
    """Finite, for canonical JSON."""
    largest = sys.float_info.max
    return column, -largest if least is None else least, largest if most is None else most


def _method(entry: str | dict[str, Any], setting: Setting, *, family: Family, grid: Grid, where: str) -> Method:
    """A method as a study has it, or InputError where it makes no sense for a task."""
    method = Method(*resolve_method(entry))
    why_not = refusal(method, setting=setting)
    if method.name in (*UNTRAINED, "generative"):
        if family.pooling == "mean":
            why_not = f"{family.name} are encoders, which write nothing; use decoders"
        elif grid.training.tune == "head":
            why_not = "a probe reads features and writes nothing; use training.tune: all"
        elif grid.training.tune == "lora" and method.name == "generative":
            why_not = "a start is learned and kept whole; use training.tune: all"
    if why_not:
        raise InputError(f"{where}: '{method.name}' doesn't go with a {setting}: {why_not}")
    through = dict(method.params).get("through", "auto")
    allowed = [each.size for each in family.sizes if not grid.sizes or each.size in grid.sizes]
    for size in through if through != "auto" else ():
        if size not in allowed:
            raise InputError(
                f"{where}.through: no size '{size}'{nearest(size, allowed)}; allowed: {', '.join(allowed)}"
            )
    return method


@dataclass(frozen=True)
class Ladder:
    """A grid's models on one task."""

    sizes: tuple[str, ...]
    """Weak to strong."""
    data: Data
    models: dict[str, Model]
    trainings: dict[str, Training]
    ceiling_split: str
    on_truth: dict[tuple[str, str, int], Fit] = field(default_factory=dict)
    """Made already: many cells share them."""

    def fit(self, size: str, half: str, *labels: Fit, method: Method = TRUTH_METHOD, seed: int, **more: Any) -> Fit:
        return Fit(self.models[size], self.data, half, labels, method, self.trainings[size], seed, **more)

    def truth(self, size: str, half: str, *, seed: int) -> Fit:
        kind = (size, half, seed)
        if kind not in self.on_truth:
            self.on_truth[kind] = self.fit(size, half, seed=seed)
        return self.on_truth[kind]


def _cells(
    grid: Grid, pairs: list[tuple[str, str]], methods: list[Method], *, ladder: Ladder, family: str
) -> list[Cell]:
    return [
        Cell(
            family, method_label(method), seed, *_fits(method, weak, strong, ladder=ladder, seed=seed), label=grid.label
        )
        for seed in grid.seed_list
        for method in methods
        for weak, strong in pairs
    ]


def _fits_of(cell: Cell) -> tuple[str, str, str]:
    return cell.supervisor.key, cell.student.key, cell.ceiling.key


def _fits(method: Method, weak: str, strong: str, *, ladder: Ladder, seed: int) -> tuple[Fit, Fit, Fit]:
    """(supervisor, student, ceiling): what a method makes of a pair."""
    params = dict(method.params)
    loss = _loss(params.get("loss", "naive"))
    fit = partial(ladder.fit, seed=seed)
    supervisor = ladder.truth(weak, "A", seed=seed)
    ceiling = ladder.truth(strong, ladder.ceiling_split, seed=seed)
    match method.name:
        case "bootstrap":
            student = _chain(
                supervisor, [*_between(weak, strong, params["through"], ladder.sizes), strong], loss, ladder
            )
        case "iterate":
            student = _chain(supervisor, [strong] * params["rounds"], loss, ladder)
        case "ensemble" if params["members"] == "seeds":
            members = [ladder.truth(weak, "A", seed=seed + i) for i in range(params["num_seeds"])]
            student = fit(strong, "B", *members, method=method)
        case "ensemble":
            members = [ladder.truth(size, "A", seed=seed) for size in ladder.sizes[: ladder.sizes.index(weak) + 1]]
            student = fit(strong, "B", *members, method=method)
        case "generative":
            written = Method("generative", (("epochs", params["epochs"]),))
            starts = {size: fit(size, "B", method=written) for size in (weak, strong)}
            supervisor = fit(weak, "A", start=starts[weak])
            ceiling = fit(strong, ladder.ceiling_split, start=starts[strong])
            student = fit(strong, "B", supervisor, method=loss, start=starts[strong])
        case "strong_on_a":
            student = ladder.truth(strong, "A", seed=seed)
        case "zero_shot":
            student = ladder.fit(strong, "B", method=method, seed=0)  # nothing in it is random
        case "few_shot":
            student = fit(strong, "B", *([supervisor] if params["labels"] == "weak" else []), method=method)
        case _:
            student = fit(strong, "B", supervisor, method=method)
    return supervisor, student, ceiling


@cache
def _loss(name: str) -> Method:
    """A loss with its defaults."""
    return Method(*resolve_method(name))


def _between(weak: str, strong: str, through: str | tuple[str, ...], sizes: tuple[str, ...]) -> list[str]:
    """The sizes that lie between two, of all or of those that are named. With none, the chain is a single step."""
    low, high = sizes.index(weak), sizes.index(strong)
    return [size for size in sizes[low + 1 : high] if through == "auto" or size in through]


def _chain(supervisor: Fit, sizes: list[str], loss: Method, ladder: Ladder) -> Fit:
    """Each size learns from the one before it, on a part of half B that none before it has seen (Burns et al. 2023,
    section 4.3.1)."""
    labeller = supervisor
    for step, size in enumerate(sizes, start=1):
        half = "B" if len(sizes) == 1 else f"B{step}/{len(sizes)}"
        labeller = ladder.fit(size, half, labeller, method=loss, seed=supervisor.seed)
    return labeller


def method_label(method: Method) -> str:
    """Readable and unique within a study, e.g. `confidence(max_weight=0.75)`."""
    defaults = PARAMS[method.name]().model_dump()
    shown = {name: "+".join(value) if isinstance(value, tuple) else value for name, value in method.params}
    inside = ", ".join(f"{name}={value}" for name, value in shown.items() if value != defaults[name])
    return f"{method.name}({inside})" if inside else method.name
