"""Tiny random models of real architectures, each saved with its own tokenizer, and a small task to train them on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

WORDS = [f"w{i}" for i in range(40)]
COMMON: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

CONFIGS: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "gpt_neox": lambda: GPTNeoXConfig(**COMMON, intermediate_size=32, max_position_embeddings=64),
    "opt": lambda: OPTConfig(**COMMON, ffn_dim=32, max_position_embeddings=64, word_embed_proj_dim=8),
    "llama": lambda: LlamaConfig(**COMMON, intermediate_size=32, num_key_value_heads=1, max_position_embeddings=64),
    "qwen3": lambda: Qwen3Config(**COMMON, intermediate_size=32, num_key_value_heads=1, head_dim=8),
    "gemma3": lambda: Gemma3TextConfig(**COMMON, intermediate_size=32, num_key_value_heads=1, head_dim=8),
    "bert": lambda: BertConfig(**COMMON, intermediate_size=32, max_position_embeddings=64),
}


def save_model(folder: Path, kind: str, *, pad: bool = True, seed: int = 0, words: Sequence[str] = WORDS) -> Path:
    """A random model of a kind with a tokenizer of these words, with or without a pad token."""
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    config.vocab_size = max(config.vocab_size, len(words) + 8)
    model = (AutoModel if kind == "bert" else AutoModelForCausalLM).from_config(config)
    model.save_pretrained(folder)
    vocabulary = {
        word: i for i, word in enumerate(["!", "<unk>", "0", "1", "</s>", *words, *(["<pad>"] if pad else [])])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special).save_pretrained(folder)
    return folder


def save_task(folder: Path, *, num_rows: int = 400, name: str = "toy", num_words: int = 6) -> Path:
    """Whether a row holds more words below w20 than above: learnable, balanced, rows of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    rows, wanted = [], 0
    while len(rows) < num_rows:
        words = draw.sample(range(40), draw.randint(2, num_words))
        if (2 * sum(word < 20 for word in words) > len(words)) == bool(wanted):
            rows.append({"text": " ".join(WORDS[w] for w in words), "label": wanted})
            wanted = 1 - wanted
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "setting": "classification", "train": f"{name}.parquet"}))
    return path


def save_rewriting(folder: Path, *, num_rows: int = 400) -> None:
    """Two tasks over the same prompts, of which the first word matters: write the words that follow it (generation), or
    tell them from those that follow another (comparison)."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)

    def after(word: int) -> str:
        return " ".join(WORDS[word + 1 : word + (3 if word % 3 else 2)])

    rows = []
    for number in draw.sample(range(8 * 40 * 40), num_rows):
        first, rest = divmod(number, 40 * 40)
        other = (first + draw.randrange(1, 8)) % 8
        prompt = " ".join(WORDS[i] for i in (first, *divmod(rest, 40)))
        rows.append({"prompt": prompt, "right": after(first), "wrong": after(other)})
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    common = {"train": "rows.parquet", "template": "{prompt}"}
    tasks = {
        "writing": {"setting": "generation", "completions": ["{right}"]},
        "choosing": {"setting": "comparison", "completions": ["{right}", "{wrong}"]},
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name} | task | common))


def save_study(folder: Path, *, grid: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A study over two tiny Llamas, `small` and `big`, and the task `toy`."""
    if not (folder / "small").exists():
        save_model(folder / "small", "llama", seed=0)
        save_model(folder / "big", "llama", seed=1)
        save_task(folder)
    content = {
        "name": "tiny",
        "grids": [
            {
                "models": [{"name": "small", "path": "small"}, {"name": "big", "path": "big"}],
                "tasks": ["toy.yaml"],
                "controls": False,
                "split": {"num_train": 96, "num_test": 64},
                "training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01},
            }
            | (grid or {})
        ],
    } | changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
