"""Shipped families load; the stand-in's weights are what its recipe says, and the recipe still runs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from w2s_ray import families

from tiny import save_model


@pytest.mark.parametrize("name", families.family_names())
def test_a_shipped_family_goes_from_weak_to_strong(name: str) -> None:
    family = families.load_family(name)
    params = [size.params for size in family.sizes]
    assert params == sorted(params) and family.name == name
    for size in family.sizes:
        assert families.model(family, size.size).num_params == size.params


def test_the_stand_ins_weights_are_their_recipes() -> None:
    for size in families.load_family("standin").sizes:
        folder = families.SHIPPED / size.source
        recipe = json.loads((folder / "recipe.json").read_text())
        assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == recipe["sha256"]
        assert recipe["tokens"] == size.pretraining_tokens and families.count_params(folder) == size.params


def test_the_recipe_runs_and_is_deterministic(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "w2s_ray.families.standin"]
    for out in ("one", "two"):
        small = ["--steps", "3", "--beings", "50", "--rows", "100"]
        subprocess.run([*command, str(tmp_path / out), *small], check=True, capture_output=True)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) >= 4 * 4 + 2
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_a_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    one, same, other = (
        save_model(tmp_path / name, "llama", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert families.fingerprint_weights(one) == families.fingerprint_weights(same)
    assert families.fingerprint_weights(one) != families.fingerprint_weights(other)
    assert families.fingerprint_tokenizer(one) == families.fingerprint_tokenizer(other)


def test_parameters_are_counted_without_embeddings_and_head(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama")
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16
    assert families.count_params(folder) == 2 * (attention + 3 * 16 * 32 + 2 * 16) + 16
