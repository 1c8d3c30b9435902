"""Untrained models: they are asked in one form, and read where their tokenizer really writes the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from w2s_ray.errors import InputError
from w2s_ray.fit import Fit
from w2s_ray.planning import load_plan
from w2s_ray.store import StoreError, open_store
from w2s_ray.training.batches import pad
from w2s_ray.training.data import prepare
from w2s_ray.training.distributed import device
from w2s_ray.training.prompts import apply_prompt_method
from w2s_ray.training.settings import classification, generation
from w2s_ray.training.worker import TrainingFailed

from tiny import WORDS, save_model, save_rewriting, save_study, save_task
from trained import probabilities, spec_of, train

CORPUS = [f"{' '.join(WORDS[i : i + 4])}\nAnswer (0 or 1): {i % 2}\n\n" for i in range(36)]


def bpe(before: Any = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2 and Pythia have."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([before, byte_level]) if before else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"vocab_size": 400, "special_tokens": ["</s>"], "initial_alphabet": alphabet}
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(**options))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models with a BPE tokenizer, a study of them, and a task of each setting."""
    folder = tmp_path_factory.mktemp("untrained")
    for seed, name in enumerate(("small", "big")):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=512, initializer_range=0.5)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        bpe().save_pretrained(folder / name)
    save_task(folder)
    save_rewriting(folder)
    return folder


def students(folder: Path, *methods: Any, **grid: Any) -> list[Fit]:
    grid = {"methods": list(methods), "pairs": [["small", "big"]]} | grid
    return [cell.student for cell in load_plan(save_study(folder, grid=grid)).cells]


def next_token_logits(folder: Path, text: str) -> torch.Tensor:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model.eval()(**tokenizer(text, return_tensors="pt")).logits[0, -1]


def test_zero_shot_reads_the_tokens_that_continue_its_question(folder: Path, tmp_path: Path) -> None:
    plain, calibrated = students(folder, "zero_shot", {"name": "zero_shot", "calibrate": True})
    store = train([plain, calibrated], tmp_path / "store")
    tokenizer = bpe()
    zero, one = (tokenizer.encode(f" {answer}") for answer in "01")
    assert len(zero) == len(one) == 1 and tokenizer.encode("0") != zero, "two tokens are called 0"
    ids = [zero[0], one[0]]

    def probability(text: str) -> float:
        return float(torch.softmax(next_token_logits(folder / "big", f"{text}\nAnswer (0 or 1):")[ids], -1)[1])

    texts = dict(zip(prepare(plain).parts["test"].ids, prepare(plain).parts["test"].texts, strict=True))
    expected = np.array([probability(text) for _, text in sorted(texts.items())])
    np.testing.assert_allclose(probabilities(store, plain), expected, atol=1e-5)
    baseline = np.mean([probability(text) for text in ("N/A", "", "[MASK]")])
    odds = expected / (1 - expected) / (baseline / (1 - baseline))
    np.testing.assert_allclose(probabilities(store, calibrated), odds / (1 + odds), atol=1e-5)
    assert np.abs(probabilities(store, calibrated) - expected).max() > 1e-3


@pytest.mark.parametrize("before", [None, pre_tokenizers.Digits(individual_digits=True)])
def test_the_answers_are_the_first_tokens_that_differ(before: Any) -> None:
    """GPT-2 writes a blank and a digit as one token, Llama 3 as two."""
    tokenizer = bpe(before)
    question = classification.question("w1 w2")
    [(read,)], answers = classification.encode_questions(tokenizer, [question])
    for answer, token in zip("01", answers, strict=True):
        assert [*read, token] == tokenizer(f"{question} {answer}")["input_ids"]
    assert tokenizer.decode(read) == (f"{question} " if before else question)


def test_a_tokenizer_without_0_and_1_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "w1": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(TrainingFailed, match="needs tokens for 0 and 1"):
        classification.encode_questions(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), ["w1"])


def test_shots_are_asked_like_the_question_and_their_order_is_drawn(folder: Path, tmp_path: Path) -> None:
    method = {"name": "few_shot", "shots": 4, "labels": "truth"}
    store, last, firsts = open_store(tmp_path / "store"), [], []
    for fit in students(folder, method, seeds=12):
        texts = apply_prompt_method(fit, prepare(fit), store).parts["test"].texts
        *shots, question = texts[0].split("\n\n")
        assert question.endswith("\nAnswer (0 or 1):") and len(shots) == 4
        assert all(shot[:-2].endswith("\nAnswer (0 or 1):") for shot in shots)
        answers = [shot[-2:] for shot in shots]
        assert sorted(answers) == [" 0", " 0", " 1", " 1"]
        last.append(answers[-1])
        firsts.append(shots[0])
    assert set(last) == {" 0", " 1"}, "class 1 does not always come last"
    assert len(set(firsts)) > 6, "each seed draws rows of its own"


def test_more_shots_than_rows_are_refused(folder: Path, tmp_path: Path) -> None:
    [fit] = students(folder, {"name": "few_shot", "shots": 256, "labels": "truth"})
    with pytest.raises(StoreError, match="asks for 256 shots, but half B has 96 rows; lower 'shots'"):
        apply_prompt_method(fit, prepare(fit), open_store(tmp_path / "store"))


def test_an_answer_ends_where_the_next_shot_would_begin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretrained model that is shown shots goes on with another one rather than ending its text."""
    tokenizer = bpe()
    tokens = tokenizer.encode("w3  w4\n\nw5 w6")
    written = np.array([[0.5, *tokens]])
    monkeypatch.setattr(generation, "evaluate_in_batches", lambda *_, **__: written)
    few_shot, zero_shot = students(folder, {"name": "few_shot", "labels": "truth"}, "zero_shot", tasks=["writing.yaml"])
    task = replace(prepare(few_shot), tokenizer=tokenizer, num_answer_tokens=len(tokens))
    texts = [generation.predict(None, task.parts["test"], task, fit)["completion"] for fit in (few_shot, zero_shot)]
    assert [text.to_pylist() for text in texts] == [["w3 w4"], ["w3 w4 w5 w6"]]


def test_only_a_classification_is_calibrated(folder: Path) -> None:
    with pytest.raises(InputError, match="'calibrate' divides by the probabilities of the answers 0 and 1"):
        students(folder, {"name": "zero_shot", "calibrate": True}, tasks=["choosing.yaml"])


def test_a_shorter_completion_has_no_advantage(tmp_path: Path) -> None:
    """A model to which all tokens are alike finds neither of two completions better, however long they are."""
    for name in ("small", "big"):
        model = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / name, "llama"))
        torch.nn.init.zeros_(model.get_output_embeddings().weight)
        model.save_pretrained(tmp_path / name)
    save_rewriting(tmp_path)
    by_tokens, by_bytes = students(
        tmp_path, "zero_shot", {"name": "zero_shot", "normalise": "bytes"}, tasks=["choosing.yaml"]
    )
    store = train([by_tokens, by_bytes], tmp_path / "store")
    rows = prepare(by_tokens).parts["test"]
    num_words = np.array([[len(text.split()) for text in pair] for pair in rows.completions])
    assert (num_words[:, 0] != num_words[:, 1]).any()
    np.testing.assert_allclose(probabilities(store, by_tokens), 0.5, atol=1e-6)
    num_bytes = np.array([[len(text) for text in pair] for pair in rows.completions])
    first, second = (-num_words * np.log(64) / num_bytes).T
    expected = dict(zip(rows.ids, 1 / (1 + np.exp(second - first)), strict=True))
    np.testing.assert_allclose(probabilities(store, by_bytes), [p for _, p in sorted(expected.items())], atol=1e-5)


def test_comparisons_without_a_prompt_are_judged_whole(tmp_path: Path) -> None:
    save_rewriting(tmp_path)
    for name in ("small", "big"):
        save_model(tmp_path / name, "llama")
    task = yaml.safe_load((tmp_path / "choosing.yaml").read_text())
    task |= {"template": "", "completions": ["{prompt} {right}", "{prompt} {wrong}"]}
    (tmp_path / "choosing.yaml").write_text(yaml.safe_dump(task))
    [fit] = students(tmp_path, "zero_shot", tasks=["choosing.yaml"])
    predicted = probabilities(train([fit], tmp_path / "store"), fit)
    assert np.isfinite(predicted).all() and predicted.std() > 0.001


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "opt"])
def test_a_language_models_head_is_computed_in_fp32_under_bf16(kind: str, tmp_path: Path) -> None:
    """In bf16 neighbouring logits round to the same number."""
    save_model(tmp_path, kind)
    writer, _ = generation.build_model(spec_of(tmp_path, bf16=True))
    writer.eval().to(device())
    with torch.no_grad():
        logits = writer(*pad([[5, 6, 7, 9], [8, 9]], pad_id=0, left=True), 2)
    assert logits.dtype == torch.float32
    assert (logits.bfloat16().float() != logits).float().mean() > 0.9, "the last bits are there"
