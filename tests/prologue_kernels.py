"""What the quantizers' prologues compute on the way, stored: their own arithmetic, on any device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fp4kernels.prologues import Prologue, RmsNorm, SwiGlu
from fp4kernels.recipes import Recipe
from fp4kernels.triton.quantize_config import QuantizeConfig, cut
from fp4kernels.triton.quantize_loads import _silu
from fp4kernels.triton.quantize_rows import _row_factor


@triton.jit
def silu_kernel(x, out, total, values: tl.constexpr):
    index = tl.program_id(0) * values + tl.arange(0, values)
    found = _silu(tl.load(x + index, mask=index < total, other=0.0))
    tl.store(out + index, found, mask=index < total)


@triton.jit
def factor_kernel(
    x, out, total, in_row, stride, eps: tl.constexpr, group: tl.constexpr, rows: tl.constexpr,
    slots: tl.constexpr, chunks: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, rows)
    row = tl.program_id(0) * (rows // slots) + lane // slots
    at = row.to(tl.int64) * stride
    found = _row_factor(x, at, row < total, in_row, "rms", eps, rows, group, slots, chunks)
    tl.store(out + row, found, mask=(row < total) & (lane % slots == 0))


def silu(x: Tensor) -> Tensor:
    """float32, before it is rounded."""
    wide = x.float().contiguous()
    out = torch.empty_like(wide)
    silu_kernel[(triton.cdiv(x.numel(), 1024),)](wide, out, x.numel(), 1024, enable_fp_fusion=False)
    return out


def row_factors(x: Tensor, recipe: Recipe, norm: RmsNorm, config: QuantizeConfig) -> Tensor:
    """float32 [..., 1]: what a quantizer of that recipe multiplies the rows of x by."""
    x = x.contiguous()
    rows, k = x.shape[:-1].numel(), x.shape[-1]
    plan = cut(rows, k, recipe, norm, config)
    out = torch.empty(rows, device=x.device)
    factor_kernel[(plan.programs,)](
        x, out, rows, k // plan.group, k, norm.eps, **plan.constants, **plan.options
    )
    return out.view(*x.shape[:-1], 1)


def normal(x: Tensor, recipe: Recipe, prologue: Prologue, config: QuantizeConfig) -> Tensor:
    """What the quantizer makes of x before it quantizes."""
    if isinstance(prologue, SwiGlu):
        gate, up = prologue.operands(x)
        return silu(gate).to(x.dtype) * up
    factors = row_factors(x, recipe, prologue, config)
    return (x.float() * factors * prologue.weight.float()).to(x.dtype)
