"""A second loss term whose weight rises early in training (Burns et al. 2023, appendix A.4)."""

from __future__ import annotations

from pydantic import Field

from w2s_ray.methods.params import MethodParams


class WarmupParams(MethodParams):
    max_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the second term after warm-up. The paper takes 0.75 for its largest students."""
    warmup_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of training over which the weight rises linearly (paper). The reference variant has its own, 0.1."""


def linear_weight(progress: float, params: WarmupParams) -> float:
    """The weight at a point of training between 0 and 1."""
    return params.max_weight * min(1.0, progress / params.warmup_fraction)
