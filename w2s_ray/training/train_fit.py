"""The life of one Fit, from its task's rows to its committed files.

Promises: the files are a function of the Fit's identity. How it was cut over workers and micro-batches, and where it was
interrupted, shows only in the provenance in `fit.json` (to the bit on one world size, to a small tolerance across them).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load, save_file
from torch import nn

from w2s_ray.fit import Fit, describe
from w2s_ray.store import Store
from w2s_ray.training.checkpoint import Checkpoints, Progress
from w2s_ray.training.clock import Clock
from w2s_ray.training.data import prepare
from w2s_ray.training.distributed import raise_on_all_ranks, rank
from w2s_ray.training.engine import Engine
from w2s_ray.training.features import with_features
from w2s_ray.training.loop import CURVE, TrainingLoop
from w2s_ray.training.model import ModelSpec, WarmStart
from w2s_ray.training.predict import predict_rows, write_predictions
from w2s_ray.training.prompts import apply_prompt_method
from w2s_ray.training.provenance import Circumstances, provenance
from w2s_ray.training.rows import PreparedTask
from w2s_ray.training.settings import model_setting_of
from w2s_ray.training.training_set import TrainingSet, build_training_set
from w2s_ray.training.worker import TrainingFailed, Worker


def train_fit(fit: Fit, worker: Worker, *, scratch: Path) -> Clock:
    """Prepare, train, predict, commit. Raises TrainingFailed if it cannot work anywhere."""
    clock, is_probe, features = Clock(), fit.training.tune == "head", None
    with clock.phase("load"), raise_on_all_ranks():
        task = apply_prompt_method(fit, prepare(fit), worker.store)
    if fit.readings:
        with clock.phase("features"), raise_on_all_ranks():
            features = with_features(fit, task, worker)
    model_task = features if is_probe and features else task
    checkpoints = Checkpoints(fit, worker, scratch / "checkpoint")
    with clock.phase("load"):
        with raise_on_all_ranks():
            training_set = build_training_set(fit, model_task, features, worker.store)
            model, head_start = build_model(fit, worker, training_set)
            check_prompts_fit(fit, model, model_task)
            checkpoints.folder.mkdir()
        resumed = checkpoints.find()
        if resumed:
            checkpoints.load_weights(model)
        engine = Engine(model, training=fit.training, execution=worker.execution)
        if resumed:
            checkpoints.load_optimizer(engine)
    clock.is_resumed, resumed_from_step = resumed is not None, resumed.step if resumed else 0
    progress = resumed or Progress()
    try:
        loop = TrainingLoop(fit, engine, training_set, model_task, worker, checkpoints, clock, progress)
        loop.run()
        with clock.phase("eval"):
            products = make_products(fit, engine, model_task, training_set, test=loop.test)
    finally:
        engine.close()
    with clock.phase("commit"), raise_on_all_ranks():
        if rank() == 0:
            files = scratch / "files"
            files.mkdir()
            products.write(files)
            pq.write_table(pa.Table.from_pylist(progress.curve, schema=CURVE), files / "curve.parquet")
            circumstances = Circumstances(worker.execution, clock, head_start, resumed_from_step, progress.best_step)
            facts = describe(fit) | {"provenance": provenance(fit, task, training_set, circumstances)}
            (files / "fit.json").write_text(json.dumps(facts, indent=1))
            worker.check_lease()
            worker.store.write_truth(fit, task.truth)
            worker.store.commit(fit, files)
    return clock


def build_model(fit: Fit, worker: Worker, training_set: TrainingSet) -> tuple[nn.Module, str]:
    """The Fit's model before training, and what its head starts from."""
    width = training_set.rows.sequences[0][0].shape[-1] if training_set.rows.are_features else 0
    spec = ModelSpec.of(fit, execution=worker.execution, warm_start=_warm_start(fit, worker.store), width=width)
    model, head_start = model_setting_of(fit).build_model(spec)
    return model, head_start


def _warm_start(fit: Fit, store: Store) -> WarmStart | None:
    if fit.warm_start is None:
        return None
    folder = store.folder_of(fit.warm_start)
    return WarmStart(fit.warm_start.key, load(store.read_file(folder, "model.safetensors")))


def check_prompts_fit(fit: Fit, model: Any, task: PreparedTask) -> None:
    """Refuse prompts of an untrained model that are longer than what it reads."""
    if fit.role != "untrained":
        return
    limit = getattr(model.causal.config, "max_position_embeddings", None)
    prompts = (tokens for sequences in task.parts["test"].sequences for tokens in sequences)
    longest = max(map(len, prompts)) + max(1, task.num_answer_tokens)
    if limit is not None and longest > limit:
        lower = "shots" if fit.method.name == "few_shot" else "training.max_tokens"
        raise TrainingFailed(
            "length", f"prompts have up to {longest} tokens, but the model reads {limit}; lower '{lower}'"
        )


@dataclass(frozen=True)
class Products:
    """What others will want of a Fit: its predictions, or the weights of a warm start."""

    test: pa.Table | None = None
    labels: pa.Table | None = None
    """Predictions of half B and of a fresh part, for Fits that learn from this one."""
    half_b: pa.Table | None = None
    """A student's predictions of the rows of half B that it learned from."""
    weights: dict[str, torch.Tensor] | None = None

    def write(self, folder: Path) -> None:
        if self.test is not None:
            write_predictions(folder / "test.parquet", self.test)
        if self.labels is not None:
            write_predictions(folder / "labels.parquet", self.labels)
        if self.half_b is not None:
            write_predictions(folder / "half_b.parquet", self.half_b)
        if self.weights is not None:
            save_file(self.weights, folder / "model.safetensors")


def make_products(
    fit: Fit, engine: Engine, task: PreparedTask, training_set: TrainingSet, *, test: pa.Table | None
) -> Products:
    """`test`: predictions of the test set, if the loop has made them."""
    if fit.role == "start":
        return Products(weights=engine.full_weights())
    parts = task.parts
    if test is None:
        test = predict_rows(engine, fit, task, parts["test"])
    labels = [predict_rows(engine, fit, task, parts[part]) for part in fit.labelled_parts]
    half_b = None
    if fit.keeps_half_b:
        half_b = predict_rows(engine, fit, task, parts["B"].in_order_of(training_set.rows.ids))
    if not np.isfinite(test["probability"]).all():
        raise TrainingFailed("nan", "predictions on the test set are not finite")
    return Products(test, pa.concat_tables(labels) if labels else None, half_b)
