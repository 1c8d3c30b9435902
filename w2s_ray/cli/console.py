"""Where the verbs print: `out` takes what was asked for, `err` takes problems and progress.

Promises: a name is printed whole. In a pipe or a file each sentence and each row of a table is one line, however long, so that
it can be searched; at a terminal they are broken between words. While a run has a log, what is printed goes there too.
"""

from __future__ import annotations

import json
import logging
from io import StringIO
from typing import Any

from rich.console import Console
from rich.control import Control
from rich.table import Table

MAX_LISTED = 20
"""So many Fits or cells are listed by name; the facts under `--json` have all of them."""
WIDE = 10_000
"""Columns where nothing has to be broken."""

log = logging.getLogger(__name__)


class Spoken(Console):
    """Breaks lines at a terminal alone, and between words. The log of a run has the same lines, as plain text."""

    def print(self, *objects: Any, **options: Any) -> None:
        words = [word for thing in objects if isinstance(thing, str) for word in thing.split()]
        has_no_room = any(
            len(word) > self.width for word in words
        )  # such as a long path, which stays whole to be copied
        super().print(*objects, **{"soft_wrap": has_no_room or not self.is_terminal} | options)
        if log.isEnabledFor(logging.INFO) and not all(isinstance(thing, Control) for thing in objects):
            for line in plain_lines(*objects, **options):
                log.info("%s", line)


out = Spoken(highlight=False)
err = Spoken(stderr=True, highlight=False)


def plain_lines(*objects: Any, **options: Any) -> list[str]:
    """What is printed, as lines without colours, of any length."""
    file = StringIO()
    Console(file=file, width=WIDE, soft_wrap=True, highlight=False, color_system=None).print(*objects, **options)
    return [line for line in map(str.rstrip, file.getvalue().splitlines()) if line]


def print_table(table: Table, *, names: int = 1) -> None:
    """Print a table whose first columns, `names` of them, hold names that have to stay whole."""
    if not out.is_terminal:
        for line in plain_lines(table):
            out.print(line, markup=False, emoji=False)
        return
    for number, column in enumerate(table.columns):
        column.no_wrap, column.overflow = number < names, "fold"
    out.print(table)


def print_json(facts: Any) -> None:
    print(json.dumps(facts, indent=1))
