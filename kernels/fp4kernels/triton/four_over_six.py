# mypy: ignore-errors
"""The choice of four-over-six, block by block, as reference._better; importing this needs triton."""

import triton
import triton.language as tl

from fp4kernels.triton.block_scales import e4m3_value, under
from fp4kernels.triton.codes import nearest, value_of
from fp4kernels.triton.within import summed

KEPT = tl.constexpr(1 - 2.0**-32)  # of an error: 1 - scaling.TIE


@triton.jit
def better(values, amax, tensor_amax, encode, tensor_scale, rule: tl.constexpr):
    """[rows, blocks, block] of values and the bits of their amax [rows, blocks] → scales, as under.

    Errors are float64, as the reference's: their order of summing decides nothing.
    """
    byte, inverse = under(amax, tensor_amax, encode, 1.0)
    larger_byte, larger_inverse = under(amax, tensor_amax, encode, 1.5)
    error = _error(values, byte, inverse, tensor_scale, rule)
    larger_error = _error(values, larger_byte, larger_inverse, tensor_scale, rule)
    chosen = larger_error < error * KEPT
    return tl.where(chosen, larger_byte, byte), tl.where(chosen, larger_inverse, inverse)


@triton.jit
def _error(values, byte, inverse, tensor_scale, rule: tl.constexpr):
    """[rows, blocks]; the sign of a value is that of its code, so that magnitudes are enough."""
    code = nearest(values * inverse[:, :, None])
    back = value_of(code) * e4m3_value(byte)[:, :, None] * tensor_scale
    away = back.to(tl.float64) - tl.abs(values).to(tl.float64)
    away = away * away if rule == "four-six-mse" else tl.abs(away)
    return summed(away, values.shape[2])
