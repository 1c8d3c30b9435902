"""items.html: test items with their texts on which supervisor and student differ, or are both wrong.

Items are those of pairs of different sizes. A pair of Fits is compared for each replicate; an item's kind is told by how many of them
it is seen in. The page has at most MAX_SHOWN items of a kind for each pair, those seen in most replicates first, so it stays small
whatever the size of the test set. Texts come from item_texts.parquet, which holds the tasks whose files are on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from w2s_ray.analysis import tables
from w2s_ray.analysis.answers import Answers
from w2s_ray.analysis.cells import CONTROLS, done, has_method
from w2s_ray.analysis.page import write_page

MAX_SHOWN = 12
"""Items of a kind for each pair."""
MAX_PAIRS = 60
MAX_CHARACTERS = 600
"""Of a text; longer ones are cut."""
KINDS = {
    "rescued": "supervisor wrong, student right",
    "misled": "student misled: it repeats its supervisor's mistake, which its ceiling does not make",
    "both": "both wrong, and the ceiling too or the student in its own way",
    "lost": "supervisor right, student wrong",
}
"""Kind of an item -> what it means. An item that both get right has no kind."""
SIDES = ("weak", "student", "ceiling")
PLACE = ["task", "family", "weak", "strong", "method"]


def write_items_page(
    out: Path, *, results: pl.DataFrame, answers: Mapping[str, Answers], predictions: tables.Predictions, title: str
) -> bool:
    """Write items.html beside the report, and tell whether there is anything to show. A page without items is removed."""
    path = out / "items.html"
    pairs = items_of_pairs(results, answers, predictions)
    if not pairs:
        path.unlink(missing_ok=True)
        return False
    texts = _texts(tables.read_optional(out / "item_texts.parquet"), pairs)
    without = sorted({pair["task"] for pair in pairs} - texts.keys())
    write_page(
        path,
        "items.html.j2",
        specs={},
        title=f"{title}: test items",
        data={"pairs": pairs, "texts": texts, "kinds": KINDS},
        without=without,
        num_hidden=max(0, _cells(results).select(PLACE).n_unique() - MAX_PAIRS),
        max_pairs=MAX_PAIRS,
        max_shown=MAX_SHOWN,
        max_characters=MAX_CHARACTERS,
    )
    return True


def items_of_pairs(
    results: pl.DataFrame, answers: Mapping[str, Answers], predictions: tables.Predictions
) -> list[dict[str, Any]]:
    """For each pair: its place, the number of replicates, and for each kind how many items it has (the mean over replicates) and some of
    them: [id, replicates, supervisor's answer, student's answer, ceiling's answer] in the first replicate where it is seen.

    `answers`: of every Fit, as read from the predictions, in which only the items that are shown are looked up again.
    """
    pairs: list[dict[str, Any]] = []
    for place, group in _cells(results).group_by(PLACE, maintain_order=True):
        if len(pairs) == MAX_PAIRS:
            break
        replicates = [
            tuple(row[f"{side}_key"] for side in SIDES)
            for row in group.sort("seed", "swapped").iter_rows(named=True)
            if all(row[f"{side}_key"] in answers for side in SIDES)
        ]
        if replicates:
            kinds = _kinds(replicates, answers)
            pairs.append(dict(zip(PLACE, place, strict=True)) | {"replicates": len(replicates), "kinds": kinds})
    found = _look_up([item for pair in pairs for kind in pair["kinds"].values() for item in kind["items"]], predictions)
    for pair in pairs:
        for kind in pair["kinds"].values():
            kind["items"] = [
                [found.ids[item.hash], item.times, *(found.answers[key, item.hash] for key in item.keys)]
                for item in kind["items"]
            ]
    return pairs


@dataclass(frozen=True)
class _Item:
    """An item that is shown."""

    hash: int
    """Of its id."""
    times: int
    """Replicates in which it is of its kind."""
    keys: tuple[str, ...]
    """The three Fits in the first of these."""


def _kinds(replicates: list[tuple[str, ...]], answers: Mapping[str, Answers]) -> dict[str, dict[str, Any]]:
    """Kind -> how many items it has in a replicate, and which are shown."""
    seen: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for keys in replicates:
        for kind, items in _items_by_kind(*(answers[key] for key in keys)).items():
            seen[kind].append(items)
    kinds = {}
    for kind, by_replicate in seen.items():
        items, first, times = np.unique(np.concatenate(by_replicate), return_index=True, return_counts=True)
        if not len(items):
            continue
        ends = np.cumsum([len(of_one) for of_one in by_replicate])
        shown = [
            _Item(int(items[i]), int(times[i]), replicates[int(np.searchsorted(ends, first[i], side="right"))])
            for i in np.argsort(-times, kind="stable")[:MAX_SHOWN]
        ]
        kinds[kind] = {"number": int(ends[-1]) / len(replicates), "items": shown}
    return kinds


def _items_by_kind(weak: Answers, student: Answers, ceiling: Answers) -> dict[str, np.ndarray]:
    """Kind -> hashes of its items. An item that both answer right is of no kind."""
    if not (np.array_equal(weak.item, student.item) and np.array_equal(weak.item, ceiling.item)):
        common = reduce(np.intersect1d, (weak.item, student.item, ceiling.item))
        weak, student, ceiling = (each.restricted_to(common) for each in (weak, student, ceiling))
    both_wrong = ~weak.correct & ~student.correct
    misled = both_wrong & ceiling.correct & (weak.answer == student.answer)
    of_kind = {
        "rescued": ~weak.correct & student.correct,
        "misled": misled,
        "both": both_wrong & ~misled,
        "lost": weak.correct & ~student.correct,
    }
    return {kind: weak.item[chosen] for kind, chosen in of_kind.items()}


@dataclass(frozen=True)
class _Found:
    """What the predictions say of the items that are shown."""

    ids: dict[int, str]
    """Hash -> id."""
    answers: dict[tuple[str, int], str]
    """(key, hash) -> what the Fit answers, as text: what it wrote, else label 0 or 1. The probability is not a part of it."""


def _look_up(items: list[_Item], predictions: tables.Predictions) -> _Found:
    found = _Found({}, {})
    schema = {"key": pl.String, "hash": pl.UInt64}
    wanted = pl.DataFrame(
        [(key, item.hash) for item in items for key in item.keys], schema=schema, orient="row"
    ).unique()
    label = pl.when(pl.col("probability") > 0.5).then(pl.lit("1")).otherwise(pl.lit("0"))
    written = pl.col("completion").fill_null("")
    for part in tables.parts_of(predictions).each("key", "id", "completion", "probability"):
        rows = (
            part.filter(pl.col("key").cast(pl.String).is_in(wanted["key"].implode()))
            .with_columns(pl.col("key").cast(pl.String), pl.col("id").hash().alias("hash"))
            .join(wanted, on=["key", "hash"], how="semi")
            .with_columns(pl.when(written != "").then(written).otherwise(label).alias("answer"))
        )
        for key, item, id_, answer in rows.select("key", "hash", "id", "answer").iter_rows():
            found.ids[item] = id_
            found.answers[key, item] = answer
    return found


def _cells(results: pl.DataFrame) -> pl.DataFrame:
    return done(results).filter((pl.col("weak") != pl.col("strong")) & ~has_method(*CONTROLS))


def _texts(texts: pl.DataFrame, pairs: list[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Task -> id -> [text, first completion, second completion, label] of the items that are shown."""
    if texts.is_empty():
        return {}
    wanted: dict[str, set[str]] = {}
    for pair in pairs:
        shown = {item[0] for kind in pair["kinds"].values() for item in kind["items"]}
        wanted.setdefault(pair["task"], set()).update(shown)
    found: dict[str, dict[str, list[Any]]] = {}
    for task, ids in wanted.items():
        rows = texts.filter((pl.col("task") == task) & pl.col("id").is_in(list(ids)))
        if rows.height:
            found[task] = {
                id_: [*map(_cut, (text, first, second)), label]
                for id_, text, first, second, label in rows.select("id", "text", "first", "second", "label").iter_rows()
            }
    return found


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
