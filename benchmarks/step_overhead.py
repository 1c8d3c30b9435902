"""What the engine costs: one optimizer step through DeepSpeed against the same step in a bare PyTorch loop.

`python benchmarks/step_overhead.py [--zero-stage 0] [--rounds 20]`. Same model (a Llama of about 0.9 M parameters), same
batch (32 rows of 64 tokens), one thread. The two take turns, so that other load on the machine falls on both. Goal: <= 1.15.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

from w2s_ray.fit import Execution, Method, Model, Training
from w2s_ray.methods import objective
from w2s_ray.methods.cross_entropy import cross_entropy
from w2s_ray.training.distributed import join_processes
from w2s_ray.training.engine import Engine
from w2s_ray.training.loss import BatchLoss
from w2s_ray.training.model import ModelSpec, Scorer
from w2s_ray.training.rows import Rows
from w2s_ray.training.settings import classification
from w2s_ray.training.training_set import TrainingSet

TRAINING = Training(
    epochs=1, batch_size=32, learning_rate=1e-3, optimizer="adam", weight_decay=0.0, warmup_fraction=0.0,
    schedule="constant", max_grad_norm=0.0, precision="fp32", evals_per_epoch=1,
    tune="all",
)  # fmt: skip
MODEL = Model(
    fingerprint="", tokenizer="", pooling="last", depth=None, family="", size="", source="", revision=None,
    num_params=1, pretraining_flops=None,
)  # fmt: skip


def classifier() -> Scorer:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4
    )
    backbone = LlamaModel(config)
    backbone.takes_positions, backbone.takes_use_cache = True, True
    return Scorer(backbone, torch.nn.Linear(128, 2, bias=False), ModelSpec(MODEL))


def timed(step: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    step()
    return time.perf_counter() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero-stage", type=int, default=0, choices=range(4))
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    join_processes()
    tokens = torch.randint(4, 512, (32, 64), generator=torch.Generator().manual_seed(0))
    targets = torch.rand(32, generator=torch.Generator().manual_seed(1))
    loss = BatchLoss(classification, objective(Method("naive"), of_tokens=False), batch_size=32, pad_id=0)

    bare = classifier()
    optimizer = torch.optim.Adam(bare.parameters(), lr=1e-3, fused=True)

    def bare_step() -> None:
        optimizer.zero_grad()
        cross_entropy(bare(tokens, torch.ones_like(tokens)), targets).mean().backward()
        optimizer.step()

    engine = Engine(classifier(), training=TRAINING, execution=Execution(zero_stage=options.zero_stage))
    engine.set_learning_rate(1e-3)
    blank = [""] * len(tokens)
    sequences = [(row,) for row in tokens.tolist()]
    rows = Rows(blank, blank, [()] * len(tokens), blank, sequences, targets.numpy())
    batch = TrainingSet(rows, np.ones(len(rows)), np.zeros(len(rows), bool))

    def engine_step() -> None:
        loss.train_on(batch, engine, progress=0.0)

    for _ in range(3):
        bare_step()
        engine_step()
    pairs = [(timed(bare_step), timed(engine_step)) for _ in range(options.rounds)]
    bare_s, engine_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    num_params = sum(parameter.numel() for parameter in bare.parameters())
    print(
        f"{num_params:,} parameters, batch 32 x 64 tokens, one thread, ZeRO-{options.zero_stage}, {options.rounds} rounds"
    )
    print(
        f"bare PyTorch {bare_s * 1000:.1f} ms, engine {engine_s * 1000:.1f} ms, ratio {engine_s / bare_s:.3f} (medians)"
    )


if __name__ == "__main__":
    main()
