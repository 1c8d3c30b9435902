"""Transforms: what a student is given to learn from, out of what its supervisors predicted. One file a word.

Each file holds `Params` (with the loss to train with), `REFUSES` (where the transform makes no sense, and why),
`NEEDS_FEATURES`, and `transform`, a pure function of `LabelSources`.

To add a transform, write its file and add it to the table below.
"""

from __future__ import annotations

from types import ModuleType

from w2s_ray.methods.transforms import (
    combined,
    ensemble,
    filter,
    harden,
    noise,
    relabel,
    reliability,
    shuffled,
    sieve,
    told,
)

TRANSFORMS: dict[str, ModuleType] = {
    "ensemble": ensemble,
    "filter": filter,
    "reliability": reliability,
    "relabel": relabel,
    "sieve": sieve,
    "combined": combined,
    "harden": harden,
    "noise": noise,
    "shuffled": shuffled,
    "told": told,
}
