"""What the columns of all tables hold: `python -m w2s_ray.analysis.columns` prints it as Markdown.

The sentences are in columns.yaml, which is the only place for them: the page, tables/columns.md and the documentation take them from
there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources

import yaml

ENDS = {"_low": "Lower", "_high": "Upper"}


@cache
def _dictionary() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """(sentences of columns that many tables have, table -> sentences of its own columns)."""
    content = yaml.safe_load((resources.files(__package__) / "columns.yaml").read_text(encoding="utf-8"))
    return content["common"], content["tables"]


def meaning(column: str, *, table: str) -> str | None:
    """The sentence of a column, or None if the dictionary has none."""
    common, tables = _dictionary()
    sentence = tables.get(table, {}).get(column) or common.get(column)
    if sentence is None:
        for end, word in ENDS.items():
            stem = column.removesuffix(end)
            if stem != column and meaning(stem, table=table):
                return f"{word} end of the 95 % interval of {stem}."
    return sentence


def tables() -> list[str]:
    """The names of all tables, in the order in which they are listed."""
    return list(_dictionary()[1])


def as_markdown(columns: Mapping[str, Iterable[str]]) -> str:
    """A heading for each table and a line for each of its columns. The ends of intervals are not listed. `columns`: table -> columns."""
    parts = []
    for table, names in columns.items():
        lines = [
            f"- `{name}`: {sentence}"
            for name in names
            if not name.endswith(tuple(ENDS)) and (sentence := meaning(name, table=table))
        ]
        parts.append("\n".join([f"## {table}", "", *lines, ""]))
    note = (
        "Columns that end in `_low` and `_high` are the ends of the 95 % interval of the column they are named after.\n"
    )
    return "\n".join(["# Columns of the tables\n", note, *parts])


def main() -> None:
    common, of_tables = _dictionary()
    print(as_markdown({"all tables": common, **{table: names for table, names in of_tables.items() if names}}), end="")


if __name__ == "__main__":
    main()
