"""Scale rules: how the scales of blocks follow from their largest magnitudes.

Everything is float32, in the order that each source gives, so that bytes are equal to its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fp4kernels.formats import BlockFormat
from fp4kernels.scales import decode_e8m0

FLOAT32_MAX = torch.finfo(torch.float32).max
E4M3_LEAST = 2.0**-6  # the smallest normal number


class ScaleRule(StrEnum):
    """How a block's scale follows from its largest magnitude amax. The first seven are for E8M0.

    Codes and scales are torchao's in floor, ceil, rceil, even, amax-clamped (nvfp4_quantize without
    a tensor scale) and nv-clamped (with one), but for these: a block with Inf has the scale NaN,
    where torchao gives it a large one; values under E8M0 byte 0 are divided by 2^-127, not by 2^-126
    or 1; rceil is exact just above a power of two; a tensor of zeros has the tensor scale 1, not 0.
    """

    FLOOR = "floor"  # OCP MX v1.0: 2^(floor(log2 amax) - emax); mantissas above that of max clip
    CEIL = "ceil"  # 2^(ceil(log2 amax) - emax)
    RCEIL = "rceil"  # the least power of two that clips nothing: 2^ceil(log2(amax / max))
    EVEN = "even"  # floor of amax rounded to the element's mantissa
    FLOOR_3_4 = (
        "floor-3/4"  # floor, of 3/4 of the values: nothing clips; 4/3 joins the tensor scale
    )
    # floor, but no scale below 2^-14 (2^-28) of the largest of its row: what FP8 has room for
    FLOOR_ROW_14 = "floor-row-14"
    FLOOR_ROW_28 = "floor-row-28"
    AMAX = "amax"  # amax / max, to nearest
    AMAX_CLAMPED = "amax-clamped"  # not below the smallest normal E4M3 number, as torchao has it
    NV = "nv"  # arXiv 2509.25149 appendix B: amax / max under a tensor scale
    NV_CLAMPED = "nv-clamped"  # the same with torchao's clamp, in torchao's order
    FOUR_SIX_MSE = "four-six-mse"  # scales for a maximum of 6 or of 4, whichever errs less
    FOUR_SIX_MAE = "four-six-mae"


class Scaling(NamedTuple):
    """Scales as they are held, what values are multiplied by, and the tensor's scale."""

    scales: Tensor
    multiplier: Tensor  # float32, of the shape of `scales`
    tensor_scale: Tensor  # float32 scalar


def scaling(amax: Tensor, fmt: BlockFormat, rule: ScaleRule, headroom: float = 1.0) -> Scaling:
    """The scales of blocks whose largest magnitudes are `amax` [rows, blocks] (float32).

    With `headroom` a scale is made for that much more than amax: where chance rounds the values,
    none may clip because a scale was rounded down. Four-over-six rules give the scales for the
    element's own maximum; `alternative` gives the other choice.
    """
    return _RULES[rule](amax * headroom if headroom != 1.0 else amax, fmt, rule)


def alternative(amax: Tensor, fmt: BlockFormat, rule: ScaleRule) -> Scaling:
    """Of a four-over-six rule: with 3/2 of the scales a block's largest value becomes 4, not 6."""
    return _nv(amax, fmt, rule, 1.5)


def _exponent(amax: Tensor) -> Tensor:
    """The biased exponent: 255 for NaN and Inf."""
    return (amax.view(torch.int32) >> 23) & 0xFF


def _exponent_above(amax: Tensor) -> Tensor:
    """The biased exponent of the least power of two, from 2^-127 on, that amax does not exceed."""
    exponent, mantissa = _exponent(amax), amax.view(torch.int32) & 0x7FFFFF
    least = torch.where(exponent > 0, 0, 0x400000)  # 2^-127 as a subnormal number
    return exponent + (mantissa > least).int()


def _floor(amax: Tensor, fmt: BlockFormat, rule: ScaleRule) -> Scaling:
    """OCP MX v1.0 section 6.3; the power of two is clamped to what E8M0 has."""
    return _power_of_two(_exponent(amax) - fmt.element.emax, amax)


def _floor_row(amax: Tensor, fmt: BlockFormat, rule: ScaleRule) -> Scaling:
    return _floor(raised(amax, WINDOWS[rule]), fmt, rule)


def raised(amax: Tensor, window: int) -> Tensor:
    """`amax` [rows, blocks], at least 2^-window of the largest finite one of the row."""
    largest = torch.where(amax.isfinite(), amax, 0).amax(-1, keepdim=True)
    return torch.maximum(amax, largest * 2.0**-window)  # NaN stays NaN


def _ceil(amax: Tensor, fmt: BlockFormat, rule: ScaleRule) -> Scaling:
    return _power_of_two(_exponent_above(amax) - fmt.element.emax, amax)


def _rceil(amax: Tensor, fmt: BlockFormat, rule: ScaleRule) -> Scaling:
    """As PTX's cvt.rp.satfinite.ue8m0x2.f32 of amax / max.

    torchao takes ceil(log2()) in float32 instead, which loses one just above a power of two.
    """
    return _power_of_two(_exponent_above(amax / amax.new_tensor(fmt.element.max)), amax)


def _even(amax: Tensor, fmt: BlockFormat, rule: ScaleRule) -> Scaling:
    """The mantissa rounded to the element's, half away from zero; it may carry."""
    carried = amax.view(torch.int32) + (1 << (22 - fmt.element.mantissa_bits))
    return _power_of_two(((carried >> 23) & 0xFF) - fmt.element.emax, amax)


def _floor_3_4(amax: Tensor, fmt: BlockFormat, rule: ScaleRule) -> Scaling:
    """Tseng and others 2025, arXiv 2502.20586: 3/4 of the values fit without clipping."""
    scales, multiplier, one = _floor(amax, fmt, rule)
    return Scaling(scales, multiplier * 0.75, one * 4 / 3)


def _power_of_two(byte: Tensor, amax: Tensor) -> Scaling:
    """Scales 2^(byte-127), at least byte 0; NaN for a block that is not finite."""
    byte = torch.where(amax.isfinite(), byte.clamp(0, 254), 255).to(torch.uint8)
    # the reciprocal of 2^(b-127) is byte 254-b; 2^127 is the largest, so no block overflows
    inverse = decode_e8m0((254 - byte.int()).clamp(min=0).to(torch.uint8))
    return Scaling(byte, inverse, amax.new_ones(()))


def _amax(amax: Tensor, fmt: BlockFormat, rule: ScaleRule) -> Scaling:
    """A block that holds Inf has the scale NaN; torchao gives it the largest scale."""
    wanted = amax / amax.new_tensor(fmt.element.max)
    wanted = wanted.masked_fill(wanted.isinf(), math.nan)
    if rule is ScaleRule.AMAX_CLAMPED:
        wanted = wanted.clamp(min=E4M3_LEAST)
    one = amax.new_ones(())
    return _under(wanted, one, one, fmt)


def _nv(amax: Tensor, fmt: BlockFormat, rule: ScaleRule, times: float = 1.0) -> Scaling:
    """arXiv 2509.25149 appendix B."""
    # every operand is a tensor: torch turns a division by, or of, a Python scalar into a product
    most = FOUR_SIX_SCALE if rule in FOUR_SIX else fmt.scale.max
    one, largest = amax.new_ones(()), amax.new_tensor(fmt.element.max * most)
    tensor_amax = amax.max() if amax.numel() else one * 0
    encode = (largest / tensor_amax).clamp(max=FLOAT32_MAX)
    encode = torch.where((tensor_amax == 0) | (encode == 0), one, encode)
    sixth = amax.new_tensor(times / fmt.element.max)
    return _under(amax * (encode * sixth), encode, tensor_amax / largest, fmt)


def _nv_clamped(amax: Tensor, fmt: BlockFormat, rule: ScaleRule) -> Scaling:
    """torchao's nvfp4_quantize: other order, other rounding, no block scale below 2^-6.

    A tensor of zeros has the tensor scale 1, where torchao divides by 0.
    """
    one, largest = amax.new_ones(()), amax.new_tensor(fmt.element.max * fmt.scale.max)
    tensor_scale = (amax.max() if amax.numel() else one * 0) / largest
    tensor_scale = torch.where(tensor_scale == 0, one, tensor_scale)
    wanted = amax / amax.new_tensor(fmt.element.max) / tensor_scale
    scales = fmt.scale.encode(wanted.clamp(E4M3_LEAST, fmt.scale.max))
    multiplier = (one / tensor_scale / fmt.scale.decode(scales)).clamp(max=FLOAT32_MAX)
    return Scaling(scales, multiplier, tensor_scale)


def _under(wanted: Tensor, encode: Tensor, tensor_scale: Tensor, fmt: BlockFormat) -> Scaling:
    """Scales rounded to nearest, and the reciprocal of what they then are."""
    one = encode.new_ones(())
    scales = fmt.scale.encode(wanted.clamp(max=fmt.scale.max))
    multiplier = (one / (fmt.scale.decode(scales) * (one / encode))).clamp(max=FLOAT32_MAX)
    return Scaling(scales, multiplier, tensor_scale)


# largest ratio of two scales in a row, as a power of two
WINDOWS: Mapping[ScaleRule, int] = {ScaleRule.FLOOR_ROW_14: 14, ScaleRule.FLOOR_ROW_28: 28}
FOUR_SIX = (ScaleRule.FOUR_SIX_MSE, ScaleRule.FOUR_SIX_MAE)
TIE = 2.0**-32  # errors this close are equal, so that the order of a sum decides nothing
FOUR_SIX_SCALE = 256.0  # the largest block scale, so that 3/2 of it is an E4M3 number, too
_RULES: Mapping[ScaleRule, Callable[[Tensor, BlockFormat, ScaleRule], Scaling]] = {
    ScaleRule.FLOOR: _floor,
    ScaleRule.CEIL: _ceil,
    ScaleRule.RCEIL: _rceil,
    ScaleRule.EVEN: _even,
    ScaleRule.FLOOR_3_4: _floor_3_4,
    ScaleRule.FLOOR_ROW_14: _floor_row,
    ScaleRule.FLOOR_ROW_28: _floor_row,
    ScaleRule.AMAX: _amax,
    ScaleRule.AMAX_CLAMPED: _amax,
    ScaleRule.NV: _nv,
    ScaleRule.NV_CLAMPED: _nv_clamped,
    ScaleRule.FOUR_SIX_MSE: _nv,
    ScaleRule.FOUR_SIX_MAE: _nv,
}
