"""The one error that a user can mend: wrong input.

Promise: an `InputError` reaches the terminal as its message alone, with exit code 2 and no traceback, and is
raised before anything is written. Its message says where (file and field), what was given, what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class InputError(Exception):
    """Wrong input by the user; the message is all that they see."""


def nearest(given: str, allowed: Iterable[str], *, files: Mapping[str, str] | None = None) -> str:
    """` (did you mean 'x'?)` for the closest allowed word, or nothing. `files`: the stems of files that would do, too, each
    with the name to suggest."""
    names = files or {}
    close = difflib.get_close_matches(given, [*names, *allowed], n=1, cutoff=0.6)
    return f" (did you mean '{names.get(close[0], close[0])}'?)" if close else ""
