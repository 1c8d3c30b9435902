"""What a half-typed or misspelt word was meant to be: completion for shells, and the option that is nearest.

`w2s --install-completion` sets completion up. Promise: nothing here reads more than names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typer import Context
from typer.core import TyperCommand


class Command(TyperCommand):
    """A verb that answers an option that it does not have with the one that was meant, rather than with a list."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:  # type: ignore[override]
        try:
            return super().parse_args(ctx, args)
        except Exception as raised:
            error: Any = raised
            if hasattr(error, "possibilities") and hasattr(error, "option_name"):  # Typer's error of an unknown option
                options = [option for parameter in self.get_params(ctx) for option in parameter.opts]
                if meant := nearest_options(error.option_name, options):
                    error.message = f"{error.message} (did you mean {' or '.join(meant)}?)"
                error.possibilities = None
            raise


def nearest_options(given: str, options: list[str]) -> list[str]:
    """The options that begin as given or have its words, or else the one that is spelt most like it."""
    parts = [option for option in options if given.strip("-") and set(_words(given)) <= set(_words(option))]
    begin = [option for option in options if option.startswith(given) and len(given) > 3]
    return begin or parts or difflib.get_close_matches(given, options, n=1, cutoff=0.6)


def _words(option: str) -> list[str]:
    return option.strip("-").split("-")


# --- completion ---------------------------------------------------------------------------------------------------


def complete_study(incomplete: str) -> list[str]:
    from w2s_ray.study import study_names

    return _completions(incomplete, study_names())


def complete_task(incomplete: str) -> list[str]:
    from w2s_ray.tasks import task_names

    return _completions(incomplete, task_names())


def complete_family(incomplete: str) -> list[str]:
    from w2s_ray.families import family_names

    return _completions(incomplete, family_names())


def complete_method(incomplete: str) -> list[str]:
    from w2s_ray.methods import PARAMS

    return [name for name in PARAMS if name.startswith(incomplete)]


def _completions(incomplete: str, names: Iterable[str]) -> list[str]:
    """Names, YAML files and folders that begin so."""
    folder = incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""
    entries = sorted(Path(folder or ".").glob("*"))
    places = [f"{folder}{entry.name}{'/' if entry.is_dir() else ''}" for entry in entries]
    places = [place for place in places if place.endswith(("/", ".yaml", ".yml"))]
    return [word for word in (*names, *places) if word.startswith(incomplete)]
