"""Identity: what changes a Fit's key and what must not; every field is classified."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from pydantic import BaseModel

from w2s_ray import study
from w2s_ray.fit import Data, Execution, Fit, Method, Model, Training, canonical_json, describe

from fits import DATA, TRAINING, fit, model


@pytest.mark.parametrize("part", [Model, Data, Method, Training, Fit])
def test_every_field_of_a_fit_is_classified(part: type) -> None:
    assert is_dataclass(part)
    for field in fields(part):
        assert field.metadata.get("kind") in ("identity", "location"), f"{part.__name__}.{field.name} is not classified"


@pytest.mark.parametrize(
    "section", [study.Study, study.Grid, study.ModelEntry, study.Split, study.Training, study.Compute]
)
def test_every_field_of_a_study_is_classified(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        extra: Any = field.json_schema_extra or {}
        assert extra.get("kind") in ("identity", "execution"), f"{section.__name__}.{name} is not classified"


def test_no_execution_knob_is_in_a_fit() -> None:
    identity_names = {field.name for part in (Model, Data, Training, Fit) for field in fields(part)}
    assert not identity_names & {field.name for field in fields(Execution)}


def changed(part: Any, name: str) -> Any:
    """The same part with one field changed to another value of its type."""
    value = getattr(part, name)
    other: Any
    if isinstance(value, bool):
        other = not value
    elif isinstance(value, int | float):
        other = value + 1
    elif isinstance(value, tuple):
        other = (*value, ("x", None)) if name == "tokenizer_sources" else (*value, "x")
    else:
        other = f"{value}x"
    return replace(part, **{name: other})


@pytest.mark.parametrize(
    ("slot", "part", "name"),
    [
        (slot, part, f.name)
        for slot, part in (("model", model()), ("data", DATA), ("training", TRAINING))
        for f in fields(part)
    ],
)
def test_a_field_changes_the_key_if_and_only_if_it_is_identity(slot: str, part: Any, name: str) -> None:
    kind = next(f.metadata["kind"] for f in fields(part) if f.name == name)
    before, after = fit(), replace(fit(), **{slot: changed(part, name)})
    assert (before.key != after.key) == (kind == "identity")


def test_labels_method_half_seed_and_semantics_are_identity() -> None:
    keys = {
        fit().key,
        fit(half="A").key,
        fit(seed=1).key,
        fit(method=Method("confidence", (("max_weight", 0.5),))).key,
        fit(method=Method("confidence", (("max_weight", 0.75),))).key,
        fit(labels=fit(half="A")).key,
        fit(labels=fit(half="A", seed=1)).key,
        fit(semantics=3).key,
    }
    assert len(keys) == 8


def test_the_key_is_stable() -> None:
    """A key that moves by accident orphans every store; raise SEMANTICS to move it on purpose."""
    assert fit().key[:12] == fit().folder[-12:]
    text = canonical_json(fit().identity)
    assert fit().key == hashlib.sha256(text.encode()).hexdigest(), "the key is the hash of the whole identity"
    assert fit().key == "e3d4bb08be590f7b86ebcfb6a67bc8fa9e2cdddd1803e993ba21306a123666ed"


def test_description_is_json_and_names_ancestors() -> None:
    supervisor = fit(half="A")
    text = json.loads(json.dumps(describe(fit(size="m", labels=supervisor))))
    assert text["role"] == "student" and text["ancestors"][0]["key"] == supervisor.key
