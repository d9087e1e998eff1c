# mypy: ignore-errors
"""bf16, fp16 or fp32 to MXFP4 and NVFP4, bit for bit as `reference`; importing this needs triton.

A thread holds whole groups of blocks, from their load to their store: nothing is exchanged.
"""

import triton
import triton.language as tl

from fp4kernels.triton.block_scales import encoding, power_of_two, single, under
from fp4kernels.triton.codes import codes_of
from fp4kernels.triton.four_over_six import better
from fp4kernels.triton.quantize_loads import loaded
from fp4kernels.triton.within import largest

NV_LARGEST = tl.constexpr(6 * 448.0)  # what a tensor's amax becomes, before its scales
HELD = tl.constexpr(32)  # values that a thread encodes at once
FOUR_SIX_LARGEST = tl.constexpr(6 * 256.0)


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def quantize_kernel(
    x, other, amax, codes, scales, tensor_scale, seed_low, seed_high, total, across, stride,
    block: tl.constexpr, rule: tl.constexpr, rounding: tl.constexpr, headroom: tl.constexpr,
    swizzle: tl.constexpr, prologue: tl.constexpr, size: tl.constexpr, minus: tl.constexpr,
    group: tl.constexpr, rows: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """`rows` of the `total` groups, each of `group` values; `across` blocks lie in a row of codes,
    and `stride` values of x between the beginnings of two."""
    program = tl.program_id(0)
    index = program * rows + tl.arange(0, rows)
    inside = index < total
    values = _values(
        x, other, index, inside, across, stride, block,
        rows, group, prologue, size, minus, interpreted,
    )  # fmt: skip
    blocks = values.reshape((rows, group // block, block))
    bits = block_amax(blocks, headroom)
    encoded(
        blocks, bits, index, inside, amax, codes, scales, tensor_scale, seed_low, seed_high, across,
        rule, rounding, headroom, swizzle,
    )  # fmt: skip


@triton.jit
def amax_kernel(
    x, other, amax, total, across, stride,
    block: tl.constexpr, prologue: tl.constexpr, size: tl.constexpr, minus: tl.constexpr,
    group: tl.constexpr, rows: tl.constexpr, steps: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Raise the int32 `amax` to the largest bits of a magnitude in x; NaN is above all.

    A program takes `steps` tiles: as many fewer atomics.
    """
    most = tl.zeros((rows, 1), tl.float32)
    for step in tl.static_range(steps):
        index = (tl.program_id(0) * steps + step) * rows + tl.arange(0, rows)
        values = _values(
            x, other, index, index < total, across, stride, block,
            rows, group, prologue, size, minus, interpreted,
        )  # fmt: skip
        found = largest(values.reshape((rows, 1, group)), group)
        most = tl.maximum(most, found, propagate_nan=tl.PropagateNan.ALL)
    raise_amax(amax, most, rows)


@triton.jit
def raise_amax(amax, most, rows: tl.constexpr):
    """The int32 `amax`, to the bits of `most` [rows, 1], of which none is negative."""
    bits = tl.abs(most).to(tl.int32, bitcast=True).reshape((rows,))
    tl.atomic_max(amax, tl.max(bits, axis=0))


@triton.jit
def block_amax(blocks, headroom: tl.constexpr):
    """float32 [rows, blocks, block] → bits of the largest magnitudes, [rows, blocks]."""
    return (largest(blocks, blocks.shape[2]) * headroom).to(tl.int32, bitcast=True)


@triton.jit
def encoded(
    values, bits, index, inside, amax, codes, scales, tensor_scale, seed_low, seed_high, across,
    rule: tl.constexpr, rounding: tl.constexpr, headroom: tl.constexpr, swizzle: tl.constexpr,
):  # fmt: skip
    """Store codes and scales of float32 [rows, blocks, block] whose largest magnitudes are `bits`.

    Row i is the group `index` [rows] of all that lie one after the other in `codes`. Returns the
    scales, int32 [rows, blocks].
    """
    rows: tl.constexpr = values.shape[0]
    blocks: tl.constexpr = values.shape[1]
    group: tl.constexpr = blocks * values.shape[2]
    if group > HELD:  # a part after the other, so that registers suffice for what is made of it
        low, high = _halves(values.reshape((rows, group)))
        low_bits, high_bits = _halves(bits)
        shape: tl.constexpr = (rows, blocks // 2, values.shape[2])
        one = encoded(
            low.reshape(shape), low_bits, index * 2, inside, amax, codes, scales, tensor_scale,
            seed_low, seed_high, across, rule, rounding, headroom, swizzle,
        )  # fmt: skip
        other = encoded(
            high.reshape(shape), high_bits, index * 2 + 1, inside, amax, codes, scales,
            tensor_scale, seed_low, seed_high, across, rule, rounding, headroom, swizzle,
        )  # fmt: skip
        return tl.join(one, other).permute((0, 2, 1)).reshape((rows, blocks))
    else:
        if rule == "amax":
            byte, inverse = single(bits)
        elif amax is None:
            byte, inverse = power_of_two(bits, rule)
        else:
            most: tl.constexpr = NV_LARGEST if rule == "nv" else FOUR_SIX_LARGEST
            tensor_amax = tl.load(amax) * headroom
            encode, decode = encoding(tensor_amax, most), tl.div_rn(tensor_amax, most)
            if rule == "nv":
                byte, inverse = under(bits, tensor_amax, encode, 1.0)
            else:
                byte, inverse = better(values, bits, tensor_amax, encode, decode, rule)
            if tl.program_id(0) == 0:
                tl.store(tensor_scale, decode)

        scaled = (values * inverse[:, :, None]).reshape((rows, group))
        seed = 0
        if rounding == "stochastic":
            low_word = seed_low.to(tl.uint32, bitcast=True).to(tl.uint64)
            seed = (seed_high.to(tl.uint64) << 32) | low_word
        at = index.to(tl.int64)[:, None]
        words = codes_of(scaled, rounding, seed, at * group, rows, group)
        mask = inside[:, None]
        tl.store(codes + at * (group // 8) + tl.arange(0, group // 8)[None, :], words, mask=mask)
        place = index[:, None] * blocks + tl.arange(0, blocks)[None, :]
        if swizzle:
            place = _swizzled(place, across)
        tl.store(scales + place, byte.to(tl.uint8), mask=mask)
        return byte


@triton.jit
def _halves(x):
    """The first half of each row, and the second."""
    return tl.split(x.reshape((x.shape[0], 2, x.shape[1] // 2)).permute((0, 2, 1)))


@triton.jit
def _values(
    x, other, index, inside, across, stride, block: tl.constexpr,
    rows: tl.constexpr, group: tl.constexpr, prologue: tl.constexpr, size: tl.constexpr,
    minus: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """Those of the groups `index`, counted through all rows."""
    if prologue == "none":
        at = index.to(tl.int64) * group  # values may be more than 2^31
    else:
        in_row = across * block // group
        at = (index // in_row).to(tl.int64) * stride + index % in_row * group
    at = at[:, None]
    return loaded(
        x, at, other, at, None, inside[:, None],
        rows, group, prologue, size, minus, interpreted,
    )  # fmt: skip


@triton.jit
def _swizzled(index, across):
    """Where the scale of a block stands in the layout of fp4kernels.swizzle."""
    row, column = index // across, index % across
    tile = row // 128 * ((across + 3) // 4) + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4
