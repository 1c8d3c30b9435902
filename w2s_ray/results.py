"""The results table: one row a cell, from committed predictions and the truth that lies beside them.

Writes `<out>/results.parquet` (SCHEMA), `<out>/predictions.parquet` (every test prediction of the study once, for
intervals), `<out>/curves.parquet` (learning curves), `<out>/items.parquet` (difficulty of test items, where a task has
it) and `<out>/runs.parquet` (what each Fit cost, and where). Promises: a cell without a result has a status and a reason,
and nulls, never a zero; every prediction is joined to the truth by id, and what does not match the truth one to one, or is
no probability, is a damage, not a smaller test set or a lower score.

    PGR = (student - supervisor) / (ceiling - supervisor)        Burns et al. 2023, section 3
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from w2s_ray.fit import Data, Fit, Model
from w2s_ray.plan import Cell
from w2s_ray.store import Store, StoreError

SCHEMA = {
    "study": pl.String,
    "setting": pl.String,
    "task": pl.String,
    "family": pl.String,
    "weak": pl.String,
    "strong": pl.String,
    "weak_params": pl.Int64,
    "strong_params": pl.Int64,
    "weak_flops": pl.Float64,
    "strong_flops": pl.Float64,
    "method": pl.String,
    "seed": pl.Int64,
    "n_test": pl.Int64,
    "metric": pl.String,
    "weak_score": pl.Float64,
    "student_score": pl.Float64,
    "ceiling_score": pl.Float64,
    "zero_shot_score": pl.Float64,
    "pgr": pl.Float64,
    "agreement": pl.Float64,
    "agreement_when_weak_right": pl.Float64,
    "agreement_when_weak_wrong": pl.Float64,
    "weak_key": pl.String,
    "student_key": pl.String,
    "ceiling_key": pl.String,
    "status": pl.String,
    "reason": pl.String,
}
"""`status`: done, failed, blocked (by a failed Fit), damaged (in the store) or missing (not run yet)."""

PHASES = ("load", "features", "train", "eval", "checkpoint", "commit")

RUNS = {
    "key": pl.String,
    "role": pl.String,
    "task": pl.String,
    "model": pl.String,
    "seed": pl.Int32,
    "machine": pl.String,
    "host": pl.String,
    "workers": pl.Int32,
    "zero_stage": pl.Int32,
    "tokens": pl.Int64,
    "flops": pl.Int64,
    **{f"{phase}_s": pl.Float64 for phase in PHASES},
}

TABLES = "2"
"""Version of what the tables mean; tables of another are made anew."""

METRICS = {"classification": "accuracy", "generation": "exact_match", "comparison": "pairwise_accuracy"}

PREDICTIONS = {
    "key": pl.Categorical,
    "role": pl.Categorical,
    "task": pl.Categorical,
    "model": pl.Categorical,
    "seed": pl.Int32,
    "id": pl.String,
    "probability": pl.Float32,
    "label": pl.Int8,
    "completion": pl.String,
    "correct": pl.Boolean,
}
"""`probability` is of label 1, and in a comparison of the first completion's being better; in a generation, of the
`completion` that was written, and `label` is null."""


ITEMS = {"task": pl.String, "id": pl.String, "difficulty": pl.Float32}


def write_results(cells: Iterable[Cell], *, study: str, store: Store, out: Path) -> pl.DataFrame:
    """Collect what the store has for these cells and write the tables."""
    cells = tuple(cells)
    fits = {fit.key: fit for cell in cells for fit in (cell.supervisor, cell.ceiling, cell.student)}
    folders = store.committed(fits.values())
    failures = store.read_failures()
    found = {key: kept for key, kept in _read_before(out).items() if key in folders}
    truths: dict[Data, pl.DataFrame] = {}
    problems: dict[str, tuple[str, str]] = {}
    for key, fit in fits.items():
        if key not in folders:
            problems[key] = _why_not(fit, failures)
        elif key not in found:
            try:
                found[key] = _collect(fit, folders[key], store=store, truths=truths)
            except StoreError as error:
                problems[key] = ("damaged", str(error))
    untrained = {(fit.model, fit.data): key for key, fit in fits.items() if fit.method.name == "zero_shot"}
    rows = [_row(cell, study=study, tests=found, problems=problems, untrained=untrained) for cell in cells]
    results = pl.DataFrame(rows, schema=SCHEMA)
    out.mkdir(parents=True, exist_ok=True)
    ordered = [found[key] for key in sorted(found)]
    _write(pl.concat([pl.DataFrame(schema=PREDICTIONS), *(each.test for each in ordered)]), out / "predictions.parquet")
    # diagonal: a store may hold Fits of several versions, whose curves need not have the same columns
    curves = pl.concat(
        [pl.DataFrame(schema={"key": pl.String}), *(each.curve for each in ordered)], how="diagonal_relaxed"
    )
    _write(curves, out / "curves.parquet")
    _write(pl.DataFrame([each.run for each in ordered], schema=RUNS), out / "runs.parquet")
    _write(_items((fits[key] for key in sorted(found)), store=store), out / "items.parquet")
    _write(results, out / "results.parquet")
    return results


def _items(fits: Iterable[Fit], *, store: Store) -> pl.DataFrame:
    """Difficulty of every test item of these Fits' tasks."""
    parts = [pl.DataFrame(schema=ITEMS)]
    for data, fit in {fit.data: fit for fit in fits}.items():
        try:
            truth = pl.DataFrame(store.read_truth(fit))
        except StoreError:  # lost since these Fits were judged; they can do without their items' difficulty
            continue
        if "difficulty" in truth.columns:
            rows = truth.filter((pl.col("half") == "test") & pl.col("difficulty").is_not_null())
            parts.append(rows.select(pl.lit(data.task).alias("task"), "id", "difficulty"))
    return pl.concat(parts).unique(["task", "id"]).sort("task", "id")


def _write(table: pl.DataFrame, path: Path) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    table.write_parquet(temporary, metadata={"w2s_tables": TABLES})
    temporary.replace(path)


# --- Fits ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What the tables take from one committed Fit."""

    test: pl.DataFrame
    """Its rows of predictions.parquet, by id."""
    curve: pl.DataFrame
    run: dict[str, Any]


def _collect(fit: Fit, folder: str, *, store: Store, truths: dict[Data, pl.DataFrame]) -> Found:
    test = _named(fit, _test(fit, folder, store=store, truths=truths))
    curve = _read(store, folder, "curve.parquet").select(pl.lit(fit.key).alias("key"), pl.all())
    return Found(test, curve, _run(fit, folder, store=store))


def _read_before(out: Path) -> dict[str, Found]:
    """Key -> what an earlier report collected: a Fit never changes, so its small files are read once for an `out`."""
    paths = [out / f"{name}.parquet" for name in ("predictions", "curves", "runs")]
    try:
        if any(pl.read_parquet_metadata(path).get("w2s_tables") != TABLES for path in paths):
            return {}
        predictions, curves, runs = map(pl.read_parquet, paths)
    except (OSError, pl.exceptions.PolarsError):
        return {}
    tests = {str(key): rows for (key,), rows in predictions.group_by("key", maintain_order=True)}
    by_key = {str(key): rows for (key,), rows in curves.group_by("key", maintain_order=True)}
    kept = {run["key"]: run for run in runs.to_dicts()}
    return {key: Found(tests[key], by_key[key], kept[key]) for key in tests.keys() & by_key.keys() & kept.keys()}


def _why_not(fit: Fit, failures: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Status and reason of a Fit that is not in the store."""
    for each in (fit, *fit.ancestors):
        if each.key in failures:
            reason = f"{each.folder} failed: {failures[each.key].get('reason', '')}"
            return ("failed" if each is fit else "blocked"), reason
    return "missing", "not run yet"


def _read(store: Store, folder: str, name: str) -> pl.DataFrame:
    content = store.read_file(folder, name)
    try:
        return pl.read_parquet(io.BytesIO(content))
    except pl.exceptions.PolarsError as error:
        raise _unusable(folder, name, "is no parquet file") from error


def _unusable(folder: str, name: str, problem: str) -> StoreError:
    """For a file that is what was committed, so that `w2s verify` finds nothing, and yet can't be scored."""
    return StoreError(f"fits/{folder}/{name} {problem}; remove this folder from the store to run the Fit again")


def _run(fit: Fit, folder: str, *, store: Store) -> dict[str, Any]:
    """A Fit's row of runs.parquet, from what its own record says; nulls where the record is of another version."""
    names = {"key": fit.key, "role": fit.role, "task": fit.data.task, "model": fit.model.name, "seed": fit.seed}
    try:
        facts = json.loads(store.read_file(folder, "fit.json")).get("provenance", {})
    except (StoreError, ValueError):
        facts = {}
    seconds = facts.get("seconds", {})
    return names | {
        "machine": facts.get("machine"),
        "host": facts.get("host"),
        "workers": facts.get("world_size"),
        "zero_stage": facts.get("execution", {}).get("zero_stage"),
        "tokens": facts.get("tokens"),
        "flops": facts.get("flops"),
        **{f"{phase}_s": seconds.get(phase) for phase in PHASES},
    }


JUDGED = ("probability", "label", "completion", "correct")


def _test(fit: Fit, folder: str, *, store: Store, truths: dict[Data, pl.DataFrame]) -> pl.DataFrame:
    """A Fit's test predictions, judged by the truth: id and JUDGED, by id."""
    generates = fit.data.setting == "generation"
    if fit.data not in truths:
        table = pl.from_arrow(store.read_truth(fit))
        assert isinstance(table, pl.DataFrame)
        right = pl.col("completion").alias("right") if generates else pl.col("label").cast(pl.Int8)
        truths[fit.data] = table.filter(pl.col("half") == "test").select("id", right)
    truth, predicted = truths[fit.data], _read(store, folder, "test.parquet")
    columns = ["id", "probability", *(["completion"] if generates else [])]
    if missing := set(columns) - set(predicted.columns):
        raise _unusable(folder, "test.parquet", f"has no column {' or '.join(sorted(missing))}")
    joined = predicted.select(columns).unique("id").join(truth, on="id", how="inner")
    if not 0 < joined.height == predicted.height == truth.height:
        counts = f"has {predicted.height} predictions, the truth {truth.height} test rows, and {joined.height} ids are in both"
        raise _unusable(folder, "test.parquet", counts)
    if not joined["probability"].is_between(0, 1).fill_null(False).all():
        raise _unusable(folder, "test.parquet", "has predictions that are no probabilities")
    if generates:
        single_blanks = pl.col("right").str.strip_chars().str.replace_all(r"\s+", " ")
        judged = joined.with_columns(
            (pl.col("completion") == single_blanks).alias("correct"), pl.lit(None, pl.Int8).alias("label")
        )
    else:
        judged = joined.with_columns(
            ((pl.col("probability") > 0.5) == (pl.col("label") == 1)).alias("correct"),
            pl.lit(None, pl.String).alias("completion"),
        )
    return judged.sort("id").select("id", *(pl.col(name).cast(PREDICTIONS[name]) for name in JUDGED))


def _named(fit: Fit, test: pl.DataFrame) -> pl.DataFrame:
    """A Fit's rows of predictions.parquet."""
    names = {"key": fit.key, "role": fit.role, "task": fit.data.task, "model": fit.model.name, "seed": fit.seed}
    return test.select(*(pl.lit(value).cast(PREDICTIONS[name]).alias(name) for name, value in names.items()), pl.all())


def _row(
    cell: Cell,
    *,
    study: str,
    tests: dict[str, Found],
    problems: dict[str, tuple[str, str]],
    untrained: dict[tuple[Model, Data], str],
) -> dict[str, Any]:
    weak, student, ceiling = cell.supervisor, cell.student, cell.ceiling
    row: dict[str, Any] = dict.fromkeys(SCHEMA) | {
        "study": study,
        "setting": student.data.setting,
        "task": cell.task,
        "family": cell.family,
        "weak": weak.model.size,
        "strong": student.model.size,
        "weak_params": weak.model.num_params,
        "strong_params": student.model.num_params,
        "weak_flops": _pretraining_flops(weak),
        "strong_flops": _pretraining_flops(student),
        "method": cell.method,
        "seed": cell.seed,
        "metric": METRICS[student.data.setting],
        "weak_key": weak.key,
        "student_key": student.key,
        "ceiling_key": ceiling.key,
    }
    for name, fit in (("weak_score", weak), ("student_score", student), ("ceiling_score", ceiling)):
        if fit.key in tests:
            row[name] = _accuracy(tests[fit.key].test)
            row["n_test"] = tests[fit.key].test.height
    zero_shot = untrained.get((student.model, student.data), "")
    if zero_shot in tests:
        row["zero_shot_score"] = _accuracy(tests[zero_shot].test)
    troubled = [problems[fit.key] for fit in (weak, ceiling, student) if fit.key in problems]
    if troubled:
        order = ("failed", "damaged", "blocked", "missing")
        row["status"], row["reason"] = min(troubled, key=lambda trouble: order.index(trouble[0]))
        return row
    row["status"] = "done"
    gap = row["ceiling_score"] - row["weak_score"]
    if gap > 0:
        row["pgr"] = (row["student_score"] - row["weak_score"]) / gap
    else:
        row["reason"] = "no PGR: the ceiling is not above the supervisor"
    return row | _agreement(tests[weak.key].test, tests[student.key].test)


def _pretraining_flops(fit: Fit) -> float | None:
    """6ND (Kaplan et al. 2020, section 2.1), where D is known."""
    tokens = fit.model.pretraining_tokens
    return 6.0 * fit.model.num_params * tokens if tokens else None


def _accuracy(test: pl.DataFrame) -> float:
    return float(test["correct"].to_numpy().mean())


def _agreement(weak: pl.DataFrame, student: pl.DataFrame) -> dict[str, float | None]:
    """How often the student says what its supervisor says, overall and where the supervisor is right or wrong."""
    if weak["label"].is_null().all():
        same = (weak["completion"] == student["completion"]).to_numpy()
    else:
        same = ((weak["probability"] > 0.5) == (student["probability"] > 0.5)).to_numpy()
    right = weak["correct"].to_numpy()
    return {
        "agreement": float(same.mean()),
        "agreement_when_weak_right": float(same[right].mean()) if right.any() else None,
        "agreement_when_weak_wrong": float(same[~right].mean()) if not right.all() else None,
    }
