"""The tables of a study: one row for each cell, from committed predictions and the ground truth kept beside them.

`write_results` writes to the folder `out`:

    results.parquet       a cell: scores, PGR, agreement, or a status and a reason (SCHEMA)
    predictions.parquet/  a test prediction of a Fit, judged by the ground truth (PREDICTIONS); in parts (`prediction_parts.py`)
    half_b.parquet/       the same on half B: of supervisors, and of students on the rows that they learned from
    curves.parquet        a point of a Fit's learning curve
    items.parquet         the difficulty of a test item, if its task has one (ITEMS)
    item_texts.parquet    what a test item says, where the task's files are at hand (item_texts.ITEM_TEXTS)
    parts.parquet         how many rows and groups a part of a replicate has (PARTS)
    left_out.parquet      rows that no part has, by reason (left_out.LEFT_OUT)
    runs.parquet          what a Fit cost, where it ran, and with which versions (RUNS); also those between a supervisor
                          and its student, such as the steps of a chain, and readings

Promises: a cell without a result has a status, a reason and nulls, never a zero. Predictions are joined to the ground truth by
id. If the two do not match one to one, or a prediction is not a probability, the cell is `damaged`. It never counts with a
smaller test set or a lower score.

    PGR = (student - supervisor) / (ceiling - supervisor)        Burns et al. 2023, section 3
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from w2s_ray.analysis.tables import fit_slices
from w2s_ray.fit import PACKAGES, Data, Fit
from w2s_ray.item_texts import item_texts
from w2s_ray.left_out import Dealt, left_out
from w2s_ray.planning import Cell
from w2s_ray.prediction_parts import NO_ROWS, PART_ROWS, PREDICTIONS, Parts
from w2s_ray.store import Commit, Store, StoreError
from w2s_ray.tasks import RowCounts

AGREEMENT = tuple(
    f"{of}agreement{when}" for of in ("", "shuffled_") for when in ("", "_when_weak_right", "_when_weak_wrong")
)
"""How often a student's answers equal its supervisor's, and how often those of the control `shuffled` do: overall, where the
supervisor is right, and where it is wrong."""

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
    "swapped": pl.Boolean,
    "controls": pl.Boolean,
    "n_test": pl.Int64,
    "metric": pl.String,
    "weak_score": pl.Float64,
    "student_score": pl.Float64,
    "ceiling_score": pl.Float64,
    "zero_shot_score": pl.Float64,
    "shuffled_score": pl.Float64,
    "floor_score": pl.Float64,
    "pgr": pl.Float64,
    **{f"{where}{name}": pl.Float64 for where in ("", "half_b_") for name in AGREEMENT},
    "half_b_weak_score": pl.Float64,
    "weak_key": pl.String,
    "student_key": pl.String,
    "ceiling_key": pl.String,
    "zero_shot_key": pl.String,
    "shuffled_key": pl.String,
    "status": pl.String,
    "reason": pl.String,
}
"""What the columns hold:

- `weak_flops`, `strong_flops`: what the models' pretraining cost. Null if the family does not say how many tokens they saw, or
  lacks their shape (`families/pretraining.py`).
- `swapped`: the twin of a seed, with halves A and B exchanged.
- `controls`: whether the grid has controls.
- `floor_score`: the highest of supervisor, zero-shot and shuffled. Null before all controls of the cell are done.
- `half_b_weak_score`: the supervisor's score on the whole of half B.
- `half_b_*agreement*`: on the rows of half B that the student learned from. Null for an untrained student, for one that learned
  from part of the half only (such as a chain's), and for Fits of an earlier version of this package.
- `status`: done, failed, blocked (a Fit that it depends on failed), damaged (in the store), constant (supervisor, student or
  ceiling gives every test item the same answer, so it has learned nothing that could be scored) or missing (not run yet).
"""

STATUS_ORDER = ("failed", "damaged", "constant", "blocked", "missing")
"""A cell with several problems has the status that comes first here."""

SAME_PROBABILITY = 1e-6
"""Probabilities that differ by no more are the same: the order of sums in float32 alone makes such differences."""

PHASES = ("load", "features", "train", "eval", "checkpoint", "commit")
"""The phases of a Fit whose seconds are recorded."""

RUNS: dict[str, Any] = {
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
    "label_score": pl.Float64,
    "ensemble_score": pl.Float64,
    "labellers": pl.List(pl.String),
    "best_step": pl.Int64,
    "num_too_long": pl.Int64,
    **{f"{phase}_s": pl.Float64 for phase in PHASES},
    **dict.fromkeys(PACKAGES, pl.String),
    "stamp": pl.String,
}
"""What the columns hold:

- `label_score`: share of right labels among the rows that a student learned from.
- `ensemble_score`: share of test rows that a student's supervisors, if it has several, label right together.
- `labellers`: keys of the Fits whose labels it learned from.
- `best_step`: with `stop: validation`, the step whose weights predict; else null.
- `num_too_long`: rows of its task that are too long for a model of its grid, which no model of the grid sees.
- `stamp`: of the commit that was read (`store.Commit`). Rows of another commit of the same Fit are not reused.
"""

TABLES = "6"
"""Version of the meaning of these tables. Tables of another version are not reused but made again."""

METRICS = {"classification": "accuracy", "generation": "exact_match", "comparison": "pairwise_accuracy"}

ITEMS = {"task": pl.String, "id": pl.String, "difficulty": pl.Float32}


PARTS: dict[Any, Any] = {
    "task": pl.String,
    "replicate": pl.Int64,
    "swapped": pl.Boolean,
    "part": pl.String,
    "num_rows": pl.Int64,
    "num_groups": pl.Int64,
    "largest_group": pl.Int64,
    "effective_groups": pl.Float64,
}
"""`replicate`: the seed that dealt the halves; null where all seeds share them. `effective_groups`: (sum n)^2 / sum n^2."""


def write_results(
    cells: Iterable[Cell], *, study: str, store: Store, out: Path, rows: Mapping[str, RowCounts] | None = None
) -> pl.DataFrame:
    """Write the tables of these cells, as far as the store has their Fits, and return the results. `rows`: what each task's files
    have (`Plan.rows`), to tell which rows are left out.

    A committed Fit changes only if it is removed and run again. What an earlier call wrote to `out` is reused where the store
    still has the same commit, and only other Fits are read.
    """
    cells = tuple(cells)
    fits = {fit.key: fit for cell in cells for fit in cell.fits}
    steps = {step.key: step for fit in fits.values() for step in fit.ancestors if step.key not in fits}
    commits = store.commits(chain(fits.values(), steps.values()))
    failures = store.read_failures()
    collector = Collector(store)
    out.mkdir(parents=True, exist_ok=True)
    answers = Answers()
    wanted = {key: commit.stamp for key, commit in commits.items() if key in fits}
    parts, curves, runs = _take_earlier(out, wanted, answers)
    problems: dict[str, tuple[str, str]] = {}
    new_curves = []
    place = {data: i for i, data in enumerate(dict.fromkeys(fit.data for fit in fits.values()))}
    for key, fit in sorted(fits.items(), key=lambda item: (place[item[1].data], item[0])):  # reads each truth once
        if key not in commits:
            problems[key] = _why_not_committed(fit, failures)
        elif key not in runs:
            try:
                collected = collector.collect(fit, commits[key])
            except StoreError as error:
                problems[key] = ("damaged", str(error))
                continue
            answers.take(collected.test, collected.half_b)
            parts.add(key, collected.test, collected.half_b, commits[key].stamp)
            new_curves.append(collected.curve)
            runs[key] = collected.run
    for key in runs:
        if (answer := _constant_answer(fits[key], answers.test[key])) is not None:
            problems[key] = (
                "constant",
                f"the {fits[key].role} {fits[key].folder} gives every test item the same answer: {answer}",
            )
    results = pl.DataFrame(
        [_row(cell, study=study, answers=answers, problems=problems) for cell in cells], schema=SCHEMA
    )
    parts.finish()
    # diagonal: a store may hold Fits of several versions of this package, whose curves differ in their columns
    curves = pl.concat([curves, *new_curves], how="diagonal_relaxed").sort("key", maintain_order=True)
    _write(curves, out / "curves.parquet")
    keys = sorted(runs)
    run_rows = [runs[key] for key in keys]
    run_rows += [collector.run(step, commits[key]) for key, step in sorted(steps.items()) if key in commits]
    _write(pl.DataFrame(run_rows, schema=RUNS), out / "runs.parquet")
    _write(collector.items(fits[key] for key in keys), out / "items.parquet")
    texts = item_texts(
        (fits[key].data for key in keys),
        test_ids=answers.test_ids,
        at_hand=rows or {},
        earlier=out / "item_texts.parquet",
    )
    _write(texts, out / "item_texts.parquet")
    trained = {run["key"]: fit for run in run_rows if (fit := (fits | steps)[run["key"]]).role != "reading"}
    num_too_long = {trained[run["key"]].data: run["num_too_long"] for run in run_rows if run["key"] in trained}
    sizes = collector.parts(trained.values())
    dealt = {data: Dealt(int(part["num_rows"].sum()), num_too_long[data]) for data, part in sizes.items()}
    part_tables = pl.concat([pl.DataFrame(schema=PARTS), *sizes.values()])
    _write(part_tables.unique().sort("task", "part", "replicate", "swapped"), out / "parts.parquet")
    _write(left_out(dealt, rows or {}), out / "left_out.parquet")
    _write(results, out / "results.parquet")
    return results


def _write(table: pl.DataFrame, path: Path) -> None:
    """Write a table, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    table.write_parquet(temporary, metadata={"w2s_tables": TABLES})
    temporary.replace(path)


# --- Fits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitTables:
    """What one committed Fit adds to the tables."""

    test: pl.DataFrame
    """Its rows of predictions.parquet, in the order of their ids."""
    half_b: pl.DataFrame
    """Its rows of half_b.parquet, in the order of their ids. Empty if the Fit kept none."""
    curve: pl.DataFrame
    """Its rows of curves.parquet."""
    run: dict[str, Any]
    """Its row of runs.parquet."""


@dataclass(frozen=True)
class Collector:
    """Reads committed Fits from the store and judges their predictions. Reads the ground truth of a task once."""

    store: Store
    truths: dict[tuple[Data, str], pl.DataFrame] = field(default_factory=dict)
    """(data, part) -> ground truth, of the data that was asked for last."""

    def collect(self, fit: Fit, commit: Commit) -> FitTables:
        test = self._judged_predictions(fit, commit.folder, "test.parquet")
        half_b = NO_ROWS
        file = _file_of_half_b(fit)
        if file is not None and file in self.store.read_done(commit.folder)["files"]:
            half_b = self._judged_predictions(fit, commit.folder, file)
        curve = self._read_table(commit.folder, "curve.parquet").select(pl.lit(fit.key).alias("key"), pl.all())
        return FitTables(test, half_b, curve, self.run(fit, commit))

    def run(self, fit: Fit, commit: Commit) -> dict[str, Any]:
        """A Fit's row of runs.parquet."""
        labellers = [labeller.key for labeller in fit.labels]
        facts = {"labellers": labellers, "stamp": commit.stamp}
        return _fit_columns(fit) | self._provenance(commit.folder) | facts

    def items(self, fits: Iterable[Fit]) -> pl.DataFrame:
        """Difficulty of every test item of these Fits' tasks."""
        parts = [pl.DataFrame(schema=ITEMS)]
        for data, fit in {fit.data: fit for fit in fits}.items():
            try:
                truth = pl.DataFrame(self.store.read_truth(fit))
            except StoreError:  # lost after these Fits were judged; the report can do without difficulties
                continue
            if "difficulty" in truth.columns:
                rows = truth.filter((pl.col("half") == "test") & pl.col("difficulty").is_not_null())
                parts.append(rows.select(pl.lit(data.task).alias("task"), "id", "difficulty"))
        return pl.concat(parts).unique(["task", "id"]).sort("task", "id")

    def parts(self, fits: Iterable[Fit]) -> dict[Data, pl.DataFrame]:
        """How many rows and groups each part of each replicate has."""
        tables = {}
        for data, fit in {fit.data: fit for fit in fits}.items():
            try:
                truth = pl.DataFrame(self.store.read_truth(fit))
            except StoreError:
                continue
            sizes = truth.group_by("half", "group").len().with_columns(pl.col("len").cast(pl.Float64))
            facts = sizes.group_by(pl.col("half").alias("part")).agg(
                num_rows=pl.col("len").sum(),
                num_groups=pl.len(),
                largest_group=pl.col("len").max(),
                effective_groups=pl.col("len").sum() ** 2 / (pl.col("len") ** 2).sum(),
            )
            names = {"task": data.task, "replicate": data.halves_seed, "swapped": data.is_swapped}
            named = (pl.lit(value).alias(name) for name, value in names.items())
            tables[data] = facts.select(*named, pl.all()).cast(PARTS)
        return tables

    def _judged_predictions(self, fit: Fit, folder: str, file: str) -> pl.DataFrame:
        """A Fit's predictions beside the ground truth (PREDICTIONS), in the order of the ids.

        Predictions of the test set are of all its rows, and a supervisor's labels of all of half B. A student's answers are of those
        rows of half B that it learned from.
        """
        generates, half = fit.data.setting == "generation", "test" if file == "test.parquet" else "B"
        truth, predicted = self._truth(fit, half), self._read_table(folder, file)
        columns = ["id", "probability", *(["completion"] if generates else [])]
        if missing := set(columns) - set(predicted.columns):
            raise _unusable(folder, file, f"has no column {' or '.join(sorted(missing))}")
        if predicted["id"].equals(truth["id"]):  # as a Fit writes them, in the order of their ids
            joined = predicted.with_columns(truth.drop("id"))
        else:
            joined = predicted.select(columns).unique("id").join(truth, on="id", how="inner").sort("id")
        num_expected = predicted.height if file == "half_b.parquet" else truth.height
        if not 0 < joined.height == predicted.height == num_expected:
            counts = (
                f"{predicted.height} predictions for {truth.height} rows of {half}, and {joined.height} ids are in both"
            )
            raise _unusable(folder, file, f"does not match the ground truth: {counts}")
        if generates:
            # completions are written with single blanks
            right_completion = pl.col("right").str.strip_chars().str.replace_all(r"\s+", " ")
            made = {"correct": pl.col("completion") == right_completion, "label": pl.lit(None)}
        else:
            is_right = (pl.col("probability") > 0.5) == (pl.col("label") == 1)
            made = {"correct": is_right, "completion": pl.lit(None)}
        made |= {name: pl.lit(value) for name, value in _fit_columns(fit).items()}
        rows = joined.select(
            made.get(name, pl.col(name)).cast(dtype).alias(name) for name, dtype in PREDICTIONS.items()
        )
        if not rows["probability"].is_between(0, 1).fill_null(False).all():
            raise _unusable(folder, file, "has predictions that are not probabilities from 0 to 1")
        return rows

    def _truth(self, fit: Fit, half: str) -> pl.DataFrame:
        """The ground truth of a part of a Fit's task in the order of the ids: id, group, and label or (in generation) the right
        completion."""
        if (fit.data, half) not in self.truths:
            generates = fit.data.setting == "generation"
            answer = pl.col("completion").alias("right") if generates else pl.col("label").cast(pl.Int8)
            table = pl.DataFrame(self.store.read_truth(fit))
            self.truths.clear()
            for part in ("test", "B"):
                rows = table.filter(pl.col("half") == part).select("id", "group", answer)
                self.truths[fit.data, part] = rows.sort("id")
        return self.truths[fit.data, half]

    def _read_table(self, folder: str, name: str) -> pl.DataFrame:
        content = self.store.read_file(folder, name)
        try:
            return pl.read_parquet(io.BytesIO(content))
        except pl.exceptions.PolarsError as error:
            raise _unusable(folder, name, "is not a parquet file") from error

    def _provenance(self, folder: str) -> dict[str, Any]:
        """The columns of RUNS that a Fit recorded about itself, with nulls for what another version did not record."""
        try:
            provenance = json.loads(self.store.read_file(folder, "fit.json")).get("provenance", {})
        except (StoreError, ValueError):
            provenance = {}
        seconds, versions = provenance.get("seconds", {}), provenance.get("versions", {})
        return {
            "machine": provenance.get("machine"),
            "host": provenance.get("host"),
            "workers": provenance.get("world_size"),
            "zero_stage": provenance.get("execution", {}).get("zero_stage"),
            "tokens": provenance.get("tokens"),
            "flops": provenance.get("flops"),
            "label_score": provenance.get("label_score"),
            "ensemble_score": provenance.get("ensemble_score"),
            "best_step": provenance.get("best_step"),
            "num_too_long": provenance.get("num_too_long"),
            **{f"{phase}_s": seconds.get(phase) for phase in PHASES},
            **{package: versions.get(package) for package in PACKAGES},
        }


def _fit_columns(fit: Fit) -> dict[str, Any]:
    """The columns that name a Fit, in predictions and runs."""
    return {"key": fit.key, "role": fit.role, "task": fit.data.task, "model": fit.model.name, "seed": fit.seed}


def _file_of_half_b(fit: Fit) -> str | None:
    """The file with a Fit's predictions on half B: a supervisor's labels, or what a student answers to its own rows."""
    if fit.keeps_half_b:
        return "half_b.parquet"
    return "labels.parquet" if fit.role == "supervisor" else None


def _unusable(folder: str, name: str, problem: str) -> StoreError:
    """For a file that is as it was committed, so that `w2s verify` finds no fault, and still can't be scored."""
    return StoreError(f"fits/{folder}/{name} {problem}; remove this folder from the store to run the Fit again")


def fits_in_tables(out: Path) -> set[str]:
    """The keys of the Fits that the tables in `out` hold; empty where there are no tables."""
    path = out / "runs.parquet"
    if not path.exists():
        return set()
    try:
        return set(pl.read_parquet(path, columns=["key"])["key"].to_list())
    except pl.exceptions.PolarsError:  # cut short, to be written anew
        return set()


def _take_earlier(
    out: Path, wanted: dict[str, str], answers: Answers
) -> tuple[Parts, pl.DataFrame, dict[str, dict[str, Any]]]:
    """What an earlier call collected of the Fits that are `wanted` (key -> stamp of the commit), from the tables in `out`: the
    parts of their predictions, their curves, and their rows of runs.parquet by key. Nothing from tables of another version."""
    parts = Parts(out, TABLES)
    curves, run_rows = _read_earlier(out)
    known = {key for key, stamp in wanted.items() if key in run_rows and run_rows[key]["stamp"] == stamp}
    found = [
        (part, {key for key, stamp in part.stamps.items() if key in known and stamp == wanted[key]})
        for part in parts.find()
    ]
    nothing_new = wanted.keys() == set().union(*(keys for _, keys in found))
    taken: set[str] = set()
    # those that are kept come first, since a part that is written takes the next number after them
    for may_stay in (True, False):
        for part, keys in found:
            is_whole = keys == part.stamps.keys() and not keys & taken
            stays = is_whole and (nothing_new or part.num_rows >= PART_ROWS)
            if part in parts.kept or stays != may_stay:
                continue
            try:
                test, half_b = (parts.read(part, table) for table in (0, 1))
            except (OSError, pl.exceptions.PolarsError):  # damaged: its Fits are read again
                continue
            if stays:
                parts.kept.append(part)
                answers.take(test, half_b)
            else:
                _take_over(keys - taken, test, half_b, wanted=wanted, parts=parts, answers=answers)
            taken |= keys
    return parts, curves.filter(pl.col("key").is_in(list(taken))), {key: run_rows[key] for key in taken}


def _take_over(
    keys: set[str], test: pl.DataFrame, half_b: pl.DataFrame, *, wanted: dict[str, str], parts: Parts, answers: Answers
) -> None:
    """Let the rows of these Fits go into the next part."""
    of_test, of_half_b = (
        {str(key): rows for (key,), rows in table.group_by("key", maintain_order=True)} for table in (test, half_b)
    )
    for key in sorted(keys):
        rows = of_test[key], of_half_b.get(key, NO_ROWS)
        answers.take(*rows)
        parts.add(key, *rows, wanted[key])


def _read_earlier(out: Path) -> tuple[pl.DataFrame, dict[str, dict[str, Any]]]:
    """Curves and rows of runs.parquet by key. Empty if they are of another version."""
    paths = [out / f"{name}.parquet" for name in ("curves", "runs")]
    try:
        if all(pl.read_parquet_metadata(path).get("w2s_tables") == TABLES for path in paths):
            curves, runs = map(pl.read_parquet, paths)
            return curves, {row["key"]: row for row in runs.to_dicts()}
    except (OSError, pl.exceptions.PolarsError):
        pass
    return pl.DataFrame(schema={"key": pl.String}), {}


def _why_not_committed(fit: Fit, failures: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Status and reason of a Fit that is not in the store."""
    for candidate in (fit, *fit.ancestors):
        if candidate.key in failures:
            reason = f"{candidate.folder} failed: {failures[candidate.key].get('reason', '')}"
            return ("failed" if candidate is fit else "blocked"), reason
    return "missing", "not run yet"


# --- answers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A Fit's answers to some items, in the order of their ids: two bytes an item, or nine where it writes."""

    items: np.ndarray
    """[item]: hash of the id. Fits that answer the same items share it."""
    answer: np.ndarray
    """[item]: whether it is label 1, or a hash of the completion."""
    correct: np.ndarray
    constant: str | None
    """The one answer to all items, if there is no other. Null for a completion that is right for all."""

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def on_items(self, items: np.ndarray) -> Judged:
        """The answers to those of its items that are among these."""
        if items is self.items:
            return self
        kept = np.isin(self.items, items)
        return Judged(self.items[kept], self.answer[kept], self.correct[kept], None)


@dataclass
class Answers:
    """Of every Fit, to the test set and, as far as it kept them, to half B."""

    test: dict[str, Judged] = field(default_factory=dict)
    half_b: dict[str, Judged] = field(default_factory=dict)
    test_ids: dict[str, set[str]] = field(default_factory=dict)
    """Task -> ids of its test items."""
    items: dict[bytes, np.ndarray] = field(default_factory=dict)
    """The arrays of items that Fits share."""
    known: set[tuple[str, bytes]] = field(default_factory=set)
    """Tasks and test items whose ids are in `test_ids`."""

    def take(self, test: pl.DataFrame, half_b: pl.DataFrame) -> None:
        """Keep what is compared, of rows of PREDICTIONS."""
        for table, kept in ((test, self.test), (half_b, self.half_b)):
            hashes = table["id"].hash().to_numpy()
            probabilities, correct = table["probability"].to_numpy(), table["correct"].to_numpy()
            is_written, completions = table["label"].is_null().to_numpy(), table["completion"]
            for key, own in fit_slices(table):
                content = hashes[own].tobytes()
                if content not in self.items:
                    self.items[content] = hashes[own].copy()
                if kept is self.test:
                    self._remember_ids(table[own], content)
                written = completions[own] if is_written[own.start] else None
                answer = probabilities[own] > 0.5 if written is None else written.hash().to_numpy().copy()
                constant = _same_answer(probabilities[own], correct[own], written)
                kept[key] = Judged(self.items[content], answer, correct[own].copy(), constant)

    def _remember_ids(self, rows: pl.DataFrame, content: bytes) -> None:
        task = str(rows["task"][0])
        if (task, content) not in self.known:
            self.known.add((task, content))
            self.test_ids.setdefault(task, set()).update(rows["id"].to_list())


def _same_answer(probabilities: np.ndarray, correct: np.ndarray, written: pl.Series | None) -> str | None:
    if len(probabilities) < 2:
        return None
    if written is not None:
        is_same = written.n_unique() == 1 and not correct.all()
        return repr(written[0]) if is_same else None
    is_same = probabilities.max() - probabilities.min() <= SAME_PROBABILITY
    return f"probability {probabilities[0]:.4f}" if is_same else None


# --- cells ----------------------------------------------------------------------------------------------------------


def _row(
    cell: Cell,
    *,
    study: str,
    answers: Answers,
    problems: dict[str, tuple[str, str]],
) -> dict[str, Any]:
    """A cell's row of the results."""
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
        "weak_flops": weak.model.pretraining_flops,
        "strong_flops": student.model.pretraining_flops,
        "method": cell.method,
        "seed": cell.seed,
        "swapped": cell.is_swapped,
        "controls": cell.controls is not None and cell.controls.shuffled is not None,
        "metric": METRICS[student.data.setting],
        "weak_key": weak.key,
        "student_key": student.key,
        "ceiling_key": ceiling.key,
    }
    for name, fit in (("weak_score", weak), ("student_score", student), ("ceiling_score", ceiling)):
        if fit.key in answers.test:
            row[name] = None if fit.key in problems else answers.test[fit.key].accuracy
            row["n_test"] = len(answers.test[fit.key].items)
    if weak.key in answers.half_b and weak.key not in problems:
        row["half_b_weak_score"] = answers.half_b[weak.key].accuracy
    row |= _control_scores(cell, answers, weak_score=row["weak_score"])
    cell_problems = [problems[fit.key] for fit in (weak, ceiling, student) if fit.key in problems]
    if cell_problems:
        row["status"], row["reason"] = min(cell_problems, key=lambda problem: STATUS_ORDER.index(problem[0]))
        return row
    row["status"] = "done"
    gap = row["ceiling_score"] - row["weak_score"]
    if gap > 0:
        row["pgr"] = (row["student_score"] - row["weak_score"]) / gap
    else:
        row["reason"] = "no PGR: the ceiling is not above the supervisor"
    return row | _agreements(cell, answers)


def _control_scores(cell: Cell, answers: Answers, *, weak_score: float | None) -> dict[str, Any]:
    """Keys and scores of the cell's controls that are done, and the floor once all are."""
    if cell.controls is None:
        return {}
    row: dict[str, Any] = {}
    scores = [weak_score]
    for name, fit in (("zero_shot", cell.controls.zero_shot), ("shuffled", cell.controls.shuffled)):
        if fit is None:
            continue
        score = answers.test[fit.key].accuracy if fit.key in answers.test else None
        row |= {f"{name}_score": score, f"{name}_key": fit.key if score is not None else None}
        scores.append(score)
    known = [score for score in scores if score is not None]
    is_whole = cell.controls.shuffled is not None and len(known) == len(scores)
    return row | {"floor_score": max(known) if is_whole else None}


def _constant_answer(fit: Fit, judged: Judged) -> str | None:
    """The one answer to all test items, if there is no other; None where answers differ.

    An untrained model and one that learned from shuffled labels may answer so: they are what others are compared with.
    """
    return None if fit.role in ("untrained", "control") else judged.constant


def _agreements(cell: Cell, answers: Answers) -> dict[str, float | None]:
    """How often the student and the control `shuffled` answer what the supervisor does: on the test set, and on those rows of
    half B that the student learned from."""
    weak, student = cell.supervisor.key, cell.student.key
    learners = {"": student}
    if cell.controls and cell.controls.shuffled and cell.controls.shuffled.key in answers.test:
        learners["shuffled_"] = cell.controls.shuffled.key
    row: dict[str, float | None] = {}
    for name, learner in learners.items():
        row |= _agreement(answers.test[weak], answers.test[learner], name=f"{name}agreement")
        if all(key in answers.half_b for key in (weak, student, learner)):
            wanted = answers.half_b[student].items
            of_half_b = (answers.half_b[key].on_items(wanted) for key in (weak, learner))
            row |= _agreement(*of_half_b, name=f"half_b_{name}agreement")
    return row


def _agreement(weak: Judged, student: Judged, *, name: str) -> dict[str, float | None]:
    """Overall, where the supervisor is right, and where it is wrong. Empty unless both answered the same rows."""
    if len(weak.items) != len(student.items) or not len(weak.items):
        return {}
    same, right = weak.answer == student.answer, weak.correct
    return {
        name: float(same.mean()),
        f"{name}_when_weak_right": float(same[right].mean()) if right.any() else None,
        f"{name}_when_weak_wrong": float(same[~right].mean()) if not right.all() else None,
    }
