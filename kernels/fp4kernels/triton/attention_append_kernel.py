# mypy: ignore-errors
"""New keys or values into the pages of a cache, bit for bit as fp4kernels.attention.storing but for
the sign of a NaN; importing this needs triton."""

import triton
import triton.language as tl

from fp4kernels.triton.block_scales import (
    FLOAT32_MAX,
    INF,
    MAGNITUDE,
    _exponent_above,
    power_of_two,
    single,
)
from fp4kernels.triton.codes import codes_of
from fp4kernels.triton.quantize_loads import pieces
from fp4kernels.triton.rotation import rotated
from fp4kernels.triton.within import largest

INT8_MAX = tl.constexpr(127 / 64)
ROUND = tl.constexpr(1.5 * 2**23)  # a sum with it is rounded to whole numbers, to nearest even


@triton.jit
def _of_eight_bits(amax):
    """As scaling._rceil for MXINT8: bits of amax → the E8M0 byte, and the multiplier."""
    share = tl.div_rn(amax.to(tl.float32, bitcast=True), INT8_MAX)
    byte = _exponent_above(share.to(tl.int32, bitcast=True))
    byte = tl.where(amax < INF, tl.minimum(tl.maximum(byte, 0), 254), 255)
    inverse = tl.maximum((254 - byte) << 23, 0x400000)  # byte 0 is 2^-127, a subnormal
    return byte, inverse.to(tl.float32, bitcast=True)


@triton.jit
def _int8_codes(y):
    """float32 → 64ths as signed bytes, saturated; NaN is the largest."""
    whole = tl.minimum(tl.maximum(y * 64.0, -127.0), 127.0) + ROUND
    return tl.where(y == y, whole.to(tl.int32, bitcast=True), 127)


@triton.jit
def append_kernel(
    x, codes, scales, scale, slots, total, kv_heads,
    d: tl.constexpr, block: tl.constexpr, eight_bit: tl.constexpr,
    size: tl.constexpr, minus: tl.constexpr,
    page_size: tl.constexpr, tokens_first: tl.constexpr, groups: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    """`groups` of the `total` groups of x [T, kv_heads, d], each of `step` values of one row."""
    index = tl.program_id(0) * groups + tl.arange(0, groups)
    inside = index < total
    across: tl.constexpr = d // step
    blocks: tl.constexpr = step // block
    row, piece = index // across, index % across
    head = row % kv_heads
    at = index.to(tl.int64)[:, None] * step  # values may be more than 2^31
    values = pieces(x, at, inside[:, None], groups, step)
    if size:
        values = rotated(values, groups, step, size, minus)
    if scale is not None:
        bits = values.to(tl.int32, bitcast=True) & MAGNITUDE
        values = values * tl.div_rn(1.0, tl.load(scale))
        clipped = tl.minimum(tl.maximum(values, -FLOAT32_MAX), FLOAT32_MAX)
        values = tl.where(bits < INF, clipped, values)
    values = values.reshape((groups, blocks, block))
    amax = largest(values, block).to(tl.int32, bitcast=True)
    if scale is not None:
        byte, inverse = single(amax)
    elif eight_bit:
        byte, inverse = _of_eight_bits(amax)
    else:
        byte, inverse = power_of_two(amax, "rceil")
    scaled = (values * inverse[:, :, None]).reshape((groups, step))

    slot = tl.load(slots + row // kv_heads, mask=inside, other=0)
    page, place = slot // page_size, slot % page_size
    if tokens_first:
        held = (page * page_size + place) * kv_heads + head
    else:
        held = (page * kv_heads + head) * page_size + place
    held = held * across + piece  # the group's place among groups of the cache
    if eight_bit:
        target = codes + held[:, None] * step + tl.arange(0, step)[None, :]
        tl.store(target, _int8_codes(scaled).to(tl.uint8), mask=inside[:, None])
    else:
        words = codes_of(scaled, "nearest", 0, 0, groups, step)
        target = codes + held[:, None] * (step // 8) + tl.arange(0, step // 8)[None, :]
        tl.store(target, words, mask=inside[:, None])
    target = scales + held[:, None] * blocks + tl.arange(0, blocks)[None, :]
    tl.store(target, byte.to(tl.uint8), mask=inside[:, None])
