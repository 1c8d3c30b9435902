"""Study -> cells -> the DAG of Fits; what the store has already; what the rest costs.

Promises: no Ray, no torch, nothing written. A Fit that several cells need appears once. Fits come in an order in which
every Fit follows the one that labels for it.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

from w2s_ray import families, tasks
from w2s_ray.errors import InputError, nearest
from w2s_ray.families import Family
from w2s_ray.fit import UNTRAINED, Data, Execution, Fit, Method, Model, Setting, Training
from w2s_ray.leases import Leases
from w2s_ray.methods import PARAMS, refusal
from w2s_ray.store import Store
from w2s_ray.study import MAX_CELLS, Compute, Grid, Study, load_study, resolve_method

TRUTH_METHOD = Method(name="naive")
"""Supervisors and ceilings learn from the truth by plain cross-entropy, whatever the students' method."""

LORA_RANK, LORA_RATE = 8, 10
"""Adapters take about ten times the rate that the whole model does (Schulman et al. 2025, "LoRA without regret")."""

BYTES_PER_PARAM = 16
"""fp32 weight, gradient and two Adam moments (ZeRO, Rajbhandari et al. 2020, section 3.1)."""


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


@dataclass(frozen=True)
class Status:
    """The plan against the store; every key of the plan is in exactly one of these."""

    done: frozenset[str]
    running: dict[str, dict[str, Any]]
    failed: dict[str, dict[str, Any]]
    blocked: dict[str, str]
    """Key -> key of the failed ancestor."""
    todo: frozenset[str]


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
        commits = tasks.resolve_commits(task)
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


# --- the plan against the store -----------------------------------------------------------------------------------


def status(plan: Plan, *, store: Store) -> Status:
    """Where every Fit of the plan stands, from the store alone."""
    done = frozenset(store.committed(plan.fits))
    held = Leases(store.storage).read_alive()
    failures = store.read_failures()
    running = {f.key: held[f.key] for f in plan.fits if f.key in held and f.key not in done}
    failed = {f.key: failures[f.key] for f in plan.fits if f.key in failures and f.key not in done | running.keys()}
    blocked = {}
    for fit in plan.fits:
        cause = next((a.key for a in fit.ancestors if a.key in failed), None)
        if cause and fit.key not in done and fit.key not in failed:
            blocked[fit.key] = cause
    rest = {f.key for f in plan.fits} - done - running.keys() - failed.keys() - blocked.keys()
    return Status(done=done, running=running, failed=failed, blocked=blocked, todo=frozenset(rest))


# --- cost ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What Fits cost: training 6ND and prediction 2ND (Kaplan et al. 2020, section 2.1)."""

    flops: float
    seconds: float
    """On one worker of the plan's shape, one Fit after another."""


CPU_FLOPS_PER_S = 2e10
GPU_FLOPS_PER_S = 2e14
STEP_OVERHEAD_S = 0.005
"""Assumed speeds before anything has been measured; `w2s plan` names them as assumptions."""
CHARACTERS_PER_TOKEN = 4


def cost(fit: Fit, *, execution: Execution, shape: tasks.Size) -> Cost:
    """An estimate before tokenisation: rows from the file, tokens from the mean length of its texts."""
    num_test = fit.data.num_test or shape.num_test or shape.num_rows // 5
    per_half = (shape.num_rows - (0 if shape.num_test else num_test)) // 2
    num_train = min(fit.data.num_train or per_half, per_half)
    row_tokens = _row_tokens(fit, shape)
    epochs = dict(fit.method.params)["epochs"] if fit.role == "start" else fit.training.epochs
    predicted, parts = num_test * (epochs * fit.training.evals_per_epoch + 1), int(fit.half.partition("/")[2] or 1)
    if fit.role == "start":
        predicted = 0
    if fit.role == "untrained":
        epochs, predicted = 0, num_test
    if fit.labels_others:
        predicted += num_train
    num_steps = epochs * math.ceil(num_train / parts / fit.training.batch_size)
    overhead_s = STEP_OVERHEAD_S * (num_steps + predicted / 64)
    if fit.training.tune == "head":  # its features are counted once for all probes, in `costs`
        return Cost(flops=0.0, seconds=overhead_s)
    per_token = 4.0 if fit.training.tune == "lora" else 6.0  # frozen weights need no gradient of their own
    training_flops = per_token * fit.model.num_params * row_tokens * num_train / parts * epochs
    flops = training_flops + 2.0 * fit.model.num_params * row_tokens * predicted
    return Cost(flops=flops, seconds=overhead_s + flops / _speed(execution))


def _row_tokens(fit: Fit, shape: tasks.Size) -> float:
    return min(fit.data.max_tokens, max(2.0, shape.mean_characters / CHARACTERS_PER_TOKEN))


def _speed(execution: Execution) -> float:
    """FLOPs a second, over all workers."""
    each = GPU_FLOPS_PER_S if execution.gpus_per_worker else CPU_FLOPS_PER_S * execution.cpus_per_worker
    return each * execution.workers


def _extraction(fit: Fit, *, execution: Execution, shape: tasks.Size) -> Cost:
    """Reading the features of all rows off a frozen model: 2ND."""
    row_tokens = _row_tokens(fit, shape)
    flops = 2.0 * fit.model.num_params * row_tokens * (shape.num_rows + (shape.num_test or 0))
    return Cost(flops=flops, seconds=flops / _speed(execution))


def costs(plan: Plan) -> dict[str, Cost]:
    """Key -> cost of every Fit."""
    shapes: dict[str, tasks.Size] = {}
    alike: dict[tuple[Any, ...], Cost] = {}
    extracted: set[tuple[Model, Data]] = set()
    found = {}
    for fit in plan.fits:
        if fit.data.source not in shapes:
            shapes[fit.data.source] = tasks.size(tasks.load_pinned(fit.data.source, commits=fit.data.commits))
        kind = (id(fit.model), id(fit.data), id(fit.training), fit.half, fit.method)
        if kind not in alike:
            alike[kind] = cost(fit, execution=plan.executions[fit.model], shape=shapes[fit.data.source])
        found[fit.key] = alike[kind]
        if fit.training.tune == "head" and (fit.model, fit.data) not in extracted:
            extracted.add((fit.model, fit.data))
            more = _extraction(fit, execution=plan.executions[fit.model], shape=shapes[fit.data.source])
            found[fit.key] = Cost(alike[kind].flops + more.flops, alike[kind].seconds + more.seconds)
    return found


def num_tests(plan: Plan) -> dict[str, int]:
    """Task -> size of its test set, before rows are dropped for balance or length."""
    sizes = {}
    for data in {fit.data for fit in plan.fits}:
        shape = tasks.size(tasks.load_pinned(data.source, commits=data.commits))
        sizes[data.task] = data.num_test or shape.num_test or shape.num_rows // 5
    return dict(sorted(sizes.items()))


def state_bytes(fit: Fit, execution: Execution) -> float:
    """Weights, gradients and optimizer states of one worker under ZeRO (Rajbhandari et al. 2020, figure 1)."""
    share = execution.workers
    weights, gradients, moments = (4.0, 4.0, 8.0) if fit.training.tune == "all" else (4.0, 0.0, 0.0)  # next to nothing
    if execution.zero_stage >= 1:
        moments /= share
    if execution.zero_stage >= 2:
        gradients /= share
    if execution.zero_stage >= 3:
        weights /= share
    return fit.model.num_params * (weights + gradients + moments)


MODEL_CORRELATION, SEED_CORRELATION = 0.6, 0.9
"""Of being right on an item, between two models of a task and between two seeds of a model: assumptions for the precision
of PGR. `studies/embedded.yaml` shows 0.5 to 0.8, and intervals of 5 seeds that are 0.94 to 1.0 times those of one."""


def pgr_half_width(num_test: int, *, gap: float, num_seeds: int) -> float:
    """Half of the 95 % interval of PGR near 0.5 for a gap (ceiling - supervisor), from the noise of items and seeds.

    Per test item, the variance of (student - supervisor) - PGR (ceiling - supervisor) is v (1.5 - 1.5 r), where v is the
    variance of being right (3/16 at a score of 3/4) and r the correlation between models. Seeds share the test items, so
    they average out no more than what they don't have in common.
    """
    per_item = (3 / 16) * 1.5 * (1 - MODEL_CORRELATION)
    shared = SEED_CORRELATION + (1 - SEED_CORRELATION) / num_seeds
    return 1.96 * math.sqrt(per_item * shared / num_test) / gap


def assumed_speed(plan: Plan) -> str:
    """The speeds behind the estimate, in words."""
    if any(execution.gpus_per_worker for execution in plan.executions.values()):
        return f"{GPU_FLOPS_PER_S:.0e} FLOP/s a GPU"
    return f"{CPU_FLOPS_PER_S:.0e} FLOP/s a core and {STEP_OVERHEAD_S * 1000:.0f} ms a step"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 10 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


# --- why a Fit is not in the store --------------------------------------------------------------------------------


def nearest_committed(fit: Fit, *, store: Store) -> tuple[str | None, list[tuple[str, Any, Any]]]:
    """The committed Fit most like this one, and each field in which they differ: (field, there, here)."""
    best: tuple[str | None, list[tuple[str, Any, Any]]] = (None, [])
    for folder in store.committed_folders():
        if not folder.startswith(f"{fit.data.task}-{fit.model.name}-"):
            continue
        there = json.loads(store.read_file(folder, "fit.json"))["identity"]
        differences = _differences(there, fit.identity, "")
        if best[0] is None or len(differences) < len(best[1]):
            best = (folder, differences)
    return best


def _differences(there: Any, here: Any, where: str) -> list[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            difference
            for name in sorted(there.keys() | here.keys())
            for difference in _differences(there.get(name), here.get(name), f"{where}.{name}".lstrip("."))
        ]
    there, here = (list(value) if isinstance(value, tuple) else value for value in (there, here))
    return [] if there == here else [(where, there, here)]
