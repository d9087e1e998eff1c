# mypy: ignore-errors
"""What quantizers read: values of bf16, fp16 or fp32, what a prologue makes of them, rotated.

As fp4kernels.prologues and fp4kernels.transforms; importing this needs triton. What a prologue gives
is rounded to the type of the values that it takes, as it would be on its way through memory.
"""

import triton
import triton.language as tl

from fp4kernels.triton.rotation import rotated

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def loaded(
    x, at, other, other_at, factor, inside,
    rows: tl.constexpr, group: tl.constexpr, prologue: tl.constexpr, size: tl.constexpr,
    minus: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """float32 [rows, group]: of each row the values from `at` on, int64 [rows, 1], where `inside`.

    "swiglu" takes up from `other`; "rms" a weight from there, and what each row is multiplied by,
    `factor` [rows]. Groups of `size` are transformed, where that is not 0.
    """
    values = pieces(x, at, inside, rows, group)
    operand = None if prologue == "none" else pieces(other, other_at, inside, rows, group)
    return finished(
        values, operand, factor, x.dtype.element_ty, rows, group, prologue, size, minus, interpreted
    )


@triton.jit
def finished(
    values, operand, factor, kind: tl.constexpr, rows: tl.constexpr, group: tl.constexpr,
    prologue: tl.constexpr, size: tl.constexpr, minus: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """As `loaded`, of values of the type `kind`, and of those of the other operand, [rows, group]."""
    if prologue == "swiglu":
        gate = _rounded(_silu(values), kind, interpreted)
        values = _rounded(gate * operand, kind, interpreted)
    elif prologue == "rms":
        values = _rounded(values * factor[:, None] * operand, kind, interpreted)
    else:
        tl.static_assert(prologue == "none")
    return rotated(values, rows, group, size, minus) if size else values


@triton.jit
def columns(x, at, step, inside, rows: tl.constexpr, values: tl.constexpr):
    """float32 [rows, values] from `at` [rows, 1] on, one below the other, `step` apart in memory."""
    if values == 1:
        return _float32(tl.load(x + at, mask=inside, other=0.0))
    else:
        half: tl.constexpr = values // 2
        low = columns(x, at, step, inside, rows, half)
        high = columns(x, at + step * half, step, inside, rows, half)
        return tl.join(low, high).permute((0, 2, 1)).reshape((rows, values))


@triton.jit
def pieces(x, at, inside, rows: tl.constexpr, values: tl.constexpr):
    """float32 [rows, values] from `at` [rows, 1] on, by loads of 16 bytes."""
    piece: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    if values == piece:
        return _float32(tl.load(x + at + tl.arange(0, piece)[None, :], mask=inside, other=0.0))
    else:
        half: tl.constexpr = values // 2
        low = pieces(x, at, inside, rows, half)
        high = pieces(x, at + half, inside, rows, half)
        return tl.join(low, high).permute((0, 2, 1)).reshape((rows, values))


@triton.jit
def _float32(x):
    """bf16, fp16 or fp32 → float32; bf16 by its bits, so that a NaN keeps its sign."""
    if x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def _rounded(x, kind: tl.constexpr, interpreted: tl.constexpr):
    """The nearest numbers of the type `kind`, a tie to the even one, as float32."""
    if kind == tl.bfloat16 and interpreted:  # whose own cast is not to nearest
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return _float32(x.to(kind))


@triton.jit
def _silu(x):
    """x / (1 + exp(-x)), within 2^-17 of itself: the divisor is from 1 to 2, so nothing overflows."""
    small = tl.exp2(tl.abs(x) * -LOG2_E)
    return x * tl.where(x < 0.0, small, 1.0) / (1.0 + small)
