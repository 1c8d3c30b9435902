"""Study -> cells -> the DAG of Fits; what the store has already; what the rest costs."""

from __future__ import annotations

from dataclasses import dataclass

from w2s_ray.fit import Fit


@dataclass(frozen=True)
class Cell:
    """One point of the grid; it needs three Fits (a supervisor, a student, a ceiling)."""

    family: str
    method: str
    """`Method.label` of the student's method."""
    seed: int
    supervisor: Fit
    student: Fit
    ceiling: Fit
