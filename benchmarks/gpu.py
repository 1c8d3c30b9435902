"""What fine-tuning costs on one GPU: tokens a second, share of the card's peak, memory, and the engine against bare PyTorch.

    python benchmarks/gpu.py                      # Pythia's shapes from 160 M to 6.9 B, on the GPU that is there
    python benchmarks/gpu.py --shapes tiny        # seconds on a CPU: whether it runs, not how fast

Needs torch, transformers, peft, deepspeed and this package, no Ray and no network: weights are random, since speed does not care. Each
shape has a process of its own. A case that runs out of memory is a row that says so.

- `classification`: 32 rows of 512 tokens a step, `comparison`: 16 rows of two completions of 512.
- `all`, `lora` (rank 8) and `head` (features of the frozen model, a forward pass alone).
- `engine` is what a study trains with: DeepSpeed, fp32 weights, bf16 by autocast. `bare` is the same step in plain PyTorch, `bf16
  weights` is bare with weights and Adam in bf16 (a bound, since nobody should train so), `compiled` is the engine with
  torch.compile, `ragged` the engine on rows of 64 to 512 tokens, of which only tokens that are no padding count. `eager` and
  `sdpa` are kernels of attention; everything else leaves the choice to transformers.
- `ZeRO` and `offload` as in a study's `compute`; on one GPU they cost and save only what they move to the host.
- FLOPs of a token: 6N and attention of all layers (`families/pretraining.py`); 4N under LoRA, 2N for features. Without the embedding,
  which is looked up, and the unembedding, which a classifier lacks. Utilisation is against the card's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

NUM_TOKENS = 512
NUM_SEQUENCES = 32
"""Of a step: rows of a classification, or two for each row of a comparison."""
SHAPES = {  # Biderman et al. 2023, table 1: width, layers, heads
    "tiny": (64, 2, 2),
    "160m": (768, 12, 12),
    "410m": (1024, 24, 16),
    "1.4b": (2048, 24, 16),
    "2.8b": (2560, 32, 32),
    "6.9b": (4096, 32, 32),
}
PEAK_FLOPS_PER_S = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12}
"""Dense bf16, by a part of the card's name (the makers' data sheets)."""


@dataclass(frozen=True)
class Case:
    shape: str
    setting: str = "classification"
    tune: str = "all"
    way: str = "engine"
    micro_batch: int = 32
    zero_stage: int = 0
    offload: str = "none"
    checkpointing: bool = False
    attention: str = "sdpa"

    @property
    def is_bare(self) -> bool:
        return self.way in ("bare", "bf16 weights") or self.tune == "head"


def cases(shape: str, *, with_variants: bool) -> list[Case]:
    """The shape by every way of tuning, the costliest last. With variants: of the engine, of ZeRO and of attention."""
    plain = Case(shape, micro_batch=_micro_batch(shape), checkpointing=shape in ("2.8b", "6.9b"))
    rows = [replace(plain, tune="head"), replace(plain, tune="lora")]
    rows += [plain, replace(plain, way="bare"), replace(plain, setting="comparison")]
    if with_variants:
        rows += [replace(plain, way=way) for way in ("bf16 weights", "compiled", "ragged")]
        rows += [replace(plain, attention="eager"), replace(plain, way="ragged", attention="eager")]
        rows += [replace(plain, checkpointing=True), *(replace(plain, zero_stage=stage) for stage in (1, 2, 3))]
        rows += [
            replace(plain, zero_stage=2, offload="optimizer"),
            replace(plain, zero_stage=3, offload="parameters"),
        ]
    return rows


def _micro_batch(shape: str) -> int:
    return {"1.4b": 16, "2.8b": 8, "6.9b": 4}.get(shape, 32)


# --- one case -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    num_steps: int
    """Timed, of which the median counts. Two more come first."""
    num_tokens: int
    """Of a sequence."""
    precision: str


def measure(case: Case, size: Size) -> dict[str, Any]:
    import torch

    from w2s_ray.training.distributed import device, join_processes

    join_processes()
    is_on_gpu = device().type == "cuda"
    if is_on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model, num_params = build(case, size)
    rows = draw_rows(case, size)
    with stepper(case, size, model, rows) as step:
        first_s, _, *seconds = [_seconds(step) for _ in range(size.num_steps + 2)]
    step_s = statistics.median(seconds)
    num_tokens = sum(len(tokens) for sequences in rows.sequences for tokens in sequences)
    width, layers, _ = SHAPES[case.shape]
    flops = num_tokens * 6.0 * (num_params + layers * size.num_tokens * width)
    flops *= {"all": 1.0, "lora": 4 / 6, "head": 2 / 6}[case.tune]
    name = torch.cuda.get_device_name() if is_on_gpu else "CPU"
    peak = next((peak for part, peak in PEAK_FLOPS_PER_S.items() if part in name), None)
    return {
        "device": name,
        "params": num_params,
        "first_s": first_s,
        "step_ms": step_s * 1000,
        "tokens_per_s": num_tokens / step_s,
        "utilisation": flops / step_s / peak if peak else None,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if is_on_gpu else None,
    }


def build(case: Case, size: Size) -> tuple[Any, int]:
    """(a model with random weights, its parameters without the embedding)."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXModel

    from w2s_ray.fit import Execution, Model
    from w2s_ray.training.distributed import device
    from w2s_ray.training.model import ModelSpec, Scorer, trainable_copy
    from w2s_ray.training.settings.comparison import RewardHead

    width, layers, heads = SHAPES[case.shape]
    config = GPTNeoXConfig(
        vocab_size=50304, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=size.num_tokens, rotary_pct=0.25, attn_implementation=case.attention,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device()):
        backbone = GPTNeoXModel(config)
        head = (
            RewardHead(width, 1, bias=False) if case.setting == "comparison" else torch.nn.Linear(width, 2, bias=False)
        )
    backbone.takes_positions = backbone.takes_use_cache = True
    num_params = sum(parameter.numel() for name, parameter in backbone.named_parameters() if "embed_in" not in name)
    spec = ModelSpec(
        Model(fingerprint="", tokenizer="", pooling="last", depth=None, family="", size=case.shape, source="", revision=None,
              num_params=num_params, pretraining_flops=None),
        Execution(activation_checkpointing=case.checkpointing), case.tune, 8 if case.tune == "lora" else 0,
        size.precision == "bf16",
    )  # fmt: skip
    if case.tune == "lora":  # the other models need no copy of themselves, which would count in the peak
        backbone = trainable_copy(backbone, spec)
    elif case.checkpointing and case.tune == "all":
        backbone.activation_checkpointing_enable({"use_reentrant": False})
    model = Scorer(backbone, head, spec)
    if case.way == "bf16 weights":
        model.backbone.bfloat16()
    return model, num_params


def draw_rows(case: Case, size: Size) -> Any:
    import numpy as np

    from w2s_ray.training.rows import Rows

    per_row = 2 if case.setting == "comparison" else 1
    num_rows = NUM_SEQUENCES // per_row
    random = np.random.default_rng(0)
    lengths = np.full((num_rows, per_row), size.num_tokens)
    if case.way == "ragged":
        lengths = random.integers(size.num_tokens // 8, size.num_tokens + 1, lengths.shape)
    sequences = [tuple(random.integers(4, 50000, length).tolist() for length in row) for row in lengths]
    labels = np.tile(np.array([0.2, 0.8], dtype=np.float32), num_rows // 2)
    blank = [""] * num_rows
    return Rows(blank, blank, [()] * num_rows, blank, sequences, labels)


@contextmanager
def stepper(case: Case, size: Size, model: Any, rows: Any) -> Iterator[Callable[[], None]]:
    """One optimizer step over all rows, as a function."""
    import numpy as np
    import torch

    from w2s_ray.fit import Execution, Method, Training
    from w2s_ray.methods import objective
    from w2s_ray.methods.cross_entropy import cross_entropy
    from w2s_ray.training.distributed import device
    from w2s_ray.training.engine import Engine
    from w2s_ray.training.loss import BatchLoss
    from w2s_ray.training.settings import SETTINGS
    from w2s_ray.training.training_set import TrainingSet

    setting = SETTINGS[case.setting]
    micro_batch = max(1, case.micro_batch // len(rows.sequences[0]))
    if case.is_bare:
        model.to(device())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)

        def bare_step() -> None:
            for first in range(0, len(rows), micro_batch):
                inputs, targets = setting.collate(rows, list(range(len(rows)))[first : first + micro_batch], pad_id=0)
                if case.tune == "head":
                    with torch.no_grad():
                        model.features(*inputs)
                else:
                    (cross_entropy(model(*inputs), targets).sum() / len(rows)).backward()
            if case.tune != "head":
                optimizer.step()
                optimizer.zero_grad()

        yield bare_step
        return
    training = Training(
        epochs=1, batch_size=len(rows), learning_rate=1e-5, optimizer="adam", weight_decay=0.0, warmup_fraction=0.0,
        schedule="constant", max_grad_norm=0.0, precision="bf16" if size.precision == "bf16" else "fp32", evals_per_epoch=1, tune="all",
    )  # fmt: skip
    is_compiled = case.way == "compiled"
    execution = Execution(
        micro_batch_size=micro_batch, zero_stage=case.zero_stage, offload=case.offload, compile=is_compiled
    )
    engine = Engine(model, training=training, execution=execution)
    engine.set_learning_rate(1e-5)
    loss = BatchLoss(setting, objective(Method("naive"), of_tokens=False), batch_size=len(rows), pad_id=0)
    batch = TrainingSet(rows, np.ones(len(rows)), np.zeros(len(rows), bool))

    def step() -> None:
        loss.train_on(batch, engine, progress=0.0)

    try:
        yield step
    finally:
        engine.close()


def _seconds(step: Callable[[], None]) -> float:
    import torch

    began_s = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began_s


# --- all cases ----------------------------------------------------------------------------------------------------


def print_rows_of(shape: str, size: Size, *, with_variants: bool) -> None:
    import torch

    for case in cases(shape, with_variants=with_variants):
        way = "features alone" if case.tune == "head" else case.way
        way += "" if case.attention == "sdpa" else f", {case.attention}"
        way += ", activation checkpointing" if case.checkpointing else ""
        zero = "" if case.is_bare else f"{case.zero_stage}, {case.offload}"
        start = f"| {shape} | {case.setting} | {case.tune} | {way} | {zero} | {case.micro_batch} |"
        try:
            figures = measure(case, size)
        except torch.cuda.OutOfMemoryError:
            print(f"{start} out of memory | | | | |", flush=True)
            continue
        share = f"{figures['utilisation']:.1%}" if figures["utilisation"] is not None else ""
        memory = f"{figures['peak_gb']:.1f}" if figures["peak_gb"] is not None else ""
        print(
            f"{start} {figures['first_s']:.1f} | {figures['step_ms']:.1f} | {figures['tokens_per_s']:,.0f} | {share} | {memory} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[shape for shape in SHAPES if shape != "tiny"])
    parser.add_argument("--variants", nargs="*", choices=SHAPES, default=["1.4b"], help="shapes that show all variants")
    parser.add_argument("--steps", type=int, default=6, help="timed steps, of which the median counts")
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = Size(options.steps, options.tokens, options.precision)
    if options.in_this_process:
        (shape,) = options.shapes
        print_rows_of(shape, size, with_variants=shape in options.variants)
        return
    print(
        "| model | setting | tuned | how | ZeRO, offload | micro-batch | first step s | step ms | tokens/s | utilisation | peak GB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for shape in options.shapes:
        command = [sys.executable, __file__, "--in-this-process", "--shapes", shape, "--variants", *options.variants]
        command += ["--steps", str(size.num_steps), "--tokens", str(size.num_tokens), "--precision", size.precision]
        if subprocess.run(command).returncode:
            print(f"| {shape} | the rest of its cases failed, see above | | | | | | | | | |", flush=True)


if __name__ == "__main__":
    main()
