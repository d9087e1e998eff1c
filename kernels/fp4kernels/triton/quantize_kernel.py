# mypy: ignore-errors
"""bf16, fp16 or fp32 to MXFP4 and NVFP4, bit for bit as `reference`; importing this needs triton.

Magnitudes are compared, and scales made, on the bits of float32: their order as integers is that of
the numbers, with Inf and then NaN above all. What remains in float32 is rounded where `scaling`
rounds: divisions are IEEE's, and the launcher forbids fused multiply-adds.
"""

import triton
import triton.language as tl

INF = tl.constexpr(0x7F800000)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
SIX = tl.constexpr(0x40C00000)  # E2M1's largest value
FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)
SIXTH = tl.constexpr(1 / 6)
E4M3_MAX = tl.constexpr(448.0)
LARGEST = tl.constexpr(6 * 448.0)  # what a tensor's largest value becomes, before its scales
E4M3_BIAS = tl.constexpr(2.0**120)  # float32's exponent bias less E4M3's
E4M3_NAN = tl.constexpr(0x7F)
STEPS = tl.constexpr(4)  # tiles of one program that looks for amax: as many fewer atomics


@triton.jit
def _bits(x):
    """bf16, fp16 or fp32 → the bits of the same float32."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.int32, bitcast=True)
    return x.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def _nearest(magnitude, mantissa: tl.constexpr, least: tl.constexpr, most: tl.constexpr):
    """Bits of a finite magnitude → its code, to nearest even; `most` is the largest code.

    The format has `mantissa` bits and normal numbers from the biased exponent `least` on. In the
    binade 23 - mantissa above the number's own, float32 has the format's steps: adding a power of
    two there leaves their number in the low bits, and the binade in the exponent.
    """
    up: tl.constexpr = 23 - mantissa
    binade = tl.maximum(magnitude & INF, least << 23).to(tl.float32, bitcast=True)
    rounded = magnitude.to(tl.float32, bitcast=True) + binade * (2.0**up)
    bits = rounded.to(tl.int32, bitcast=True)
    return (bits + (bits >> up) - ((least + up) << mantissa)) & most


@triton.jit
def _exponent_above(amax):
    """As scaling._exponent_above."""
    exponent = amax >> 23
    least = tl.where(exponent > 0, 0, 0x400000)
    return exponent + ((amax & 0x7FFFFF) > least).to(tl.int32)


@triton.jit
def _power_of_two(amax, rule: tl.constexpr):
    """Bits of amax → the E8M0 byte, and the float32 that values are multiplied by."""
    if rule == "floor":
        byte = (amax >> 23) - 2
    elif rule == "ceil":
        byte = _exponent_above(amax) - 2
    elif rule == "rceil":
        sixth = tl.div_rn(amax.to(tl.float32, bitcast=True), 6.0)
        byte = _exponent_above(sixth.to(tl.int32, bitcast=True))
    else:
        tl.static_assert(rule == "even")
        byte = ((amax + (1 << 21)) >> 23) - 2
    byte = tl.where(amax < INF, tl.minimum(tl.maximum(byte, 0), 254), 255)
    inverse = tl.maximum((254 - byte) << 23, 0x400000)  # byte 0 is 2^-127, a subnormal
    return byte, inverse.to(tl.float32, bitcast=True)


@triton.jit
def _under(amax, tensor_amax):
    """As scaling._nv: bits of amax → the E4M3 byte, and the float32 that values are multiplied by.

    Inf in a block is NaN where the tensor's amax, given from outside, did not foresee it.
    """
    encode = tl.div_rn(LARGEST, tensor_amax)
    encode = tl.where(encode > FLOAT32_MAX, FLOAT32_MAX, encode)  # unlike a minimum, keeps NaN
    encode = tl.where((tensor_amax == 0.0) | (encode == 0.0), 1.0, encode)
    wanted = amax.to(tl.float32, bitcast=True) * (encode * SIXTH)
    wanted = tl.where(wanted > E4M3_MAX, E4M3_MAX, wanted)
    bad = tl.where(tensor_amax < float("inf"), INF, MAGNITUDE)
    lost = (wanted != wanted) | (amax >= bad)
    byte = tl.where(lost, E4M3_NAN, _nearest(wanted.to(tl.int32, bitcast=True), 3, 121, 0x7F))
    scale = (byte << 20).to(tl.float32, bitcast=True) * E4M3_BIAS
    inverse = tl.div_rn(1.0, scale * tl.div_rn(1.0, encode))
    inverse = tl.where(inverse > FLOAT32_MAX, FLOAT32_MAX, inverse)
    return byte, tl.where(lost, float("nan"), inverse)


@triton.jit
def _swizzled(index, across):
    """Where the scale of a block stands in the layout of fp4kernels.swizzle."""
    row, column = index // across, index % across
    tile = row // 128 * ((across + 3) // 4) + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4


@triton.jit
def quantize_kernel(
    x, amax, codes, scales, tensor_scale, total, across,
    block: tl.constexpr, rule: tl.constexpr, swizzle: tl.constexpr, blocks: tl.constexpr,
):  # fmt: skip
    """`blocks` of the `total` blocks of x, of which `across` lie in a row."""
    program = tl.program_id(0)
    index = program * blocks + tl.arange(0, blocks)
    inside = (index < total)[:, None]
    base = index.to(tl.int64)[:, None]  # values may be more than 2^31
    bits = _bits(tl.load(x + base * block + tl.arange(0, block)[None, :], mask=inside, other=0.0))
    largest = tl.max(bits & MAGNITUDE, axis=1)
    if rule == "nv":
        tensor_amax = tl.load(amax)
        byte, inverse = _under(largest, tensor_amax)
        if program == 0:
            tl.store(tensor_scale, tl.div_rn(tensor_amax, LARGEST))
    else:
        byte, inverse = _power_of_two(largest, rule)

    scaled = (bits.to(tl.float32, bitcast=True) * inverse[:, None]).to(tl.int32, bitcast=True)
    code = _nearest(tl.minimum(scaled & MAGNITUDE, SIX), 1, 127, 7) | ((scaled >> 28) & 8)
    low, high = tl.split(code.reshape((blocks, block // 2, 2)))
    bytes_at = base * (block // 2) + tl.arange(0, block // 2)[None, :]
    tl.store(codes + bytes_at, (low | (high << 4)).to(tl.uint8), mask=inside)
    at = _swizzled(index, across) if swizzle else index
    tl.store(scales + at, byte.to(tl.uint8), mask=index < total)


@triton.jit
def amax_kernel(x, amax, size, values: tl.constexpr):
    """Raise the int32 `amax` to the largest bits of a magnitude in x; NaN is above all."""
    largest = tl.zeros((values,), tl.int32)
    base = tl.program_id(0).to(tl.int64) * (values * STEPS)
    for step in tl.static_range(STEPS):
        index = base + step * values + tl.arange(0, values)
        bits = _bits(tl.load(x + index, mask=index < size, other=0.0))
        largest = tl.maximum(largest, bits & MAGNITUDE)
    tl.atomic_max(amax, tl.max(largest, axis=0))
