# mypy: ignore-errors
"""W4A4 and W4A16 GEMM by block-scaled matrix instructions; importing this needs triton.

What `tl.dot_scaled` compiles to decides what is exact; sums are float32 everywhere, rounded within
an instruction as the hardware does, which no device here has shown.

    native    The multiplier takes codes and scale bytes. A product of two codes has at most 4
              significant bits and that of two E4M3 scales 8: float32 holds them both.
    emulated  Triton decodes to bf16 and multiplies by the scale in bf16: exact, as
              fp4kernels.triton.decode_kernel shows, but for the scale byte 0 of E8M0 (2^-127),
              which Triton before 3.9 takes for zero: an error below 6 * 2^-127 a value.

An E8M0 byte of 254 times a code of 2 or more is Inf where values are decoded, as in
reference.dequantize; a native multiplier adds the exponents of both scales first and may stay
finite. Byte 255, and 0x7F and 0xFF of E4M3, are NaN everywhere. The tensor scales of NVFP4 are no
powers of two: they multiply the sums.
"""

import triton
import triton.language as tl

from fp4kernels.triton.decode_kernel import _from_bits, _tile, _to_bfloat16, decode

SCALES = tl.constexpr(512)  # in a tile of fp4kernels.swizzle: 128 rows by 4 columns


@triton.jit
def _as_e4m3(scales):
    """The pointer that says which format the bytes are; a tensor of them would be moved twice."""
    return scales.to(tl.pointer_type(tl.float8e4nv), bitcast=True)


@triton.jit
def _load(pointers, columns, limit, even_k: tl.constexpr):
    """A tile whose columns from `limit` on are zero; only a float becomes E4M3."""
    if even_k:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=columns[None, :] < limit, other=0.0)
    return tile


@triton.jit
def _load_swizzled(
    scales, tile, tiles, first, across,
    rows: tl.constexpr, columns: tl.constexpr, even_k: tl.constexpr,
):  # fmt: skip
    """[rows, columns] scales of a matrix that is `tiles` by `across` tiles of fp4kernels.swizzle.

    Whole lines are read, and only renamed after: so they go from memory to the multiplier as they
    are. Bands of 128 rows past the last read it again; tiles past `across` are zeros.
    """
    down: tl.constexpr = rows // 128
    wide: tl.constexpr = columns // 4
    bands = tl.minimum(tile * down + tl.arange(0, down), tiles - 1)
    within = tl.arange(0, wide * SCALES)
    pointers = scales + (bands[:, None] * across + first) * SCALES + within[None, :]
    if even_k:
        line = tl.load(pointers)
    else:
        line = tl.load(pointers, mask=(first + within // SCALES)[None, :] < across, other=0.0)
    line = line.reshape(down, wide, 32, 4, 4)
    return line.trans(0, 3, 2, 1, 4).reshape(rows, columns)


@triton.jit
def _values(operand, scales, plain: tl.constexpr, nvfp4: tl.constexpr):
    """What the interpreter multiplies in place of dot_scaled."""
    if plain:
        return _from_bits(operand.to(tl.uint16, bitcast=True), True)
    else:
        return decode(operand, scales, nvfp4, True)


@triton.jit
def _multiply(
    left, left_scales, right, right_scales, acc,
    left_plain: tl.constexpr, right_plain: tl.constexpr,
    nvfp4: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """acc plus left [R, K] times right [C, K] transposed; a plain side is bf16 without scales.

    The interpreter's dot_scaled takes all scales for E8M0 and rounds bf16 to fp16, so what it does
    not know is multiplied decoded.
    """
    left_format: tl.constexpr = "bf16" if left_plain else "e2m1"
    right_format: tl.constexpr = "bf16" if right_plain else "e2m1"
    if interpreted and (nvfp4 or left_plain or right_plain):
        a = _values(left, left_scales, left_plain, nvfp4)
        b = _values(right, right_scales, right_plain, nvfp4)
        acc = tl.dot(a, b.T, acc, input_precision="ieee")
    else:
        acc = tl.dot_scaled(
            left, left_scales, left_format, right.T, right_scales, right_format, acc
        )
    return acc


@triton.jit
def scaled_sums(
    x, x_scales, w, w_scales, m, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr, weight_only: tl.constexpr,
    x_swizzled: tl.constexpr, w_swizzled: tl.constexpr, swapped: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, even_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Sums of one tile, without tensor scales, and the tile's row and column; if `swapped`, weights
    are the rows of the matrix instruction."""
    tile_m, tile_n = _tile(tl.program_id(0), m, n, block_m, block_n, group_m)
    rows = tile_m * block_m + tl.arange(0, block_m)
    columns = tile_n * block_n + tl.arange(0, block_n)
    x_rows = (rows % m)[:, None]  # rows past the edge read others and are never stored
    w_rows = (columns % n)[:, None]
    values = tl.arange(0, block_k)
    codes = tl.arange(0, block_k // 2)
    blocks = tl.arange(0, block_k // block)
    step: tl.constexpr = block_k // block  # scales of a row
    across = tl.cdiv(k // block, 4)

    if nvfp4 and not interpreted:
        w_scales = _as_e4m3(w_scales)
        if not weight_only:
            x_scales = _as_e4m3(x_scales)
    w += w_rows * (k // 2) + codes[None, :]
    if not w_swizzled:
        w_scales += w_rows * (k // block) + blocks[None, :]
    if weight_only:
        x += x_rows * k + values[None, :]
    else:
        x += x_rows * (k // 2) + codes[None, :]
        if not x_swizzled:
            x_scales += x_rows * (k // block) + blocks[None, :]

    if swapped:
        acc = tl.zeros((block_n, block_m), tl.float32)
    else:
        acc = tl.zeros((block_m, block_n), tl.float32)
    for tile_k in range(tl.cdiv(k, block_k)):
        left = k - tile_k * block_k
        b = _load(w, codes, left // 2, even_k)
        w += block_k // 2
        if w_swizzled:
            b_scales = _load_swizzled(
                w_scales, tile_n, tl.cdiv(n, 128), tile_k * (step // 4), across,
                block_n, step, even_k,
            )  # fmt: skip
        else:
            b_scales = _load(w_scales, blocks, left // block, even_k)
            w_scales += step
        if weight_only:
            a = _load(x, values, left, even_k)
            a_scales = None
            x += block_k
        else:
            a = _load(x, codes, left // 2, even_k)
            x += block_k // 2
            if x_swizzled:
                a_scales = _load_swizzled(
                    x_scales, tile_m, tl.cdiv(m, 128), tile_k * (step // 4), across,
                    block_m, step, even_k,
                )  # fmt: skip
            else:
                a_scales = _load(x_scales, blocks, left // block, even_k)
                x_scales += step
        if swapped:
            acc = _multiply(b, b_scales, a, a_scales, acc, False, weight_only, nvfp4, interpreted)
        else:
            acc = _multiply(a, a_scales, b, b_scales, acc, weight_only, False, nvfp4, interpreted)

    if swapped:
        acc = acc.T
    return acc, tile_m, tile_n


@triton.jit
def scaled_gemm_kernel(
    x, x_scales, x_tensor_scale, w, w_scales, w_tensor_scale, out, m, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr, weight_only: tl.constexpr,
    x_swizzled: tl.constexpr, w_swizzled: tl.constexpr, swapped: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, even_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """One tile of out [M, N]."""
    acc, tile_m, tile_n = scaled_sums(
        x, x_scales, w, w_scales, m, n, k, block, nvfp4, weight_only, x_swizzled, w_swizzled,
        swapped, block_m, block_n, block_k, group_m, even_k, interpreted,
    )  # fmt: skip
    rows = tile_m * block_m + tl.arange(0, block_m)
    columns = tile_n * block_n + tl.arange(0, block_n)
    if not weight_only:
        acc *= tl.load(x_tensor_scale)
    acc *= tl.load(w_tensor_scale)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    out += rows[:, None] * n + columns[None, :]
    if out.dtype.element_ty == tl.bfloat16:
        tl.store(out, _to_bfloat16(acc, interpreted), mask=inside)
    else:
        tl.store(out, acc, mask=inside)


@triton.jit
def swizzle_kernel(scales, line, rows, columns, elements: tl.constexpr):
    """Scales [rows, columns] → the line of fp4kernels.swizzle, its padding zeros."""
    at = tl.program_id(0) * elements + tl.arange(0, elements)
    tile, within = at // SCALES, at % SCALES
    across = tl.cdiv(columns, 4)
    row = tile // across * 128 + within % 16 // 4 * 32 + within // 16
    column = tile % across * 4 + within % 4
    inside = (row < rows) & (column < columns)
    byte = tl.load(scales + row * columns + column, mask=inside, other=0)
    tl.store(line + at, byte, mask=row < tl.cdiv(rows, 128) * 128)
