# mypy: ignore-errors
"""W4A4 and W4A16 GEMM by decoding E2M1 to bf16 inside the K loop; importing this needs triton.

Every decoded value is exact, so bf16 tensor cores see the very numbers of reference.dequantize:

    E2M1 x FP32   no bf16 number: the values alone are, and scales multiply the sums of blocks
    E2M1 x E4M3   2 + 4 significant bits and exponents from -10 to 11: always a bf16 number
    E2M1 x E8M0   2 significant bits; bf16 has the exponent range of float32, down to subnormals,
                  so byte 0 (2^-127) is held, and byte 254 overflows to Inf where float32 does

This needs subnormal bf16 operands in multiplies and in the MMA; neither flushes them.
"""

import triton
import triton.language as tl

E2M1_BIAS = tl.constexpr(2.0**126)  # bf16's exponent bias less E2M1's
E4M3_BIAS = tl.constexpr(2.0**60)  # half of bf16's exponent bias less E4M3's: 2^120 is two steps


@triton.jit
def _from_bits(bits, interpreted: tl.constexpr):
    """uint16 → the bf16 number with these bits; as float32 where numpy has no bf16."""
    if interpreted:
        return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return bits.to(tl.bfloat16, bitcast=True)


@triton.jit
def _to_bfloat16(x, interpreted: tl.constexpr):
    """float32 → bf16, to nearest even, which the interpreter's own cast is not."""
    if interpreted:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(tl.bfloat16)


@triton.jit
def decode_scales(scales, nvfp4: tl.constexpr, interpreted: tl.constexpr):
    """Scale bytes → their values."""
    byte = scales.to(tl.uint16)
    if nvfp4:
        placed = ((byte & 0x80) << 8) | ((byte & 0x7F) << 4)
        value = _from_bits(placed.to(tl.uint16), interpreted) * E4M3_BIAS * E4M3_BIAS
        return tl.where((byte & 0x7F) == 0x7F, float("nan"), value)
    bits = tl.maximum(byte << 7, 0x40)  # byte 0 is 2^-127, a subnormal
    return _from_bits(tl.where(byte == 255, 0x7FC0, bits).to(tl.uint16), interpreted)


@triton.jit
def decode(codes, scales, nvfp4: tl.constexpr, interpreted: tl.constexpr):
    """codes [R, C] and scale bytes [R, 2C/block], of E4M3 if `nvfp4` and else of E8M0 → values
    [R, 2C]."""
    rows: tl.constexpr = codes.shape[0]
    columns: tl.constexpr = codes.shape[1] * 2
    blocks: tl.constexpr = scales.shape[1]
    values = decode_codes(codes, interpreted).reshape((rows, blocks, columns // blocks))
    # two multiplies, since 2^126 times an E8M0 scale may overflow where the value does not
    values = values * decode_scales(scales, nvfp4, interpreted)[:, :, None]
    return values.reshape((rows, columns))


@triton.jit
def decode_codes(codes, interpreted: tl.constexpr):
    """codes [R, C] → values [R, 2C] without scales."""
    rows: tl.constexpr = codes.shape[0]
    columns: tl.constexpr = codes.shape[1] * 2
    # both nibbles at once: sign to bit 15, magnitude to bits 6..8 of the two halves of 32 bits
    pair = codes.to(tl.uint32)
    pair = pair | (pair << 12)
    pair = ((pair & 0x00080008) << 12) | ((pair & 0x00070007) << 6)
    bits = tl.join((pair & 0xFFFF).to(tl.uint16), (pair >> 16).to(tl.uint16))
    return _from_bits(bits.reshape((rows, columns)), interpreted) * E2M1_BIAS


@triton.jit
def _load(pointers, columns, limit, even_k: tl.constexpr):
    """A tile whose columns from `limit` on are zero: code 0 is zero under any finite scale."""
    if even_k:
        return tl.load(pointers)
    return tl.load(pointers, mask=columns[None, :] < limit, other=0)


@triton.jit
def _tile(index, m, n, block_m: tl.constexpr, block_n: tl.constexpr, group_m: tl.constexpr):
    """Row and column of an output tile: down `group_m` rows of tiles before the next column."""
    tiles_m, tiles_n = tl.cdiv(m, block_m), tl.cdiv(n, block_n)
    first = index // (group_m * tiles_n) * group_m
    height = tl.minimum(tiles_m - first, group_m)
    within = index % (group_m * tiles_n)
    return first + within % height, within // height


@triton.jit
def decoded_sums(
    x, x_scales, w, w_scales, m, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr, fp32: tl.constexpr, weight_only: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, split_k: tl.constexpr,
    even_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Sums of one tile over one share of K, without tensor scales, and the tile's row and column."""
    tile_m, tile_n = _tile(tl.program_id(0), m, n, block_m, block_n, group_m)
    share = tl.program_id(1)
    rows = tile_m * block_m + tl.arange(0, block_m)
    columns = tile_n * block_n + tl.arange(0, block_n)
    x_rows = (rows % m)[:, None]  # rows past the edge read others and are never stored
    w_rows = (columns % n)[:, None]

    tiles_k = tl.cdiv(k, block_k)
    first, last = share * tiles_k // split_k, (share + 1) * tiles_k // split_k
    values = tl.arange(0, block_k)
    codes = tl.arange(0, block_k // 2)
    blocks = tl.arange(0, block_k // block)

    w += w_rows * (k // 2) + (first * (block_k // 2) + codes)[None, :]
    w_scales += w_rows * (k // block) + (first * (block_k // block) + blocks)[None, :]
    if weight_only:
        x += x_rows * k + (first * block_k + values)[None, :]
    else:
        x += x_rows * (k // 2) + (first * (block_k // 2) + codes)[None, :]
        x_scales += x_rows * (k // block) + (first * (block_k // block) + blocks)[None, :]

    acc = tl.zeros((block_m, block_n), tl.float32)
    for tile_k in range(first, last):
        left = k - tile_k * block_k
        w_codes = _load(w, codes, left // 2, even_k)
        w_bytes = _load(w_scales, blocks, left // block, even_k)
        if weight_only:
            a = _load(x, values, left, even_k)
            if interpreted:
                a = _from_bits(a.to(tl.uint16, bitcast=True), interpreted)
            x += block_k
        else:
            x_codes = _load(x, codes, left // 2, even_k)
            x_bytes = _load(x_scales, blocks, left // block, even_k)
            if fp32:
                a = decode_codes(x_codes, interpreted)
            else:
                a = decode(x_codes, x_bytes, nvfp4, interpreted)
            x += block_k // 2
            x_scales += block_k // block
        if fp32:  # a tile is one block long
            b = decode_codes(w_codes, interpreted)
            part = tl.dot(a, b.T, input_precision="ieee") * w_bytes.reshape((1, block_n))
            acc += part if weight_only else part * x_bytes
        else:
            b = decode(w_codes, w_bytes, nvfp4, interpreted)
            acc = tl.dot(a, b.T, acc, input_precision="ieee")
        w += block_k // 2
        w_scales += block_k // block
    return acc, tile_m, tile_n


@triton.jit
def gemm_kernel(
    x, x_scales, x_tensor_scale, w, w_scales, w_tensor_scale, out, m, n, k,
    block: tl.constexpr, nvfp4: tl.constexpr, fp32: tl.constexpr, weight_only: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr, split_k: tl.constexpr,
    even_k: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """One tile of out [M, N], or of one share of K in a float32 workspace [split_k, M, N]."""
    acc, tile_m, tile_n = decoded_sums(
        x, x_scales, w, w_scales, m, n, k, block, nvfp4, fp32, weight_only,
        block_m, block_n, block_k, group_m, split_k, even_k, interpreted,
    )  # fmt: skip
    rows = tile_m * block_m + tl.arange(0, block_m)
    columns = tile_n * block_n + tl.arange(0, block_n)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    if split_k == 1:
        if not weight_only:
            acc *= tl.load(x_tensor_scale)
        acc *= tl.load(w_tensor_scale)
    else:
        out += tl.program_id(1).to(tl.int64) * m * n
    out += rows[:, None] * n + columns[None, :]
    if out.dtype.element_ty == tl.bfloat16:
        tl.store(out, _to_bfloat16(acc, interpreted), mask=inside)
    else:
        tl.store(out, acc, mask=inside)


@triton.jit
def reduce_kernel(
    partial, x_tensor_scale, w_tensor_scale, out, size,
    split_k: tl.constexpr, weight_only: tl.constexpr,
    elements: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Sum the shares of K in order, so that every run rounds alike."""
    index = tl.program_id(0) * elements + tl.arange(0, elements)
    inside = index < size
    total = tl.zeros((elements,), tl.float32)
    for _ in tl.static_range(split_k):
        total += tl.load(partial + index, mask=inside)
        partial += size
    if not weight_only:
        total *= tl.load(x_tensor_scale)
    total *= tl.load(w_tensor_scale)
    if out.dtype.element_ty == tl.bfloat16:
        tl.store(out + index, _to_bfloat16(total, interpreted), mask=inside)
    else:
        tl.store(out + index, total, mask=inside)
