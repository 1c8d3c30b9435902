"""A family's YAML entry: a ladder of model sizes, weak to strong, each a hub id with revision or a local folder.

Promises: no torch; a mistake in the YAML is an `InputError` that names the file and the field; a tokenizer is
identified by its content, and a model by the content of its weights where it is a folder, by id and commit on the hub.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from w2s_ray import hub
from w2s_ray.errors import InputError, nearest
from w2s_ray.families.model_folder import (
    TOKENIZER_CODE,
    TOKENIZER_FILES,
    count_params,
    fingerprint_tokenizer,
    fingerprint_weights,
    num_layers,
    read_config,
    sha256_of,
)
from w2s_ray.families.pretraining import Shape, flops_per_token, read_shape
from w2s_ray.fit import Model

CATALOGUE = Path(__file__).parent / "catalogue"
"""The folder of the families that ship."""
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
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
"""Model types with bidirectional attention. Their head reads the mean over tokens, that of all others the last token."""
LEARNING_RATES = ((1e6, 1e-3), (7e7, 1e-4), (5e8, 5e-5), (2e9, 1e-5), (1.5e10, 5e-6))
"""(most parameters, learning rate) for batches of 32, where a model names none. Tune them on ground truth only."""
LEARNING_RATE_ABOVE = 2e-6
"""For models larger than all of LEARNING_RATES."""


class Size(BaseModel):
    """One model of a family: where it comes from, how large it is, and how to fine-tune it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: str = Field(pattern=f"^{NAME}$")
    source: str
    """A hub id; a folder relative to the family's YAML, which starts with `./`; or `package:name/folder`, a folder of an
    installed Python package."""
    revision: str | None = None
    depth: int | None = Field(default=None, ge=0)
    """Keep only this many layers, from the first. Default: all."""
    params: int = Field(ge=1)
    """Non-embedding parameters."""
    pretraining_tokens: int | None = Field(default=None, ge=1)
    shape: Shape | None = None
    """For the compute axis. Default: that of a local folder's config.json; a model of the hub has none."""
    learning_rate: float = Field(gt=0)
    optimizer: Literal["adam", "adamw"] = "adam"
    gpus: int = Field(default=1, ge=1)
    """Number of 80 GB GPUs that full fine-tuning needs."""
    zero_stage: Literal[0, 1, 2, 3] = 1


class Family(BaseModel):
    """A validated family YAML; its sizes go from weak to strong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{NAME}$")
    description: str = ""
    licence: str = "unknown"
    pooling: Literal["last", "mean"] = "last"
    """Which hidden state the head reads: that of the last token, or the mean over tokens."""
    weights_sha256: str | None = None
    """SHA-256 of a local source's model.safetensors; other weights are refused."""
    install: str | None = None
    """The command that installs the package of a `package:` source, for error messages."""
    sizes: tuple[Size, ...] = Field(min_length=1)
    path: Path

    def size(self, name: str) -> Size:
        return next(size for size in self.sizes if size.size == name)


def family_names() -> list[str]:
    """The names of the families that ship."""
    return sorted(path.stem for path in CATALOGUE.glob("*.yaml"))


def load_family(name_or_path: str | Path, *, base: Path | None = None) -> Family:
    """A shipped family by name, or a family YAML by its path relative to `base`."""
    given = str(name_or_path)
    if given.endswith((".yaml", ".yml")):
        path = ((base or Path.cwd()) / given).resolve()
    else:
        path = CATALOGUE / f"{given}.yaml"
        if not re.fullmatch(NAME, given) or not path.exists():
            names = family_names()
            beside = {file.stem: file.name for file in (base or Path.cwd()).glob("*.yaml")}
            raise InputError(
                f"unknown family '{given}'{nearest(given, names, files=beside)}; shipped: {', '.join(names)}; "
                "or give the path of a family YAML"
            )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a family must be a mapping with 'name' and 'sizes'")
    allowed = [field for field in Family.model_fields if field != "path"]
    for key in content:
        if key not in allowed:
            raise InputError(f"{path}: unknown key '{key}'{nearest(str(key), allowed)}; allowed: {', '.join(allowed)}")
    try:
        return Family.model_validate(content | {"path": path})
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error


def from_models(entries: Sequence[Any], *, base: Path) -> Family:
    """A family from a study's own `models` (`study.ModelEntry`). What an entry leaves out is read off its folder."""
    sizes: list[Size] = []
    poolings: set[Literal["last", "mean"]] = set()
    for entry in entries:
        if (entry.path is None) == (entry.hub is None):
            raise InputError(f"models '{entry.name}': give either 'path' or 'hub'")
        if entry.path is not None:
            folder = (base / entry.path).resolve()
            poolings.add("mean" if read_config(folder).get("model_type") in ENCODERS else "last")
            params = _params_of(entry, folder)
            source = str(folder)
        else:
            source, params = entry.hub, entry.params
            if params is None:
                raise InputError(
                    f"models '{entry.name}': a hub id needs 'params', its number of non-embedding parameters"
                )
        sizes.append(
            Size(
                size=entry.name,
                source=source,
                revision=entry.revision,
                depth=entry.depth,
                params=params,
                pretraining_tokens=entry.pretraining_tokens,
                shape=entry.shape,
                learning_rate=entry.learning_rate or default_learning_rate(params),
            )
        )
    if len(poolings) > 1:
        raise InputError("models: encoders and decoders can't share a ladder; use two grids")
    pooling = poolings.pop() if poolings else "last"
    return Family(name="own", pooling=pooling, sizes=tuple(sizes), path=base / "own.yaml")


def _params_of(entry: Any, folder: Path) -> int:
    """The size that an entry says, or else the number of parameters of the layers that it keeps of its folder's model."""
    layers = num_layers(folder)
    if entry.depth is not None and layers is not None and entry.depth > layers:
        raise InputError(
            f"models '{entry.name}': depth: given {entry.depth}, allowed: 0 to {layers}, the layers of {folder}"
        )
    params = entry.params or count_params(folder, depth=entry.depth)
    if not params:
        raise InputError(
            f"models '{entry.name}': depth: given {entry.depth}, which keeps nothing of {folder} but embeddings, so the model has no "
            "size; keep a layer, or say the size with 'params'"
        )
    return int(params)


def default_learning_rate(num_params: int) -> float:
    return next((rate for max_params, rate in LEARNING_RATES if num_params <= max_params), LEARNING_RATE_ABOVE)


def model(family: Family, size: str, *, trust_remote_code: bool = False) -> Model:
    """A size as the `Model` of a Fit: its source, pinned, with the fingerprints that identify it."""
    entry = family.size(size)
    folder = local_folder(family, size)
    if folder is not None:
        source, revision, tokenizer_folder = str(folder), None, folder
        fingerprint = fingerprint_weights(folder, with_code=trust_remote_code)
        if family.weights_sha256 and sha256_of(folder / "model.safetensors") != family.weights_sha256:
            raise InputError(
                f"family {family.name}: {folder}/model.safetensors is not the file that {family.path.name} names "
                f"(weights_sha256 {family.weights_sha256[:12]}...)"
            )
    else:
        source = entry.source
        revision = hub.commit_of(entry.source, entry.revision or "main", kind="model")
        fingerprint = f"hub:{entry.source}@{revision}"
        tokenizer_folder = hub.fetch_model_files(entry.source, revision, *TOKENIZER_FILES, TOKENIZER_CODE)
    return Model(
        fingerprint=fingerprint,
        tokenizer=fingerprint_tokenizer(tokenizer_folder, with_code=trust_remote_code),
        pooling=family.pooling,
        depth=entry.depth,
        family=family.name,
        size=size,
        source=source,
        revision=revision,
        num_params=entry.params,
        pretraining_flops=pretraining_flops(family, size),
        trust_remote_code=trust_remote_code,
    )


def pretraining_flops(family: Family, size: str) -> float | None:
    """What a size's pretraining cost. None if its tokens or its shape are not known."""
    entry = family.size(size)
    if entry.pretraining_tokens is None:
        return None
    shape = entry.shape
    if shape is None and entry.source.startswith(LOCAL):
        folder = local_folder(family, size)
        shape = read_shape(folder) if folder else None
    if shape is None:
        return None
    is_causal = family.pooling == "last"
    per_token = flops_per_token(entry.params, shape, depth=entry.depth, is_causal=is_causal)
    return per_token * entry.pretraining_tokens


LOCAL = ("./", "/", "package:")
"""How a source begins that is a folder rather than a hub id."""


def local_folder(family: Family, size: str) -> Path | None:
    """The folder with a size's files; None for a hub id without a copy on this machine."""
    source = family.size(size).source
    if source.startswith("package:"):
        package, _, inside = source.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            command = f": {family.install}" if family.install else ""
            raise InputError(f"family {family.name}: the package '{package}' is not installed; install it{command}")
        return Path(spec.submodule_search_locations[0]) / inside
    if source.startswith(("./", "/")):
        return (family.path.parent / source).resolve()
    return hub.local_copy(source, kind="model")
