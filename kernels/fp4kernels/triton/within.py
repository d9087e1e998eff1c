# mypy: ignore-errors
"""What a thread makes of values that it holds, without others; importing this needs triton."""

import triton
import triton.language as tl


@triton.jit
def largest(x, size: tl.constexpr):
    """The largest magnitude along the last of three dimensions, of `size`; NaN is above all."""
    if size == 1:
        return tl.abs(x).reshape((x.shape[0], x.shape[1]))
    else:
        half: tl.constexpr = size // 2
        one, other = tl.split(x.reshape((x.shape[0], x.shape[1], half, 2)))
        larger = tl.maximum(tl.abs(one), tl.abs(other), propagate_nan=tl.PropagateNan.ALL)
        return largest(larger, half)


@triton.jit
def summed(x, size: tl.constexpr):
    """Over the last of three dimensions, of `size`: neighbours first."""
    if size == 1:
        return x.reshape((x.shape[0], x.shape[1]))
    else:
        half: tl.constexpr = size // 2
        one, other = tl.split(x.reshape((x.shape[0], x.shape[1], half, 2)))
        return summed(one + other, half)
