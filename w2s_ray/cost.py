"""What Fits cost, estimated before anything is measured: FLOPs, seconds, memory, and the precision of PGR to expect.

The estimates read the study, its task files and the sizes of its models. They start nothing and write nothing. `w2s plan`
prints them together with the speeds that they assume; a run orders its Fits by them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from w2s_ray import methods, tasks
from w2s_ray.fit import Data, Execution, Fit, Method, Model
from w2s_ray.plan import Plan

CPU_FLOPS_PER_S = 2e10
"""Of one core."""
GPU_FLOPS_PER_S = 2e14
STEP_OVERHEAD_S = 0.005
CHARACTERS_PER_TOKEN = 4

MODEL_CORRELATION, SEED_CORRELATION = 0.6, 0.9
"""How strongly being right on a test item correlates between two models of a task, and between two seeds of one model.

Both are assumptions. In `studies/embedded.yaml` models correlate by 0.5 to 0.8, and intervals from five seeds are 0.94 to
1.0 times as wide as intervals from one.
"""


@dataclass(frozen=True)
class Cost:
    """Training takes 6ND FLOPs and prediction 2ND, for N parameters and D tokens (Kaplan et al. 2020, section 2.1)."""

    flops: float
    seconds: float
    """In one slot, which runs one Fit after another."""


def costs(plan: Plan) -> dict[str, Cost]:
    """Key -> cost of every Fit. Probes share their features, so the first probe on a model and task pays for them."""
    sizes: dict[str, tasks.Size] = {}
    by_kind: dict[tuple[int, int, int, str, Method], Cost] = {}
    with_features: set[tuple[Model, Data]] = set()
    by_key = {}
    for fit in plan.fits:
        if fit.data.source not in sizes:
            sizes[fit.data.source] = _task_size(fit.data)
        execution, size = plan.executions[fit.model], sizes[fit.data.source]
        kind = (id(fit.model), id(fit.data), id(fit.training), fit.half, fit.method)  # seeds cost the same
        if kind not in by_kind:
            by_kind[kind] = cost(fit, execution=execution, size=size)
        by_key[fit.key] = by_kind[kind]
        if fit.training.tune == "head" and (fit.model, fit.data) not in with_features:
            with_features.add((fit.model, fit.data))
            features = _feature_cost(fit, execution=execution, size=size)
            by_key[fit.key] = Cost(by_kind[kind].flops + features.flops, by_kind[kind].seconds + features.seconds)
    return by_key


def cost(fit: Fit, *, execution: Execution, size: tasks.Size) -> Cost:
    """One Fit's cost without features. Its tokens follow from the number of rows and their mean length in characters."""
    num_test = _num_test(fit.data, size)
    per_half = (size.num_rows - (0 if size.num_test else num_test)) // 2
    share = methods.budget(fit.method)
    num_train = min(fit.data.num_train or per_half, per_half)
    row_tokens = _row_tokens(fit, size)
    epochs = dict(fit.method.params)["epochs"] if fit.role == "start" else fit.training.epochs
    num_predicted = num_test * (epochs * fit.training.evals_per_epoch + 1)
    num_parts = fit.part.count
    if fit.role == "start":
        num_predicted = 0
    if fit.role == "untrained":
        epochs, num_predicted = 0, num_test
    if fit.labels_others:
        num_predicted += num_train
    epochs, num_learned = epochs * share.steps, num_train * share.rows / num_parts
    num_steps = epochs * math.ceil(num_learned / fit.training.batch_size)
    overhead_s = STEP_OVERHEAD_S * (num_steps + num_predicted / 64)
    if fit.training.tune == "head":  # `costs` adds the features, which all probes share
        return Cost(flops=0.0, seconds=overhead_s)
    flops_per_weight = 4.0 if fit.training.tune == "lora" else 6.0  # frozen weights need no gradient of their own
    training_flops = flops_per_weight * fit.model.num_params * row_tokens * num_learned * epochs
    flops = training_flops + 2.0 * fit.model.num_params * row_tokens * num_predicted
    return Cost(flops=flops, seconds=overhead_s + flops / _flops_per_s(execution))


def _feature_cost(fit: Fit, *, execution: Execution, size: tasks.Size) -> Cost:
    """A forward pass of the frozen model over all rows: 2ND."""
    flops = 2.0 * fit.model.num_params * _row_tokens(fit, size) * (size.num_rows + (size.num_test or 0))
    return Cost(flops=flops, seconds=flops / _flops_per_s(execution))


def _task_size(data: Data) -> tasks.Size:
    return tasks.size(tasks.load_pinned(data.source, commits=data.commits))


def _num_test(data: Data, size: tasks.Size) -> int:
    return data.num_test or size.num_test or size.num_rows // 5


def _row_tokens(fit: Fit, size: tasks.Size) -> float:
    return min(fit.data.max_tokens, max(2.0, size.mean_characters / CHARACTERS_PER_TOKEN))


def _flops_per_s(execution: Execution) -> float:
    """Of all workers together."""
    per_worker = GPU_FLOPS_PER_S if execution.gpus_per_worker else CPU_FLOPS_PER_S * execution.cpus_per_worker
    return per_worker * execution.workers


def assumed_speed(plan: Plan) -> str:
    """The speeds behind the estimates, in words."""
    if any(execution.gpus_per_worker for execution in plan.executions.values()):
        return f"{GPU_FLOPS_PER_S:.0e} FLOP/s per GPU"
    return f"{CPU_FLOPS_PER_S:.0e} FLOP/s per core and {STEP_OVERHEAD_S * 1000:.0f} ms per step"


def state_bytes(fit: Fit, execution: Execution) -> float:
    """Weights, gradients and optimizer states of one worker under ZeRO (Rajbhandari et al. 2020, figure 1)."""
    weights, gradients, moments = 4.0, 4.0, 8.0  # bytes per parameter: fp32, with two moments for Adam
    if fit.training.tune != "all":  # a head or adapters alone are trained, and these are small
        gradients, moments = 0.0, 0.0
    if execution.zero_stage >= 1:
        moments /= execution.workers
    if execution.zero_stage >= 2:
        gradients /= execution.workers
    if execution.zero_stage >= 3:
        weights /= execution.workers
    return fit.model.num_params * (weights + gradients + moments)


def num_tests(plan: Plan) -> dict[str, int]:
    """Task -> size of its test set, before rows are dropped for balance or length."""
    data_of_task = {fit.data.task: fit.data for fit in plan.fits}
    return {task: _num_test(data, _task_size(data)) for task, data in sorted(data_of_task.items())}


def pgr_half_width(num_test: int, *, gap: float, num_seeds: int) -> float:
    """Half of the 95 % interval of a PGR near 0.5, for a gap (ceiling - supervisor), from the noise of items and seeds.

    Per test item, the variance of (student - supervisor) - PGR (ceiling - supervisor) is v (1.5 - 1.5 r). Here v is the
    variance of being right (3/16 at a score of 3/4) and r is the correlation between models. Seeds share the test items,
    so more seeds average out only the part of the noise that they do not share.
    """
    per_item = (3 / 16) * 1.5 * (1 - MODEL_CORRELATION)
    shared = SEED_CORRELATION + (1 - SEED_CORRELATION) / num_seeds
    return 1.96 * math.sqrt(per_item * shared / num_test) / gap


def duration(seconds: float) -> str:
    """`42 s`, `3 min 10 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
