"""A larger model under ZeRO-3: each worker loads, trains and gathers a part of it, and the numbers are those of one worker."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from w2s_ray.store import open_store

from tiny import WORDS, save_model, save_task
from trained import fits_of, probabilities, torchrun, train

NUM_WORKERS = 4

PEAKS = """
import gc, json, resource, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.training.pack import run_pack
peaks = []
for study in sys.argv[2:]:
    execution = Execution(workers=dist.get_world_size(), zero_stage=3, checkpoint_every_s=0)
    run_pack(list(load_plan(study).fits), store_uri=sys.argv[1], execution=execution, report=lambda event: None)
    of_all = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    peaks.append(of_all)
left = sum(each.untyped_storage().nbytes() for each in gc.get_objects() if torch.is_tensor(each))
assert left < 100_000, f"{left} bytes of tensors outlive their Fits"
if dist.get_rank() == 0:
    print("peaks", json.dumps(peaks))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_four_workers_share_a_model(tmp_path: Path) -> None:
    """59 million parameters, loaded, trained and saved in parts: a worker's memory peaks at its part of the weights and a bounded rest."""
    save_task(tmp_path, num_rows=100)
    save_model(tmp_path / "small", "llama")
    save_model(tmp_path / "big", "llama")
    shape = LlamaConfig(
        vocab_size=len(WORDS) + 8, hidden_size=512, intermediate_size=2048, num_hidden_layers=14, num_attention_heads=8
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "big")
    num_bytes = (tmp_path / "big/model.safetensors").stat().st_size
    assert num_bytes > 230e6
    studies, fits = [], {}
    for name in ("small", "big"):
        models = [{"name": name, "path": name, "learning_rate": 0.0001}]
        training = {"epochs": 1, "batch_size": 16}
        grid = {"models": models, "controls": False, "split": {"num_train": 32, "num_test": 16}, "training": training}
        fits[name] = fits_of(tmp_path, **grid)
        studies.append((tmp_path / "study.yaml").rename(tmp_path / f"{name}.yaml"))
    where = str(tmp_path / "shared")
    done = torchrun(PEAKS, where, *map(str, studies), folder=tmp_path, num_ranks=NUM_WORKERS)
    assert done.returncode == 0, done.stderr[-3000:]
    store, alone = open_store(where), train(fits["big"], tmp_path / "alone")
    assert store.read_failures() == {}
    for fit in fits["big"]:
        np.testing.assert_allclose(probabilities(store, fit), probabilities(alone, fit), atol=1e-3)
    small, big = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("peaks")).removeprefix("peaks")
    )
    more = np.subtract(big, small)
    print(
        f"{num_bytes / 1e6:.0f} MB of weights; each of {NUM_WORKERS} workers took {more / 1e6} MB more than for a tiny model"
    )
    assert more.max() < num_bytes / NUM_WORKERS + 400e6
