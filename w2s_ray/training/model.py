"""A pretrained transformers model: loaded once, copied for each Fit, read out to one vector a text.

Heads are in `settings/`. Promises: weights are fp32 whatever the checkpoint's type; only safetensors are read; there is no
dropout, so that a model trains and predicts the same way; the read-out goes by the attention mask and never by a token id, so
padding may stand on either side; heads are computed in fp32.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from w2s_ray.errors import InputError
from w2s_ray.fit import Execution, Fit, Model
from w2s_ray.training.distributed import device, world_size
from w2s_ray.training.engine import whole, zero_optimization

NUM_CACHED_BASES = 2
"""Pretrained models that a worker keeps in memory, so that neighbouring Fits need not load them again."""
LANGUAGE_MODEL = "causal."
"""How the names of a warm start's weights begin."""


@dataclass(frozen=True)
class WarmStart:
    """Weights of an earlier Fit, to start from in place of the pretrained ones."""

    key: str
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True)
class ModelSpec:
    """What a Fit's model is built from."""

    model: Model
    execution: Execution = Execution()  # noqa: RUF009 - frozen
    tune: str = "all"
    lora_rank: int = 0
    bf16: bool = False
    seed: int = 0
    warm_start: WarmStart | None = None
    width: int = 0
    """Of the features that a probe reads. It needs no more of the model."""

    @classmethod
    def of(cls, fit: Fit, *, execution: Execution, warm_start: WarmStart | None = None, width: int = 0) -> ModelSpec:
        training = fit.training
        is_bf16 = training.precision == "bf16"
        return cls(fit.model, execution, training.tune, training.lora_rank, is_bf16, fit.seed, warm_start, width)

    @property
    def is_partitioned(self) -> bool:
        """Whether each worker loads a part of the weights. ZeRO-3 is for models that are too large for each to load them all."""
        return self.execution.zero_stage == 3 and world_size() > 1


@dataclass(frozen=True)
class Base:
    """A pretrained model as it was loaded. Never trained itself."""

    causal: nn.Module | None
    """With its language-model head, if it has one."""
    backbone: nn.Module
    label_rows: torch.Tensor | None
    """Output embeddings of the tokens "0" and "1", if the vocabulary has them."""

    @property
    def width(self) -> int:
        return _width(self.backbone)


class Scorer(nn.Module):
    """Backbone, read-out and head."""

    def __init__(self, backbone: nn.Module, head: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pooling = spec.model.pooling
        self.bf16 = spec.bf16

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [rows, 2]."""
        logits: torch.Tensor = self.head(self.features(input_ids, attention_mask))
        return logits

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Read-outs [sequences, width]."""
        with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            hidden = self.backbone(**backbone_inputs(self.backbone, input_ids, attention_mask)).last_hidden_state
        return read_out(hidden.float(), attention_mask, pooling=self.pooling)


class Probe(nn.Module):
    """A head alone, on features that were extracted before."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [rows, 2]."""
        logits: torch.Tensor = self.head(features)
        return logits


class FrozenNetwork:
    """A pretrained model as it is, read out at several depths. Whole on each worker, since each reads rows of its own."""

    def __init__(self, spec: ModelSpec, depths: tuple[int | None, ...]) -> None:
        """`depths`: from shallow to deep; None, for the whole network, can only be the last."""
        self.depths = depths
        *self.shallower, self.deepest = depths
        execution = replace(spec.execution, zero_stage=min(spec.execution.zero_stage, 2))
        whole_model = replace(spec.model, depth=None)
        self.scorer = Scorer(
            load_base(replace(spec, model=whole_model, execution=execution)).backbone, nn.Identity(), spec
        ).to(device())
        self.stack = None if depths == (None,) else _Stack.of(self.scorer.backbone, spec.model)

    def features(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """For each depth what a model that is cut there would read out, to the bit, from one pass of the deepest.

        The pass keeps what the layers at the other depths put out. Then each cut model runs with layers that only say this
        again. So what an architecture does before and after its layers is done as the cut model does it.
        """
        if self.stack is None:
            return [self.scorer.features(*inputs)]
        outputs: dict[int, Any] = {}

        def keep(depth: int) -> Callable[..., None]:
            return lambda layer, given, output: outputs.update({depth: output})

        with self.stack.cut_for_now(self.deepest) as layers, ExitStack() as hooks:
            for depth in self.shallower:
                if depth:
                    hooks.callback(layers[depth - 1].register_forward_hook(keep(depth)).remove)
            deepest = self.scorer.features(*inputs)
        found = []
        for depth in self.shallower:
            with self.stack.cut_for_now(depth) as layers, _saying(layers, outputs.get(depth or 0)):
                found.append(self.scorer.features(*inputs))
        return [*found, deepest]


@contextmanager
def _saying(layers: Iterable[nn.Module], output: Any) -> Iterator[None]:
    """Within the block each layer puts this out, whatever it is given."""
    for layer in layers:
        vars(layer)["forward"] = lambda *_, **__: output
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def backbone_inputs(backbone: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
    """Keyword arguments for a backbone's forward pass. Padding on the left does not count as positions.

    The mask covers what was read before, too; the ids are the last ones.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if backbone.takes_positions:
        inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    if backbone.takes_use_cache:
        inputs["use_cache"] = False
    return inputs


def read_out(hidden: torch.Tensor, attention_mask: torch.Tensor, *, pooling: str) -> torch.Tensor:
    """[rows, width] of [rows, tokens, width]: the last token that is not padding, or the mean over such tokens."""
    if pooling == "mean":
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    positions = torch.arange(attention_mask.shape[1], device=hidden.device)
    last = (attention_mask * positions).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def zero(head: nn.Linear) -> nn.Linear:
    """A head with all parameters 0."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    return head


def trainable_copy(part: Any, spec: ModelSpec) -> Any:
    """A copy of a pretrained part, to be trained.

    With a LoRA rank (Hu et al. 2021) only low-rank adapters on every linear layer but the last are trained. They change nothing
    before the first step.
    """
    if not spec.is_partitioned:  # a partitioned one was loaded for this Fit alone
        part = copy.deepcopy(part)
    if spec.lora_rank:
        from peft import LoraConfig, inject_adapter_in_model

        part.requires_grad_(False)
        torch.manual_seed(spec.seed)  # again, since loading may have drawn numbers
        options = LoraConfig(
            r=spec.lora_rank, lora_alpha=2 * spec.lora_rank, lora_dropout=0.0, target_modules="all-linear"
        )
        part = inject_adapter_in_model(options, part)
    if spec.execution.activation_checkpointing:
        part.activation_checkpointing_enable({"use_reentrant": False})
    return part


# --- loading ------------------------------------------------------------------------------------------------------

_bases: dict[tuple[Model, str, str], Base] = {}


def load_base(spec: ModelSpec) -> Base:
    """The pretrained model, or the warm start. Seeds torch, for models that initialise some part of their own.

    Kept in memory for the next Fit, unless each worker has a part only: then a copy would cost as much as reading it again.
    """
    torch.manual_seed(spec.seed)
    if spec.is_partitioned:
        return _load(spec)
    kind = (spec.model, spec.execution.attention, spec.warm_start.key if spec.warm_start else "")
    if kind not in _bases:
        while len(_bases) >= NUM_CACHED_BASES:
            _bases.pop(next(iter(_bases)))
        _bases[kind] = _load(spec)
    return _bases[kind]


def _load(spec: ModelSpec) -> Base:
    model = spec.model
    options: dict[str, Any] = {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}
    options |= {"dtype": torch.float32, "use_safetensors": True}
    if spec.execution.attention != "auto":
        options["attn_implementation"] = spec.execution.attention
    causal = None
    try:
        with _partitioning(spec):
            if model.pooling == "mean":
                backbone = AutoModel.from_pretrained(model.source, **options)
            else:
                causal = AutoModelForCausalLM.from_pretrained(model.source, **options)
                backbone = causal.base_model
    except (OSError, ValueError) as error:
        raise InputError(f"model {model.source}: can't be loaded: {str(error).splitlines()[0]}") from error
    if model.depth is not None:
        _Stack.of(backbone, model).cut(model.depth)
    if spec.warm_start is not None:
        with torch.no_grad():
            for name, parameter in (causal or backbone).named_parameters():
                with whole([parameter], to_write=True):
                    parameter.copy_(spec.warm_start.weights[f"{LANGUAGE_MODEL}{name}"])
    _turn_off_dropout(causal or backbone)
    for part in (backbone, causal):
        if part is not None:
            names = inspect.signature(type(part).forward).parameters
            part.takes_positions = "position_ids" in names
            part.takes_use_cache = "use_cache" in names
            part.takes_past = "past_key_values" in names
            part.takes_logits_to_keep = "logits_to_keep" in names
    label_rows = None if causal is None else _label_rows(causal, load_tokenizer_of(model), width=_width(backbone))
    return Base(causal=causal, backbone=backbone, label_rows=label_rows)


@contextmanager
def _partitioning(spec: ModelSpec) -> Iterator[None]:
    """Within the block transformers builds a model in parts and fills one layer after another, which rank 0 reads. Nothing changes
    for a model that each worker loads whole."""
    if not spec.is_partitioned:
        yield
        return
    zero = zero_optimization(spec.execution, num_params=spec.model.num_params)
    config = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero})
    try:
        set_hf_deepspeed_config(config)  # transformers keeps a weak reference
        yield
    finally:
        unset_hf_deepspeed_config()  # also where loading fails: the next model may be one to load whole


def _turn_off_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


@dataclass(frozen=True)
class _Stack:
    """The layers of a whole backbone: where they are, and how to do with the first few of them."""

    backbone: Any
    parent: Any
    name: str

    @classmethod
    def of(cls, backbone: Any, model: Model) -> _Stack:
        """Refuses a backbone that cannot be cut to the model's depth."""
        num_layers = backbone.config.num_hidden_layers
        stacks = [
            cls(backbone, parent, name)
            for parent in backbone.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.ModuleList) and len(child) == num_layers
        ]
        if len(stacks) != 1 or (model.depth or 0) > num_layers:
            allowed = f"0 to {num_layers}" if len(stacks) == 1 else "none, since its layers are not one stack"
            raise InputError(f"model {model.name}: depth: given {model.depth}, allowed: {allowed}")
        return stacks[0]

    @property
    def layers(self) -> Any:
        return getattr(self.parent, self.name)

    def cut(self, depth: int | None) -> None:
        """Keep the first `depth` layers (None: all), and what follows the last one."""
        config = self.backbone.config
        setattr(self.parent, self.name, self.layers[:depth])
        config.num_hidden_layers = len(self.layers)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:depth]

    @contextmanager
    def cut_for_now(self, depth: int | None) -> Iterator[Any]:
        """Within the block the backbone is cut. Yields the layers that are kept."""
        config, layers = self.backbone.config, self.layers
        before = {name: getattr(config, name) for name in ("num_hidden_layers", "layer_types") if hasattr(config, name)}
        self.cut(depth)
        try:
            yield self.layers
        finally:
            setattr(self.parent, self.name, layers)
            for name, value in before.items():
                setattr(config, name, value)


def _width(backbone: nn.Module) -> int:
    """Width of the last hidden states, which OPT may project."""
    config: Any = backbone.config
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def _label_rows(causal: Any, tokenizer: PreTrainedTokenizerBase, *, width: int) -> torch.Tensor | None:
    """Output embeddings of "0" and "1", if both are single tokens and the embeddings have the hidden states' width."""
    embeddings = causal.get_output_embeddings()
    if embeddings is None:
        return None
    with whole([embeddings.weight]):
        if embeddings.weight.shape[1] != width:
            return None
        for texts in (("0", "1"), (" 0", " 1")):
            ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
            if all(len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id for tokens in ids):
                return embeddings.weight.detach()[[ids[0][0], ids[1][0]]].clone().float()
    return None


def load_tokenizer_of(model: Model) -> PreTrainedTokenizerBase:
    return load_tokenizer(model.source, model.revision, trust_remote_code=model.trust_remote_code)


def load_tokenizer(source: str, revision: str | None, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer {source}: can't be loaded: {str(error).splitlines()[0]}") from error
