# mypy: ignore-errors
"""bf16, fp16 or fp32 to MXFP4 and NVFP4, bit for bit as `reference`; importing this needs triton.

A thread holds whole groups of blocks, from their load to their store: nothing is exchanged.
"""

import triton
import triton.language as tl

from fp4kernels.triton.block_scales import encoding, power_of_two, under
from fp4kernels.triton.codes import codes_of
from fp4kernels.triton.four_over_six import better
from fp4kernels.triton.rotation import rotated

STEPS = tl.constexpr(4)  # tiles of one program that looks for amax: as many fewer atomics
NV_LARGEST = tl.constexpr(6 * 448.0)  # what a tensor's amax becomes, before its scales
FOUR_SIX_LARGEST = tl.constexpr(6 * 256.0)


@triton.jit
def _loaded(
    x, index, total, rows: tl.constexpr, group: tl.constexpr, size: tl.constexpr,
    minus: tl.constexpr,
):  # fmt: skip
    """float32 [rows, group] of x, transformed in groups of `size`, where that is not 0."""
    piece: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    at = index.to(tl.int64)[:, None] * group  # values may be more than 2^31
    values = _pieces(x, at, (index < total)[:, None], rows, group, piece)
    return rotated(values, rows, group, size, minus) if size else values


@triton.jit
def _pieces(x, at, inside, rows: tl.constexpr, values: tl.constexpr, piece: tl.constexpr):
    """[rows, values] from `at` [rows, 1] on, by loads of 16 bytes, which are `piece` values."""
    if values == piece:
        return _float32(tl.load(x + at + tl.arange(0, piece)[None, :], mask=inside, other=0.0))
    else:
        half: tl.constexpr = values // 2
        low = _pieces(x, at, inside, rows, half, piece)
        high = _pieces(x, at + half, inside, rows, half, piece)
        return tl.join(low, high).permute((0, 2, 1)).reshape((rows, values))


@triton.jit
def _float32(x):
    """bf16, fp16 or fp32 → float32; bf16 by its bits, so that a NaN keeps its sign."""
    if x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def _largest(x, size: tl.constexpr):
    """The largest magnitude along the last of three dimensions, of `size`; NaN is above all."""
    if size == 1:
        return tl.abs(x).reshape((x.shape[0], x.shape[1]))
    else:
        half: tl.constexpr = size // 2
        one, other = tl.split(x.reshape((x.shape[0], x.shape[1], half, 2)))
        larger = tl.maximum(tl.abs(one), tl.abs(other), propagate_nan=tl.PropagateNan.ALL)
        return _largest(larger, half)


@triton.jit
def _swizzled(index, across):
    """Where the scale of a block stands in the layout of fp4kernels.swizzle."""
    row, column = index // across, index % across
    tile = row // 128 * ((across + 3) // 4) + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def quantize_kernel(
    x, amax, codes, scales, tensor_scale, seed_low, seed_high, total, across,
    block: tl.constexpr, rule: tl.constexpr, rounding: tl.constexpr, headroom: tl.constexpr,
    size: tl.constexpr, minus: tl.constexpr, swizzle: tl.constexpr, group: tl.constexpr,
    rows: tl.constexpr,
):  # fmt: skip
    """`rows` of the `total` groups of x, each of `group` values; `across` blocks lie in a row."""
    program = tl.program_id(0)
    index = program * rows + tl.arange(0, rows)
    blocks: tl.constexpr = group // block
    values = _loaded(x, index, total, rows, group, size, minus).reshape((rows, blocks, block))
    largest = (_largest(values, block) * headroom).to(tl.int32, bitcast=True)
    if amax is None:
        byte, inverse = power_of_two(largest, rule)
    else:
        most: tl.constexpr = NV_LARGEST if rule == "nv" else FOUR_SIX_LARGEST
        tensor_amax = tl.load(amax) * headroom
        encode, decode = encoding(tensor_amax, most), tl.div_rn(tensor_amax, most)
        if rule == "nv":
            byte, inverse = under(largest, tensor_amax, encode, 1.0)
        else:
            byte, inverse = better(values, largest, tensor_amax, encode, decode, rule)
        if program == 0:
            tl.store(tensor_scale, decode)

    scaled = (values * inverse[:, :, None]).reshape((rows, group))
    seed = (seed_high.to(tl.uint64) << 32) | seed_low.to(tl.uint32, bitcast=True).to(tl.uint64)
    at = index.to(tl.int64)[:, None]
    words = codes_of(scaled, rounding, seed, at * group, rows, group)
    inside = (index < total)[:, None]
    tl.store(codes + at * (group // 8) + tl.arange(0, group // 8)[None, :], words, mask=inside)
    place = index[:, None] * blocks + tl.arange(0, blocks)[None, :]
    if swizzle:
        place = _swizzled(place, across)
    tl.store(scales + place, byte.to(tl.uint8), mask=inside)


@triton.jit
def amax_kernel(
    x, amax, total, size: tl.constexpr, minus: tl.constexpr, group: tl.constexpr,
    rows: tl.constexpr,
):  # fmt: skip
    """Raise the int32 `amax` to the largest bits of a magnitude in x; NaN is above all."""
    largest = tl.zeros((rows, 1), tl.float32)
    for step in tl.static_range(STEPS):
        index = (tl.program_id(0) * STEPS + step) * rows + tl.arange(0, rows)
        values = _loaded(x, index, total, rows, group, size, minus).reshape((rows, 1, group))
        found = _largest(values, group)
        largest = tl.maximum(largest, found, propagate_nan=tl.PropagateNan.ALL)
    bits = (tl.abs(largest)).to(tl.int32, bitcast=True).reshape((rows,))
    tl.atomic_max(amax, tl.max(bits, axis=0))
