# mypy: ignore-errors
"""Scales of blocks, bit for bit as `scaling` makes them; importing this needs triton.

They are made on the bits of float32: their order as integers is that of the numbers, with Inf and
then NaN above all. What remains in float32 is rounded where `scaling` rounds: divisions are IEEE's,
and the launcher forbids fused multiply-adds.
"""

import triton
import triton.language as tl

INF = tl.constexpr(0x7F800000)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)
E4M3_MAX = tl.constexpr(448.0)
E4M3_BIAS = tl.constexpr(2.0**120)  # float32's exponent bias less E4M3's
E4M3_NAN = tl.constexpr(0x7F)


@triton.jit
def _exponent_above(amax):
    """As scaling._exponent_above."""
    exponent = amax >> 23
    least = tl.where(exponent > 0, 0, 0x400000)
    return exponent + ((amax & 0x7FFFFF) > least).to(tl.int32)


@triton.jit
def power_of_two(amax, rule: tl.constexpr):
    """Bits of amax → the E8M0 byte, and the float32 that values are multiplied by."""
    if rule == "floor" or rule == "floor-3/4":
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
    inverse = inverse.to(tl.float32, bitcast=True)
    return byte, inverse * 0.75 if rule == "floor-3/4" else inverse


@triton.jit
def encoding(tensor_amax, largest: tl.constexpr):
    """What a tensor is multiplied by before its block scales; `largest` is what its amax becomes."""
    encode = tl.div_rn(largest, tensor_amax)
    encode = tl.where(encode > FLOAT32_MAX, FLOAT32_MAX, encode)  # unlike a minimum, keeps NaN
    return tl.where((tensor_amax == 0.0) | (encode == 0.0), 1.0, encode)


@triton.jit
def under(amax, tensor_amax, encode, times: tl.constexpr):
    """As scaling._nv: bits of amax → the E4M3 byte, and the float32 that values are multiplied by.

    Inf in a block is NaN where the tensor's amax, given from outside, did not foresee it.
    """
    wanted = amax.to(tl.float32, bitcast=True) * (encode * (times / 6))
    wanted = tl.where(wanted > E4M3_MAX, E4M3_MAX, wanted)
    bad = tl.where(tensor_amax < float("inf"), INF, MAGNITUDE)
    lost = (wanted != wanted) | (amax >= bad)
    byte = tl.where(lost, E4M3_NAN, _e4m3(wanted))
    inverse = tl.div_rn(1.0, e4m3_value(byte) * tl.div_rn(1.0, encode))
    inverse = tl.where(inverse > FLOAT32_MAX, FLOAT32_MAX, inverse)
    return byte, tl.where(lost, float("nan"), inverse)


@triton.jit
def single(amax):
    """As scaling._amax: bits of amax → the E4M3 byte, and the float32 that values are multiplied by."""
    wanted = tl.div_rn(amax.to(tl.float32, bitcast=True), 6.0)
    byte = tl.where(amax < INF, _e4m3(tl.minimum(wanted, E4M3_MAX)), E4M3_NAN)
    inverse = tl.minimum(tl.div_rn(1.0, e4m3_value(byte)), FLOAT32_MAX)
    return byte, tl.where(amax < INF, inverse, float("nan"))


@triton.jit
def e4m3_value(byte):
    """A finite scale's float32."""
    return (byte << 20).to(tl.float32, bitcast=True) * E4M3_BIAS


@triton.jit
def _e4m3(wanted):
    """Of finite numbers from 0 to 448 the nearest E4M3 byte, a tie to the even one.

    In the binade 20 above the number's own, but at least that of E4M3's smallest normal number,
    float32 has E4M3's steps: adding a power of two there leaves their number in the low bits, and
    the binade in the exponent.
    """
    binade = tl.maximum(wanted.to(tl.int32, bitcast=True) & INF, 121 << 23)
    rounded = wanted + binade.to(tl.float32, bitcast=True) * (2.0**20)
    bits = rounded.to(tl.int32, bitcast=True)
    return (bits + (bits >> 20) - ((121 + 20) << 3)) & 0x7F
