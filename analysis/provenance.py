"""What a study cost and where its Fits ran, in words and units: the last part of the report.

What a Fit cost is recorded with the Fit, so a second run that trains nothing changes no number. What only a run knows (how long it
took, how busy the machine was) is kept in history.json, one entry for each run that trained something.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

HISTORY = "history.json"
VERSIONS = ("w2s_ray", "torch", "transformers", "deepspeed", "ray")
"""Columns of runs.parquet that name what a Fit ran under."""


@dataclass(frozen=True)
class Run:
    """One `w2s run` that trained something."""

    wall_s: float
    startup_s: float
    busy_share: float
    """Of the time of all slots, what was spent on training, evaluation and the like."""
    fits_new: int
    fits_failed: int


def remember(out: Path, facts: dict[str, Any]) -> list[Run]:
    """All runs of this study that trained something, with the one that these facts are of, if it did."""
    path = out / HISTORY
    names = list(Run.__dataclass_fields__)
    try:
        runs = [Run(**{name: entry[name] for name in names}) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or cut short
        runs = []
    if facts.get("fits_new") and all(name in facts for name in names):
        runs.append(Run(**{name: facts[name] for name in names}))
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps([vars(run) for run in runs], indent=1), encoding="utf-8")
        temporary.replace(path)
    return runs


def cost_in_words(runs: pl.DataFrame, history: list[Run]) -> list[str]:
    """Sentences about all Fits of the study, and about the runs that trained them. `runs`: the table runs.parquet."""
    if runs.is_empty():
        return []
    seconds = [name for name in runs.columns if name.endswith("_s")]
    per_fit = pl.sum_horizontal(pl.col(name).fill_null(0) for name in seconds) * pl.col("workers").fill_null(1)
    total_s, train_s = runs.select(per_fit.sum().alias("total"), pl.col("train_s").sum().alias("train")).row(0)
    amounts = [
        f"{_scaled(float(total))} {unit}"
        for name, unit in (("tokens", "tokens"), ("flops", "FLOP"))
        if (total := runs[name].sum()) and runs[name].is_not_null().any()
    ]
    num_readings = runs.filter(pl.col("role") == "reading").height if "role" in runs.columns else 0
    read = f", and {num_readings:,} readings of frozen models," if num_readings else ""
    sentences = [
        f"{runs.height - num_readings:,} Fits (fine-tuned models){read} took {hours(total_s)} on their workers, of which "
        f"{hours(train_s)} was training" + (f": {' and '.join(amounts)}." if amounts else "."),
        "Fits that another study trained and this one uses are counted too.",
    ]
    if history:
        wall_s = sum(run.wall_s for run in history)
        busy = sum(run.busy_share * run.wall_s for run in history) / wall_s if wall_s else 0.0
        new, failed = sum(run.fits_new for run in history), sum(run.fits_failed for run in history)
        which = "one run" if len(history) == 1 else f"{len(history)} runs"
        sentences.append(
            f"{new:,} of them were trained here, in {which} of {hours(wall_s)} together; the machine was busy with them for "
            f"{busy:.0%} of that time{f', and {failed:,} failed' if failed else ''}."
        )
    return sentences


def machines(runs: pl.DataFrame) -> pl.DataFrame:
    """Fits, hours, tokens and FLOP by machine."""
    seconds = [name for name in runs.columns if name.endswith("_s")]
    per_fit = pl.sum_horizontal(pl.col(name).fill_null(0) for name in seconds) * pl.col("workers").fill_null(1)
    return (
        runs.group_by("machine", "host", "workers", "zero_stage")
        .agg(
            pl.len().alias("Fits"),
            (per_fit.sum() / 3600).alias("worker hours"),
            *(pl.col(name).sum().round(1).alias(f"{name.removesuffix('_s')} (s)") for name in seconds),
            pl.col("tokens").sum(),
            pl.col("flops").sum().cast(pl.Float64).alias("FLOP"),
        )
        .sort("Fits", descending=True)
    )


def mixed_versions(runs: pl.DataFrame) -> str:
    """Which versions the Fits of this study mix, or an empty string if they don't."""
    mixed = []
    for name in VERSIONS:
        if name not in runs.columns:
            continue
        counts = runs.group_by(pl.col(name).fill_null("not recorded")).len().sort(name)
        if counts.height > 1:
            mixed.append(f"{name} {', '.join(f'{version} ({count} Fits)' for version, count in counts.iter_rows())}")
    return f"The Fits of this study mix versions: {'; '.join(mixed)}." if mixed else ""


def versions(runs: pl.DataFrame) -> str:
    """Such as `torch 2.13.0, ray 2.55.0`, where all Fits agree."""
    found = {name: runs[name].drop_nulls().unique() for name in VERSIONS if name in runs.columns}
    return ", ".join(f"{name} {values[0]}" for name, values in found.items() if len(values) == 1)


def hours(seconds: float) -> str:
    """`42 s`, `3 min`, `2.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _scaled(number: float) -> str:
    """`1.2 million`, `3.4e15`."""
    for size, word in ((1e12, ""), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= size:
            return f"{number / size:.1f} {word}" if word else f"{number:.1e}"
    return f"{number:.0f}"
