"""What fine-tuning costs on one GPU: tokens a second, share of the card's peak, memory, and the engine against bare PyTorch.

    python benchmarks/gpu.py                      # Pythia's shapes from 160 M to 6.9 B, on the GPU that is there
    python benchmarks/gpu.py --shapes tiny        # seconds on a CPU: whether it runs, not how fast

Needs torch, transformers, peft, deepspeed and this package, no Ray and no network: weights are random, since speed does not care. Each
case has a process of its own, so one that runs out of memory takes nothing along: it is a row that says so.

- `classification`: 32 rows of 512 tokens a step, `comparison`: 16 rows of two completions of 512.
- `all`, `lora` (rank 8) and `head` (features of the frozen model, a forward pass alone); `bare` is the step of `all` in plain PyTorch.
- `ZeRO` and `offload` as in a study's `compute`; on one GPU they cost and save only what they move to the host.
- FLOPs of a token: 6N and attention of all layers (`families/pretraining.py`); 4N under LoRA, 2N for features. Without the embedding,
  which is looked up, and the unembedding, which a classifier lacks. Utilisation is against the card's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
    micro_batch: int = 32
    zero_stage: int = 1
    offload: str = "none"
    checkpointing: bool = False
    is_bare: bool = False


def cases(shapes: list[str]) -> list[Case]:
    """Every shape by every way of tuning, then ZeRO and offload at the one in the middle."""
    rows = []
    for shape in shapes:
        plain = Case(shape, micro_batch=_micro_batch(shape), checkpointing=shape in ("2.8b", "6.9b"))
        rows += [plain, replace(plain, is_bare=True), replace(plain, setting="comparison")]
        rows += [replace(plain, tune="lora"), replace(plain, tune="head")]
    middle = Case(shapes[len(shapes) // 2], micro_batch=_micro_batch(shapes[len(shapes) // 2]))
    rows += [replace(middle, zero_stage=stage) for stage in (0, 2, 3)]
    rows += [replace(middle, zero_stage=2, offload="optimizer"), replace(middle, zero_stage=3, offload="parameters")]
    return rows


def _micro_batch(shape: str) -> int:
    return {"1.4b": 16, "2.8b": 8, "6.9b": 4}.get(shape, 32)


# --- one case, in a process of its own ----------------------------------------------------------------------------


def measure(case: Case, *, num_steps: int, num_tokens: int, precision: str) -> dict[str, Any]:
    import numpy as np
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXModel

    from w2s_ray.fit import Execution, Method, Model, Training
    from w2s_ray.methods import objective
    from w2s_ray.methods.cross_entropy import cross_entropy
    from w2s_ray.training.distributed import device, join_processes
    from w2s_ray.training.engine import Engine
    from w2s_ray.training.loss import BatchLoss
    from w2s_ray.training.model import ModelSpec, Scorer, trainable_copy
    from w2s_ray.training.rows import Rows
    from w2s_ray.training.settings import SETTINGS
    from w2s_ray.training.settings.comparison import RewardHead
    from w2s_ray.training.training_set import TrainingSet

    join_processes()
    width, layers, heads = SHAPES[case.shape]
    config = GPTNeoXConfig(
        vocab_size=50304, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=num_tokens, rotary_pct=0.25,
    )  # fmt: skip
    torch.manual_seed(0)
    backbone = GPTNeoXModel(config)
    backbone.takes_positions = backbone.takes_use_cache = True
    params = sum(parameter.numel() for name, parameter in backbone.named_parameters() if "embed_in" not in name)
    spec = ModelSpec(
        Model(fingerprint="", tokenizer="", pooling="last", depth=None, family="", size=case.shape, source="", revision=None,
              num_params=params, pretraining_flops=None),
        Execution(activation_checkpointing=case.checkpointing), case.tune, 8 if case.tune == "lora" else 0,
        precision == "bf16",
    )  # fmt: skip
    is_pair = case.setting == "comparison"
    head = RewardHead(width, 1, bias=False) if is_pair else torch.nn.Linear(width, 2, bias=False)
    model = Scorer(trainable_copy(backbone, spec) if case.tune != "head" else backbone, head, spec)
    training = Training(
        epochs=1, batch_size=NUM_SEQUENCES // (2 if is_pair else 1), learning_rate=1e-5, optimizer="adam", weight_decay=0.0,
        warmup_fraction=0.0, schedule="constant", max_grad_norm=0.0, precision="bf16" if precision == "bf16" else "fp32",
        evals_per_epoch=1, tune="all",
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(4, 50000, (NUM_SEQUENCES, num_tokens))
    labels = np.tile(np.array([0.2, 0.8], dtype=np.float32), training.batch_size // 2)
    per_row = 2 if is_pair else 1
    sequences = [tuple(tokens[i * per_row + j].tolist() for j in range(per_row)) for i in range(training.batch_size)]
    blank = [""] * training.batch_size
    rows = Rows(blank, blank, [()] * training.batch_size, blank, sequences, labels)
    micro = max(1, case.micro_batch // per_row)
    setting = SETTINGS["comparison" if is_pair else "classification"]

    if case.is_bare or case.tune == "head":
        model.to(device())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=torch.cuda.is_available())

        def step() -> None:
            for first in range(0, len(rows), micro):
                chosen = list(range(len(rows)))[first : first + micro]
                inputs, targets = setting.collate(rows, chosen, pad_id=0)
                if case.tune == "head":
                    with torch.no_grad():
                        model.features(*inputs)
                else:
                    (cross_entropy(model(*inputs), targets).sum() / len(rows)).backward()
            if case.tune != "head":
                optimizer.step()
                optimizer.zero_grad()

    else:
        execution = Execution(
            micro_batch_size=micro, zero_stage=case.zero_stage, offload=case.offload, gpus_per_worker=0,
            activation_checkpointing=case.checkpointing,
        )  # fmt: skip
        engine = Engine(model, training=training, execution=execution)
        engine.set_learning_rate(1e-5)
        loss = BatchLoss(setting, objective(Method("naive"), of_tokens=False), batch_size=len(rows), pad_id=0)
        batch = TrainingSet(rows, np.ones(len(rows)), np.zeros(len(rows), bool))

        def step() -> None:
            loss.train_on(batch, engine, progress=0.0)

    seconds = [_seconds(step) for _ in range(num_steps + 2)][2:]
    step_s = statistics.median(seconds)
    per_token = 6.0 * (params + layers * num_tokens * width)
    per_token *= {"all": 1.0, "lora": 4 / 6, "head": 2 / 6}[case.tune]
    flops_per_s = per_token * NUM_SEQUENCES * num_tokens / step_s
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = next((peak for part, peak in PEAK_FLOPS_PER_S.items() if part in name), None)
    return {
        "device": name,
        "params": params,
        "step_ms": step_s * 1000,
        "tokens_per_s": NUM_SEQUENCES * num_tokens / step_s,
        "utilisation": flops_per_s / peak if peak else None,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
    }


def _seconds(step: Callable[[], None]) -> float:
    import torch

    began_s = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began_s


# --- all cases ----------------------------------------------------------------------------------------------------


def run(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """The case's figures, or why there are none."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--steps", str(options.steps)]
    command += ["--tokens", str(options.tokens), "--precision", options.precision]
    process = subprocess.run(command, capture_output=True, text=True)
    last = (process.stdout.strip().splitlines() or [""])[-1]
    if process.returncode == 0 and last.startswith("{"):
        figures: dict[str, Any] = json.loads(last)
        return figures
    error = (process.stderr.strip().splitlines() or ["no output"])[-1]
    return {"error": "out of memory" if "out of memory" in process.stderr.lower() else error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[shape for shape in SHAPES if shape != "tiny"])
    parser.add_argument(
        "--steps", type=int, default=8, help="timed steps, of which the median counts; two more come first"
    )
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--case", type=json.loads, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        figures = measure(
            Case(**options.case), num_steps=options.steps, num_tokens=options.tokens, precision=options.precision
        )
        print(json.dumps(figures))
        return
    print("| model | setting | tuned | ZeRO, offload | micro-batch | step ms | tokens/s | utilisation | peak GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    largest = None
    for case in cases(options.shapes):
        figures = run(case, options)
        how = "bare PyTorch" if case.is_bare else f"{case.zero_stage}, {case.offload}"
        start = f"| {case.shape} | {case.setting} | {case.tune} | {how} | {case.micro_batch} |"
        if "error" in figures:
            print(f"{start} {figures['error']} | | | |", flush=True)
            continue
        share = f"{figures['utilisation']:.1%}" if figures["utilisation"] is not None else ""
        memory = f"{figures['peak_gb']:.1f}" if figures["peak_gb"] is not None else ""
        print(f"{start} {figures['step_ms']:.1f} | {figures['tokens_per_s']:,.0f} | {share} | {memory} |", flush=True)
        if case.tune == "all" and not case.is_bare:
            largest = f"{case.shape} ({figures['params']:,} parameters without embeddings) on {figures['device']}"
    print(f"\nlargest full fine-tuning that fits: {largest or 'none'}")


if __name__ == "__main__":
    main()
