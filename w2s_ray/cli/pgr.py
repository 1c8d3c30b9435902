"""The PGR table that ends `w2s run` and `w2s report`: a line for each pair and method, in 80 columns."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from w2s_ray.cli.console import out, print_table

MAX_ROWS = 40
"""The table ends after so many lines; pgr.parquet and tables/pgr.csv have all."""
WIDTH = 80
COLUMNS = ("setting", "task", "family", "weak", "strong", "method")
NUMBERS = ("weak_score", "student_score", "ceiling_score", "pgr", "pgr_low", "pgr_high")


def pgr_facts(folder: Path) -> list[dict[str, Any]]:
    """The rows of a study's pgr.parquet whose models differ, those over all tasks left out. `fails` says which controls do not
    vouch for a PGR."""
    import polars as pl

    from w2s_ray.analysis.controls import with_fails

    pgr = with_fails(pl.read_parquet(folder / "pgr.parquet"))
    pairs = pgr.filter(pl.col("task").is_not_null() & (pl.col("weak") != pl.col("strong")))
    return pairs.select(*COLUMNS, *NUMBERS, "num_seeds", "reason", "fails").to_dicts()


def print_pgr(facts: list[dict[str, Any]]) -> None:
    notes: dict[str, int] = {}
    shown = facts[:MAX_ROWS]
    places = [(row["task"], row["family"]) for row in shown]
    for place in dict.fromkeys(places):
        rows = [row for row, its_place in zip(shown, places, strict=True) if its_place == place]
        out.print(f"[bold]PGR[/bold] of {escape(place[0])}, {escape(place[1])}", highlight=False)
        methods = {row["method"] for row in rows} != {"naive"}
        table = Table("  pair", *(["method"] if methods else []), "weak", "student", "ceiling", "PGR (95 %)", box=None)
        table.pad_edge = False
        for row in rows:
            scores = (f"{row[name]:.3f}" if row[name] is not None else "-" for name in NUMBERS[:3])
            pair = f"  {escape(row['weak'])} -> {escape(row['strong'])}"
            table.add_row(pair, *([escape(row["method"])] if methods else []), *scores, _value(row, notes))
        print_table(table, names=2 if methods else 1)
    for text, number in notes.items():
        print_wrapped(f"  [{number}] {text}", indent="      ")
    if len(facts) > len(shown):
        out.print(f"  and {len(facts) - len(shown):,} more lines in pgr.parquet")


def _value(row: dict[str, Any], notes: dict[str, int]) -> str:
    """`0.47 (0.40 to 0.52)`, or that there is none; with the number of the note that says why, or what it fails."""
    value, low, high = (row[name] for name in ("pgr", "pgr_low", "pgr_high"))
    why = [text for text in (row["fails"], row["reason"]) if text]
    marks = "".join(f" [{notes.setdefault(text, len(notes) + 1)}]" for text in why)
    if value is None:
        return escape(f"none{marks or ': its Fits are not all done'}")
    ends = [None if end is None else f"{end:.2f}" for end in (low, high)]
    interval = "no interval" if ends == [None, None] else " to ".join(end or "unknown" for end in ends)
    return escape(f"{value:.2f} ({interval}){marks}")


def print_wrapped(text: str, *, indent: str) -> None:
    """Print a sentence in lines of `WIDTH`, broken between words."""
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    for line in lines:
        out.print(line, markup=False)
