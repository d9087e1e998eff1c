# mypy: ignore-errors
"""A matrix and its transpose quantized in one pass, as training needs it for the gradient of weights.

A program has a tile. It reads it twice, along rows and along columns, the second time from the cache;
each time a thread holds whole blocks. Importing this needs triton.
"""

import triton
import triton.language as tl

from fp4kernels.triton.quantize_kernel import block_amax, encoded, raise_amax
from fp4kernels.triton.quantize_loads import columns, finished, loaded
from fp4kernels.triton.within import largest


@triton.jit(do_not_specialize=["seed_low", "seed_high", "t_seed_low", "t_seed_high"])
def quantize_both_kernel(
    x, other, m, k, stride,
    amax, codes, scales, tensor_scale, seed_low, seed_high,
    t_amax, t_codes, t_scales, t_tensor_scale, t_seed_low, t_seed_high,
    block: tl.constexpr, rule: tl.constexpr, rounding: tl.constexpr, headroom: tl.constexpr,
    size: tl.constexpr, minus: tl.constexpr, group: tl.constexpr,
    t_block: tl.constexpr, t_rule: tl.constexpr, t_rounding: tl.constexpr,
    t_headroom: tl.constexpr, t_size: tl.constexpr, t_minus: tl.constexpr, t_group: tl.constexpr,
    swizzle: tl.constexpr, prologue: tl.constexpr, tile_m: tl.constexpr, tile_k: tl.constexpr,
    interpreted: tl.constexpr,
):  # fmt: skip
    """`t_` stands before what belongs to the transpose. x [m, k] has `stride` values from row to row."""
    values, index, inside = _along(
        x, other, m, k, stride, group, prologue, size, minus, tile_m, tile_k, interpreted
    )
    blocks = values.reshape((values.shape[0], group // block, block))
    encoded(
        blocks, block_amax(blocks, headroom), index, inside, amax, codes, scales, tensor_scale,
        seed_low, seed_high, k // block, rule, rounding, headroom, swizzle,
    )  # fmt: skip
    values, index, inside = _below(
        x, other, m, k, stride, t_group, prologue, t_size, t_minus, tile_m, tile_k, interpreted
    )
    blocks = values.reshape((values.shape[0], t_group // t_block, t_block))
    encoded(
        blocks, block_amax(blocks, t_headroom), index, inside, t_amax, t_codes, t_scales,
        t_tensor_scale, t_seed_low, t_seed_high, m // t_block, t_rule, t_rounding, t_headroom,
        swizzle,
    )  # fmt: skip


@triton.jit
def amax_both_kernel(
    x, other, m, k, stride, amax, t_amax,
    size: tl.constexpr, minus: tl.constexpr, group: tl.constexpr,
    t_size: tl.constexpr, t_minus: tl.constexpr, t_group: tl.constexpr,
    prologue: tl.constexpr, tile_m: tl.constexpr, tile_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Raise the int32 `amax` of x and that of its transpose, where they are not None."""
    if amax is not None:
        values, _, _ = _along(
            x, other, m, k, stride, group, prologue, size, minus, tile_m, tile_k, interpreted
        )
        raise_amax(amax, _most(values, group), values.shape[0])
    if t_amax is not None:
        values, _, _ = _below(
            x, other, m, k, stride, t_group, prologue, t_size, t_minus, tile_m, tile_k, interpreted
        )
        raise_amax(t_amax, _most(values, t_group), values.shape[0])


@triton.jit
def _along(
    x, other, m, k, stride, group: tl.constexpr, prologue: tl.constexpr, size: tl.constexpr,
    minus: tl.constexpr, tile_m: tl.constexpr, tile_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Groups along the rows of a tile: values [rows, group], which groups of all, and if there are."""
    rows: tl.constexpr = tile_m * tile_k // group
    across: tl.constexpr = tile_k // group
    lane = tl.arange(0, rows)
    row = tl.program_id(0) // tl.cdiv(k, tile_k) * tile_m + lane // across
    part = tl.program_id(0) % tl.cdiv(k, tile_k) * across + lane % across
    inside = (row < m) & (part < k // group)
    at = (row.to(tl.int64) * stride + part * group)[:, None]
    values = loaded(
        x, at, other, at, None, inside[:, None], rows, group, prologue, size, minus, interpreted
    )
    return values, row * (k // group) + part, inside


@triton.jit
def _below(
    x, other, m, k, stride, group: tl.constexpr, prologue: tl.constexpr, size: tl.constexpr,
    minus: tl.constexpr, tile_m: tl.constexpr, tile_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """As `_along`, of groups along its columns: neighbouring threads have neighbouring columns."""
    rows: tl.constexpr = tile_m * tile_k // group
    lane = tl.arange(0, rows)
    column = tl.program_id(0) % tl.cdiv(k, tile_k) * tile_k + lane % tile_k
    part = tl.program_id(0) // tl.cdiv(k, tile_k) * (tile_m // group) + lane // tile_k
    inside = (column < k) & (part < m // group)
    at = ((part * group).to(tl.int64) * stride + column)[:, None]
    mask = inside[:, None]
    values = columns(x, at, stride, mask, rows, group)
    operand = None if prologue == "none" else columns(other, at, stride, mask, rows, group)
    kind: tl.constexpr = x.dtype.element_ty
    values = finished(values, operand, None, kind, rows, group, prologue, size, minus, interpreted)
    return values, column * (m // group) + part, inside


@triton.jit
def _most(values, group: tl.constexpr):
    """[rows, 1]"""
    return largest(values.reshape((values.shape[0], 1, group)), group)
