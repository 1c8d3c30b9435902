"""Model families as data: a ladder of sizes, weak to strong, each a hub id with revision or a local folder.

Promises: no torch. A model's fingerprint is what its weights and tokenizer are (content hashes) for a folder, and what
they are called (id and commit) for the hub, which is asked for nothing else. A folder that lacks something is refused by
its name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from w2s_ray import hub
from w2s_ray.errors import InputError, nearest
from w2s_ray.fit import Model

SHIPPED = Path(__file__).parent
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
VOCABULARY_FILES = (*TOKENIZER_FILES[:3], "vocab.txt")
ENCODERS = {
    "albert",
    "bert",
    "camembert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
}
"""Bidirectional model types, which are read out by the mean over tokens; all others by the last token."""
NOT_BODY = re.compile(r"embed|wte|wpe|lm_head|shared\.weight|cls\.|pooler")
"""Parameters that don't count as size: embeddings, positions and the language-model head."""
LAYER = re.compile(r"\.(\d+)\.")
"""The layer that a parameter is of, by its name."""
SAMPLED_ABOVE_BYTES = 256 * 2**20

STARTING_RATES = ((1e6, 1e-3), (7e7, 1e-4), (5e8, 5e-5), (2e9, 1e-5), (1.5e10, 5e-6))
"""(up to so many parameters, learning rate) at batch 32: starting points, to be tuned on ground truth only."""
LARGEST_RATE = 2e-6


class Size(BaseModel):
    """One rung: where it is, how big, and how it is trained best."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: str = Field(pattern=f"^{NAME}$")
    source: str
    """Hub id; a folder relative to the family's YAML when it starts with `./`; or, as `package:name/folder`, a folder of an
    installed Python package."""
    revision: str | None = None
    depth: int | None = Field(default=None, ge=0)
    """Layers to keep, from the first; default all."""
    params: int = Field(ge=1)
    pretraining_tokens: int | None = Field(default=None, ge=1)
    context_tokens: int = Field(default=2048, ge=1)
    learning_rate: float = Field(gt=0)
    optimizer: Literal["adam", "adamw"] = "adam"
    gpus: int = Field(default=1, ge=1)
    """GPUs of 80 GB for full fine-tuning."""
    zero_stage: Literal[0, 1, 2, 3] = 1


class Family(BaseModel):
    """A ladder, weak to strong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{NAME}$")
    description: str = ""
    licence: str = "unknown"
    tokenizer: str | None = None
    """Hub id of the tokenizer that all sizes share; none: each model has its own."""
    pooling: Literal["last", "mean"] = "last"
    weights_sha256: str | None = None
    """Pins the weights of a local source: SHA-256 of its model.safetensors."""
    install: str | None = None
    """What to install where a package is missing."""
    sizes: tuple[Size, ...] = Field(min_length=1)
    path: Path

    def size(self, name: str) -> Size:
        return next(size for size in self.sizes if size.size == name)


def family_names() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_family(name_or_path: str | Path, *, base: Path | None = None) -> Family:
    """A shipped family by name, or a family YAML by path, relative to `base`."""
    given = str(name_or_path)
    if given.endswith((".yaml", ".yml")):
        root = (base or Path.cwd()).resolve()
        path = (root / given).resolve()
        if not Path(given).is_absolute() and not path.is_relative_to(root):
            raise InputError(f"family '{given}': leads out of {root}; allowed are paths below it")
    else:
        path = SHIPPED / f"{given}.yaml"
        if not re.fullmatch(NAME, given) or not path.exists():
            names = family_names()
            raise InputError(
                f"unknown family '{given}'{nearest(given, names)}; shipped: {', '.join(names)}; "
                "or give the path of a family YAML"
            )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a family is a mapping with 'name' and 'sizes'")
    known = [field for field in Family.model_fields if field != "path"]
    for key in content:
        if key not in known:
            raise InputError(f"{path}: unknown key '{key}'{nearest(str(key), known)}; allowed: {', '.join(known)}")
    try:
        return Family.model_validate(content | {"path": path})
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error


def from_models(entries: Sequence[Any], *, base: Path) -> Family:
    """A family of one's own models (`study.ModelEntry`), with defaults worked out from each folder."""
    sizes: list[Size] = []
    poolings: set[Literal["last", "mean"]] = set()
    for entry in entries:
        if (entry.path is None) == (entry.hub is None):
            raise InputError(f"models '{entry.name}': give either 'path' or 'hub'")
        params = entry.params
        if entry.path is not None:
            folder = (base / entry.path).resolve()
            config = _config(folder)
            poolings.add("mean" if config.get("model_type") in ENCODERS else "last")
            params = params or count_params(folder, depth=entry.depth)
            source = str(folder)
        else:
            source = entry.hub
            if params is None:
                raise InputError(f"models '{entry.name}': 'params' (non-embedding parameters) is needed for a hub id")
        sizes.append(
            Size(
                size=entry.name,
                source=source,
                revision=entry.revision,
                depth=entry.depth,
                params=params,
                pretraining_tokens=entry.pretraining_tokens,
                learning_rate=entry.learning_rate or starting_rate(params),
            )
        )
    if len(poolings) > 1:
        raise InputError("models: encoders and decoders can't share a ladder; use two grids")
    pooling = poolings.pop() if poolings else "last"
    return Family(name="own", pooling=pooling, sizes=tuple(sizes), path=base / "own.yaml")


def starting_rate(num_params: int) -> float:
    return next((rate for up_to, rate in STARTING_RATES if num_params <= up_to), LARGEST_RATE)


def model(family: Family, size: str, *, trust_remote_code: bool = False) -> Model:
    """A rung as something that can be loaded and told apart."""
    entry = family.size(size)
    folder, revision = local_folder(family, size), entry.revision
    if folder is not None:
        source = str(folder)
        fingerprint, tokenizer = fingerprint_weights(folder), fingerprint_tokenizer(folder)
        if family.weights_sha256 and sha256_of(folder / "model.safetensors") != family.weights_sha256:
            raise InputError(
                f"family {family.name}: {folder}/model.safetensors is not the file that {family.path.name} names "
                f"(weights_sha256 {family.weights_sha256[:12]}...)"
            )
    else:
        source = entry.source
        revision = hub.commit_of(entry.source, entry.revision or "main", kind="model")
        fingerprint = f"hub:{entry.source}@{revision}"
        tokenizer = f"hub:{family.tokenizer}" if family.tokenizer else fingerprint
    return Model(
        fingerprint=fingerprint,
        tokenizer=tokenizer,
        pooling=family.pooling,
        depth=entry.depth,
        family=family.name,
        size=size,
        source=source,
        revision=revision if folder is None else None,
        num_params=entry.params,
        pretraining_tokens=entry.pretraining_tokens,
        trust_remote_code=trust_remote_code,
    )


def local_folder(family: Family, size: str) -> Path | None:
    """Where a size's files are on this machine; None for a hub id that has no copy here."""
    source = family.size(size).source
    if source.startswith("package:"):
        package, _, inside = source.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            way = f": {family.install}" if family.install else ""
            raise InputError(f"family {family.name}: the package '{package}' is not installed; install it{way}")
        return Path(found.submodule_search_locations[0]) / inside
    if source.startswith(("./", "/")):
        return (family.path.parent / source).resolve()
    return hub.copy_of(source, kind="model")


# --- local folders ------------------------------------------------------------------------------------------------


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"model folder {folder}: has no config.json") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a model's configuration")
    return config


def _weights(folder: Path) -> list[Path]:
    _config(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"model folder {folder}: has no *.safetensors (pickled weights are not read)")
    return files


@lru_cache(maxsize=256)
def fingerprint_weights(folder: Path) -> str:
    """SHA-256 over config.json and the weights. Of files above 256 MiB it takes the size, both ends and 64 blocks
    between, since fine-tuning or quantising changes all of a file."""
    digest = hashlib.sha256((folder / "config.json").read_bytes() if _config(folder) is not None else b"")
    for path in _weights(folder):
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
    return digest.hexdigest()


@lru_cache(maxsize=256)
def fingerprint_tokenizer(folder: Path) -> str:
    if not any((folder / name).exists() for name in VOCABULARY_FILES):
        raise InputError(f"model folder {folder}: has no tokenizer (one of {', '.join(VOCABULARY_FILES)})")
    present = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    digest = hashlib.sha256()
    for name in present:
        digest.update(f"{name}:".encode() + (folder / name).read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def count_params(folder: Path, *, depth: int | None = None) -> int:
    """Non-embedding parameters of the first `depth` layers (None: all), from the safetensors headers alone."""

    def kept(name: str) -> bool:
        layer = LAYER.search(name)
        return not NOT_BODY.search(name) and (depth is None or layer is None or int(layer[1]) < depth)

    return sum(prod(shape) for name, shape in _tensors(_weights(folder)) if kept(name))


def _tensors(files: Iterable[Path]) -> Iterable[tuple[str, list[int]]]:
    for path in files:
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
            yield from ((name, entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError, OverflowError) as error:
            raise InputError(f"{path}: not a safetensors file ({error})") from error
