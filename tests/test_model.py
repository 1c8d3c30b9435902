"""Models of any architecture: they train, read out without regard to padding, are cut and take adapters."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from w2s_ray import families
from w2s_ray.errors import InputError
from w2s_ray.families.model_folder import count_params
from w2s_ray.fit import Execution
from w2s_ray.planning import load_plan
from w2s_ray.study import ModelEntry
from w2s_ray.training.batches import pad
from w2s_ray.training.data import prepare
from w2s_ray.training.distributed import device
from w2s_ray.training.model import ModelSpec
from w2s_ray.training.settings import classification, comparison

from tiny import CONFIGS, save_model, save_study, save_task
from trained import ODD_BATCHES, probabilities, spec_of, train


@pytest.mark.parametrize("kind", CONFIGS)
def test_any_architecture_trains(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path / "m", kind, pad=kind != "gpt2")
    save_task(tmp_path)
    study = save_study(
        tmp_path,
        grid={
            "models": [{"name": "m", "path": "m"}],
            "training": {"epochs": 8, "batch_size": 16, "learning_rate": 0.01},
        },
    )
    supervisor = load_plan(study).fits[0]
    assert supervisor.model.pooling == ("mean" if kind == "bert" else "last")
    store = train([supervisor], tmp_path / "store")
    predicted = probabilities(store, supervisor)
    assert len(predicted) == 64 and predicted.std() > 0.01, "it predicts, and not the same for all"
    curve = store.read_table(supervisor, "curve.parquet").to_pydict()
    assert curve["train_loss"][-1] < math.log(2), "it has learned something about its own labels"


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_read_out_does_not_depend_on_padding(kind: str, tmp_path: Path) -> None:
    """Neither on its side nor on its length; and a real token with the pad's id still counts."""
    save_model(tmp_path, kind, pad=False)
    classifier, head_start = classification.build_model(spec_of(tmp_path))
    assert (head_start == "zero") == (kind == "bert"), "an encoder has no output embeddings"
    torch.nn.init.normal_(classifier.to(device()).head.weight)
    tokens = [[5, 6, 7, 0], [8, 9]]  # token 0 is a word here ("!"), and the padding too
    ids, mask = pad(tokens, pad_id=0)
    wider = torch.nn.functional.pad(ids, (0, 3)), torch.nn.functional.pad(mask, (0, 3))
    left = (
        torch.tensor([[0, 0, 5, 6, 7, 0], [0, 0, 0, 0, 8, 9]], device=device()),
        torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]], device=device()),
    )
    alone = torch.cat([classifier(*pad([row], pad_id=0)) for row in tokens])
    shorter = classifier(*pad([[5, 6, 7]], pad_id=0))
    for inputs in ((ids, mask), wider, left):
        torch.testing.assert_close(classifier(*inputs), alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(shorter[0], alone[0], atol=1e-4), "the last '!' is read"


def test_dropout_is_off_and_bf16_keeps_the_head_in_fp32(tmp_path: Path) -> None:
    save_model(tmp_path, "gpt2")
    classifier, _ = classification.build_model(spec_of(tmp_path, bf16=True))
    classifier.train().to(device())
    ids, mask = pad([[5, 6, 7], [8, 9, 10]], pad_id=0)
    assert torch.equal(classifier(ids, mask), classifier(ids, mask))
    assert classifier(ids, mask).dtype == torch.float32
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_cut_to_its_first_layer(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path, kind)
    whole, cut = (comparison.build_model(spec_of(tmp_path, depth=depth))[0].eval() for depth in (None, 1))
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)
    if kind == "bert":
        states = whole.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        torch.testing.assert_close(cut.features(ids, mask), states[1].mean(dim=1))
    assert not torch.allclose(cut.features(ids, mask), whole.features(ids, mask))
    layers = [name for name, _ in cut.named_parameters() if ".1." in name]
    assert not layers, "nothing of the second layer is left"
    family = families.from_models([ModelEntry(name="m", path=str(tmp_path), depth=1)], base=tmp_path)
    assert family.sizes[0].params < count_params(tmp_path)
    assert families.model(family, "m").identity["depth"] == 1
    with pytest.raises(InputError, match=r"depth: given 7, allowed: 0 to 2"):
        comparison.build_model(spec_of(tmp_path, depth=7))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_adapters_learn_and_the_rest_stays(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path / "m", kind)
    save_task(tmp_path)
    training = ODD_BATCHES | {"tune": "lora", "lora_rank": 4}
    grid = {"models": [{"name": "m", "path": "m"}], "training": training}
    [supervisor, *_] = load_plan(save_study(tmp_path, grid=grid)).fits
    plain, zero_3 = (
        probabilities(train([supervisor], tmp_path / f"zero-{execution.zero_stage}", execution), supervisor)
        for execution in (Execution(), Execution(zero_stage=3, micro_batch_size=7))
    )
    np.testing.assert_allclose(zero_3, plain, atol=1e-4)
    built, _ = classification.build_model(ModelSpec(supervisor.model, tune="lora", lora_rank=4))
    learned = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert learned and all("lora_" in name or name.startswith("head.") for name in learned)
    whole = load_plan(save_study(tmp_path, grid=grid | {"training": ODD_BATCHES})).fits[0]
    assert whole.key != supervisor.key and "lora_rank" not in whole.identity["training"]


def test_a_tokenizer_with_code_of_its_own_is_loaded_only_if_it_is_trusted(tmp_path: Path) -> None:
    """Both for the rows and, as one of the grid's, to tell which rows are short enough for all."""
    study = save_study(tmp_path)
    for name in ("small", "big"):
        (tmp_path / name / "tokenization_own.py").write_text(
            "from transformers import PreTrainedTokenizerFast\n\n\nclass Own(PreTrainedTokenizerFast):\n    pass\n"
        )
        path = tmp_path / name / "tokenizer_config.json"
        own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "tokenization_own.Own"]}}
        path.write_text(json.dumps(json.loads(path.read_text()) | own))
    trusted, refused = (load_plan(study, trust_remote_code=trusts).fits[0] for trusts in (True, False))
    assert len(prepare(trusted).parts["B"]) == 96
    with pytest.raises(InputError, match="contains custom code"):
        prepare(refused)
