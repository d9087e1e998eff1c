# mypy: ignore-errors
"""MXFP4 folded into FP8 row by row, and a GEMM of FP8; importing this needs triton.

The numbers are those of fp4kernels.folding. They are made in float16, which shares its upper byte
with E5M2; E4M3 is the same bits one to the left, at 2^-8 of the value. Both keep all significant
bits, subnormals too, so each is exact.
"""

import triton
import triton.language as tl

from fp4kernels.triton.decode_kernel import _tile, _to_bfloat16

E2M1_BIAS = tl.constexpr(2.0**13)  # float16's exponent bias less E2M1's, less one
NAN = tl.constexpr(255)  # as an E8M0 byte
MOST = tl.constexpr(252)  # the largest byte under which no code overflows float32


@triton.jit
def _power_of_two16(exponent):
    """2^exponent as float16, for exponents of normal numbers."""
    return ((exponent + 15) << 10).to(tl.uint16).to(tl.float16, bitcast=True)


@triton.jit
def _fp8(codes, power, e5m2: tl.constexpr):
    """Codes of E2M1 (uint8) times 2^power → the bits of FP8 (uint8)."""
    wide = codes.to(tl.uint16)
    placed = (((wide & 8) << 12) | ((wide & 7) << 9)).to(tl.uint16).to(tl.float16, bitcast=True)
    if e5m2:
        bits = (placed * E2M1_BIAS * _power_of_two16(power + 1)).to(tl.uint16, bitcast=True)
        return (bits >> 8).to(tl.uint8)
    # from 2^-14 of the value to 2^-8 of it times 2^power
    bits = (placed * _power_of_two16(power + 6)).to(tl.uint16, bitcast=True)
    return (((bits >> 8) & 0x80) | ((bits >> 7) & 0x7F)).to(tl.uint8)


@triton.jit
def fold_kernel(
    codes, scales, out, tops, blocks_in_row,
    peak: tl.constexpr, window: tl.constexpr, block: tl.constexpr,
    across: tl.constexpr, blocks: tl.constexpr,
):  # fmt: skip
    """`blocks` blocks of one row, in a grid of rows x pieces; `across` holds a row of scales.

    A row whose scales leave the window, which none of such a recipe does, becomes NaN.
    """
    row, piece = tl.program_id(0), tl.program_id(1)
    scales += row * blocks_in_row
    column = tl.arange(0, across)
    byte = tl.load(scales + column, mask=column < blocks_in_row, other=0).to(tl.int32)
    top = tl.max(tl.where(byte == NAN, 0, byte), axis=0)
    stray = (byte < top - window) & (column < blocks_in_row)
    lost = tl.max(((byte == NAN) | stray | (byte > MOST)).to(tl.int32), axis=0) > 0
    if piece == 0:
        tl.store(tops + row, tl.where(lost, NAN, top).to(tl.uint8))

    index = piece * blocks + tl.arange(0, blocks)
    inside = (index < blocks_in_row)[:, None]
    power = tl.load(scales + index[:, None], mask=inside, other=0).to(tl.int32) - top + peak
    halves = tl.arange(0, block // 2)[None, :]
    first = row.to(tl.int64) * blocks_in_row
    at = (first + index)[:, None] * (block // 2) + halves
    packed = tl.load(codes + at, mask=inside, other=0)
    low, high = _fp8(packed & 0xF, power, peak == 13), _fp8(packed >> 4, power, peak == 13)
    values = tl.join(low, high).reshape((blocks, block))
    at = (first + index)[:, None] * block + tl.arange(0, block)[None, :]
    tl.store(out + at, values, mask=inside)


@triton.jit
def _from_fp8(x):
    """FP8 → float32, exactly, where Triton's interpreter is not."""
    byte = x.to(tl.uint8, bitcast=True).to(tl.uint16)
    if x.dtype == tl.float8e5:
        return (byte << 8).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    bits = ((byte & 0x80) << 8) | ((byte & 0x7F) << 7)
    return bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def _shift(tops, inside, peak: tl.constexpr):
    """Of rows: two powers of two whose product the row's numbers are multiples of; or NaN."""
    top = tl.load(tops, mask=inside, other=0).to(tl.int32)
    exponent = top - 127 - peak
    half = exponent >> 1  # both stay normal numbers
    one = ((half + 127) << 23).to(tl.float32, bitcast=True)
    other = ((exponent - half + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(top == NAN, float("nan"), one), other


@triton.jit
def folded_sums(
    x, x_tops, w, w_tops, m, n, k, w_stride,
    x_peak: tl.constexpr, w_peak: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, promote: tl.constexpr,
    even_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Sums of one tile, without tensor scales, and the tile's row and column."""
    tile_m, tile_n = _tile(tl.program_id(0), m, n, block_m, block_n, group_m)
    rows = tile_m * block_m + tl.arange(0, block_m)
    columns = tile_n * block_n + tl.arange(0, block_n)
    values = tl.arange(0, block_k)
    # rows past the edge read others and are never stored
    x += (rows % m)[:, None] * k + values[None, :]
    w += (columns % n)[:, None] * k + values[None, :]

    acc = tl.zeros((block_m, block_n), tl.float32)
    for tile_k in range(0, tl.cdiv(k, block_k)):
        left = k - tile_k * block_k
        if even_k:
            a, b = tl.load(x), tl.load(w)
        else:
            here = values[None, :] < left
            a, b = tl.load(x, mask=here, other=0.0), tl.load(w, mask=here, other=0.0)
        if interpreted:
            acc = tl.dot(_from_fp8(a), _from_fp8(b).T, acc, input_precision="ieee")
        elif promote == 0:
            acc = tl.dot(a, b.T, acc)
        else:
            acc = tl.dot(a, b.T, acc, max_num_imprecise_acc=promote)
        x += block_k
        w += block_k

    x_one, x_other = _shift(x_tops + rows, rows < m, x_peak)
    w_one, w_other = _shift(w_tops + columns * w_stride, columns < n, w_peak)
    # halves of both exponents at a time: nothing overflows or vanishes that the result does not
    acc = acc * (x_one[:, None] * w_one[None, :]) * (x_other[:, None] * w_other[None, :])
    return acc, tile_m, tile_n


@triton.jit
def fp8_gemm_kernel(
    x, x_tops, x_tensor_scale, w, w_tops, w_tensor_scale, out, m, n, k, w_stride,
    x_peak: tl.constexpr, w_peak: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, promote: tl.constexpr,
    even_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """One tile of out [M, N]. `w_stride` lies between the tops of two rows of w."""
    acc, tile_m, tile_n = folded_sums(
        x, x_tops, w, w_tops, m, n, k, w_stride, x_peak, w_peak,
        block_m, block_n, block_k, group_m, promote, even_k, interpreted,
    )  # fmt: skip
    rows = tile_m * block_m + tl.arange(0, block_m)
    columns = tile_n * block_n + tl.arange(0, block_n)
    acc = acc * tl.load(x_tensor_scale) * tl.load(w_tensor_scale)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    out += rows[:, None] * n + columns[None, :]
    if out.dtype.element_ty == tl.bfloat16:
        tl.store(out, _to_bfloat16(acc, interpreted), mask=inside)
    else:
        tl.store(out, acc, mask=inside)
