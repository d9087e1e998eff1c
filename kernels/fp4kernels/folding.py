"""MXFP4 with its block scales folded into FP8, row by row, and back without loss.

A row of a weight [N, K] is 2^(top - peak) times FP8 numbers, each of them exactly

    code * 2^d,    d = byte - top + peak

where `byte` is the block's scale and `top` the largest one of the row. Exact it is for d in

    E4M3   -8 ...  6     scales of a row within 2^14
    E5M2  -15 ... 13     scales of a row within 2^28

Blocks of zeros fit under any scale and take part in no `top`. A block whose scale is NaN is held as
d = peak, and the row's `top` says NaN, as is every product with that row.

    codes  [N, K]            float8_e4m3fn where every row is within 2^14, else float8_e5m2
    scales [N, 1 + K/32]     top + 127 or 255 for NaN, then the canonical bytes: codes under them
                             are what FP8 came from

8.25 bits per value and a byte per row, nearly twice the 4.25 of the canonical layout.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fp4kernels.errors import LayoutError
from fp4kernels.formats import BlockFormat
from fp4kernels.packing import Packed, pack_nibbles, unpack_nibbles

NAN = 255  # as an E8M0 byte
ONE = 127  # the byte of the scale 1
MOST = 252  # the largest byte under which 6 is a float32


class Fold(NamedTuple):
    """An FP8 type, and which powers of two times E2M1 it holds."""

    dtype: torch.dtype
    peak: int  # the largest power
    window: int  # how many powers below that are exact, too


E4M3_FOLD = Fold(torch.float8_e4m3fn, 6, 14)
E5M2_FOLD = Fold(torch.float8_e5m2, 13, 28)
FOLDS = (E4M3_FOLD, E5M2_FOLD)


def fold_for(window: int) -> Fold | None:
    """The most precise type with room for such a spread of scales, or None."""
    return next((fold for fold in FOLDS if window <= fold.window), None)


def fold_of(dtype: torch.dtype) -> Fold:
    return next(fold for fold in FOLDS if fold.dtype is dtype)


def folded(packed: Packed, fmt: BlockFormat) -> Packed:
    """Canonical MXFP4 as FP8. LayoutError where a row's scales spread too far, or overflow."""
    codes, scales = unpack_nibbles(packed.codes), packed.scales
    magnitude = fmt.element.sign_bit - 1
    blocks = codes.view(*scales.shape, fmt.block_size)
    counted = ((blocks & magnitude) > 0).any(-1) & (scales != NAN)
    top = _top(scales, counted)
    fold = _fold_for(scales, counted, top)
    power = _powers(scales, counted, top, fold)
    values = fmt.element.decode(blocks) * torch.exp2(power.float()).unsqueeze(-1)
    row = torch.where((scales == NAN).any(-1, keepdim=True), NAN, top).to(torch.uint8)
    return packed._replace(
        codes=values.view(codes.shape).to(fold.dtype), scales=torch.cat((row, scales), -1)
    )


def unfolded(packed: Packed, fmt: BlockFormat) -> Packed:
    """The inverse of `folded`, bit for bit."""
    scales = packed.scales[:, 1:].contiguous()
    values = packed.codes.float().view(*scales.shape, fmt.block_size)
    counted = (values != 0).any(-1) & (scales != NAN)
    power = _powers(scales, counted, _top(scales, counted), fold_of(packed.codes.dtype))
    codes = fmt.element.encode(values * torch.exp2(-power.float()).unsqueeze(-1))
    return packed._replace(codes=pack_nibbles(codes.view(packed.codes.shape)), scales=scales)


def folded_bytes(n: int, k: int, fmt: BlockFormat) -> int:
    """Of the FP8 numbers and all scale bytes."""
    return n * (k + 1 + k // fmt.block_size)


def _top(scales: Tensor, counted: Tensor) -> Tensor:
    """int32 [N, 1]: the largest counted byte of each row, that of 1 where none counts."""
    top = scales.int().masked_fill(~counted, -1).amax(-1, keepdim=True)
    return torch.where(top < 0, ONE, top)


def _powers(scales: Tensor, counted: Tensor, top: Tensor, fold: Fold) -> Tensor:
    return torch.where(counted, scales.int() - top + fold.peak, fold.peak)


def _fold_for(scales: Tensor, counted: Tensor, top: Tensor) -> Fold:
    spread = (top - scales.int()).masked_fill(~counted, 0).amax(-1)
    if not spread.numel():
        return E4M3_FOLD
    widest, largest = int(spread.amax()), int(top.amax())
    if largest > MOST:
        raise LayoutError(
            f"folded holds scales up to 2^{MOST - ONE}, under which no code overflows float32, "
            f"but row {int(top.argmax())} has 2^{largest - ONE}; keep it canonical"
        )
    fold = fold_for(widest)
    if fold is None:
        raise LayoutError(
            f"the scales of a folded row lie within 2^{E5M2_FOLD.window}, but those of row "
            f"{int(spread.argmax())} spread over 2^{widest}; keep it canonical, or quantize it as "
            f"mxfp4-row-{E4M3_FOLD.window} or mxfp4-row-{E5M2_FOLD.window}"
        )
    return fold
