"""What Fits cost, estimated before anything is measured: FLOPs, seconds, and the precision of PGR to expect.

The estimates read the study, its task files and the sizes of its models, and what runs have left in the store of the speed of their
machines (`speeds.py`). They start nothing and write nothing. `w2s plan` prints them together with the speeds that they assume, as
far as nothing was measured; a run orders its Fits by them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_ray import methods, tasks
from w2s_ray.fit import EVAL_BATCH_TOKENS, Data, Execution, Fit, Model
from w2s_ray.planning import Cell, Plan
from w2s_ray.speeds import Speeds, read_speeds

if TYPE_CHECKING:
    from w2s_ray.analysis.intervals import Noise
    from w2s_ray.store import Store

CPU_FLOPS_PER_S = 2e10, 1e11
"""Of one core, for the narrow matrices of half a million parameters and for those of twelve million and more. Between them the
speed grows with the root of the number of parameters."""
SLOWEST_PARAMS = 5e5
GPU_FLOPS_PER_S = 2e14
"""In bf16. Measured on an H200: 1.7e14 with 160 M parameters, 3.6e14 with 1.4 B (benchmarks/GPU.md)."""
STEP_OVERHEAD_S = 0.012
PROBE_STEP_OVERHEAD_S = 0.002
CHARACTERS_PER_TOKEN = 4

MODEL_CORRELATION = 0.6
"""How strongly being right on a test item correlates between two models of a task. In `studies/embedded.yaml`: 0.5 to 0.8."""
SHARED_BY_REPLICATES = 0.7
"""What part of the item noise of a PGR the replicates of a pair have in common, since they share their test items."""
REPLICATE_SD = 0.01
"""Standard deviation of a Fit's true score between replicates, each with its own halves."""
GROUP_CORRELATION = 0.1
"""How strongly two test items of one group correlate in what they add to a PGR."""


@dataclass(frozen=True)
class Cost:
    """Training takes 6ND FLOPs and prediction 2ND, for N parameters and D tokens (Kaplan et al. 2020, section 2.1)."""

    flops: float
    seconds: float
    """In one slot, which runs one Fit after another. As measured, where such Fits ran before; else as assumed."""
    is_measured: bool
    assumed: dict[str, float]
    """Phase -> seconds as assumed."""


def costs(plan: Plan, *, speeds: Speeds | None = None) -> dict[str, Cost]:
    """Key -> cost of every Fit. `speeds`: what was measured, if anything."""
    sizes, row_tokens = _task_sizes(plan), _row_tokens(plan)
    by_kind: dict[tuple[Any, ...], Cost] = {}
    rows_of: dict[int, tuple[Any, ...]] = {}
    by_key = {}
    for fit in plan.fits:
        data = fit.data
        rows = rows_of.get(id(data))
        if rows is None:
            rows = rows_of[id(data)] = (data.source, data.num_train, data.num_test, data.max_tokens, data.num_fresh)
        kind = (
            id(fit.model),
            rows,
            id(fit.training),
            fit.half,
            id(fit.method),
            fit.keeps_half_b,
        )  # seeds cost the same
        if kind not in by_kind:
            size, execution = sizes[data.source], plan.executions[fit.model]
            tokens = row_tokens.get((data.task, fit.model.tokenizer), size.mean_characters / CHARACTERS_PER_TOKEN)
            work = _work(fit, size, row_tokens=min(data.max_tokens, max(2.0, tokens)))
            assumed = {phase: _assumed_s(fit, execution, *amount) for phase, amount in work.items()}
            seconds, is_measured = (speeds or Speeds()).expected_s(fit, execution, assumed)
            by_kind[kind] = Cost(sum(flops for flops, _ in work.values()), seconds, is_measured, assumed)
        by_key[fit.key] = by_kind[kind]
    return by_key


Work = dict[str, tuple[float, float]]
"""Phase -> its FLOPs, and how often a batch goes through the model."""


def _work(fit: Fit, size: tasks.Size, *, row_tokens: float) -> Work:
    """`row_tokens`: what a model reads of a row."""
    num_test = _num_test(fit.data, size)
    per_half = (size.num_rows - (0 if size.num_test else num_test)) // 2
    num_train = min(fit.data.num_train or per_half, per_half)
    flops_per_row = 2.0 * fit.model.num_params * row_tokens  # of a forward pass
    if fit.role == "reading":
        num_read = _num_read(fit, num_test=num_test, num_train=num_train, per_half=per_half)
        return {"features": (flops_per_row * num_read, row_tokens * num_read / EVAL_BATCH_TOKENS)}
    share = methods.budget(fit.method)
    epochs = dict(fit.method.params)["epochs"] if fit.role == "start" else fit.training.epochs
    num_predicted = num_test * max(1, epochs * fit.training.evals_per_epoch)
    num_parts = fit.part.count
    if fit.role == "start":
        num_predicted = 0
    if fit.role == "untrained":
        epochs, num_predicted = 0, num_test
    num_predicted += num_train * (len(fit.labelled_parts) + fit.keeps_half_b)
    epochs, num_learned = epochs * share.steps, num_train * share.rows / num_parts
    num_steps = epochs * math.ceil(num_learned / fit.training.batch_size)
    if fit.training.tune == "head":  # a row is one vector
        return {"train": (0.0, num_steps), "eval": (0.0, num_predicted / EVAL_BATCH_TOKENS)}
    passes = 2.0 if fit.training.tune == "lora" else 3.0  # frozen weights need no gradient of their own
    return {
        "train": (passes * flops_per_row * num_learned * epochs, num_steps),
        "eval": (flops_per_row * num_predicted, num_predicted * row_tokens / EVAL_BATCH_TOKENS),
    }


def _assumed_s(fit: Fit, execution: Execution, flops: float, num_batches: float) -> float:
    overhead_s = PROBE_STEP_OVERHEAD_S if fit.role != "reading" and fit.training.tune == "head" else STEP_OVERHEAD_S
    return overhead_s * num_batches + flops / _flops_per_s(fit.model, execution)


def _num_read(fit: Fit, *, num_test: int, num_train: int, per_half: int) -> float:
    """Rows of a reading, or of its share of one. The halves of a replicate leave out those that earlier replicates happen to have."""
    params = dict(fit.method.params)
    _, num_shares = params.get("share", (1, 1))
    if fit.half == "test":
        return num_test / num_shares
    if fit.half == "told":
        return num_test + num_train
    num_dealt = min((2 + fit.data.num_fresh) * num_train, 2 * per_half)
    share_left = 1 - num_dealt / max(1, 2 * per_half)
    return num_dealt * share_left ** len(params["without"]) / num_shares


def _task_sizes(plan: Plan) -> dict[str, tasks.Size]:
    """Source of a task -> its size."""
    commits = {fit.data.source: fit.data.commits for fit in plan.fits}
    return {source: tasks.size(tasks.load_pinned(source, commits=pinned)) for source, pinned in commits.items()}


def _num_test(data: Data, size: tasks.Size) -> int:
    return data.num_test or size.num_test or size.num_rows // 5


def _row_tokens(plan: Plan) -> dict[tuple[str, str], float]:
    """(task, tokenizer) -> tokens of a row, where rows were tokenised for the plan."""
    tokenizers = {model.name: model.tokenizer for model in plan.executions}
    return {(task, tokenizers[model]): facts.tokens_per_row for (task, model), facts in plan.tokens.items()}


def _flops_per_s(model: Model, execution: Execution) -> float:
    """Of all workers together."""
    slowest, fastest = CPU_FLOPS_PER_S
    per_core = min(max(slowest, slowest * math.sqrt(model.num_params / SLOWEST_PARAMS)), fastest)
    per_worker = GPU_FLOPS_PER_S if execution.gpus_per_worker else per_core * execution.cpus_per_worker
    return per_worker * execution.workers


def measured_speeds(plan: Plan, *, store: Store) -> Speeds:
    """What the store knows of the kind of machine that the plan is for."""
    return read_speeds(store, on_gpus=_is_on_gpus(plan))


def _is_on_gpus(plan: Plan) -> bool:
    return any(execution.gpus_per_worker for execution in plan.executions.values())


def assumed_speed(plan: Plan) -> str:
    """The speeds behind the estimates where nothing was measured, in words."""
    if _is_on_gpus(plan):
        return f"{GPU_FLOPS_PER_S:.0e} FLOP/s per GPU"
    slowest, fastest = CPU_FLOPS_PER_S
    return f"{slowest:.0e} to {fastest:.0e} FLOP/s per core, by the model's size, and {STEP_OVERHEAD_S * 1000:.0f} ms per step"


def num_tests(plan: Plan) -> dict[str, int]:
    """Task -> size of its test set, before rows are dropped for balance or length."""
    sizes = _task_sizes(plan)
    return dict(sorted((fit.data.task, _num_test(fit.data, sizes[fit.data.source])) for fit in plan.fits))


def pgr_half_width(
    num_test: int, *, gap: float, num_seeds: int, num_groups: float | None = None, noise: Noise | None = None
) -> float:
    """Half of the 95 % interval of a PGR near 0.5, for a gap (ceiling - supervisor): a forecast of the report's intervals.

    `num_groups`: of test items, or None if each item is its own group. `noise`: as measured on Fits of that task; by default
    it is assumed.
    """
    from w2s_ray.analysis.intervals import critical_value

    noise = noise or assumed_noise(num_test, num_groups=num_groups)
    items = noise.per_item / num_test
    replicates = noise.per_replicate / num_seeds if num_seeds > 1 else 0.0
    if num_seeds == 1:  # all noise of the test items is then in the interval, and none between replicates
        items = noise.one_replicate_per_item / num_test
    quantile = critical_value(
        replicates / (items + replicates), num_replicates=num_seeds, num_groups=num_groups or num_test
    )
    return quantile * math.sqrt(items + replicates) / gap


def assumed_noise(num_test: int, *, num_groups: float | None = None) -> Noise:
    """The noise of (student - supervisor) - 0.5 (ceiling - supervisor) that the constants above imply.

    The weights of the three scores are 1, -1/2 and -1/2, so their squares add up to 1.5. Per item, the variance of a score is
    v = 3/16 at a score of 3/4, and that of the sum is 1.5 v (1 - r) if models correlate by r. Groups of m items, which correlate
    by g, multiply it by 1 + (m - 1) g.
    """
    from w2s_ray.analysis.intervals import Noise

    per_group = num_test / num_groups if num_groups else 1.0
    per_item = 1.5 * (3 / 16) * (1 - MODEL_CORRELATION) * (1 + (per_group - 1) * GROUP_CORRELATION)
    own = (1 - SHARED_BY_REPLICATES) * per_item / num_test
    return Noise(per_item * SHARED_BY_REPLICATES, 1.5 * REPLICATE_SD**2 + own, per_item)


def measured_noise(plan: Plan, *, store: Store, done: Collection[str]) -> dict[str, Noise]:
    """Task -> the noise of its first pair whose naive students are done for several seeds. Without other tasks."""
    by_pair: dict[tuple[str, str, str, str], list[Cell]] = {}
    for cell in plan.cells if done else ():
        fits = (cell.supervisor, cell.student, cell.ceiling)
        sizes = cell.supervisor.model.size, cell.student.model.size
        if cell.method == "naive" and sizes[0] != sizes[1] and all(fit.key in done for fit in fits):
            by_pair.setdefault((cell.task, cell.family, *sizes), []).append(cell)
    chosen = {task: cells for (task, *_), cells in reversed(by_pair.items()) if len({cell.seed for cell in cells}) > 1}
    if not chosen:
        return {}
    from w2s_ray.analysis import pgr, tables
    from w2s_ray.analysis.bootstrap import resample
    from w2s_ray.results import write_results

    with tempfile.TemporaryDirectory() as folder:
        write_results(chain(*chosen.values()), study=plan.study.name, store=store, out=Path(folder))
        return pgr.measured_noise(resample(*tables.read_study(Path(folder)), num_resamples=0))


def assumed_precision() -> str:
    """The assumptions behind `assumed_noise`, in words."""
    return (
        f"models correlate by {MODEL_CORRELATION:g} on a test item and items of a group by {GROUP_CORRELATION:g}, and a Fit's "
        f"score differs between seeds by {100 * REPLICATE_SD:g} points (standard deviation)"
    )


def duration(seconds: float) -> str:
    """`42 s`, `3 min 10 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
