"""What the engine costs: one optimizer step through DeepSpeed against the same step in a bare PyTorch loop.

`python benchmarks/step_overhead.py [--zero-stage 1] [--rounds 20]`. Same model (a Llama of about 0.9 M parameters), same
batch (32 rows of 64 tokens), one thread, the two taking turns so that the machine's mood falls on both. Goal: <= 1.15.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaModel

from w2s_ray.fit import Execution, Method, Training
from w2s_ray.methods import objective
from w2s_ray.training import engine as engines
from w2s_ray.training import loop
from w2s_ray.training.model import Scorer

TRAINING = Training(
    epochs=1, batch_size=32, learning_rate=1e-3, optimizer="adam", weight_decay=0.0, warmup_fraction=0.0,
    schedule="constant", max_grad_norm=0.0, precision="fp32", evals_per_epoch=1,
    tune="all",
)  # fmt: skip


def classifier() -> Scorer:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4
    )
    backbone = LlamaModel(config)
    backbone.takes_positions, backbone.keeps_cache = True, True
    return Scorer(backbone, torch.nn.Linear(128, 2, bias=False), pooling="last", bf16=False)


def timed(step: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    step()
    return time.perf_counter() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero-stage", type=int, default=1, choices=range(4))
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engines.join_processes()
    tokens = torch.randint(4, 512, (32, 64), generator=torch.Generator().manual_seed(0))
    targets = torch.rand(32, generator=torch.Generator().manual_seed(1))
    naive = objective(Method("naive"), setting="classification")

    bare = classifier()
    optimizer = torch.optim.Adam(bare.parameters(), lr=1e-3)

    def bare_step() -> None:
        loss = naive.at(0.0, None)(bare(tokens, torch.ones_like(tokens)), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    engine = engines.start(classifier(), training=TRAINING, execution=Execution(zero_stage=options.zero_stage))
    engines.set_rate(engine, 1e-3)
    rows = [(row,) for row in tokens.tolist()]

    def engine_step() -> None:
        loop.step(
            engine,
            rows,
            targets.numpy(),
            setting="classification",
            objective=naive,
            progress=0.0,
            batch_size=32,
            pad_id=0,
        )

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
