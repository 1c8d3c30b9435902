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
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from safetensors.torch import load, save_file

from w2s_ray import methods
from w2s_ray.fit import BUSY, Execution, Fit, Method, Setting, describe
from w2s_ray.methods import naive
from w2s_ray.store import Store
from w2s_ray.tracking import Log
from w2s_ray.training import checkpoint, data, features
from w2s_ray.training import engine as engines
from w2s_ray.training.data import Answers, Prepared, Rows, prepare
from w2s_ray.training.lessons import BY_FEATURES, Lessons, lessons, reworded, writing
from w2s_ray.training.model import build

REPORT_EVERY_S = 2.0

Report = Callable[[dict[str, Any]], bool | None]
"""Tell the driver; True: this machine is about to be taken away, so save what there is."""


def nothing(*_: object) -> None:
    """For who has no tracker and no lease."""


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


def train_fit(
    fit: Fit,
    *,
    store: Store,
    execution: Execution,
    report: Report,
    scratch: Path,
    log_point: Log = nothing,
    check_lease: Callable[[], None] = nothing,
) -> dict[str, float]:
    """Train, predict, commit. Returns seconds by phase; raises TrainingFailed where training itself can't go on."""
    clock = Clock()
    with clock.phase("load"), engines.together():
        prepared = reworded(fit, data.prepare(fit), store=store)

    def probed() -> Prepared:
        with clock.phase("features"):
            return features.for_probe(fit, prepared, store=store, execution=execution)

    read = probed() if fit.training.tune == "head" or fit.method.name in BY_FEATURES else prepared
    with clock.phase("load"):
        with engines.together():
            if fit.role == "start":
                taught = writing(prepared, prepared.parts[fit.half[0]])
            else:
                learned = read if fit.training.tune == "head" else prepared
                taught = lessons(fit, learned, store=store, features=lambda: read.parts[fit.half[0]])
            prepared = read if fit.training.tune == "head" else prepared
            model, head_start = build(
                fit.model,
                setting=_written_setting(fit),
                tune=fit.training.tune,
                lora_rank=fit.training.lora_rank,
                execution=execution,
                bf16=fit.training.precision == "bf16",
                seed=fit.seed,
                start=_weights(fit, store=store),
            )
            _check_elicits(fit, model, prepared, head_start=head_start)
        (scratch / "checkpoint").mkdir()
        progress = checkpoint.find(fit, execution=execution, store=store, scratch=scratch / "checkpoint")
        if progress:
            checkpoint.load_weights(model, scratch=scratch / "checkpoint")
        engine = engines.start(model, training=fit.training, execution=execution)
        if progress:
            checkpoint.load_optimizer(engine, scratch=scratch / "checkpoint")
    resumed_from = progress.step if progress else 0
    test, labels, weights = None, None, None
    try:
        progress = progress or checkpoint.Progress(step=0, curve=[], loss_sum=0.0, hits=0.0, num_rows=0)
        _train(
            engine, fit, taught, prepared, progress=progress, execution=execution, store=store, clock=clock,
            report=report, scratch=scratch / "checkpoint", log_point=log_point,
        )  # fmt: skip
        with clock.phase("eval"):
            if fit.role == "start":
                weights = checkpoint.full_weights(engine)
            else:
                test = say(engine, fit, prepared, part="test")
                labels = say(engine, fit, prepared, part="B") if fit.labels_others else None
    finally:
        engines.stop(engine)
    if test is not None and not np.isfinite(test["probability"]).all():
        raise TrainingFailed("nan", "predictions on the test set are not finite")
    with clock.phase("commit"), engines.together():
        if engines.rank() == 0:
            files = scratch / "files"
            files.mkdir()
            if test is not None:
                write_predictions(files / "test.parquet", test)
            if labels is not None:
                write_predictions(files / "labels.parquet", labels)
            if weights is not None:
                save_file(weights, files / "model.safetensors")
            pq.write_table(pa.Table.from_pylist(progress.curve, schema=CURVE), files / "curve.parquet")
            facts = provenance(
                fit,
                prepared,
                taught,
                execution=execution,
                clock=clock,
                head_start=head_start,
                resumed_from=resumed_from,
            )
            (files / "fit.json").write_text(json.dumps(describe(fit) | {"provenance": facts}, indent=1))
            check_lease()
            store.write_truth(fit, prepared.truth)
            store.commit(fit, files)
    return dict(clock.seconds)


def _written_setting(fit: Fit) -> Setting:
    """What the model does while it learns: a start learns to write, and so does a judge of completions that learns
    nothing."""
    if fit.role == "start" or (fit.role == "untrained" and fit.data.setting == "comparison"):
        return "generation"
    return fit.data.setting


def _num_epochs(fit: Fit) -> int:
    if fit.role == "start":
        return int(dict(fit.method.params)["epochs"])
    return 0 if fit.role == "untrained" else fit.training.epochs


def _weights(fit: Fit, *, store: Store) -> tuple[str, dict[str, torch.Tensor]] | None:
    """(key, weights) of the Fit that this one starts from."""
    if fit.start is None:
        return None
    return fit.start.key, load(store.read_file(fit.start.folder, "model.safetensors"))


def _check_elicits(fit: Fit, model: Any, prepared: Prepared, *, head_start: str) -> None:
    """Refuse what could only fail quietly: a head of zeros that was never trained, a prompt longer than the model."""
    if fit.role != "untrained":
        return
    if fit.data.setting == "classification" and head_start == "zero":
        raise TrainingFailed(
            "words", "the tokenizer has no single tokens for 0 and 1, by which to say a class untrained"
        )
    config = (model.causal if hasattr(model, "causal") else model.backbone).config
    limit = getattr(config, "max_position_embeddings", None)
    longest = max(len(each) for row in prepared.parts["test"].sequences for each in row) + prepared.num_answer_tokens
    if limit is not None and longest > limit:
        raise TrainingFailed("length", f"prompts of up to {longest} tokens, but the model reads {limit}; lower 'shots'")


# --- training -----------------------------------------------------------------------------------------------------

CURVE = pa.schema(
    {
        "step": pa.int32(),
        "epoch": pa.float32(),
        "train_loss": pa.float32(),
        "train_accuracy": pa.float32(),
        "verified_loss": pa.float32(),
        "validation_loss": pa.float32(),
        "validation_accuracy": pa.float32(),
        "test_loss": pa.float32(),
        "test_accuracy": pa.float32(),
    }
)
"""Learning curve: loss and accuracy against the Fit's own labels since the last point (`verified_loss`: of the rows whose
truth is known, which `train_loss` leaves out), against its own labels on the rows held out, and against the truth on
test. Null: no such rows."""


def _train(
    engine: Any,
    fit: Fit,
    taught: Lessons,
    prepared: Prepared,
    *,
    progress: checkpoint.Progress,
    execution: Execution,
    store: Store,
    clock: Clock,
    report: Report,
    scratch: Path,
    log_point: Log,
) -> None:
    training, setting, num_epochs = fit.training, _written_setting(fit), _num_epochs(fit)
    if num_epochs == 0:
        return
    method = Method("naive") if fit.role == "start" else fit.method
    objective = methods.objective(method, setting=setting)
    rows = taught.rows
    steps_per_epoch = math.ceil(len(rows) / training.batch_size)
    num_steps = steps_per_epoch * num_epochs
    evaluate_at = {
        round(steps_per_epoch * point / training.evals_per_epoch)
        for point in range(1, num_epochs * training.evals_per_epoch + 1)
    }
    report_every, saved_s, first_step, saved_to_leave = 0, 0.0, progress.step, False
    began_s = time.perf_counter()
    engine.train()
    while progress.step < num_steps:
        epoch, batch_index = divmod(progress.step, steps_per_epoch)
        order = data.order(len(rows), seed=fit.seed, epoch=epoch)
        chosen = order[batch_index * training.batch_size : (batch_index + 1) * training.batch_size]
        with clock.phase("train"):
            engines.set_rate(engine, engines.rate_at(progress.step, num_steps, training=training))
            seen = step(
                engine,
                [rows.sequences[i] for i in chosen],
                data.some_answers(taught.answers, chosen),
                weights=taught.weights[chosen],
                verified=taught.verified[chosen],
                setting=setting,
                objective=objective,
                progress=progress.step / num_steps,
                batch_size=training.batch_size,
                pad_id=prepared.pad_id,
            )
        progress.step += 1
        loss = (seen.loss_sum + seen.verified_loss_sum) / len(chosen)
        if not math.isfinite(loss):
            raise TrainingFailed("nan", f"the loss is {loss} at step {progress.step} of {num_steps}")
        num_verified = int(taught.verified[chosen].sum())
        progress.loss_sum += seen.loss_sum
        progress.hits += seen.hits
        progress.num_rows += len(chosen) - num_verified
        progress.verified_loss_sum += seen.verified_loss_sum
        progress.num_verified += num_verified
        if progress.step in evaluate_at:
            with clock.phase("eval"):
                point = _curve_point(engine, fit, taught, prepared, progress, steps_per_epoch=steps_per_epoch)
                progress.curve.append(point)
                log_point(progress.step, point)
            progress.loss_sum, progress.hits, progress.num_rows = 0.0, 0.0, 0
            progress.verified_loss_sum, progress.num_verified = 0.0, 0
        done = progress.step - first_step
        elapsed_s = time.perf_counter() - began_s
        if done in (1, 10):  # all workers report together, so the pace is agreed on; the first step is slow
            report_every = _agreed(max(1, round(REPORT_EVERY_S / max(elapsed_s / done, 1e-4))))
        if report_every and done % report_every == 0:
            pace = {"loss": loss, "rows_per_s": done * training.batch_size / elapsed_s}
            place = {"step": progress.step, "num_steps": num_steps}
            leaving = bool(report({"event": "step", "key": fit.key, **place, **pace}))
            log_point(progress.step, pace)
            # checkpoints fall on the same beat; rank 0's clock decides for all
            due = _agreed(int(elapsed_s - saved_s >= execution.checkpoint_every_s))
            if (due or (leaving and not saved_to_leave)) and progress.step < num_steps:
                with clock.phase("checkpoint"):
                    checkpoint.save(engine, fit, progress, execution=execution, store=store, scratch=scratch)
                saved_s, saved_to_leave = time.perf_counter() - began_s, leaving


def _agreed(value: int) -> int:
    """Rank 0's value, on every worker."""
    if engines.world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@dataclass(frozen=True)
class Seen:
    """Sums over the rows of a batch."""

    loss_sum: float
    """Of the rows with labels, without their weights."""
    verified_loss_sum: float
    """Of the rows whose truth is known."""
    hits: float
    """Rows with labels that the model says as they are labelled."""


def step(
    engine: Any,
    sequences: list[tuple[Any, ...]],
    targets: Answers,
    *,
    weights: np.ndarray,
    verified: np.ndarray,
    setting: Setting,
    objective: methods.Objective,
    progress: float,
    batch_size: int,
    pad_id: int,
) -> Seen:
    """One optimizer step on a global batch, of which this worker takes its slices. A row whose truth is known learns it
    by plain cross-entropy, whatever the objective for the others."""
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
            [sequences[i] for i in some],
            data.some_answers(targets, some),
            setting=setting,
            pad_id=pad_id,
            device=device,
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

    plain = naive.token_loss if setting == "generation" else naive.loss
    weight_of = torch.from_numpy(weights.astype(np.float32)).to(device)
    is_verified = torch.from_numpy(verified).to(device)
    totals = torch.zeros(3, dtype=torch.float64)
    for i, ((read, wanted), rows) in enumerate(zip(batches, slices, strict=True)):
        output = logits[i] if logits else engine(*read)
        losses, known = loss_of(output[: len(rows)], wanted), is_verified[rows]
        if known.any():
            losses = torch.where(known, plain(output[: len(rows)], wanted), losses)
        # DeepSpeed divides by the accumulation and averages over workers; what is wanted is the batch's mean
        engine.backward((losses * weight_of[rows]).sum() * (accumulation * world / num_rows) + 0.0 * output.sum())
        engine.step()
        said = _hits(output[: len(rows)].detach(), wanted)
        totals += torch.stack([losses.detach()[~known].sum(), losses.detach()[known].sum(), said[~known].sum()]).cpu()
    if world > 1:
        totals = totals.to(device)
        dist.all_reduce(totals)
    return Seen(*totals.tolist())


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
    elif _written_setting(fit) == "generation":
        probabilities = _preferred(engine, rows, prepared)
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


def _preferred(engine: Any, rows: Rows, prepared: Prepared) -> np.ndarray:
    """Of two completions, the first one's share of their likelihoods under the language model: untrained, what it would
    rather write. Their common prompt cancels out."""
    likelihood = []
    for side in (0, 1):
        read = [row[side] for row in rows.sequences]
        whole = replace(rows, sequences=[(each[:1],) for each in read], labels=[each[1:] for each in read])
        likelihood.append(_judged(engine, whole, prepared)[:, 0])
    return (1 / (1 + np.exp(likelihood[1] - likelihood[0]))).astype(np.float32)


def _judged(engine: Any, rows: Rows, prepared: Prepared) -> np.ndarray:
    """[row, (log-likelihood of the right completion, whether each of its tokens is the likeliest)]. The second is exact
    match under greedy writing, at the price of one pass."""

    def of(chosen: list[int]) -> torch.Tensor:
        read, wanted = data.inputs(
            [rows.sequences[i] for i in chosen],
            data.some_answers(rows.labels, chosen),
            setting="generation",
            pad_id=prepared.pad_id,
            device=engines.device(),
        )
        output = engine(*read)
        return torch.stack((-naive.token_loss(output, wanted), _hits(output, wanted).to(output.dtype)), dim=1)

    return _over_batches(engine, rows, width=2, dtype=torch.float32, of=of).astype(np.float64)


def _curve_point(
    engine: Any,
    fit: Fit,
    taught: Lessons,
    prepared: Prepared,
    progress: checkpoint.Progress,
    *,
    steps_per_epoch: int,
) -> dict[str, float | None]:
    num_rows, num_verified = progress.num_rows, progress.num_verified
    point: dict[str, float | None] = {
        "step": progress.step,
        "epoch": progress.step / steps_per_epoch,
        "train_loss": progress.loss_sum / num_rows if num_rows else None,
        "train_accuracy": progress.hits / num_rows if num_rows else None,
        "verified_loss": progress.verified_loss_sum / num_verified if num_verified else None,
    }
    judged = {"validation": taught.held_out, "test": None if fit.role == "start" else prepared.parts["test"]}
    for name, rows in judged.items():
        if rows is not None:
            point[f"{name}_loss"], point[f"{name}_accuracy"] = _scores(engine, fit, rows, prepared)
    return point


def _scores(engine: Any, fit: Fit, rows: Rows, prepared: Prepared) -> tuple[float, float]:
    """(loss, accuracy) against the rows' labels, which may be soft."""
    if fit.data.setting == "generation":
        log_likelihood, right = _judged(engine, rows, prepared).T
        return float(-log_likelihood.mean()), float(right.mean())
    assert isinstance(rows.labels, np.ndarray)
    said = predict(engine, rows, setting=fit.data.setting, pad_id=prepared.pad_id).astype(np.float64)
    p, s = rows.labels.astype(np.float64), np.clip(said, 1e-7, 1 - 1e-7)
    return float(-(p * np.log(s) + (1 - p) * np.log(1 - s)).mean()), float(((said > 0.5) == (p > 0.5)).mean())


def write_predictions(path: Path, said: pa.Table) -> None:
    """By id; the bytes depend on nothing else."""
    pq.write_table(said.sort_by("id"), path)


# --- provenance ---------------------------------------------------------------------------------------------------


def provenance(
    fit: Fit,
    prepared: Prepared,
    taught: Lessons,
    *,
    execution: Execution,
    clock: Clock,
    head_start: str,
    resumed_from: int,
) -> dict[str, Any]:
    """Where, when and with what a Fit came to be; nothing of it is identity."""
    read = taught.rows.sequences
    if fit.training.tune == "head":  # of its features' rows, the tokens
        as_tokens = prepare(fit).parts[fit.half[0]]
        place = {id_: i for i, id_ in enumerate(as_tokens.ids)}
        read = [as_tokens.sequences[place[id_]] for id_ in taught.rows.ids]
    written = sum(map(len, taught.answers)) if isinstance(taught.answers, list) else 0
    epochs = _num_epochs(fit)
    training_tokens = (sum(len(each) for sequence in read for each in sequence) + written) * epochs
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
            2 * fit.model.num_params * training_tokens // epochs
            if fit.training.tune == "head"
            else (4 if fit.training.tune == "lora" else 6) * fit.model.num_params * training_tokens
        ),
        "head_start": head_start,
        "num_rows": {name: len(part) for name, part in prepared.parts.items()} | {"learned": len(taught.rows)},
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
