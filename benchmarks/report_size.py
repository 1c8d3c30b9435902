"""What a large report costs.

    python benchmarks/report_size.py                                    # 11.6 million predictions on the test set
    python benchmarks/report_size.py --items 50000 --no-aggregation     # 115.6 million

Commits invented predictions for every Fit of a study with 4 sizes, 2 tasks and 2 methods, on the test set and, as far as Fits
keep them, on as many rows of half B. With 36 seeds these are 2,312 Fits. Then it times `w2s report` twice, with its peak memory:
the first run reads the files of every Fit, the second reuses the tables of the first. Last, it times the aggregation of
predictions per Fit in Polars and in pandas, which holds them all.

Goals: ten million in 2 minutes and 4 GB, a hundred million in 10 minutes and 8 GiB, and four times as fast as pandas.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.progress import track

from w2s_ray.planning import load_plan
from w2s_ray.store import open_store

ROUNDS = 5


def write_study(path: Path, *, num_seeds: int) -> Path:
    grid = {
        "family": "chess",
        "tasks": ["chess-moves", "task.yaml"],
        "methods": ["naive", "confidence"],
        "seeds": num_seeds,
    }
    task = {"name": "other", "setting": "classification", "train": "rows.parquet"}
    pq.write_table(
        pa.table({"text": [f"{i}" for i in range(100)], "label": [0, 1] * 50}), path.with_name("rows.parquet")
    )
    path.with_name("task.yaml").write_text(yaml.safe_dump(task))
    path.write_text(yaml.safe_dump({"name": "large", "grids": [grid]}))
    return path


def fill(study: Path, store: Path, *, num_items: int) -> int:
    """Commit predictions that are right at a rate that grows with the model. Returns the number of Fits."""
    plan, store = load_plan(study), open_store(store)
    rng = np.random.default_rng(0)
    ids = [f"{i:016x}" for i in range(2 * num_items)]
    labels = rng.integers(0, 2, 2 * num_items)
    halves = ["test"] * num_items + ["B"] * num_items
    truth = pa.table({"id": ids, "half": halves, "group": ids, "label": pa.array(labels, pa.int8())})
    for fit in {fit.data: fit for fit in plan.fits}.values():
        store.write_truth(fit, truth)
    for fit in track(plan.fits, description="filling the store"):
        rate = 0.5 + 0.06 * np.log10(fit.model.num_params / 1000) + (0.02 if fit.labels else 0.04)
        right = rng.random(2 * num_items) < rate
        confidence = 0.5 + rng.random(2 * num_items) / 2
        probabilities = np.where(right == (labels == 1), confidence, 1 - confidence).astype(np.float32)
        table = pa.table({"id": ids, "probability": probabilities})
        with tempfile.TemporaryDirectory() as folder:
            pq.write_table(table[:num_items], Path(folder, "test.parquet"))
            if fit.labelled_parts or fit.keeps_half_b:
                name = "half_b.parquet" if fit.keeps_half_b else "labels.parquet"
                pq.write_table(table[num_items:], Path(folder, name))
            curve = {
                "step": [1, 2],
                "epoch": [0.5, 1.0],
                "test_accuracy": [0.5, rate],
                "train_loss": [0.7, 0.6],
                "train_accuracy": [0.5, rate],
            }
            pq.write_table(pa.table(curve), Path(folder, "curve.parquet"))
            Path(folder, "fit.json").write_text(json.dumps({"provenance": {"machine": "none", "world_size": 1}}))
            store.commit(fit, Path(folder))
    return len(plan.fits)


def report(study: Path, store: Path, out: Path) -> None:
    began_s = time.perf_counter()
    command = [sys.executable, "-m", "w2s_ray.cli", "report", str(study), "--store", str(store), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    print(f"w2s report: {time.perf_counter() - began_s:.1f} s, peak memory of all runs so far {peak_gb:.2f} GB")


def best_of(run: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - began_s)
    return min(times)


def aggregation(path: Path) -> None:
    """Time the way from the file to a score for each Fit, and to score and calibration in ten bins (`w2s_ray.analysis.agreement`)."""
    import pandas as pd

    def scores_in_polars() -> object:
        return pl.scan_parquet(path).group_by("key").agg(pl.col("correct").mean()).collect(engine="streaming")

    def scores_in_pandas() -> object:
        return pd.read_parquet(path, columns=["key", "correct"]).groupby("key", observed=True)["correct"].mean()

    def bins_in_polars() -> object:
        outcome = pl.when(pl.col("label").is_null()).then(pl.col("correct")).otherwise(pl.col("label") == 1)
        rows = pl.scan_parquet(path).select(
            "key",
            "correct",
            pl.col("probability").cast(pl.Float64),
            outcome.cast(pl.Float64).alias("outcome"),
            (pl.col("probability") * 10).floor().clip(0, 9).cast(pl.Int8).alias("bin"),
        )
        sums = pl.col("probability", "outcome", "correct").sum()
        return rows.group_by("key", "bin").agg(sums, pl.len()).collect(engine="streaming")

    def bins_in_pandas() -> object:
        rows = pd.read_parquet(path, columns=["key", "probability", "label", "correct"])
        outcome = np.where(rows["label"].isna(), rows["correct"], rows["label"] == 1).astype("float64")
        bins = np.clip(np.floor(rows["probability"] * 10), 0, 9).astype("int8")
        grouped = rows.assign(outcome=outcome, bin=bins).groupby(["key", "bin"], observed=True)
        return grouped.agg(
            probability=("probability", "sum"),
            outcome=("outcome", "sum"),
            correct=("correct", "sum"),
            len=("outcome", "size"),
        )

    for task, in_polars, in_pandas in (
        ("scores per Fit", scores_in_polars, scores_in_pandas),
        ("score and calibration per Fit", bins_in_polars, bins_in_pandas),
    ):
        polars_s, pandas_s = best_of(in_polars), best_of(in_pandas)
        print(
            f"{task}: Polars {polars_s:.2f} s, pandas {pandas_s:.2f} s, ratio {pandas_s / polars_s:.1f} (best of {ROUNDS})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=36)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--folder", type=Path, help="keep the study here; by default in a temporary folder")
    parser.add_argument("--no-aggregation", action="store_true", help="time the report only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        study = write_study(folder / "large.yaml", num_seeds=options.seeds)
        num_fits = fill(study, folder / "store", num_items=options.items)
        print(f"{num_fits:,} Fits, {num_fits * options.items:,} predictions on the test set")
        for _ in range(2):
            report(study, folder / "store", folder / "out")
        if options.no_aggregation:
            return
        aggregation(folder / "out" / "predictions.parquet")


if __name__ == "__main__":
    main()
