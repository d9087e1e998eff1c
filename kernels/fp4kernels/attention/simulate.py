"""FP4 prefill in plain torch, tile by tile of keys: what its kernels do, and their oracle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.attention.operands import TILE, Operands
from fp4kernels.attention.problem import Mask
from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.recipes import Recipe

LOG2_E = math.log2(math.e)


def simulate(
    operands: Operands,
    recipe: AttentionRecipe,
    mask: Mask,
    scale: float,
    head_dim: int,
    block_n: int = TILE,
) -> tuple[Tensor, Tensor]:
    """float32 O [T, heads, D] and LSE [heads, T] of quantized operands, with an online softmax.

    P is quantized relative to the largest score so far, so the result depends on the keys of a
    tile, `block_n`, and on their order.
    """
    assert recipe.q is not None
    q, k, v = (
        reference.dequantize(packed, how.format)
        for packed, how in ((operands.q, recipe.q), (operands.k, recipe.k), (operands.v, recipe.v))
    )
    group, places = q.shape[0] // k.shape[0], operands.places
    tokens = places.segments.q[-1]
    out = q.new_zeros(tokens, q.shape[0], head_dim)
    lse = q.new_full((q.shape[0], tokens), -torch.inf)
    starts = zip(places.segments.spans, places.segments.lengths, places.q, places.k, strict=False)
    for (of_q, _), (queries, keys), q0, k0 in starts:
        if not queries or not keys:
            continue
        one = q[:, q0 : q0 + queries]
        other = k[:, k0 : k0 + keys].repeat_interleave(group, 0)
        scores = one @ other.transpose(1, 2)
        if operands.bias is not None:
            tiles = torch.arange(queries, device=q.device) // TILE + q0 // TILE
            scores = scores + operands.bias[:, tiles, :keys]
        scores = scores * (scale * LOG2_E)
        scores = scores.masked_fill(~mask.visible(queries, keys, q.device), -torch.inf)
        values = v[:, :head_dim, k0 : k0 + -(-keys // TILE) * TILE].repeat_interleave(group, 0)
        o, total = online(scores, values, recipe, block_n)
        out[of_q] = o.transpose(0, 1)
        shift = operands.shift
        lse[:, of_q] = total if shift is None else total + shift[:, q0 : q0 + queries]
    return out, lse


def online(
    scores: Tensor, values: Tensor, recipe: AttentionRecipe, block_n: int
) -> tuple[Tensor, Tensor]:
    """O and LSE of scores in powers of two [heads, queries, keys] and values [heads, D, keys or more]:
    P alone is rounded here."""
    keys = scores.shape[-1]
    starts = [*range(0, keys, block_n)]
    top = scores.new_full(scores.shape[:2], -torch.inf)
    total, out = torch.zeros_like(top), scores.new_zeros(*scores.shape[:2], values.shape[1])
    for start in reversed(starts) if recipe.reverse else starts:
        tile = scores[..., start : start + block_n]
        tile = torch.nn.functional.pad(tile, (0, block_n - tile.shape[-1]), value=-torch.inf)
        before, top = top, torch.maximum(top, tile.amax(-1))
        finite = top.masked_fill(top == -torch.inf, 0)  # of rows that have seen nothing
        keep = torch.exp2(before - finite)
        p = torch.exp2(tile - (finite - math.log2(recipe.p_scale)).unsqueeze(-1))
        total = total * keep + p.sum(-1)
        piece = values[..., start : start + block_n]
        piece = torch.nn.functional.pad(piece, (0, block_n - piece.shape[-1]))
        out = out * keep.unsqueeze(-1) + rounded(p, recipe) @ piece.transpose(1, 2)
    seen = total > 0
    lse = torch.where(seen, (top + total.log2() - math.log2(recipe.p_scale)) / LOG2_E, -torch.inf)
    return out / total.masked_fill(~seen, 1).unsqueeze(-1), lse


def rounded(p: Tensor, recipe: AttentionRecipe) -> Tensor:
    """What P [..., keys] becomes when it is quantized."""
    how = recipe.p
    if how is None:
        return p
    if recipe.round_scale:
        return reference.dequantize(reference.quantize(p, how), how.format)
    return _under_exact_scale(p, how)


def _under_exact_scale(p: Tensor, how: Recipe) -> Tensor:
    """Codes of what was divided by the scale before it was rounded."""
    fmt = how.format
    blocks = p.reshape(*p.shape[:-1], -1, fmt.block_size)
    amax = blocks.amax(-1, keepdim=True)
    largest = fmt.element.max
    multiplier = torch.where(amax > 0, largest / amax, 1)
    values = fmt.element.decode(fmt.element.encode(blocks * multiplier))
    scales = fmt.scale.decode(fmt.scale.encode((amax / largest).clamp(max=fmt.scale.max)))
    return (values * scales).flatten(-2)
