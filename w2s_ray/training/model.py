"""A pretrained transformers model, ready for a setting: two scores for a text, a reward for each of two, or words.

Promises: weights are fp32 whatever the checkpoint's type; safetensors only; no dropout, so that a model trains and
predicts the same way; the read-out goes by the attention mask and never by a token id, so padding may stand on either
side; heads are computed in fp32.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from w2s_ray.errors import InputError
from w2s_ray.fit import Execution, Model, Setting

NUM_KEPT_BASES = 2
"""Pristine base models that a worker keeps in memory, so that neighbouring Fits don't load again."""


WRITTEN = "causal."
"""How the names of a Writer's weights begin."""


@dataclass(frozen=True)
class Base:
    """A pretrained model as it was loaded."""

    causal: nn.Module | None
    """With its language-model head, where it has one."""
    backbone: nn.Module
    label_rows: torch.Tensor | None
    """Output embeddings of the tokens "0" and "1"."""


_bases: dict[tuple[Model, str, str], Base] = {}


class Scorer(nn.Module):
    """Backbone, read-out, head: two scores for a text, or one for each of two completions."""

    def __init__(self, backbone: nn.Module, head: nn.Module, *, pooling: str, bf16: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pooling = pooling
        self.bf16 = bf16

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [rows, 2]."""
        return two_way(self.head(self.features(input_ids, attention_mask)))

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Read-outs [sequences, width]."""
        with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            hidden = self.backbone(**_inputs(self.backbone, input_ids, attention_mask)).last_hidden_state
        return read_out(hidden.float(), attention_mask, pooling=self.pooling)


class Probe(nn.Module):
    """A head alone, on features that were extracted before."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [rows, 2]."""
        return two_way(self.head(features))


def two_way(scores: torch.Tensor) -> torch.Tensor:
    """[rows, 2] as they are; rewards [2 rows, 1], all firsts before all seconds, as (second, first): the softmax's
    second entry is then sigmoid(r1 - r2), the probability that the first is better (Burns et al. 2023, appendix A)."""
    if scores.shape[1] == 2:
        return scores
    first, second = scores.view(2, -1)
    return torch.stack((second, first), dim=1)


class Writer(nn.Module):
    """A language model, of which the last few positions are wanted. Rows are padded on the left."""

    def __init__(self, causal: nn.Module, *, bf16: bool) -> None:
        super().__init__()
        self.causal = causal
        self.bf16 = bf16

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_kept: int) -> torch.Tensor:
        """Logits [rows, num_kept, vocabulary] for the last `num_kept` tokens, each from those before it."""
        with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            inputs = _inputs(self.causal, input_ids, attention_mask)
            if self.causal.keeps_logits:
                inputs["logits_to_keep"] = num_kept + 1
            logits = self.causal(**inputs).logits
        return logits[:, -num_kept - 1 : -1].float()

    def greedy(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, num_tokens: int, eos_id: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest token, `num_tokens` times over (every worker takes as many steps), and the log-probability of
        all of them up to the first end."""
        said = torch.empty((len(input_ids), 0), dtype=torch.long, device=input_ids.device)
        log_probability = torch.zeros(len(input_ids), device=input_ids.device)
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for _ in range(num_tokens):
            ids = torch.cat((input_ids, said, said.new_zeros(len(said), 1)), dim=1)
            mask = torch.cat((attention_mask, attention_mask.new_ones(len(said), said.shape[1] + 1)), dim=1)
            found, token = torch.log_softmax(self(ids, mask, 1)[:, 0], dim=-1).max(dim=-1)
            said = torch.cat((said, token[:, None]), dim=1)
            log_probability += torch.where(ended, 0.0, found)
            ended |= token == eos_id
        return said, log_probability


def _inputs(backbone: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if backbone.takes_positions:
        inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(
            min=0
        )  # padding on the left counts for nothing
    if backbone.keeps_cache:
        inputs["use_cache"] = False
    return inputs


def read_out(hidden: torch.Tensor, attention_mask: torch.Tensor, *, pooling: str) -> torch.Tensor:
    """[rows, width] of [rows, tokens, width]: the true last token, or the mean over true tokens."""
    if pooling == "mean":
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    positions = torch.arange(attention_mask.shape[1], device=hidden.device)
    last = (attention_mask * positions).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def build(
    model: Model,
    *,
    setting: Setting,
    tune: str,
    lora_rank: int = 0,
    execution: Execution,
    bf16: bool,
    seed: int,
    start: tuple[str, dict[str, torch.Tensor]] | None = None,
) -> tuple[nn.Module, str]:
    """A fresh model for a setting, and where its head starts from.

    A classifier's head starts from the output embeddings of the tokens "0" and "1" (Burns et al. 2023, appendix A), or
    from zero where a model has no such rows; a reward starts from zero. A probe has no backbone: it takes features.
    `seed` is for backbones that initialise something of their own. `start`: a name for weights of an earlier Writer, and
    these, in the place of the pretrained ones.
    """
    torch.manual_seed(seed)
    base = _base(model, attention=execution.attention, start=start)
    if setting == "generation":
        if base.causal is None:
            raise InputError(f"model {model.name}: is no decoder, so it can't write; generation needs one")
        if tune == "head":
            raise InputError("training.tune: head reads features off a frozen model and writes nothing; use all")
        writer = Writer(_adapted(copy.deepcopy(base.causal), rank=lora_rank, seed=seed), bf16=bf16)
        _save_memory(writer.causal, execution)
        return writer, "its language-model head"
    rows = base.label_rows if setting == "classification" else None
    width = rows.shape[1] if rows is not None else _width(base.backbone)
    head = nn.Linear(width, 2 if setting == "classification" else 1, bias=tune == "head", dtype=torch.float32)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    if tune == "head":
        return Probe(head), "zero"
    with torch.no_grad():
        if rows is not None:
            head.weight.copy_(rows)
    backbone = _adapted(copy.deepcopy(base.backbone), rank=lora_rank, seed=seed)
    _save_memory(backbone, execution)
    head_start = "output embeddings of 0 and 1" if rows is not None else "zero"
    return Scorer(backbone, head, pooling=model.pooling, bf16=bf16), head_start


def _adapted(part: Any, *, rank: int, seed: int) -> Any:
    """With low-rank adapters on every linear layer but the last, which alone are learned (LoRA, Hu et al. 2021); rank 0
    leaves it as it is. They add nothing before the first step."""
    if not rank:
        return part
    from peft import LoraConfig, inject_adapter_in_model

    part.requires_grad_(False)
    torch.manual_seed(seed)  # again, for loading may have drawn numbers
    options = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    return inject_adapter_in_model(options, part)


def frozen(model: Model, *, execution: Execution, bf16: bool) -> Scorer:
    """The pretrained model as it is, for its features."""
    base = _base(model, attention=execution.attention)
    return Scorer(base.backbone, nn.Identity(), pooling=model.pooling, bf16=bf16)


def _save_memory(part: Any, execution: Execution) -> None:
    if execution.activation_checkpointing:
        part.gradient_checkpointing_enable({"use_reentrant": False})


def _base(model: Model, *, attention: str, start: tuple[str, dict[str, torch.Tensor]] | None = None) -> Base:
    """The pristine model, loaded once."""
    kind = (model, attention, start[0] if start else "")
    if kind not in _bases:
        while len(_bases) >= NUM_KEPT_BASES:
            _bases.pop(next(iter(_bases)))
        _bases[kind] = _load(model, attention=attention, weights=start[1] if start else None)
    return _bases[kind]


def _load(model: Model, *, attention: str, weights: dict[str, torch.Tensor] | None) -> Base:
    options: dict[str, Any] = {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}
    options |= {"dtype": torch.float32, "use_safetensors": True}
    if attention != "auto":
        options["attn_implementation"] = attention
    causal, rows = None, None
    try:
        if model.pooling == "mean":
            backbone = AutoModel.from_pretrained(model.source, **options)
        else:
            causal = AutoModelForCausalLM.from_pretrained(model.source, **options)
            backbone = causal.base_model
    except (OSError, ValueError) as error:
        raise InputError(f"model {model.source}: can't be loaded: {str(error).splitlines()[0]}") from error
    if model.depth is not None:
        _cut(backbone, model)
    if weights is not None:
        with torch.no_grad():
            for name, parameter in (causal or backbone).named_parameters():
                parameter.copy_(weights[f"{WRITTEN}{name}"])
    if causal is not None:
        rows = _label_rows(causal, tokenizer(model))
        if rows is not None and rows.shape[1] != _width(backbone):
            rows = None
    for module in (causal or backbone).modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "dropout"):
        for part in backbone.modules():
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    for part in (backbone, causal):
        if part is not None:
            names = inspect.signature(type(part).forward).parameters
            part.takes_positions = "position_ids" in names
            part.keeps_cache = "use_cache" in names
            part.keeps_logits = "logits_to_keep" in names
    return Base(causal=causal, backbone=backbone, label_rows=rows)


def _cut(backbone: Any, model: Model) -> None:
    """Keep the first `depth` layers, and what follows the last."""
    num_layers, depth = backbone.config.num_hidden_layers, model.depth
    stacks = [
        (parent, name)
        for parent in backbone.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == num_layers
    ]
    if len(stacks) != 1 or depth > num_layers:
        raise InputError(
            f"model {model.name}: depth: given {depth}, allowed are 0 to {num_layers if len(stacks) == 1 else 'none'} "
            "(layers of one stack)"
        )
    [(parent, name)] = stacks
    setattr(parent, name, getattr(parent, name)[:depth])
    backbone.config.num_hidden_layers = depth
    if getattr(backbone.config, "layer_types", None):
        backbone.config.layer_types = backbone.config.layer_types[:depth]


def _width(backbone: nn.Module) -> int:
    """Width of the last hidden states; OPT may project them."""
    config: Any = backbone.config
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def _label_rows(causal: Any, tokens: PreTrainedTokenizerBase) -> torch.Tensor | None:
    """Output-embedding rows of the single tokens for 0 and 1, if the vocabulary has them."""
    embeddings = causal.get_output_embeddings()
    if embeddings is None:
        return None
    for texts in (("0", "1"), (" 0", " 1")):
        ids = [tokens.encode(text, add_special_tokens=False) for text in texts]
        if all(len(each) == 1 and each[0] != tokens.unk_token_id for each in ids):
            return embeddings.weight.detach()[[ids[0][0], ids[1][0]]].clone().float()
    return None


def tokenizer(model: Model) -> PreTrainedTokenizerBase:
    return load_tokenizer(model.source, model.revision, trust_remote_code=model.trust_remote_code)


def load_tokenizer(source: str, revision: str | None, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer {source}: can't be loaded: {str(error).splitlines()[0]}") from error
