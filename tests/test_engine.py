"""The DeepSpeed engine against plain torch, and what it leaves behind."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from w2s_ray.fit import Execution, Fit
from w2s_ray.methods.cross_entropy import cross_entropy
from w2s_ray.training.distributed import join_processes
from w2s_ray.training.engine import Engine
from w2s_ray.training.loop import learning_rate
from w2s_ray.training.loss import BatchLoss
from w2s_ray.training.model import ModelSpec
from w2s_ray.training.pack import set_imports_aside
from w2s_ray.training.rows import Rows
from w2s_ray.training.settings import classification
from w2s_ray.training.training_set import TrainingSet

from trained import ODD_BATCHES, fits_of, probabilities, train


def engine_of(fit: Fit, zero_stage: Any) -> Engine:
    model, _ = classification.build_model(ModelSpec(fit.model))
    return Engine(model, training=fit.training, execution=Execution(zero_stage=zero_stage))


def batch_of(token_lists: list[list[int]], targets: np.ndarray) -> TrainingSet:
    blank = [""] * len(token_lists)
    rows = Rows(blank, blank, [()] * len(blank), blank, [(tokens,) for tokens in token_lists], targets)
    return TrainingSet(rows, np.ones(len(rows)), np.zeros(len(rows), bool))


def test_the_optimizer_is_that_of_plain_torch(folder: Path, tmp_path: Path) -> None:
    """Twelve steps through DeepSpeed against twelve in a bare loop: the same weights."""
    fit = fits_of(folder, training=ODD_BATCHES | {"weight_decay": 0.1, "optimizer": "adamw"})[0]
    join_processes()
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randint(4, 40, (20, 5), generator=draw), torch.rand(20, generator=draw)) for _ in range(12)]
    bare, _ = classification.build_model(ModelSpec(fit.model))
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.01, weight_decay=0.1)
    loss = BatchLoss.of(fit, pad_id=0)
    for stage in (0, 1, 2, 3):
        engine = engine_of(fit, stage)
        for i, (ids, targets) in enumerate(batches):
            engine.set_learning_rate(learning_rate(i, 12, training=fit.training))
            loss.train_on(batch_of(ids.tolist(), targets.numpy()), engine, progress=i / 12)
            if stage == 0:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(i, 12, training=fit.training)
                optimizer.zero_grad()
                cross_entropy(bare(ids, torch.ones_like(ids)), targets).mean().backward()
                torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
                optimizer.step()
        weights = engine.full_weights()
        engine.close()
        for name, parameter in bare.named_parameters():
            torch.testing.assert_close(weights[name], parameter.detach(), atol=2e-5, rtol=1e-3, msg=f"{stage} {name}")


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_bf16_stays_near_fp32(zero_stage: Any, folder: Path, tmp_path: Path) -> None:
    [full, *_] = fits_of(folder)
    half = replace(full, training=replace(full.training, precision="bf16"))
    assert full.key != half.key
    store = train([full, half], tmp_path / "store", Execution(zero_stage=zero_stage))
    difference = np.abs(probabilities(store, full) - probabilities(store, half))
    assert 0 < difference.max() < 0.1


def test_many_engines_leave_no_trace(folder: Path) -> None:
    fit = fits_of(folder)[0]
    join_processes()
    set_imports_aside()
    loss, batch = BatchLoss.of(fit, pad_id=0), batch_of([[5, 6]] * 16, np.ones(16, np.float32))

    def one(stage: Any) -> None:
        engine = engine_of(fit, stage)
        loss.train_on(batch, engine, progress=0.0)
        engine.close()

    def state() -> tuple[int, int]:
        gc.collect()
        return psutil.Process().memory_info().rss, sum(isinstance(o, torch.nn.Parameter) for o in gc.get_objects())

    for stage in (0, 1, 2, 3):
        for _ in range(4):
            one(stage)
        rss_before, parameters_before = state()
        for _ in range(10):
            one(stage)
        rss_after, parameters_after = state()
        if stage < 3:  # ZeRO-3 leaves empty shells behind
            assert parameters_after <= parameters_before, f"ZeRO-{stage} keeps parameters of engines that are gone"
        assert rss_after - rss_before < 8 * 2**20, f"ZeRO-{stage} grew by {(rss_after - rss_before) / 2**20:.0f} MiB"
