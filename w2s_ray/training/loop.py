"""One Fit from its rows to its committed files.

Promises: the files are a function of the Fit's identity; how it was cut over workers, micro-batches and interruptions
shows in nothing but `fit.json`'s provenance (to the bit on one world size, to a small tolerance across them).
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from w2s_ray import methods, store
from w2s_ray.fit import BUSY, Execution, Fit, Setting, describe
from w2s_ray.methods.naive import token_loss
from w2s_ray.store import Store
from w2s_ray.training import checkpoint, data, features
from w2s_ray.training import engine as engines
from w2s_ray.training.data import Prepared, Rows, prepare
from w2s_ray.training.model import build

REPORT_EVERY_S = 2.0

Report = Callable[[dict[str, Any]], None]


class TrainingFailed(Exception):
    """A Fit that can't be trained, whatever the machine. `kind` is one word."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass
class Clock:
    """Seconds by phase: load, features, train, eval, checkpoint, commit."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


def train_fit(fit: Fit, *, store_: Store, execution: Execution, report: Report, scratch: Path) -> dict[str, float]:
    """Train, predict, commit. Returns seconds by phase; raises TrainingFailed where training itself can't go on."""
    clock = Clock()
    with clock.phase("load"), engines.together():
        prepared = data.prepare(fit)
    if fit.training.tune == "head":
        with clock.phase("features"):
            prepared = features.for_probe(fit, prepared, store_=store_, execution=execution)
    with clock.phase("load"):
        with engines.together():
            rows = prepared.parts[fit.half]
            targets = data.targets(fit, rows, prepared=prepared, store_=store_)
            model, head_start = build(
                fit.model,
                setting=fit.data.setting,
                tune=fit.training.tune,
                execution=execution,
                bf16=fit.training.precision == "bf16",
                seed=fit.seed,
            )
        (scratch / "checkpoint").mkdir()
        progress = checkpoint.find(fit, execution=execution, store_=store_, scratch=scratch / "checkpoint")
        if progress:
            checkpoint.load_weights(model, scratch=scratch / "checkpoint")
        engine = engines.start(model, training=fit.training, execution=execution)
        if progress:
            checkpoint.load_optimizer(engine, scratch=scratch / "checkpoint")
    resumed_from = progress.step if progress else 0
    try:
        progress = progress or checkpoint.Progress(step=0, curve=[], loss_sum=0.0, hits=0.0, num_rows=0)
        _train(
            engine, fit, rows, targets, prepared, progress=progress, execution=execution, store_=store_, clock=clock,
            report=report, scratch=scratch / "checkpoint",
        )  # fmt: skip
        with clock.phase("eval"):
            test = say(engine, fit, prepared, part="test")
            labels = say(engine, fit, prepared, part="B") if fit.half == "A" else None
    finally:
        engines.stop(engine)
    if not np.isfinite(test["probability"]).all():
        raise TrainingFailed("nan", "predictions on the test set are not finite")
    with clock.phase("commit"), engines.together():
        if engines.rank() == 0:
            files = scratch / "files"
            files.mkdir()
            write_predictions(files / "test.parquet", test)
            if labels is not None:
                write_predictions(files / "labels.parquet", labels)
            pq.write_table(pa.Table.from_pylist(progress.curve, schema=CURVE), files / "curve.parquet")
            facts = provenance(
                fit, prepared, execution=execution, clock=clock, head_start=head_start, resumed_from=resumed_from
            )
            (files / "fit.json").write_text(json.dumps(describe(fit) | {"provenance": facts}, indent=1))
            store.write_truth(store_, store.truth_name(fit), prepared.truth)
            store.commit(store_, fit, files)
    return dict(clock.seconds)


# --- training -----------------------------------------------------------------------------------------------------

CURVE = pa.schema(
    {
        "step": pa.int32(),
        "epoch": pa.float32(),
        "train_loss": pa.float32(),
        "train_accuracy": pa.float32(),
        "test_loss": pa.float32(),
        "test_accuracy": pa.float32(),
    }
)
"""Learning curve: loss and accuracy against the Fit's own labels since the last point, and against the truth on test."""


def _train(
    engine: Any,
    fit: Fit,
    rows: Rows,
    targets: np.ndarray | list[list[int]],
    prepared: Prepared,
    *,
    progress: checkpoint.Progress,
    execution: Execution,
    store_: Store,
    clock: Clock,
    report: Report,
    scratch: Path,
) -> None:
    training, setting = fit.training, fit.data.setting
    objective = methods.objective(fit.method, setting=setting)
    steps_per_epoch = math.ceil(len(rows) / training.batch_size)
    num_steps = steps_per_epoch * training.epochs
    evaluate_at = {
        round(steps_per_epoch * point / training.evals_per_epoch)
        for point in range(1, training.epochs * training.evals_per_epoch + 1)
    }
    report_every, saved_s, first_step = 0, 0.0, progress.step
    began_s = time.perf_counter()
    engine.train()
    while progress.step < num_steps:
        epoch, batch_index = divmod(progress.step, steps_per_epoch)
        order = data.order(len(rows), seed=fit.seed, epoch=epoch)
        chosen = order[batch_index * training.batch_size : (batch_index + 1) * training.batch_size]
        with clock.phase("train"):
            engines.set_rate(engine, engines.rate_at(progress.step, num_steps, training=training))
            loss, hits = step(
                engine,
                [rows.sequences[i] for i in chosen],
                _chosen(targets, chosen),
                setting=setting,
                objective=objective,
                progress=progress.step / num_steps,
                batch_size=training.batch_size,
                pad_id=prepared.pad_id,
            )
        progress.step += 1
        if not math.isfinite(loss):
            raise TrainingFailed("nan", f"the loss is {loss} at step {progress.step} of {num_steps}")
        progress.loss_sum += loss * len(chosen)
        progress.hits += hits
        progress.num_rows += len(chosen)
        if progress.step in evaluate_at:
            with clock.phase("eval"):
                progress.curve.append(_curve_point(engine, fit, prepared, progress, steps_per_epoch=steps_per_epoch))
            progress.loss_sum, progress.hits, progress.num_rows = 0.0, 0.0, 0
        done = progress.step - first_step
        elapsed_s = time.perf_counter() - began_s
        if done in (1, 10):  # all workers report together, so the pace is agreed on; the first step is slow
            report_every = _agreed(max(1, round(REPORT_EVERY_S / max(elapsed_s / done, 1e-4))))
        if report_every and done % report_every == 0:
            report(
                {
                    "event": "step",
                    "key": fit.key,
                    "step": progress.step,
                    "num_steps": num_steps,
                    "loss": loss,
                    "rows_per_s": done * training.batch_size / elapsed_s,
                }
            )
            # checkpoints fall on the same beat; rank 0's clock decides for all
            if _agreed(int(elapsed_s - saved_s >= execution.checkpoint_every_s)) and progress.step < num_steps:
                with clock.phase("checkpoint"):
                    checkpoint.save(engine, fit, progress, execution=execution, store_=store_, scratch=scratch)
                saved_s = time.perf_counter() - began_s


def _agreed(value: int) -> int:
    """Rank 0's value, on every worker."""
    if engines.world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _chosen(targets: np.ndarray | list[list[int]], rows: Any) -> np.ndarray | list[list[int]]:
    return targets[rows] if isinstance(targets, np.ndarray) else [targets[i] for i in rows]


def step(
    engine: Any,
    sequences: list[tuple[Any, ...]],
    targets: np.ndarray | list[list[int]],
    *,
    setting: Setting,
    objective: methods.Objective,
    progress: float,
    batch_size: int,
    pad_id: int,
) -> tuple[float, float]:
    """One optimizer step on a global batch, of which this worker takes its slices. Mean loss and hits over the batch."""
    device = engines.device()
    micro, accumulation = engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()
    num_rows, world = len(sequences), engines.world_size()
    share = math.ceil(batch_size / world)
    mine = range(engines.rank() * share, min((engines.rank() + 1) * share, num_rows))
    slices = [list(mine[i * micro : (i + 1) * micro]) for i in range(accumulation)]
    batches = []
    for each in slices:  # a slice without rows still passes one through, for under ZeRO-3 all workers must take part
        some = each or [0]
        read, wanted = data.inputs(
            [sequences[i] for i in some], _chosen(targets, some), setting=setting, pad_id=pad_id, device=device
        )
        batches.append((read, wanted[: len(each)]))

    logits: list[torch.Tensor] | None = None
    batch = None
    if objective.needs_batch:
        if world == 1 and accumulation == 1:
            logits = [engine(*batches[0][0])]
            own = [logits[0].detach()]
        else:
            with torch.no_grad():
                own = [engine(*read)[: len(rows)] for (read, _), rows in zip(batches, slices, strict=True)]
        probabilities = torch.softmax(torch.cat(own), dim=-1)[:, 1]
        assert isinstance(targets, np.ndarray)
        batch = methods.GlobalBatch(
            _gathered(probabilities, share=share)[:num_rows], torch.from_numpy(targets).to(device)
        )
    loss_of = objective.at(progress, batch)

    totals = torch.zeros(2, dtype=torch.float64)
    for i, ((read, wanted), rows) in enumerate(zip(batches, slices, strict=True)):
        output = logits[i] if logits else engine(*read)
        losses = loss_of(output[: len(rows)], wanted)
        # DeepSpeed divides by the accumulation and averages over workers; what is wanted is the batch's mean
        engine.backward(losses.sum() * (accumulation * world / num_rows) + 0.0 * output.sum())
        engine.step()
        totals[0] += float(losses.detach().sum())
        totals[1] += float(_hits(output[: len(rows)].detach(), wanted).sum())
    if world > 1:
        totals = totals.to(device)
        dist.all_reduce(totals)
    return float(totals[0]) / num_rows, float(totals[1])


def _hits(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Whether each row is what it should be: the likelier of two, or every token of a completion."""
    if output.ndim == 2:
        return (output[:, 1] > output[:, 0]) == (wanted > 0.5)
    return ((output.argmax(-1) == wanted) | (wanted == data.NOT_LEARNED)).all(dim=1)


def _gathered(mine: torch.Tensor, *, share: int) -> torch.Tensor:
    """The rows of all workers in order; a worker with fewer rows than its share comes last."""
    if engines.world_size() == 1:
        return mine
    padded = torch.zeros(share, dtype=mine.dtype, device=mine.device)
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in range(engines.world_size())]
    dist.all_gather(parts, padded)
    return torch.cat(parts)


# --- predictions --------------------------------------------------------------------------------------------------


def say(engine: Any, fit: Fit, prepared: Prepared, *, part: str) -> pa.Table:
    """What the model says of every row: id and probability (of label 1, or of the first completion's being better); or
    id, completion and the completion's probability."""
    rows = prepared.parts[part]
    columns: dict[str, Any] = {"id": pa.array(rows.ids, pa.string())}
    if fit.data.setting == "generation":
        probabilities, answers = write(engine, rows, prepared)
        written = [data.written(prepared.tokenizer, answer) for answer in answers.tolist()]
        columns["completion"] = pa.array(written, pa.string())
    else:
        probabilities = predict(engine, rows, setting=fit.data.setting, pad_id=prepared.pad_id)
    return pa.table(columns | {"probability": pa.array(probabilities, pa.float32())})


def _over_batches(
    engine: Any, rows: Rows, *, width: int, dtype: torch.dtype, of: Callable[[list[int]], torch.Tensor]
) -> np.ndarray:
    """[row, width], the same on every worker, of a function of row numbers. Whole batches go to workers in turn."""
    engine.eval()
    world = engines.world_size()
    found = torch.zeros((len(rows), width), dtype=dtype, device=engines.device())
    batches = data.eval_batches(rows)
    with torch.no_grad():
        for first in range(0, len(batches), world):
            index = first + engines.rank()
            real = index < len(batches)  # under ZeRO-3 all workers must take part in every pass
            chosen = batches[index if real else first]
            values = of(chosen)
            if real:
                found[chosen] = values.to(dtype)
    if world > 1:
        dist.all_reduce(found)
    engine.train()
    return found.cpu().numpy()


def predict(engine: Any, rows: Rows, *, setting: Setting, pad_id: int) -> np.ndarray:
    """Probability of class 1, or of the first completion's being better, for every row."""

    def of(chosen: list[int]) -> torch.Tensor:
        read, _ = data.inputs(
            [rows.sequences[i] for i in chosen],
            np.zeros(len(chosen), dtype=np.float32),
            setting=setting,
            pad_id=pad_id,
            device=engines.device(),
        )
        return torch.softmax(engine(*read), dim=-1)[:, 1:]

    return _over_batches(engine, rows, width=1, dtype=torch.float32, of=of)[:, 0]


def write(engine: Any, rows: Rows, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """(probability of what was written, its tokens) for every row, greedily."""

    def of(chosen: list[int]) -> torch.Tensor:
        prompts = data.pad(
            [rows.sequences[i][0] for i in chosen], pad_id=prepared.pad_id, device=engines.device(), left=True
        )
        said, log_probability = engine.module.greedy(
            *prompts, num_tokens=prepared.num_answer_tokens, eos_id=prepared.tokenizer.eos_token_id
        )
        return torch.cat((log_probability.double().exp()[:, None], said.double()), dim=1)

    found = _over_batches(engine, rows, width=1 + prepared.num_answer_tokens, dtype=torch.float64, of=of)
    return found[:, 0].astype(np.float32), found[:, 1:].astype(np.int64)


def _judged(engine: Any, rows: Rows, prepared: Prepared) -> np.ndarray:
    """[row, (log-likelihood of the right completion, whether each of its tokens is the likeliest)]. The second is exact
    match under greedy writing, at the price of one pass."""

    def of(chosen: list[int]) -> torch.Tensor:
        read, wanted = data.inputs(
            [rows.sequences[i] for i in chosen],
            _chosen(rows.labels, chosen),
            setting="generation",
            pad_id=prepared.pad_id,
            device=engines.device(),
        )
        output = engine(*read)
        return torch.stack((-token_loss(output, wanted), _hits(output, wanted).to(output.dtype)), dim=1)

    return _over_batches(engine, rows, width=2, dtype=torch.float32, of=of).astype(np.float64)


def _curve_point(
    engine: Any, fit: Fit, prepared: Prepared, progress: checkpoint.Progress, *, steps_per_epoch: int
) -> dict[str, float]:
    test = prepared.parts["test"]
    if fit.data.setting == "generation":
        log_likelihood, right = _judged(engine, test, prepared).T
    else:
        assert isinstance(test.labels, np.ndarray)
        said = predict(engine, test, setting=fit.data.setting, pad_id=prepared.pad_id).astype(np.float64)
        right = (said > 0.5) == (test.labels > 0.5)
        log_likelihood = np.log(np.clip(np.where(test.labels > 0.5, said, 1 - said), 1e-7, 1))
    return {
        "step": progress.step,
        "epoch": progress.step / steps_per_epoch,
        "train_loss": progress.loss_sum / max(1, progress.num_rows),
        "train_accuracy": progress.hits / max(1, progress.num_rows),
        "test_loss": float(-log_likelihood.mean()),
        "test_accuracy": float(right.mean()),
    }


def write_predictions(path: Path, said: pa.Table) -> None:
    """By id; the bytes depend on nothing else."""
    pq.write_table(said.sort_by("id"), path)


# --- provenance ---------------------------------------------------------------------------------------------------


def provenance(
    fit: Fit, prepared: Prepared, *, execution: Execution, clock: Clock, head_start: str, resumed_from: int
) -> dict[str, Any]:
    """Where, when and with what a Fit came to be; nothing of it is identity."""
    rows = prepared.parts[fit.half]
    read = (len(each) for sequence in prepare(fit).parts[fit.half].sequences for each in sequence)
    written = sum(map(len, rows.labels)) if isinstance(rows.labels, list) else 0
    training_tokens = (sum(read) + written) * fit.training.epochs
    total_s = sum(clock.seconds.values())
    busy_s = sum(clock.seconds.get(phase, 0.0) for phase in BUSY)
    return {
        "versions": {name: metadata.version(name) for name in ("w2s_ray", "torch", "transformers", "deepspeed", "ray")},
        "python": sys.version.split()[0],
        "git_commit": git_commit(),
        "host": platform.node(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "world_size": engines.world_size(),
        "execution": asdict(execution),
        "committed_at": time.time(),
        "seconds": {name: round(seconds, 4) for name, seconds in clock.seconds.items()},
        "busy": round(busy_s / total_s, 4) if total_s else None,
        "tokens": training_tokens,
        # a probe's backbone reads each row once, and only forwards
        "flops": (
            2 * fit.model.num_params * training_tokens // fit.training.epochs
            if fit.training.tune == "head"
            else 6 * fit.model.num_params * training_tokens
        ),
        "head_start": head_start,
        "num_rows": {name: len(part) for name, part in prepared.parts.items()},
        "num_too_long": prepared.num_dropped,
        "resumed_from_step": resumed_from,
    }


def git_commit() -> str | None:
    """The commit of the code that runs, where it runs from a checkout."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
