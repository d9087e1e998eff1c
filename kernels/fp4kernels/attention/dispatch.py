"""From the text of a tuned candidate to its launcher, and to what it computes."""

from __future__ import annotations

import functools
import json

import torch
from torch import Tensor

from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.registry import ATTENTION_VARIANTS
from fp4kernels.attention.storing import Held, Order
from fp4kernels.attention.variant import AttentionLauncher, Paged, Quantized
from fp4kernels.devices import Device, Toolchain, surroundings
from fp4kernels.registry import candidate_from_json


def decode_tuned(
    text: str,
    q: Tensor,
    place: tuple[Held, Held, Tensor, Tensor],
    longest: int,
    order: Order,
    *,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """As the op fp4kernels::attention_decode; `place` are keys, values, page table and lengths."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    sequences, queries, heads, _ = q.shape
    lse = q.new_empty((sequences, heads, queries), dtype=torch.float32)
    on = Paged(q, *place, longest, order, window, scale)
    launcher(text, surroundings(q.device.type))(on, out, lse)
    return out, lse


def prefill_tuned(text: str, on: Quantized, out: Tensor) -> Tensor:
    """Fills out [T, heads, D]; LSE [heads, T]."""
    tokens, heads, _ = out.shape
    lse = out.new_empty((heads, tokens), dtype=torch.float32)
    launcher(text, surroundings(out.device.type))(on, out, lse)
    return lse


@functools.lru_cache(maxsize=4096)
def launcher(text: str, here: tuple[Device, Toolchain]) -> AttentionLauncher:
    """Of Candidate.to_json as text. Raises FormatError, or BuildError where it cannot be built."""
    candidate = candidate_from_json(json.loads(text))
    kernel = ATTENTION_VARIANTS[candidate.variant]
    return kernel.build(candidate.config, attention_recipe(candidate.recipe), *here)
