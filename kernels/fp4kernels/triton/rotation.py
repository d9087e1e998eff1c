# mypy: ignore-errors
"""Hadamard transforms within a thread, as fp4kernels.transforms; importing this needs triton."""

import triton
import triton.language as tl


@triton.jit
def rotated(x, rows: tl.constexpr, values: tl.constexpr, size: tl.constexpr, minus: tl.constexpr):
    """`x` [rows, values], each `size` of a row transformed; bit i of `minus`: value i is negated."""
    x = x * _signs(values, size, minus)[None, :]
    stages: tl.constexpr = _log2(size)
    for stage in tl.static_range(stages):
        x = _butterfly(x, rows, values, 1 << stage)
    return x * (size**-0.5)


@triton.jit
def _butterfly(x, rows: tl.constexpr, values: tl.constexpr, step: tl.constexpr):
    """Sums and differences of values that are `step` apart."""
    pairs = x.reshape((rows, values // (2 * step), 2, step)).permute((0, 1, 3, 2))
    one, other = tl.split(pairs)
    both = tl.join(one + other, one - other)
    return both.permute((0, 1, 3, 2)).reshape((rows, values))


@triton.jit
def _signs(values: tl.constexpr, size: tl.constexpr, minus: tl.constexpr):
    """1 or -1 for each value of a row."""
    place = tl.arange(0, values) % size
    bits = place * 0
    for word in tl.static_range((size + 31) // 32):
        here = _filled(values, (minus >> (32 * word)) & 0xFFFFFFFF)
        bits = tl.where(place // 32 == word, here, bits)
    return tl.where(((bits >> (place % 32)) & 1) == 1, -1.0, 1.0)


@triton.jit
def _filled(values: tl.constexpr, word: tl.constexpr):
    return tl.full((values,), word, tl.uint32).to(tl.int32, bitcast=True)


@triton.constexpr_function
def _log2(size):
    return size.bit_length() - 1
