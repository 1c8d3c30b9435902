"""The same grid by `w2s run` and as sweeps are published: one fresh process a training, one after another, in plain PyTorch.

    python benchmarks/race.py                        # english xs, s, m on manuals, two seeds
    python benchmarks/race.py --family pythia --sizes 70m 160m 410m --task boolq --num-train 5000 --rate 5e-5

Both train the same models on the same rows, with the same optimizer, schedule and number of steps: the supervisors on half A,
students and ceilings on half B, no controls. Prints the wall time of either, start-up included, their ratio (goal: 2) and their
scores side by side. The plain side has two threads, `w2s run` has one slot a core. A classification alone can race.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import yaml

BATCH_SIZE, EPOCHS, EVAL_BATCH_SIZE = 32, 2, 64


# --- one plain training, in a process of its own ------------------------------------------------------------------


def train_plain(job: dict[str, Any]) -> None:
    """Fine-tune on a half, then write probabilities of class 1 for half B and for the test set."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=2, dtype=torch.float32)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = {name: pq.read_table(Path(job["rows"]) / f"{name}.parquet") for name in ("A", "B", "test")}
    half = rows[job["half"]]
    texts = half["text"].to_pylist()
    labels = torch.tensor(
        half["label"].to_pylist() if job["labels"] is None else json.loads(Path(job["labels"]).read_text())
    )

    def logits_of(batch: list[str]) -> torch.Tensor:
        inputs = tokenizer(batch, padding=True, return_tensors="pt")
        logits: torch.Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return logits

    optimizer = torch.optim.Adam(model.parameters(), lr=job["rate"])
    num_steps = EPOCHS * math.ceil(len(texts) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(texts)).tolist()
        for first in range(0, len(texts), BATCH_SIZE):
            chosen = order[first : first + BATCH_SIZE]
            targets = labels[chosen].float()
            log_p = torch.log_softmax(logits_of([texts[i] for i in chosen]), dim=-1)
            loss = -(targets * log_p[:, 1] + (1 - targets) * log_p[:, 0]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        for name in ("B", "test"):
            texts = rows[name]["text"].to_pylist()
            batches = [texts[i : i + EVAL_BATCH_SIZE] for i in range(0, len(texts), EVAL_BATCH_SIZE)]
            p = torch.cat([torch.softmax(logits_of(batch), dim=-1)[:, 1] for batch in batches])
            Path(f"{job['out']}.{name}.json").write_text(json.dumps(p.tolist()))


# --- the two sides ------------------------------------------------------------------------------------------------


def write_study(folder: Path, options: argparse.Namespace) -> Path:
    sizes = options.sizes
    grid = {
        "family": options.family,
        "sizes": sizes,
        "pairs": [[weak, strong] for i, weak in enumerate(sizes) for strong in sizes[i + 1 :]],
        "tasks": [options.task],
        "methods": ["naive"],
        "controls": False,
        "seeds": options.seeds,
        "split": {"num_train": options.num_train, "num_test": options.num_test},
        "training": {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "evals_per_epoch": 0}
        | ({"learning_rate": options.rate} if options.rate else {}),
    }
    path = folder / "race.yaml"
    path.write_text(yaml.safe_dump({"name": "race", "grids": [grid]}))
    return path


def run_ours(study: Path) -> float:
    """Seconds of `w2s run`, its tables and report included."""
    command = [sys.executable, "-m", "w2s_ray", "run", study.name]
    began_s = time.perf_counter()
    subprocess.run(command, cwd=study.parent, check=True)
    return time.perf_counter() - began_s


def run_plain(study: Path, folder: Path) -> tuple[float, pl.DataFrame]:
    """(seconds, score of every training) of the study's Fits, each in a process of its own, supervisors first."""
    from w2s_ray import tasks
    from w2s_ray.planning import load_plan

    jobs: list[dict[str, Any]] = []
    fits = sorted(load_plan(study).fits, key=lambda fit: bool(fit.labels))
    for fit in fits:  # the rows are dealt before the clock starts
        rows = folder / f"rows-{fit.data.halves_seed}"
        if not rows.exists():
            rows.mkdir(parents=True)
            table = tasks.read_rows(tasks.load_pinned(fit.data.source, commits=fit.data.commits))
            for name, part in tasks.deal(table, tasks.Deal.of(fit.data)).items():
                pq.write_table(part, rows / f"{name}.parquet")
        labels = str(folder / f"{fit.labels[0].key}.B.json") if fit.labels else None
        common = {"model": fit.model.source, "rows": str(rows), "half": fit.part.half, "seed": fit.seed}
        jobs.append(common | {"labels": labels, "rate": fit.training.learning_rate, "out": str(folder / fit.key)})
    began_s = time.perf_counter()
    for job in jobs:
        subprocess.run([sys.executable, __file__, "--plain", json.dumps(job)], check=True)
    seconds = time.perf_counter() - began_s
    scores = []
    for fit, job in zip(fits, jobs, strict=True):
        truth = pq.read_table(Path(job["rows"]) / "test.parquet")["label"].to_pylist()
        predicted = json.loads(Path(f"{job['out']}.test.json").read_text())
        hits = [(p > 0.5) == bool(label) for p, label in zip(predicted, truth, strict=True)]
        scores.append({"key": fit.key, "score": sum(hits) / len(hits)})
    return seconds, pl.DataFrame(scores)


def side_by_side(study: Path, plain: pl.DataFrame) -> pl.DataFrame:
    """Mean score over seeds of each training that the grid has, by either side."""
    from w2s_ray.planning import load_plan
    from w2s_ray.store import open_store

    store = open_store(str(study.parent / "w2s-store"))
    rows = []
    for fit in load_plan(study).fits:
        curve = pl.from_arrow(store.read_table(fit, "curve.parquet"))
        assert isinstance(curve, pl.DataFrame)
        labels = fit.labels[0].model.size if fit.labels else "truth"
        rows.append(
            {
                "key": fit.key,
                "model": fit.model.size,
                "half": fit.part.half,
                "labels": labels,
                "ours": curve["test_accuracy"][-1],
            }
        )
    both = pl.DataFrame(rows).join(plain, on="key").rename({"score": "plain"})
    return both.group_by("half", "labels", "model", maintain_order=True).agg(
        pl.len().alias("seeds"), pl.col("ours", "plain").mean().round(4)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="english")
    parser.add_argument("--sizes", nargs="+", default=["xs", "s", "m"], help="weak to strong")
    parser.add_argument("--task", default="manuals")
    parser.add_argument("--num-train", type=int, default=2000)
    parser.add_argument("--num-test", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=None, help="default: the family's, for each size")
    parser.add_argument("--plain", type=json.loads, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        train_plain(options.plain)
        return
    with tempfile.TemporaryDirectory() as name:
        study = write_study(Path(name), options)
        ours_s = run_ours(study)
        plain_s, scores = run_plain(study, Path(name) / "plain")
        print(side_by_side(study, scores))
        print(
            f"{len(scores)} trainings: w2s run {ours_s:.0f} s, a fresh process each {plain_s:.0f} s, "
            f"{plain_s / ours_s:.2f} times as long"
        )


if __name__ == "__main__":
    main()
