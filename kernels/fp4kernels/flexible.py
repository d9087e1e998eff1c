"""Minifloats fitted to a tensor: how many bits are exponent, and the bias, are chosen from values.

The idea of flexible 8-bit formats, arXiv 2104.07329: the bias takes the place of a scale.
"""

from __future__ import annotations

import math

from torch import Tensor

from fp4kernels.elements import ElementFormat, minifloat
from fp4kernels.errors import FormatError

MOST_BITS = 8


def fit(x: Tensor, bits: int) -> ElementFormat:
    """The sign-exponent-mantissa format of `bits` that errs least on `x`, by the sum of squares.

    All splits of the bits and all biases worth a look are tried, 3 to 10 for usual tensors, each on
    all of `x`. Tensors of zeros get an arbitrary one. Raises FormatError unless `bits` is 2 to 8
    and `x` holds finite numbers, at least one.
    """
    if not 2 <= bits <= MOST_BITS:
        raise FormatError(f"a flexible format has 2 to {MOST_BITS} bits, but got {bits}")
    x = x.float().flatten()
    if not x.numel() or not x.isfinite().all():
        raise FormatError("a format is fitted to finite numbers, but got none, NaN or infinity")
    return min(_candidates(x, bits), key=lambda element: _error(x, element))


def approximate(x: Tensor, bits: int) -> Tensor:
    """`x` in the format that `fit` finds; float32. Raises FormatError as `fit` does."""
    element = fit(x, bits)
    return element.decode(element.encode(x.float()))


def _candidates(x: Tensor, bits: int) -> list[ElementFormat]:
    """Largest values from the first power of two that clips nothing down to rms / 4.

    A largest value m < rms errs by (rms - m)^2 at least, so below rms / 4 by more than half of all.
    """
    largest, rms = float(x.abs().max()), float(x.double().square().mean().sqrt())
    top = math.frexp(largest)[1]
    bottom = min(math.frexp(rms / 4)[1], top)
    return [
        _with_top(exponent_bits, bits - 1 - exponent_bits, binade)
        for exponent_bits in range(1, bits)  # one bit makes a uniform grid
        for binade in range(bottom, top + 1)
    ]


def _with_top(exponent_bits: int, mantissa_bits: int, binade: int) -> ElementFormat:
    """The largest value is below 2^binade, by at most half of it."""
    bias = (1 << exponent_bits) - binade
    return minifloat(f"e{exponent_bits}m{mantissa_bits}b{bias}", exponent_bits, mantissa_bits, bias)


def _error(x: Tensor, element: ElementFormat) -> float:
    return float((element.decode(element.encode(x)) - x).double().square().sum())
