# mypy: ignore-errors
"""Epilogues within a GEMM's own kernel, as fp4kernels.epilogues; importing this needs triton.

Sums are finished in float32 where they are: in the registers of the tile or, where K is shared out,
in those of the reduction.
"""

import triton
import triton.language as tl

from fp4kernels.triton.block_scales import MAGNITUDE, encoding, power_of_two, under
from fp4kernels.triton.codes import codes_of
from fp4kernels.triton.decode_kernel import _to_bfloat16, decoded_sums
from fp4kernels.triton.dot_scaled_kernel import scaled_sums
from fp4kernels.triton.fold_kernel import folded_sums
from fp4kernels.triton.interleaved_kernel import interleaved_sums

HALF_ROOT = tl.constexpr(0.7071067811865476)  # sqrt(1/2)
TWICE_ROOT = tl.constexpr(1.5957691216057308)  # 2 sqrt(2/pi)
CUBIC = tl.constexpr(0.044715)
WIDE = tl.constexpr(128)  # columns, from which on a tile is finished by halves
NV_LARGEST = tl.constexpr(6 * 448.0)  # what a tensor's amax becomes, before its scales


@triton.jit
def _logistic(x):
    """1 / (1 + e^-x): e^-x may be Inf, and 1/Inf is 0."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def activated(acc, activation: tl.constexpr):
    """[R, C] → [R, C], or [R, C/2] for swiglu."""
    if activation == "gelu":
        acc = 0.5 * acc * (1.0 + tl.erf(acc * HALF_ROOT))
    elif activation == "gelu-tanh":  # (1 + tanh(u)) / 2 is the logistic function of 2u
        acc = acc * _logistic(acc * (TWICE_ROOT * (1.0 + CUBIC * acc * acc)))
    elif activation == "swiglu":
        gate, up = tl.split(acc.reshape((acc.shape[0], acc.shape[1] // 2, 2)))
        acc = gate * _logistic(gate) * up
    else:
        tl.static_assert(activation == "none")
    return acc


@triton.jit
def _added(pointers, inside):
    """bf16 or float32 → float32; bf16 by its bits, which the interpreter knows."""
    value = tl.load(pointers, mask=inside, other=0.0)
    if value.dtype == tl.bfloat16:
        bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        value = bits.to(tl.float32, bitcast=True)
    return value


@triton.jit
def _store_quantized(
    acc, rows, column, m, n, out, out_scales, out_tensor_scale, amax, first,
    rule: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Codes and scales of float32 [R, C], whole blocks, from `column` on; of n columns."""
    height: tl.constexpr = acc.shape[0]
    width: tl.constexpr = acc.shape[1]
    blocks: tl.constexpr = width // block
    values = acc.reshape((height, blocks, block))
    # as integers magnitudes are in order, Inf and then NaN above all
    largest = tl.max(values.to(tl.int32, bitcast=True) & MAGNITUDE, axis=2)
    if rule == "nv":
        tensor_amax = tl.load(amax)
        byte, inverse = under(largest, tensor_amax, encoding(tensor_amax, NV_LARGEST), 1.0)
        if first:
            tl.store(out_tensor_scale, tl.div_rn(tensor_amax, NV_LARGEST))
    else:
        byte, inverse = power_of_two(largest, rule)
        if first:
            tl.store(out_tensor_scale, 4.0 / 3.0 if rule == "floor-3/4" else 1.0)
    scaled = (values * inverse[:, :, None]).reshape((height * blocks, block))
    words = codes_of(scaled, "nearest", 0, 0, height * blocks, block)
    words = words.reshape((height, width // 8))
    at = column // 8 + tl.arange(0, width // 8)[None, :]
    inside = (rows[:, None] < m) & (at < n // 8)
    tl.store(out + rows[:, None] * (n // 8) + at, words, mask=inside)
    at = column // block + tl.arange(0, blocks)[None, :]
    inside = (rows[:, None] < m) & (at < n // block)
    tl.store(out_scales + rows[:, None] * (n // block) + at, byte.to(tl.uint8), mask=inside)


@triton.jit
def finish(
    acc, rows, column, m, n, bias, residual, amax, out, out_scales, out_tensor_scale, first,
    activation: tl.constexpr, rule: tl.constexpr, next_block: tl.constexpr,
    interpreted: tl.constexpr,
):  # fmt: skip
    """Sums [R, C] of `rows` [R] and the columns from `column` on, of n: finished and stored.

    `rule` is empty, or that of the output's scales, of blocks of `next_block`; `first` holds in one
    program, which stores the tensor scale.
    """
    if acc.shape[1] < WIDE or acc.shape[0] == 1:
        _finish_at_once(
            acc, rows, column, m, n, bias, residual, amax, out, out_scales, out_tensor_scale,
            first, activation, rule, next_block, interpreted,
        )  # fmt: skip
    else:  # temporaries of all columns at once would spill
        half: tl.constexpr = acc.shape[1] // 2
        one, other = tl.split(acc.reshape((acc.shape[0], 2, half)).permute((0, 2, 1)))
        finish(
            one, rows, column, m, n, bias, residual, amax, out, out_scales, out_tensor_scale,
            first, activation, rule, next_block, interpreted,
        )  # fmt: skip
        finish(
            other, rows, column + half, m, n, bias, residual, amax, out, out_scales,
            out_tensor_scale, first, activation, rule, next_block, interpreted,
        )  # fmt: skip


@triton.jit
def _finish_at_once(
    acc, rows, column, m, n, bias, residual, amax, out, out_scales, out_tensor_scale, first,
    activation: tl.constexpr, rule: tl.constexpr, next_block: tl.constexpr,
    interpreted: tl.constexpr,
):  # fmt: skip
    """`finish`, all columns side by side."""
    if bias is not None:
        at = column + tl.arange(0, acc.shape[1])
        acc += _added(bias + at, at < n)[None, :]
    acc = activated(acc, activation)
    if activation == "swiglu":
        column, n = column // 2, n // 2
    at = column + tl.arange(0, acc.shape[1])
    inside = (rows[:, None] < m) & (at[None, :] < n)
    place = rows[:, None] * n + at[None, :]
    if residual is not None:
        acc += _added(residual + place, inside)
    if rule != "":
        _store_quantized(
            acc, rows, column, m, n, out, out_scales, out_tensor_scale, amax, first, rule,
            next_block,
        )  # fmt: skip
    elif out.dtype.element_ty == tl.bfloat16:
        tl.store(out + place, _to_bfloat16(acc, interpreted), mask=inside)
    else:
        tl.store(out + place, acc, mask=inside)


@triton.jit
def scaled_by(acc, x_tensor_scale, w_tensor_scale):
    """Sums times the tensor scales; plain activations have none."""
    if x_tensor_scale is not None:
        acc *= tl.load(x_tensor_scale)
    return acc * tl.load(w_tensor_scale)


@triton.jit
def gemm_finish_kernel(
    x, x_scales, x_tensor_scale, w, w_scales, w_tensor_scale,
    bias, residual, amax, out, out_scales, out_tensor_scale, m, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr, fp32: tl.constexpr, weight_only: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, split_k: tl.constexpr, even_k: tl.constexpr,
    activation: tl.constexpr, rule: tl.constexpr, next_block: tl.constexpr,
    interpreted: tl.constexpr,
):  # fmt: skip
    """decode_kernel.gemm_kernel where K is not shared out, with an epilogue."""
    acc, tile_m, tile_n = decoded_sums(
        x, x_scales, w, w_scales, m, n, k, block, nvfp4, fp32, weight_only,
        block_m, block_n, block_k, group_m, split_k, even_k, interpreted,
    )  # fmt: skip
    acc = scaled_by(acc, x_tensor_scale, w_tensor_scale)
    rows = tile_m * block_m + tl.arange(0, block_m)
    finish(
        acc, rows, tile_n * block_n, m, n, bias, residual, amax,
        out, out_scales, out_tensor_scale, tl.program_id(0) == 0,
        activation, rule, next_block, interpreted,
    )  # fmt: skip


@triton.jit
def interleaved_finish_kernel(
    x, w, w_scales, x_tensor_scale, w_tensor_scale,
    bias, residual, amax, out, out_scales, out_tensor_scale, m, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr, direct: tl.constexpr, weight_only: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, split_k: tl.constexpr, weights_first: tl.constexpr,
    even_k: tl.constexpr,
    activation: tl.constexpr, rule: tl.constexpr, next_block: tl.constexpr,
    interpreted: tl.constexpr,
):  # fmt: skip
    """interleaved_kernel.interleaved_kernel where K is not shared out, with an epilogue."""
    acc, tile_m, tile_n = interleaved_sums(
        x, w, w_scales, m, n, k, block, nvfp4, direct, block_m, block_n, block_k,
        group_m, split_k, weights_first, even_k, interpreted,
    )  # fmt: skip
    acc = scaled_by(acc, x_tensor_scale, w_tensor_scale)
    rows = tile_m * block_m + tl.arange(0, block_m)
    finish(
        acc, rows, tile_n * block_n, m, n, bias, residual, amax,
        out, out_scales, out_tensor_scale, tl.program_id(0) == 0,
        activation, rule, next_block, interpreted,
    )  # fmt: skip


@triton.jit
def scaled_finish_kernel(
    x, x_scales, x_tensor_scale, w, w_scales, w_tensor_scale,
    bias, residual, amax, out, out_scales, out_tensor_scale, m, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr, weight_only: tl.constexpr,
    x_swizzled: tl.constexpr, w_swizzled: tl.constexpr, swapped: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, even_k: tl.constexpr,
    activation: tl.constexpr, rule: tl.constexpr, next_block: tl.constexpr,
    interpreted: tl.constexpr,
):  # fmt: skip
    """dot_scaled_kernel.scaled_gemm_kernel with an epilogue."""
    acc, tile_m, tile_n = scaled_sums(
        x, x_scales, w, w_scales, m, n, k, block, nvfp4, weight_only, x_swizzled, w_swizzled,
        swapped, block_m, block_n, block_k, group_m, even_k, interpreted,
    )  # fmt: skip
    acc = scaled_by(acc, x_tensor_scale, w_tensor_scale)
    rows = tile_m * block_m + tl.arange(0, block_m)
    finish(
        acc, rows, tile_n * block_n, m, n, bias, residual, amax,
        out, out_scales, out_tensor_scale, tl.program_id(0) == 0,
        activation, rule, next_block, interpreted,
    )  # fmt: skip


@triton.jit
def fp8_finish_kernel(
    x, x_tops, x_tensor_scale, w, w_tops, w_tensor_scale,
    bias, residual, amax, out, out_scales, out_tensor_scale, m, n, k, w_stride,
    x_peak: tl.constexpr, w_peak: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, promote: tl.constexpr, even_k: tl.constexpr,
    activation: tl.constexpr, rule: tl.constexpr, next_block: tl.constexpr,
    interpreted: tl.constexpr,
):  # fmt: skip
    """fold_kernel.fp8_gemm_kernel with an epilogue."""
    acc, tile_m, tile_n = folded_sums(
        x, x_tops, w, w_tops, m, n, k, w_stride, x_peak, w_peak,
        block_m, block_n, block_k, group_m, promote, even_k, interpreted,
    )  # fmt: skip
    acc = scaled_by(acc, x_tensor_scale, w_tensor_scale)
    rows = tile_m * block_m + tl.arange(0, block_m)
    finish(
        acc, rows, tile_n * block_n, m, n, bias, residual, amax,
        out, out_scales, out_tensor_scale, tl.program_id(0) == 0,
        activation, rule, next_block, interpreted,
    )  # fmt: skip


@triton.jit
def reduce_finish_kernel(
    partial, x_tensor_scale, w_tensor_scale,
    bias, residual, amax, out, out_scales, out_tensor_scale, m, n, size,
    split_k: tl.constexpr, elements: tl.constexpr,
    activation: tl.constexpr, rule: tl.constexpr, next_block: tl.constexpr,
    interpreted: tl.constexpr,
):  # fmt: skip
    """Sum the shares of K, each of `size` sums, in order; finish `elements` columns of one row."""
    row, column = tl.program_id(0), tl.program_id(1) * elements
    at = column + tl.arange(0, elements)
    partial += row.to(tl.int64) * n + at
    total = tl.zeros((elements,), tl.float32)
    for _ in tl.static_range(split_k):
        total += tl.load(partial, mask=at < n, other=0.0)
        partial += size
    acc = scaled_by(total, x_tensor_scale, w_tensor_scale).reshape((1, elements))
    first = (row == 0) & (tl.program_id(1) == 0)
    finish(
        acc, row + tl.arange(0, 1), column, m, n, bias, residual, amax,
        out, out_scales, out_tensor_scale, first, activation, rule, next_block, interpreted,
    )  # fmt: skip
