"""Inputs of attention that formats find easy and hard."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("gaussian", "outliers", "sink", "biased-k")
IDLE_SINK = "idle-sink"  # the first keys take nearly all weight, and have nearly no values


def inputs(
    kind: str, queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """float32 q, k, v [tokens, heads, D]."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    q, k, v = draw(queries, heads, head_dim), *(draw(keys, kv_heads, head_dim) for _ in "kv")
    if kind == "outliers":  # channels with a large mean, as models have them in Q and K
        some = torch.rand(1, kv_heads, head_dim, generator=generator) < 0.1
        k = k + 8 * some * draw(1, kv_heads, head_dim)
        q = q + 4 * some.repeat_interleave(heads // kv_heads, 1) * draw(1, heads, head_dim)
    elif kind in ("sink", IDLE_SINK):  # the first keys are seen by all, far above the rest
        toward = draw(1, kv_heads, head_dim)
        k[:4] += toward
        q = q + 0.7 * toward.repeat_interleave(heads // kv_heads, 1)
        if kind == IDLE_SINK:
            v[:4] *= 1e-3
    elif kind == "biased-k":
        k = k + 5 * draw(1, kv_heads, head_dim)
    return q, k, v
