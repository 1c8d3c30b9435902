"""What a model's pretraining cost, in FLOPs: the size axis `compute` of tables and figures.

For each token a forward and a backward pass take (Kaplan et al. 2020, table 1, three times its forward pass):

    6 N         for N weights without embeddings, which are only looked up
    6 V d       for the unembedding: a score for each of V tokens, from a state of width d
    6 L c a     for attention of width a in L layers over c tokens; twice that where it looks both ways

A causal token attends to half of its sequence on average, so this is half of what is often counted (Chowdhery et al. 2022,
appendix B, has 12 L c a). 6ND leaves the last two terms out. They are most of the cost of a small model: without them a ladder
seems to span more compute than it does, Pythia 2.78 decades instead of 2.37 and the shipped chess models 2.08 instead of 1.71.
So a model whose shape is not known has no compute, rather than 6ND beside the others' whole cost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from w2s_ray.families.model_folder import read_config


class Shape(BaseModel):
    """What of a model's shape decides its cost besides the number of its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int = Field(description="rows of the embedding, padding included", ge=1)
    width: int = Field(description="of the hidden states", ge=1)
    layers: int = Field(description="of the whole model", ge=1)
    context_tokens: int = Field(description="tokens of the sequences in most of the pretraining", ge=1)
    attention_width: int | None = Field(None, description="heads times the width of a head; default: the width", ge=1)


def flops_per_token(num_params: int, shape: Shape, *, depth: int | None, is_causal: bool) -> float:
    """Of a forward and a backward pass. `depth`: layers that are kept, of which `num_params` are the weights."""
    layers = shape.layers if depth is None else depth
    attention = layers * shape.context_tokens * (shape.attention_width or shape.width)
    return 6.0 * (num_params + shape.vocabulary * shape.width + attention * (1 if is_causal else 2))


def read_shape(folder: Path) -> Shape | None:
    """The shape of the model in a local folder, from its config.json. None if it lacks a number, or if attention looks back over
    a window that is shorter than the context.

    The context is the longest that the model reads. Where pretraining had shorter sequences, say so in the study or the family.
    """
    config = read_config(folder)

    def number(*names: str) -> Any:
        return next((config[name] for name in names if isinstance(config.get(name), int)), None)

    width, heads = number("hidden_size", "n_embd", "d_model"), number("num_attention_heads", "n_head")
    values = {
        "vocabulary": number("vocab_size"),
        "width": width,
        "layers": number("num_hidden_layers", "n_layer"),
        "context_tokens": number("max_position_embeddings", "n_positions"),
    }
    has_window = config.get("sliding_window") and config.get("use_sliding_window", True)
    if None in values.values() or has_window:
        return None
    head_width = number("head_dim")
    return Shape(**values, attention_width=heads * head_width if heads and head_width else None)
