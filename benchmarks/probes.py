"""Linear probes on one decoder of 135 million parameters that is cut at depths 6, 12 and 30.

    python benchmarks/probes.py                                  # 3,400 rows of manuals, two seeds
    python benchmarks/probes.py --width 64 --depths 1 2 --rows 100    # seconds: whether it runs

The decoder has SmolLM2-135M's shape and random weights, since speed does not care; its scores mean nothing. The three depths are one
reading: features of all of them come from one pass, in shares that the slots divide among them (goal: the whole run within
4 minutes; before, each depth was read by itself, the deepest twice, in 11 min 05 s). Prints what `w2s plan` expected before the
run, what it took, and the median of loading a Fit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
import yaml

SIZE_OF_THE_TOKENIZER = "l"
"""The English ladder's, whose vocabulary all its sizes share."""


def save_decoder(folder: Path, *, width: int, num_layers: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from w2s_ray import families

    config = LlamaConfig(
        vocab_size=49152, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=num_layers,
        num_attention_heads=width // 64, num_key_value_heads=max(1, width // 192), tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    english = Path(families.__file__).parent / "catalogue" / "english" / SIZE_OF_THE_TOKENIZER
    for file in english.glob("*token*"):
        shutil.copy(file, folder)


def save_study(folder: Path, options: argparse.Namespace) -> Path:
    grid = {
        "models": [{"name": f"d{depth}", "path": "decoder", "depth": depth} for depth in options.depths],
        "tasks": ["manuals"],
        "controls": False,
        "seeds": options.seeds,
        "split": {"num_train": options.rows * 5 // 17, "num_test": options.rows * 7 // 17},
        "training": {"tune": "head"},
    }
    path = folder / "probes.yaml"
    path.write_text(yaml.safe_dump({"name": "probes", "grids": [grid]}))
    return path


def planned_s(study: Path) -> float:
    command = [sys.executable, "-m", "w2s_ray", "plan", study.name, "--json"]
    facts = json.loads(subprocess.check_output(command, cwd=study.parent))
    return float(facts["seconds_to_run_on_one_slot"])


def measured(study: Path) -> pl.DataFrame:
    """Seconds of every Fit, by phase."""
    from w2s_ray.planning import load_plan
    from w2s_ray.store import open_store

    store = open_store(str(study.parent / "w2s-store"))
    facts = [(fit.role, json.loads(store.read_file(fit.folder, "fit.json"))) for fit in load_plan(study).fits]
    return pl.DataFrame([{"role": role, **each["provenance"]["seconds"]} for role, each in facts], strict=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--depths", type=int, nargs="+", default=[6, 12, 30])
    parser.add_argument("--rows", type=int, default=3400, help="of a replicate: two halves and the test set")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_decoder(folder / "decoder", width=options.width, num_layers=max(options.depths))
        study = save_study(folder, options)
        before_s = planned_s(study)
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-m", "w2s_ray", "run", study.name], cwd=folder, check=True)
        wall_s = time.perf_counter() - began_s
        fits = measured(study)
        print(f"{len(fits)} Fits in {wall_s:.0f} s, tables and report included")
        print(fits.group_by("role").agg(pl.len(), pl.exclude("role").sum().round(1)).sort("role"))
        took_s = fits.select(pl.sum_horizontal(pl.exclude("role", "load", "commit")).sum()).item()
        print(
            f"planned before the run: {before_s:.0f} s on one slot; it took {took_s:.0f} s without loading and commits"
        )
        load_s = fits.select(pl.col("load").median()).item()
        print(f"loading a Fit: {load_s:.2f} s (median)")


if __name__ == "__main__":
    main()
