"""Minifloats fitted to a tensor: how many bits are exponent, and the bias, are chosen from values.

The idea of flexible 8-bit formats, arXiv 2104.07329: the bias takes the place of a scale.
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor

from fp4kernels.elements import ElementFormat, minifloat
from fp4kernels.errors import FormatError

MOST_BITS = 8


def fit(x: Tensor, bits: int) -> ElementFormat:
    """The sign-exponent-mantissa format of `bits` that errs least on `x`, by the sum of squares.

    All splits of the bits are tried, each with all biases that could win, on all of `x`. Tensors of
    zeros get an arbitrary one. Raises FormatError unless `bits` is 2 to 8 and `x` holds finite
    numbers, at least one.
    """
    if not 2 <= bits <= MOST_BITS:
        raise FormatError(f"a flexible format has 2 to {MOST_BITS} bits, but got {bits}")
    x = x.float().flatten()
    if not x.numel() or not x.isfinite().all():
        raise FormatError("a format is fitted to finite numbers, but got none, NaN or infinity")
    top = math.frexp(float(x.abs().max()))[1] + 1  # clips nothing: no use in higher ones
    least = math.inf
    for exponent_bits in range(1, bits):  # one bit makes a uniform grid
        for binade in itertools.count(top, -1):
            element = _with_top(exponent_bits, bits - 1 - exponent_bits, binade)
            if _clipping(x, element) >= least:
                break  # lower ones clip more
            error = _error(x, element)
            if error < least:
                best, least = element, error
    return best


def approximate(x: Tensor, bits: int) -> Tensor:
    """`x` in the format that `fit` finds; float32. Raises FormatError as `fit` does."""
    element = fit(x, bits)
    return element.decode(element.encode(x.float()))


def _with_top(exponent_bits: int, mantissa_bits: int, binade: int) -> ElementFormat:
    """The largest value is below 2^binade, by at most half of it."""
    bias = (1 << exponent_bits) - binade
    return minifloat(f"e{exponent_bits}m{mantissa_bits}b{bias}", exponent_bits, mantissa_bits, bias)


def _error(x: Tensor, element: ElementFormat) -> float:
    return float((element.decode(element.encode(x)) - x).double().square().sum())


def _clipping(x: Tensor, element: ElementFormat) -> float:
    """The error of the values beyond the largest alone, a bound of the whole from below."""
    return float((x.abs() - element.max).clamp(min=0).double().square().sum())
