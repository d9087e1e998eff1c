# mypy: ignore-errors
"""GEMMs of several experts in one launch: each row of x by its expert's weights.

The grid is as large as any offsets could need, and programs beyond the last tile leave: so the host
never learns how many tokens an expert has. Numbers as in fp4kernels.triton.decode_kernel, or, if
`scaled`, fp4kernels.triton.dot_scaled_kernel.
"""

import triton
import triton.language as tl

from fp4kernels.triton.decode_kernel import _from_bits, _to_bfloat16, decode
from fp4kernels.triton.dot_scaled_kernel import _as_e4m3, _load, _multiply


@triton.jit
def _expert_of(
    tile, offsets, experts, tokens, block_m: tl.constexpr, most_experts: tl.constexpr
):  # fmt: skip
    """Expert, first row and end of its rows of the `tile`-th tile; expert `experts` if none is left.

    Each expert has as many tiles as hold its rows, none if it has no rows.
    """
    index = tl.arange(0, most_experts)
    known = index < experts
    starts = tl.load(offsets + index, mask=known, other=0)
    ends = tl.load(offsets + index + 1, mask=known, other=0)
    tiles = (ends - starts + block_m - 1) // block_m
    past = tl.cumsum(tiles, 0)  # tiles of this expert and those before it
    expert = tl.sum((known & (past <= tile)).to(tl.int32), 0)
    chosen = index == expert
    before = tl.sum(tl.where(chosen, past - tiles, 0), 0)
    first = tl.sum(tl.where(chosen, starts, 0), 0) + (tile - before) * block_m
    return expert, first, tl.minimum(tl.sum(tl.where(chosen, ends, 0), 0), tokens)


@triton.jit
def _product(
    left, left_scales, right, right_scales, acc,
    left_plain: tl.constexpr, right_plain: tl.constexpr,
    nvfp4: tl.constexpr, scaled: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    if scaled:
        acc = _multiply(
            left, left_scales, right, right_scales, acc,
            left_plain, right_plain, nvfp4, interpreted,
        )  # fmt: skip
    else:
        a = _decoded(left, left_scales, left_plain, nvfp4, interpreted)
        b = _decoded(right, right_scales, right_plain, nvfp4, interpreted)
        acc = tl.dot(a, b.T, acc, input_precision="ieee")
    return acc


@triton.jit
def _decoded(
    operand, scales, plain: tl.constexpr, nvfp4: tl.constexpr, interpreted: tl.constexpr
):  # fmt: skip
    if not plain:
        values = decode(operand, scales, nvfp4, interpreted)
    elif interpreted:
        values = _from_bits(operand.to(tl.uint16, bitcast=True), interpreted)
    else:
        values = operand
    return values


@triton.jit
def grouped_kernel(
    x, x_scales, x_tensor_scale, w, w_scales, w_tensor_scales, offsets, out,
    tokens, experts, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr, weight_only: tl.constexpr,
    scaled: tl.constexpr, swapped: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    most_experts: tl.constexpr, even_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """One tile of out [T, N]: rows of one expert, whose weights are w[expert] of [E, N, K].

    Program ids run down the rows first, so that the tiles of an expert share its weights in the L2.
    """
    expert, first, end = _expert_of(
        tl.program_id(0), offsets, experts, tokens, block_m, most_experts
    )
    if expert >= experts:
        return
    rows = first + tl.arange(0, block_m)
    columns = tl.program_id(1) * block_n + tl.arange(0, block_n)
    x_rows = tl.minimum(rows, end - 1)[:, None]  # rows past the end are never stored
    w_rows = (columns % n)[:, None]
    values = tl.arange(0, block_k)
    codes = tl.arange(0, block_k // 2)
    blocks = tl.arange(0, block_k // block)

    of_expert = expert.to(tl.int64) * n  # all experts may hold more than 2^31 bytes
    w += of_expert * (k // 2)
    w_scales += of_expert * (k // block)
    if nvfp4 and scaled and not interpreted:
        w_scales = _as_e4m3(w_scales)
        if not weight_only:
            x_scales = _as_e4m3(x_scales)
    w += w_rows * (k // 2) + codes[None, :]
    w_scales += w_rows * (k // block) + blocks[None, :]
    if weight_only:
        x += x_rows * k + values[None, :]
    else:
        x += x_rows * (k // 2) + codes[None, :]
        x_scales += x_rows * (k // block) + blocks[None, :]

    if swapped:
        acc = tl.zeros((block_n, block_m), tl.float32)
    else:
        acc = tl.zeros((block_m, block_n), tl.float32)
    for tile_k in range(tl.cdiv(k, block_k)):
        left = k - tile_k * block_k
        b = _load(w, codes, left // 2, even_k)
        b_scales = _load(w_scales, blocks, left // block, even_k)
        w += block_k // 2
        w_scales += block_k // block
        if weight_only:
            a = _load(x, values, left, even_k)
            a_scales = None
            x += block_k
        else:
            a = _load(x, codes, left // 2, even_k)
            a_scales = _load(x_scales, blocks, left // block, even_k)
            x += block_k // 2
            x_scales += block_k // block
        if swapped:
            acc = _product(
                b, b_scales, a, a_scales, acc, False, weight_only, nvfp4, scaled, interpreted
            )
        else:
            acc = _product(
                a, a_scales, b, b_scales, acc, weight_only, False, nvfp4, scaled, interpreted
            )

    if swapped:
        acc = acc.T
    if not weight_only:
        acc *= tl.load(x_tensor_scale)
    acc *= tl.load(w_tensor_scales + expert)
    inside = (rows[:, None] < end) & (columns[None, :] < n)
    out += rows[:, None] * n + columns[None, :]
    if out.dtype.element_ty == tl.bfloat16:
        tl.store(out, _to_bfloat16(acc, interpreted), mask=inside)
    else:
        tl.store(out, acc, mask=inside)
