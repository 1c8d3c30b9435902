"""A Fit: a model, fine-tuned on a split of a task, with labels from somewhere. Its identity and its key.

Supervisor, ceiling and student are all Fits; a student's labels come from other Fits. The identity is exactly what
changes the result, and the key is the SHA-256 of the identity as canonical JSON. Every field below is marked IDENTITY
(part of the key) or LOCATION (where to find something or what to call it, never part of the key). How a Fit is executed
(workers, ZeRO stage, micro-batch, ...) is an `Execution`, which no Fit holds. A test refuses unmarked fields.

A parent Fit enters its child's identity by its key, so identities stay small along any chain.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from typing import Any, Literal

SEMANTICS = 2
"""Version of the training code's meaning. Raised whenever the same identity would train to other numbers."""

PACKAGES = ("w2s_ray", "torch", "transformers", "deepspeed", "ray")
"""Whose versions a Fit's provenance names."""

Setting = Literal["classification", "generation", "comparison"]

UNTRAINED = ("zero_shot", "few_shot")
"""Methods that evaluate the pretrained model without training it."""
CONTROL = "shuffled"
"""The method of a control that learns from permuted labels."""
FEATURES = "features"
"""The method of a reading. No study names it: `readings.py` makes readings for the Fits that need them."""

IDENTITY = {"kind": "identity"}
LOCATION = {"kind": "location"}
IDENTITY_IF_SET = {"kind": "identity", "only_if_set": True}
"""For fields added after the first stores were filled: left out of the identity at their default, so old keys stay valid."""


def _identity_of(part: Any) -> dict[str, Any]:
    return {
        f.name: getattr(part, f.name)
        for f in fields(part)
        if f.metadata["kind"] == "identity"
        and not (f.metadata.get("only_if_set") and getattr(part, f.name) == f.default)
    }


@dataclass(frozen=True)
class Model:
    """One size of a family, with all that is needed to load it."""

    fingerprint: str = field(metadata=IDENTITY)
    """Content hash of a local folder, or `hub:<id>@<revision>`."""
    tokenizer: str = field(metadata=IDENTITY)
    """Content hash of the tokenizer's files."""
    pooling: Literal["last", "mean"] = field(metadata=IDENTITY)
    """How a text becomes one vector: its last token (decoders) or the mean over its tokens (encoders)."""
    depth: int | None = field(metadata=IDENTITY)
    """Number of layers to keep, from the first; None keeps all."""
    family: str = field(metadata=LOCATION)
    size: str = field(metadata=LOCATION)
    source: str = field(metadata=LOCATION)
    """Hub id, or an absolute local folder."""
    revision: str | None = field(metadata=LOCATION)
    num_params: int = field(metadata=LOCATION)
    """Parameters without token and position embeddings and without the language-model head."""
    pretraining_flops: float | None = field(metadata=LOCATION)
    """What the pretraining cost; None if that is not known. See `families/pretraining.py`."""
    trust_remote_code: bool = field(default=False, metadata=LOCATION)

    @property
    def name(self) -> str:
        return f"{self.family}-{self.size}"

    @cached_property
    def identity(self) -> dict[str, Any]:
        return _identity_of(self)

    @cached_property
    def identity_json(self) -> str:
        return canonical_json(self.identity)


@dataclass(frozen=True)
class Data:
    """A task's rows and how they are dealt into half A, half B and one common test set."""

    fingerprint: str = field(metadata=IDENTITY)
    """Content hash of the task's definition and of its files."""
    setting: Setting = field(metadata=IDENTITY)
    split_seed: int = field(metadata=IDENTITY)
    num_train: int | None = field(metadata=IDENTITY)
    """Rows in each half; None takes as many as there are."""
    num_test: int | None = field(metadata=IDENTITY)
    max_tokens: int = field(metadata=IDENTITY)
    """Rows longer than this for any of `tokenizers` are dropped for all models alike."""
    tokenizers: tuple[str, ...] = field(metadata=IDENTITY)
    """Fingerprints of the grid's tokenizers, sorted and unique."""
    task: str = field(metadata=LOCATION)
    source: str = field(metadata=LOCATION)
    """Absolute path of the task's YAML."""
    tokenizer_sources: tuple[tuple[str, str | None], ...] = field(metadata=LOCATION)
    """(hub id or folder, revision) for each of `tokenizers`, in the same order."""
    commits: tuple[str | None, str | None] = field(default=(None, None), metadata=LOCATION)
    """Commits on the hub of the rows, and of the test rows if another task provides them. The fingerprint covers both."""
    difficulty: tuple[str, float, float] | None = field(default=None, metadata=IDENTITY_IF_SET)
    """(column, least, most): the halves take rows of this range only; the test set takes rows of any difficulty."""
    halves_seed: int | None = field(default=None, metadata=IDENTITY_IF_SET)
    """Seed of this replicate's own halves; None deals them under `split_seed`."""
    is_swapped: bool = field(default=False, metadata=IDENTITY_IF_SET)
    """Whether half A and half B are exchanged."""
    rows_per_group: int | None = field(default=None, metadata=IDENTITY_IF_SET)
    """No part takes more rows of one group."""
    num_fresh: int = field(default=0, metadata=IDENTITY_IF_SET)
    """Further parts of `num_train` rows each, F1, F2, ..., from which the inner steps of a chain learn."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        return _identity_of(self)

    @cached_property
    def identity_json(self) -> str:
        return canonical_json(self.identity)


@dataclass(frozen=True)
class Method:
    """A training method by name, with all its parameters spelled out (defaults included)."""

    name: str = field(metadata=IDENTITY)
    params: tuple[tuple[str, Any], ...] = field(default=(), metadata=IDENTITY)

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "params": dict(self.params)}

    @cached_property
    def identity_json(self) -> str:
        return canonical_json(self.identity)


@dataclass(frozen=True)
class Training:
    """Hyper-parameters, resolved: nothing here is `auto`."""

    epochs: int = field(metadata=IDENTITY)
    batch_size: int = field(metadata=IDENTITY)
    """Rows in one optimizer step over all workers and micro-batches together."""
    learning_rate: float = field(metadata=IDENTITY)
    optimizer: Literal["adam", "adamw"] = field(metadata=IDENTITY)
    weight_decay: float = field(metadata=IDENTITY)
    warmup_fraction: float = field(metadata=IDENTITY)
    schedule: Literal["cosine", "constant"] = field(metadata=IDENTITY)
    max_grad_norm: float = field(metadata=IDENTITY)
    """Clip gradients to this global norm; 0 turns clipping off."""
    precision: Literal["fp32", "bf16"] = field(metadata=IDENTITY)
    """bf16 keeps fp32 weights and optimizer states and runs the backbone under bf16 autocast; the head stays fp32."""
    evals_per_epoch: int = field(metadata=IDENTITY)
    """Points of the learning curve per epoch."""
    tune: Literal["all", "head", "lora"] = field(metadata=IDENTITY)
    """All weights; a new head alone on the frozen model's features (a linear probe); or the head and low-rank adapters."""
    validation: float = field(default=0.0, metadata=IDENTITY_IF_SET)
    """Share of the half held out, to find from the Fit's own labels where training should have stopped."""
    stop: Literal["last", "validation"] = field(default="last", metadata=IDENTITY_IF_SET)
    """Which weights predict: the last ones, or those of the first point with the highest accuracy on the rows held out."""
    lora_rank: int = field(default=0, metadata=IDENTITY_IF_SET)
    """Rank of the LoRA adapters; 0 without adapters."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        return _identity_of(self)

    @cached_property
    def identity_json(self) -> str:
        return canonical_json(self.identity)


@dataclass(frozen=True)
class Part:
    """Half A or B of a task, one of several equal parts of it, or a fresh part. For readings, see `readings.py`."""

    half: str
    number: int = 1
    count: int = 1

    @staticmethod
    @cache
    def parse(text: str) -> Part:
        """`A`, `B`, `B2/3` for the second third of B, or `F1` for the first fresh part."""
        match = re.fullmatch(r"([AB]|F[1-9]\d*|test|halves|told)(?:([1-9]\d*)/([1-9]\d*))?", text)
        if match is None:
            raise ValueError(f"half: given {text!r}, allowed are A, B, parts such as B1/2 and fresh parts such as F1")
        half, number, count = match.groups()
        return Part(half, int(number or 1), int(count or 1))


@dataclass(frozen=True)
class Fit:
    """A model, fine-tuned on half of a task, with labels from the truth or from other Fits."""

    model: Model = field(metadata=IDENTITY)
    data: Data = field(metadata=IDENTITY)
    half: str = field(metadata=IDENTITY)
    """`A`, `B`, or a part that no other step of a chain learns from: `B2/3` is the second third of B, `F1` the first of
    `Data.num_fresh` parts. See `part`."""
    labels: tuple[Fit, ...] = field(metadata=IDENTITY)
    """The Fits whose predictions are the labels; empty for the ground truth."""
    method: Method = field(metadata=IDENTITY)
    training: Training = field(metadata=IDENTITY)
    seed: int = field(metadata=IDENTITY)
    """Seeds the order of the rows and the initial head."""
    warm_start: Fit | None = field(default=None, metadata=IDENTITY_IF_SET)
    """The Fit whose weights this one starts from; None starts from the pretrained model."""
    readings: tuple[Fit, ...] = field(default=(), metadata=LOCATION, compare=False)
    """The readings that hold the features it learns from or looks at. They say where a number is kept, and change none."""
    semantics: int = field(default=SEMANTICS, metadata=IDENTITY)

    def __post_init__(self) -> None:
        Part.parse(self.half)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "model": self.model.identity,
            "data": self.data.identity,
            "method": self.method.identity,
            "training": self.training.identity,
        } | self._own_identity

    @property
    def _own_identity(self) -> dict[str, Any]:
        """The identity without the parts that many Fits share."""
        labels: Any = "truth"
        if self.labels:
            keys = [fit.key for fit in self.labels]
            labels = {"fit": keys[0]} if len(keys) == 1 else {"fits": keys}
        start = {"start": {"fit": self.warm_start.key}} if self.warm_start else {}
        return {"half": self.half, "labels": labels, "seed": self.seed, "semantics": self.semantics} | start

    @cached_property
    def key(self) -> str:
        """SHA-256 of the identity as canonical JSON. A plan asks for up to a million keys, so the text is put together from parts
        that many Fits share, and what is left is too plain to need an encoder."""
        labels = '"truth"'
        if len(self.labels) == 1:
            labels = f'{{"fit":"{self.labels[0].key}"}}'
        elif self.labels:
            keys = ",".join(f'"{fit.key}"' for fit in self.labels)
            labels = f'{{"fits":[{keys}]}}'
        start = f'"start":{{"fit":"{self.warm_start.key}"}},' if self.warm_start else ""
        text = (
            f'{{"data":{self.data.identity_json},"half":"{self.half}","labels":{labels},"method":{self.method.identity_json},'
            f'"model":{self.model.identity_json},"seed":{self.seed},"semantics":{self.semantics},{start}'
            f'"training":{self.training.identity_json}}}'
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def folder(self) -> str:
        """Readable name plus 12 hex digits of the key; the digits alone identify."""
        who = f"from-{'+'.join(fit.model.size for fit in self.labels)}" if self.labels else "truth"
        if self.role == "reading":
            who = "frozen"
        half = self.half.replace("/", "of")
        if share := dict(self.method.params).get("share"):
            half += "{}of{}".format(*share)
        name = f"{self.data.task}-{self.model.name}-{who}-{half}-{self.method.name}-s{self.seed}"
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:120]}-{self.key[:12]}"

    @cached_property
    def part(self) -> Part:
        """The half, or the part of it, that this Fit learns from."""
        return Part.parse(self.half)

    @property
    def role(self) -> str:
        """What a Fit is in the paper's words. With `ceiling_split: A` one Fit serves as supervisor and ceiling."""
        if self.method.name == FEATURES:
            return "reading"
        if self.method.name in UNTRAINED:
            return "untrained"
        if self.method.name == "generative":
            return "start"
        if self.method.name == CONTROL and not self.labels:
            return "control"
        return "student" if self.labels else ("supervisor" if self.half == "A" else "ceiling")

    @property
    def labelled_parts(self) -> tuple[str, ...]:
        """The parts of which its predictions are kept, for other Fits to learn from: half B and, if there is one, the next fresh
        part. A Fit that learned from the whole of half B labels for nobody."""
        if self.half == "B":
            return ()
        number = int(self.half[1:]) if self.half.startswith("F") else 0
        return ("B", f"F{number + 1}") if number < self.data.num_fresh else ("B",)

    @property
    def keeps_half_b(self) -> bool:
        """Whether its predictions on those rows of half B that it learned from are kept, to compare them with its supervisor's:
        so it is for students of the whole half and for their control."""
        return self.half == "B" and self.role in ("student", "control")

    @property
    def parents(self) -> tuple[Fit, ...]:
        """The Fits that must be committed before this one can run."""
        trained = (*self.labels, self.warm_start) if self.warm_start else self.labels
        return (*self.readings, *trained) if self.readings else trained

    @property
    def ancestors(self) -> tuple[Fit, ...]:
        """All transitive dependencies, dependents before their dependencies."""
        ancestors: dict[str, Fit] = {}
        for parent in self.parents:
            for fit in (parent, *parent.ancestors):
                ancestors.pop(fit.key, None)  # a Fit that is met again moves behind all its dependents
                ancestors[fit.key] = fit
        return tuple(ancestors.values())


@dataclass(frozen=True)
class Execution:
    """How Fits are executed on the machines at hand. Never part of the identity: it may change between two runs of a Fit."""

    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0
    zero_stage: Literal[0, 1, 2, 3] = 1
    micro_batch_size: int | None = None
    """Rows per worker in one forward pass; None takes the worker's whole share of a batch."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    activation_checkpointing: bool = False
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    compile: bool = False
    """Whether torch.compile makes kernels for the model."""
    checkpoint_every_s: float = 120.0
    """Seconds of training between two mid-fit checkpoints."""


EVAL_BATCH_TOKENS = 8192
"""Of a batch without gradients, padding included. A comparison's two sequences count both, features count as one token."""

BUSY = ("features", "train", "eval")
"""Phases that count as work; the others (load, checkpoint, commit) are overhead."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no NaN."""
    return _CANONICAL.encode(value)


def describe(fit: Fit) -> dict[str, Any]:
    """All that defines a Fit, for `fit.json`: identity, location fields, and the identities of its ancestors."""

    def whole(part: Any) -> dict[str, Any]:
        return {f.name: getattr(part, f.name) for f in fields(part)}

    return {
        "key": fit.key,
        "identity": fit.identity,
        "model": whole(fit.model),
        "data": whole(fit.data),
        "role": fit.role,
        "labels_folders": [labeller.folder for labeller in fit.labels],
        "readings": [{"key": reading.key, "folder": reading.folder} for reading in fit.readings],
        "ancestors": [
            {"key": a.key, "folder": a.folder, "identity": a.identity} for a in fit.ancestors if a.role != "reading"
        ],
    }
