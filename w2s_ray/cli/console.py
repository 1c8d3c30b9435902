"""Where the verbs print: `out` takes what was asked for, `err` takes problems and progress."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

MAX_LISTED = 20
"""So many Fits or cells are listed by name; the facts under `--json` have all of them."""


def print_json(facts: Any) -> None:
    print(json.dumps(facts, indent=1))
