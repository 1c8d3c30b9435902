"""What is read off a local model folder without torch: its configuration, fingerprints and number of parameters.

Promises: a fingerprint depends on the content of the files, not on where they lie; code counts only where it would run; a
folder that lacks a file is refused with the file's name; weights are read from safetensors only, never unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from w2s_ray.errors import InputError
from w2s_ray.fit import canonical_json

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""A tokenizer has at least one of these."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
TOKENIZER_CODE = "tokenization*.py"
NO_EFFECT_ON_TOKENS = (
    "chat_template",
    "model_max_length",
    "name_or_path",
    "processor_class",
    "special_tokens_map_file",
    "tokenizer_file",
    "transformers_version",
)
"""Entries of tokenizer_config.json that often differ between the sizes of a family and change no token."""
NOT_COUNTED = re.compile(r"embed|wte|wpe|lm_head|shared\.weight|cls\.|pooler")
"""Names of parameters that don't count as size: embeddings, positions and heads."""
LAYER = re.compile(r"\.(\d+)\.")
"""The number of a parameter's layer, in its name."""
SAMPLED_ABOVE_BYTES = 256 * 2**20


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"model folder {folder}: has no config.json") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not the configuration of a model (a JSON object)")
    return config


def _weight_files(folder: Path) -> list[Path]:
    read_config(folder)
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InputError(f"model folder {folder}: has no *.safetensors file (pickled weights are not read)")
    return paths


@lru_cache(maxsize=256)
def fingerprint_weights(folder: Path, *, with_code: bool = False) -> str:
    """SHA-256 over config.json and the weights, and over the Python files beside them if they run (`with_code`).

    Of a file above 256 MiB only its size, both ends and 64 blocks between are hashed. Fine-tuning or quantising changes a
    file everywhere, so the sample tells such files apart.
    """
    paths = _weight_files(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            if size <= SAMPLED_ABOVE_BYTES:
                for block in iter(lambda: file.read(2**20), b""):
                    digest.update(block)
                continue
            for offset, length in [(0, 2**20), *((size * i // 64, 2**16) for i in range(64)), (size - 2**20, 2**20)]:
                file.seek(offset)
                digest.update(file.read(length))
    if with_code:
        _add_code(digest, folder, "*.py")
    return digest.hexdigest()


@lru_cache(maxsize=256)
def fingerprint_tokenizer(folder: Path, *, with_code: bool = False) -> str:
    """SHA-256 over what makes text into tokens: the tokenizer's files, and its Python files if they run (`with_code`)."""
    if not any((folder / name).exists() for name in VOCABULARY_FILES):
        raise InputError(f"model folder {folder}: has no tokenizer (one of {', '.join(VOCABULARY_FILES)})")
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.exists():
            content = _tokenizer_config(path) if name == "tokenizer_config.json" else path.read_bytes()
            digest.update(f"{name}:".encode() + content)
    if with_code:
        _add_code(digest, folder, TOKENIZER_CODE)
    return digest.hexdigest()


def _tokenizer_config(path: Path) -> bytes:
    try:
        config = json.loads(path.read_bytes())
        kept = {name: value for name, value in config.items() if name not in NO_EFFECT_ON_TOKENS}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    return canonical_json(kept).encode()


def _add_code(digest: Any, folder: Path, pattern: str) -> None:
    for path in sorted(folder.rglob(pattern)):
        digest.update(f"{path.relative_to(folder).as_posix()}:".encode() + path.read_bytes())


@lru_cache(maxsize=256)
def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def num_layers(folder: Path) -> int | None:
    """Of the whole model, from its config.json; None if that does not say."""
    config = read_config(folder)
    return next((config[name] for name in ("num_hidden_layers", "n_layer") if isinstance(config.get(name), int)), None)


def count_params(folder: Path, *, depth: int | None = None) -> int:
    """Non-embedding parameters of the first `depth` layers (None: all), from the headers of the safetensors files."""

    def is_counted(name: str) -> bool:
        layer = LAYER.search(name)
        is_kept = depth is None or layer is None or int(layer[1]) < depth
        return is_kept and not NOT_COUNTED.search(name)

    return sum(prod(shape) for path in _weight_files(folder) for name, shape in _tensors(path) if is_counted(name))


def _tensors(path: Path) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of every tensor of a safetensors file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        yield from ((name, entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError, OverflowError) as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error
