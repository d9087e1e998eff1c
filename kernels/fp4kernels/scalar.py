"""The plain truth: one value, or one block, after the other, with nothing rounded unless a source
says so. Slow on purpose; `fp4kernels.reference` equals it bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from fp4kernels.elements import E4M3, ElementFormat
from fp4kernels.formats import BlockFormat
from fp4kernels.recipes import Recipe
from fp4kernels.scales import ScaleFormat
from fp4kernels.scaling import FOUR_SIX, FOUR_SIX_SCALE, TIE, ScaleRule

F32 = np.float32
MOST = F32(np.finfo(F32).max)
ONE = F32(1)


class Scale(NamedTuple):
    """Of one block: the code, or the number in formats that have none; and x * multiplier is what
    becomes a code of the element."""

    held: float
    multiplier: np.float32


class Quantized(NamedTuple):
    codes: list[list[int]]  # of a matrix [N][K], not packed
    scales: list[list[float]]  # one a block
    tensor_scale: np.float32


def encode(value: float, element: ElementFormat) -> int:
    """The code of the nearest value; of two as near the even one; then the one of the same sign.

    Beyond the largest value, which infinities are, the code is that of the largest; so it is for
    NaN in formats that have none, with its sign where the sign is a bit.
    """
    nans = [code for code, v in enumerate(element.values) if math.isnan(v)]
    if math.isnan(value) and nans:
        return max(code for code in nans if _negative(element.values, code) == _minus(value))
    if math.isnan(value) and not element.signed_magnitude:
        value = element.max
    if not abs(value) <= element.max:
        value = math.copysign(element.max, value)

    def farness(code: int) -> tuple[Fraction, bool, bool]:
        v = element.values[code]
        return abs(Fraction(v) - Fraction(value)), code % 2 == 1, _minus(v) != _minus(value)

    usable = [code for code, v in enumerate(element.values) if abs(v) <= element.max]
    return min(usable, key=farness)


def e8m0(amax: float, element: ElementFormat, rule: ScaleRule) -> int:
    """The byte of a block whose largest magnitude is `amax`; 255 if that is not finite."""
    if not math.isfinite(amax):
        return 255
    if amax == 0:
        return 0
    exact = Fraction(amax)
    if rule is ScaleRule.CEIL:
        exponent = _ceil_log2(exact) - element.emax
    elif rule is ScaleRule.RCEIL:
        exponent = _ceil_log2(Fraction(float(F32(amax) / F32(element.max))))
    elif rule is ScaleRule.EVEN:  # defined on the bits of float32
        bits = int(F32(amax).view(np.uint32))
        exponent = ((bits + (1 << (22 - element.mantissa_bits))) >> 23) - 127 - element.emax
    else:
        exponent = math.frexp(amax)[1] - 1 - element.emax
    return min(max(exponent + 127, 0), 254)


def scales(
    amaxes: Sequence[float], fmt: BlockFormat, rule: ScaleRule, times: float = 1.0
) -> tuple[list[Scale], np.float32]:
    """Of blocks with these largest magnitudes, and the tensor's. Float32, every step rounded.

    `times` is what a four-over-six rule makes the scales larger by.
    """
    if fmt.scale is ScaleFormat.E8M0:
        three = rule is ScaleRule.FLOOR_3_4
        return [_power_of_two(e8m0(a, fmt.element, rule), three) for a in amaxes], (
            ONE * F32(4) / F32(3) if three else ONE
        )
    if rule in (ScaleRule.AMAX, ScaleRule.AMAX_CLAMPED):
        return [_single(F32(a), fmt, rule) for a in amaxes], ONE
    largest = F32(fmt.element.max * (FOUR_SIX_SCALE if rule in FOUR_SIX else E4M3.max))
    tensor_amax = np.max(np.array([0.0, *amaxes], dtype=F32))
    decode = tensor_amax / largest
    if rule is ScaleRule.NV_CLAMPED:
        decode = decode if decode != 0 else ONE
        return [_clamped(F32(a), fmt, decode) for a in amaxes], decode
    encode_scale = np.minimum(largest / tensor_amax, MOST)
    if tensor_amax == 0 or encode_scale == 0:
        encode_scale = ONE
    factor = encode_scale * F32(times / fmt.element.max)
    return [_rounded(F32(a) * factor, encode_scale, fmt) for a in amaxes], decode


def quantize(matrix: Sequence[Sequence[float]], recipe: Recipe) -> Quantized:
    """`matrix` [N][K] of float32 numbers, in whole blocks, rounded to nearest even."""
    fmt = recipe.format
    n, k = len(matrix), len(matrix[0])
    (down, across), (high, wide) = fmt.grid(n, k), fmt.tile(n, k)
    places = [(i * high, j * wide) for i in range(down) for j in range(across)]
    blocks = [[v for row in matrix[i : i + high] for v in row[j : j + wide]] for i, j in places]
    with np.errstate(all="ignore"):
        amaxes = [float(np.max(np.abs(np.array(block, dtype=F32)))) for block in blocks]
        if recipe.window is not None:
            amaxes = [
                _raised(amax, amaxes[at - at % across :][:across], recipe.window)
                for at, amax in enumerate(amaxes)
            ]
        chosen, tensor_scale = scales(amaxes, fmt, recipe.scale_rule)
        encoded = [_codes(block, s, fmt) for block, s in zip(blocks, chosen, strict=True)]
        if recipe.scale_rule in FOUR_SIX:
            larger, _ = scales(amaxes, fmt, recipe.scale_rule, 1.5)
            for at, block in enumerate(blocks):
                other = _codes(block, larger[at], fmt)
                error = _error(block, other, larger[at], tensor_scale, recipe)
                best = _error(block, encoded[at], chosen[at], tensor_scale, recipe)
                if error < best * (1 - TIE):
                    chosen[at], encoded[at] = larger[at], other
    codes = [[0] * k for _ in range(n)]
    for (i, j), block_codes in zip(places, encoded, strict=True):
        for at, code in enumerate(block_codes):
            codes[i + at // wide][j + at % wide] = code
    held = [[s.held for s in chosen[i * across : (i + 1) * across]] for i in range(down)]
    return Quantized(codes, held, tensor_scale)


def _raised(amax: float, row: Sequence[float], window: int) -> float:
    """At least 2^-window of the row's largest finite magnitude; what is no number stays so."""
    largest = max((a for a in row if math.isfinite(a)), default=0.0)
    return max(amax, float(F32(largest) * F32(2.0**-window))) if math.isfinite(amax) else amax


def _codes(block: Sequence[float], scale: Scale, fmt: BlockFormat) -> list[int]:
    return [encode(float(F32(v) * scale.multiplier), fmt.element) for v in block]


def _error(
    block: Sequence[float],
    codes: Sequence[int],
    scale: Scale,
    tensor_scale: np.float32,
    recipe: Recipe,
) -> float:
    decode = F32(E4M3.values[int(scale.held)])
    power = 2 if recipe.scale_rule is ScaleRule.FOUR_SIX_MSE else 1
    back = [float(F32(recipe.format.element.values[c]) * decode * tensor_scale) for c in codes]
    return sum(abs(b - v) ** power for b, v in zip(back, block, strict=True))


def _power_of_two(byte: int, three_quarters: bool) -> Scale:
    inverse = F32(2.0 ** (127 - min(byte, 254)))
    return Scale(byte, inverse * F32(0.75) if three_quarters else inverse)


def _single(amax: np.float32, fmt: BlockFormat, rule: ScaleRule) -> Scale:
    wanted = amax / F32(fmt.element.max)
    if np.isinf(wanted):
        wanted = F32(np.nan)
    if rule is ScaleRule.AMAX_CLAMPED:
        wanted = np.maximum(wanted, F32(2.0**-6))
    return _rounded(wanted, ONE, fmt)


def _clamped(amax: np.float32, fmt: BlockFormat, tensor_scale: np.float32) -> Scale:
    wanted = amax / F32(fmt.element.max) / tensor_scale
    code = encode(abs(float(np.clip(wanted, F32(2.0**-6), F32(E4M3.max)))), E4M3)
    return Scale(code, np.minimum(ONE / tensor_scale / F32(E4M3.values[code]), MOST))


def _rounded(wanted: np.float32, encode_scale: np.float32, fmt: BlockFormat) -> Scale:
    """The nearest scale that the format has, and the reciprocal of what it then is."""
    wanted = np.minimum(wanted, F32(fmt.scale.max))
    if fmt.scale is ScaleFormat.E4M3:
        held: float = encode(abs(float(wanted)), E4M3)  # NaN may have a sign
        value = F32(E4M3.values[int(held)])
    else:
        value = _bfloat16(wanted) if fmt.scale is ScaleFormat.BF16 else wanted
        held = float(value)
    return Scale(held, np.minimum(ONE / (value * (ONE / encode_scale)), MOST))


def _bfloat16(x: np.float32) -> np.float32:
    """The upper half of the bits, to nearest even."""
    if np.isnan(x):
        return x
    bits = int(x.view(np.uint32))
    return F32(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).view(F32))


def _ceil_log2(x: Fraction) -> int:
    exponent = x.numerator.bit_length() - x.denominator.bit_length() - 1  # at most log2 x
    while Fraction(2) ** exponent < x:
        exponent += 1
    return exponent


def _minus(value: float) -> bool:
    return math.copysign(1.0, value) < 0


def _negative(values: Sequence[float], code: int) -> bool:
    return code >= len(values) // 2
