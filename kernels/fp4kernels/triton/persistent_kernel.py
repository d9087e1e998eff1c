# mypy: ignore-errors
"""W4A4 GEMM whose programs stay: each multiplies one tile after another; importing this needs triton.

Operands, scales and the output are descriptors, so that the copy engine moves whole boxes past the
registers. A box reaches over the edge as zeros, and what it stores beyond is dropped: no masks. Scales
are those of fp4kernels.swizzle, [bands of 128 rows, columns / 4, 2, 256]: one box is contiguous lines,
which go to the multiplier as they lie. Arithmetic is that of fp4kernels.triton.dot_scaled_kernel.
"""

import triton
import triton.language as tl

from fp4kernels.triton.decode_kernel import _tile, _to_bfloat16
from fp4kernels.triton.dot_scaled_kernel import _multiply


@triton.jit
def _scales(lines, band, column, rows: tl.constexpr, columns: tl.constexpr):
    """[rows, columns] scales from the box at (`band`, `column`): lines are renamed, nothing moves."""
    box = lines.load([band, column, 0, 0]).reshape(rows // 128, columns // 4, 32, 4, 4)
    return box.trans(0, 3, 2, 1, 4).reshape(rows, columns)


@triton.jit
def _store(out, acc, row, column, parts: tl.constexpr, interpreted: tl.constexpr):
    """The tile [R, C] in `parts` boxes of C / parts columns."""
    rows: tl.constexpr = acc.shape[0]
    columns: tl.constexpr = acc.shape[1]
    if parts == 1:
        if out.dtype == tl.bfloat16:
            out.store([row, column], _to_bfloat16(acc, interpreted))
        else:
            out.store([row, column], acc)
    else:
        half: tl.constexpr = columns // 2
        left, right = acc.reshape(rows, 2, half).permute(0, 2, 1).split()
        _store(out, left, row, column, parts // 2, interpreted)
        _store(out, right, row, column + half, parts // 2, interpreted)


@triton.jit
def persistent_kernel(
    x, x_scales, x_tensor_scale, w, w_scales, w_tensor_scale, out, m, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, parts: tl.constexpr,
    flatten: tl.constexpr, warp_specialize: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """out [M, N], by as many programs as there are cores, or fewer."""
    step: tl.constexpr = block_k // block  # scales of a row
    tiles = tl.cdiv(m, block_m) * tl.cdiv(n, block_n)
    x_scale, w_scale = tl.load(x_tensor_scale), tl.load(w_tensor_scale)
    for index in tl.range(
        tl.program_id(0), tiles, tl.num_programs(0),
        flatten=flatten, warp_specialize=warp_specialize,
    ):  # fmt: skip
        tile_m, tile_n = _tile(index, m, n, block_m, block_n, group_m)
        row, column = tile_m * block_m, tile_n * block_n
        acc = tl.zeros((block_m, block_n), tl.float32)
        for tile_k in range(tl.cdiv(k, block_k)):
            a = x.load([row, tile_k * (block_k // 2)])
            b = w.load([column, tile_k * (block_k // 2)])
            a_scales = _scales(x_scales, row // 128, tile_k * (step // 4), block_m, step)
            b_scales = _scales(w_scales, column // 128, tile_k * (step // 4), block_n, step)
            acc = _multiply(a, a_scales, b, b_scales, acc, False, False, nvfp4, interpreted)
        acc *= x_scale
        acc *= w_scale
        _store(out, acc, row, column, parts, interpreted)
