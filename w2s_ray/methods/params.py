"""What the parameters of every method have in common, and how a method says where it makes no sense."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Circumstance = Literal["classification", "generation", "comparison", "encoder", "probe", "lora"]
"""Where a method may be used: a task's setting, a family of encoders, `tune: head`, `tune: lora`."""

Refusals = dict[Circumstance, str]
"""Circumstance -> why the method makes no sense there. Every file of a method has one, mostly empty, called `REFUSES`."""

LABELS_ARE_TEXTS = "the labels of a generation are written moves or words, not probabilities"


class MethodParams(BaseModel):
    """Parameters of a method. `w2s methods` shows the docstrings of its subclasses and of their fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
