"""items.html: test items with their texts on which supervisor and student differ, or are both wrong.

Items are those of pairs of different sizes. A pair of Fits is compared for each replicate; an item's kind is told by how many of them
it is seen in. The page has at most MAX_SHOWN items of a kind for each pair, those seen in most replicates first, so it stays small
whatever the size of the test set. Texts come from item_texts.parquet, which holds the tasks whose files are on this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from w2s_ray.analysis import tables
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
PLACE = ["task", "family", "weak", "strong", "method"]


def write_items_page(out: Path, *, results: pl.DataFrame, predictions: tables.Predictions, title: str) -> bool:
    """Write items.html beside the report, and tell whether there is anything to show. A page without items is removed."""
    path = out / "items.html"
    pairs = items_of_pairs(results, predictions)
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


def items_of_pairs(results: pl.DataFrame, predictions: tables.Predictions) -> list[dict[str, Any]]:
    """For each pair: its place, the number of replicates, and for each kind how many items it has (the mean over replicates) and some of
    them: [id, replicates, supervisor's answer, student's answer, ceiling's answer] in the first replicate where it is seen."""
    parts = tables.parts_of(predictions)
    if not {"probability", "label", "completion", "id"} <= parts.columns:
        return []
    cells = _cells(results)
    pairs: list[dict[str, Any]] = []
    for place, group in cells.group_by(PLACE, maintain_order=True):
        if len(pairs) == MAX_PAIRS:
            break
        by_key = _answers_of(group, parts)
        seen = [
            _kinds(*(by_key[row[f"{side}_key"]] for side in ("weak", "student", "ceiling")))
            for row in group.sort("seed", "swapped").iter_rows(named=True)
            if all(row[f"{side}_key"] in by_key for side in ("weak", "student", "ceiling"))
        ]
        if not seen:
            continue
        rows = pl.concat(seen)
        kinds = {}
        for kind in KINDS:
            own = rows.filter(pl.col("kind") == kind)
            if own.is_empty():
                continue
            most = (
                own.group_by("id", maintain_order=True)
                .agg(pl.len().alias("times"), pl.col("weak", "student", "ceiling").first())
                .sort("times", pl.col("id").hash(), descending=[True, False])
                .head(MAX_SHOWN)
            )
            kinds[kind] = {"number": own.height / len(seen), "items": [list(row) for row in most.iter_rows()]}
        pairs.append(dict(zip(PLACE, place, strict=True)) | {"replicates": len(seen), "kinds": kinds})
    return pairs


def _answers_of(cells: pl.DataFrame, parts: tables.Parts) -> dict[str, pl.DataFrame]:
    """Key -> answers of the Fits of these cells."""
    keys = pl.concat([cells[f"{side}_key"].alias("key").cast(pl.String) for side in ("weak", "student", "ceiling")])
    answers = (
        parts.rows.select(
            pl.col("key").cast(pl.String), "id", "correct", pl.col("completion").fill_null(""), pl.col("probability")
        )
        .filter(pl.col("key").is_in(keys.unique().implode()))
        .collect(engine="streaming")
    )
    return {str(key): rows.drop("key") for (key,), rows in answers.group_by("key", maintain_order=True)}


def _cells(results: pl.DataFrame) -> pl.DataFrame:
    return done(results).filter((pl.col("weak") != pl.col("strong")) & ~has_method(*CONTROLS))


def _kinds(weak: pl.DataFrame, student: pl.DataFrame, ceiling: pl.DataFrame) -> pl.DataFrame:
    """id, kind and the three answers, of the items that are not answered right by both."""
    sides = {"weak": weak, "student": student, "ceiling": ceiling}
    joined = weak.select("id")
    for side, rows in sides.items():
        joined = joined.join(
            rows.select("id", pl.col("correct").alias(f"{side}_right"), _answer().alias(side)), on="id", how="inner"
        )
    right = {side: pl.col(f"{side}_right") for side in sides}
    repeats = pl.col("weak") == pl.col("student")
    kind = (
        pl.when(~right["weak"] & right["student"])
        .then(pl.lit("rescued"))
        .when(right["weak"] & ~right["student"])
        .then(pl.lit("lost"))
        .when(~right["weak"] & ~right["student"] & right["ceiling"] & repeats)
        .then(pl.lit("misled"))
        .when(~right["weak"] & ~right["student"])
        .then(pl.lit("both"))
    )
    return (
        joined.with_columns(kind.alias("kind")).filter(pl.col("kind").is_not_null()).drop(f"{s}_right" for s in sides)
    )


def _answer() -> pl.Expr:
    """What a model answers, as text: what it wrote, else label 0 or 1. The probability is not a part of it."""
    label = pl.when(pl.col("probability") > 0.5).then(pl.lit("1")).otherwise(pl.lit("0"))
    return pl.when(pl.col("completion") != "").then("completion").otherwise(label)


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
