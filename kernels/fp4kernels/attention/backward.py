"""Gradients of attention from its dequantized operands, tile by tile of keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.attention.operands import TILE, Operands
from fp4kernels.attention.problem import Mask
from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.transforms import transformed


def gradients(
    grad: Tensor, operands: Operands, lse: Tensor, recipe: AttentionRecipe, mask: Mask, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """float32 gradients of q, k and v [T, heads, D], given that of O and LSE [heads, T].

    P is made again from the scores and LSE of the forward pass, without its rounding. Rounding
    counts as the identity, so scores change with q by the dequantized K, and so on. Products are of
    bf16, sums float32. A row's mean of dP is taken over the P used here, in a pass of its own: that
    over the output of the forward pass would differ by the rounding of P.
    """
    assert recipe.q is not None
    head_dim, places = grad.shape[-1], operands.places
    q, k = _codes(operands.q, recipe.q), _codes(operands.k, recipe.k)
    scales = operands.q.tensor_scale, operands.k.tensor_scale
    v = reference.dequantize(operands.v, recipe.v.format).transpose(1, 2)
    group = q.shape[0] // k.shape[0]
    rotation = recipe.rotation(head_dim)
    means = operands.means
    if means is not None:
        turned_means = transformed(means[..., :head_dim], rotation)[0]
        means = torch.nn.functional.pad(turned_means, (0, q.shape[-1] - head_dim))
    dq = grad.new_zeros(grad.shape, dtype=torch.float32)
    dk = dq.new_zeros(places.segments.k[-1], k.shape[0], head_dim)
    dv = torch.zeros_like(dk)
    starts = zip(places.segments.spans, places.segments.lengths, places.q, places.k, strict=False)
    for (of_q, of_k), (queries, keys), q0, k0 in starts:
        if not queries or not keys:
            continue
        rows = slice(q0, q0 + queries)
        tiles = torch.arange(queries, device=q.device) // TILE + q0 // TILE
        one = _Sequence(
            q[:, rows],
            k[:, k0 : k0 + keys].repeat_interleave(group, 0),
            v[:, k0 : k0 + keys].repeat_interleave(group, 0),
            None if operands.bias is None else operands.bias[:, tiles, :keys],
            mask.visible(queries, keys, q.device),
            scale,
            scales,
        )
        total = lse[:, of_q]
        if operands.shift is not None:
            total = total - operands.shift[:, rows]
        full = q[:, rows] * scales[0]
        if means is not None:
            full = full + means[:, tiles]
        pad = (0, q.shape[-1] - head_dim)
        out = torch.nn.functional.pad(grad[of_q].float().transpose(0, 1), pad)
        of_heads = one.gradients(out, total, full)
        shared = (-1, group, keys, q.shape[-1])
        found = (of_heads[0], *(g.view(shared).sum(1) for g in of_heads[1:]))
        for target, of, g in zip((dq, dk, dv), (of_q, of_k, of_k), found, strict=True):
            target[of] = g[..., :head_dim].transpose(0, 1)
    for turned in (dq, dk):
        turned.copy_(transformed(turned, rotation)[1](turned))
    return dq, dk, dv


@dataclass(frozen=True, eq=False)
class _Sequence:
    """One sequence's operands, float32 [heads, tokens, D]; q and k without their tensor `scales`, so
    that bf16 holds them and scores are those of the forward pass."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None  # [heads, queries, keys]
    seen: Tensor
    scale: float
    scales: tuple[Tensor, Tensor]

    def gradients(self, out: Tensor, lse: Tensor, full: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of q, k, v; `out` is O's gradient, `full` is q with the means that were taken off."""
        starts = range(0, self.k.shape[1], TILE)
        mean = torch.zeros_like(lse)
        for start in starts:
            p, dp = self._weights(out, lse, start)
            mean += (p * dp).sum(-1)
        # rows of dS sum to 0, so the mean of K adds nothing but rounding errors
        centered = (self.k - self.k.mean(1, keepdim=True)) * self.scales[1]
        dq, pieces = torch.zeros_like(self.q), []
        for start in starts:
            p, dp = self._weights(out, lse, start)
            ds = p * (dp - mean.unsqueeze(-1)) * self.scale
            dq += _product(ds, centered[:, start : start + TILE])
            of_k, of_v = (
                _product(x.transpose(1, 2), y) for x, y in ((ds, full), (p, out))
            )  # fmt: skip
            pieces.append((of_k, of_v))
        dk, dv = (torch.cat(parts, 1) for parts in zip(*pieces, strict=True))
        return dq, dk, dv

    def _weights(self, out: Tensor, lse: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """P and its gradient, of one tile of keys."""
        here = slice(start, start + TILE)
        scores = _product(self.q, self.k[:, here].transpose(1, 2)) * (
            self.scales[0] * self.scales[1]
        )
        if self.bias is not None:
            scores = scores + self.bias[..., here]
        scores = scores * self.scale - lse.masked_fill(lse == -torch.inf, 0).unsqueeze(-1)
        p = scores.exp().masked_fill(~self.seen[:, here], 0)
        return p, _product(out, self.v[:, here].transpose(1, 2))


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Of bf16 operands, in float32."""
    x, y = x.bfloat16(), y.bfloat16()
    return torch.bmm(x, y, out_dtype=torch.float32) if x.is_cuda else x.float() @ y.float()


def _codes(packed: Packed, how: Recipe) -> Tensor:
    """Values without the tensor scale: all of them are bf16 numbers."""
    one = packed.tensor_scale.new_ones(())
    return reference.dequantize(packed._replace(tensor_scale=one), how.format)
