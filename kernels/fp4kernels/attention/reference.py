"""The readable truth: attention in plain torch, one sequence after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from fp4kernels.attention.problem import Mask, Segments, check, segments_of


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | None = None,
    segments: Segments | None = None,
    *,
    scale: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ scale) v and its log-sum-exp, computed in `dtype`.

    q [B, Sq, H, D] with k and v [B, Sk, H/group, D], or tokens of several sequences, [T, H, D],
    with their `segments`. Query head h reads kv head h // group. The scale is D^-½ unless given.
    Returns O, as q in `dtype`, and LSE (natural logarithm) [B, H, Sq] or [H, T]. A query that sees
    no key has O = 0 and LSE = -inf. Raises what `problem.check` raises.
    """
    mask = mask or Mask()
    dense = q.dim() == 4
    segments = segments or segments_of(q, k)
    check(q, k, v, segments, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows, keys, values = (x.flatten(0, 1) if dense else x for x in (q, k, v))
    group = q.shape[-2] // k.shape[-2]
    out = torch.zeros(rows.shape, dtype=dtype, device=q.device)
    lse = torch.full((q.shape[-2], len(rows)), -torch.inf, dtype=dtype, device=q.device)
    for of_q, of_k in segments.spans:
        x = rows[of_q].to(dtype).transpose(0, 1)
        y, z = (
            t[of_k].to(dtype).transpose(0, 1).repeat_interleave(group, 0) for t in (keys, values)
        )
        scores = x @ y.transpose(1, 2) * scale
        seen = mask.visible(x.shape[1], y.shape[1], q.device)
        scores = scores.masked_fill(~seen, -torch.inf)
        total = torch.logsumexp(scores, -1)
        weights = torch.exp(scores - total.masked_fill(total == -torch.inf, 0).unsqueeze(-1))
        out[of_q] = (weights @ z).transpose(0, 1)
        lse[:, of_q] = total
    if dense:
        batch, length = q.shape[:2]
        lse = lse.view(-1, batch, length).transpose(0, 1)
        out = out.view(q.shape)
    return out, lse
