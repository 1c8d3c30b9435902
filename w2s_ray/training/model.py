"""A pretrained backbone of any transformers model with a two-way head on the read-out of its last hidden states.

Promises: weights are fp32 whatever the checkpoint's type; safetensors only; no dropout, so that a model trains and
predicts the same way; the read-out goes by the attention mask and never by a token id, so padding may stand on either
side; the head is computed in fp32.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from w2s_ray.errors import InputError
from w2s_ray.fit import Execution, Model

NUM_KEPT_BASES = 2
"""Pristine base models that a worker keeps in memory, so that neighbouring Fits don't load again."""

_bases: dict[tuple[Model, str], tuple[nn.Module, torch.Tensor | None]] = {}


class Classifier(nn.Module):
    """Backbone, read-out, head."""

    def __init__(self, backbone: nn.Module, head: nn.Linear, *, pooling: str, bf16: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pooling = pooling
        self.bf16 = bf16

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [rows, 2]."""
        device_type = input_ids.device.type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.bf16):
            hidden = self.backbone(**_inputs(self.backbone, input_ids, attention_mask)).last_hidden_state
        with torch.autocast(device_type, enabled=False):
            return self.head(read_out(hidden.float(), attention_mask, pooling=self.pooling))


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


def build(model: Model, *, execution: Execution, bf16: bool, seed: int) -> tuple[Classifier, str]:
    """A fresh classifier, and where its head starts from.

    The head starts from the output embeddings of the tokens "0" and "1" (Burns et al. 2023, appendix A), or from zero
    where a model has no such rows. `seed` is for backbones that initialise something of their own.
    """
    torch.manual_seed(seed)
    base, rows = _base(model, attention=execution.attention)
    backbone = copy.deepcopy(base)
    if execution.activation_checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    width = rows.shape[1] if rows is not None else _width(backbone)
    head = nn.Linear(width, 2, bias=False, dtype=torch.float32)
    with torch.no_grad():
        head.weight.copy_(rows) if rows is not None else head.weight.zero_()
    start = "output embeddings of 0 and 1" if rows is not None else "zero"
    return Classifier(backbone, head, pooling=model.pooling, bf16=bf16), start


def _base(model: Model, *, attention: str) -> tuple[nn.Module, torch.Tensor | None]:
    """The pristine backbone, loaded once, and the head's first rows."""
    kind = (model, attention)
    if kind not in _bases:
        while len(_bases) >= NUM_KEPT_BASES:
            _bases.pop(next(iter(_bases)))
        _bases[kind] = _load(model, attention=attention)
    return _bases[kind]


def _load(model: Model, *, attention: str) -> tuple[nn.Module, torch.Tensor | None]:
    options: dict[str, Any] = {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}
    weights = options | {"dtype": torch.float32, "use_safetensors": True}
    if attention != "auto":
        weights["attn_implementation"] = attention
    try:
        if model.pooling == "mean":
            backbone, rows = AutoModel.from_pretrained(model.source, **weights), None
        else:
            causal = AutoModelForCausalLM.from_pretrained(model.source, **weights)
            rows = _label_rows(causal, tokenizer(model))
            backbone = causal.base_model
            if rows is not None and rows.shape[1] != _width(backbone):
                rows = None
    except (OSError, ValueError) as error:
        raise InputError(f"model {model.source}: can't be loaded: {str(error).splitlines()[0]}") from error
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "dropout"):
        for part in backbone.modules():
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    names = inspect.signature(type(backbone).forward).parameters
    backbone.takes_positions = "position_ids" in names
    backbone.keeps_cache = "use_cache" in names
    return backbone, rows


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
