"""The readable truth: quantize, dequantize and GEMM in plain torch, on any device.

Every fast path is tested against this module, bit for bit for codes and scales, and this module
against `fp4kernels.scalar`, which takes one value after the other.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fp4kernels.errors import FormatError
from fp4kernels.formats import BlockFormat
from fp4kernels.packing import Packed, pack_nibbles, unpack_nibbles
from fp4kernels.recipes import Recipe, Rounding
from fp4kernels.scaling import FOUR_SIX, Scaling, ScaleRule, alternative, scaling

CHUNK = 1 << 18  # values that are rounded at once: what they need on the way fits into a cache


def quantize(x: Tensor, recipe: Recipe, generator: Generator | None = None) -> Packed:
    """Quantize `x` [..., K] along K; K must be a multiple of the block size.

    Returns codes [..., K/2] (or [..., K], where codes have more than four bits), scales
    [..., K/block] and the tensor scale, in row-major order; a format with blocks of more than one
    row takes a matrix. Stochastic roundings need a `generator`. A block that holds NaN or Inf
    dequantizes to NaN; under a tensor scale the whole tensor is lost to NaN or Inf.
    """
    fmt = recipe.format
    check_blocks(x, fmt)
    if (recipe.rounding is Rounding.NEAREST_EVEN) != (generator is None):
        raise FormatError(f"{recipe.rounding} rounding takes {_WHICH[generator is None]} generator")
    blocks = _split(x, fmt)
    amax = blocks.abs().amax(-1)
    scaled = scaling(amax, fmt, recipe.scale_rule, recipe.headroom)
    codes = _encode(blocks, scaled.multiplier, fmt, generator)
    if recipe.scale_rule in FOUR_SIX:
        other = alternative(amax * recipe.headroom, fmt, recipe.scale_rule)
        scaled, codes = _better(blocks, recipe, (scaled, codes), other, generator)
    codes = _join(codes, fmt, x.shape)
    return Packed(
        pack_nibbles(codes) if fmt.codes_per_byte == 2 else codes,
        scaled.scales.view(fmt.scales_shape(x.shape)).contiguous(),
        scaled.tensor_scale,
    )


def dequantize(packed: Packed, fmt: BlockFormat) -> Tensor:
    """float32 values [..., K] of canonical `packed`."""
    codes = unpack_nibbles(packed.codes) if fmt.codes_per_byte == 2 else packed.codes
    blocks = _split(fmt.element.decode(codes), fmt)
    scales = fmt.scale.decode(packed.scales).reshape(blocks.shape[:-1])
    return _join(blocks * scales.unsqueeze(-1), fmt, codes.shape) * packed.tensor_scale


def gemm(x: Tensor, w: Tensor) -> Tensor:
    """x [M, K] times w [N, K] transposed, in float64."""
    return torch.mm(x.double(), w.double().T)


def check_blocks(x: Tensor, fmt: BlockFormat) -> None:
    """FormatError unless `x` is a floating tensor that is whole blocks."""
    if not x.is_floating_point():
        raise FormatError(f"only floating tensors can be quantized, but got {x.dtype}")
    high, wide = fmt.block_shape
    if x.dim() == 0 or x.shape[-1] == 0 or (wide and x.shape[-1] % wide):
        multiple = f"a positive multiple of {wide}" if wide else "at least 1"
        raise FormatError(
            f"{fmt.name} needs K to be {multiple}, "
            f"but got shape {tuple(x.shape)}; pad K with zeros"
        )
    if high > 1 and (x.dim() != 2 or x.shape[0] % high):
        raise FormatError(
            f"{fmt.name} needs a matrix whose rows are a multiple of {high}, "
            f"but got shape {tuple(x.shape)}; pad the rows with zeros"
        )
    if fmt.codes_per_byte == 2 and x.shape[-1] % 2:
        raise FormatError(
            f"{fmt.name} packs two codes into a byte, so K must be even, "
            f"but got shape {tuple(x.shape)}; pad K with a zero"
        )


def _split(x: Tensor, fmt: BlockFormat) -> Tensor:
    """[..., K] → float32 blocks [blocks down, blocks across, values of a block]."""
    rows, columns = x.shape[:-1].numel(), x.shape[-1]
    (down, across), (high, wide) = fmt.grid(rows, columns), fmt.tile(rows, columns)
    return x.float().reshape(down, high, across, wide).transpose(1, 2).flatten(2)


def _join(blocks: Tensor, fmt: BlockFormat, shape: torch.Size) -> Tensor:
    """What `_split` did, undone."""
    rows, columns = shape[:-1].numel(), shape[-1]
    (down, across), (high, wide) = fmt.grid(rows, columns), fmt.tile(rows, columns)
    return blocks.view(down, across, high, wide).transpose(1, 2).reshape(shape)


def _encode(
    blocks: Tensor, multiplier: Tensor, fmt: BlockFormat, generator: Generator | None
) -> Tensor:
    """Codes of `blocks`, some rows at a time."""
    rows = max(1, CHUNK // max(1, blocks[0].numel())) if len(blocks) else 1
    parts = zip(blocks.split(rows), multiplier.split(rows), strict=True)
    return torch.cat([fmt.element.encode(x * m.unsqueeze(-1), generator) for x, m in parts])


def _better(
    blocks: Tensor,
    recipe: Recipe,
    one: tuple[Scaling, Tensor],
    other: Scaling,
    generator: Generator | None,
) -> tuple[Scaling, Tensor]:
    """Block by block the scale that errs less; the larger maximum where both err alike."""
    scaled, codes = one
    fmt = recipe.format
    others = _encode(blocks, other.multiplier, fmt, generator)
    power = 2 if recipe.scale_rule is ScaleRule.FOUR_SIX_MSE else 1

    def error(scales: Tensor, encoded: Tensor) -> Tensor:
        values = fmt.element.decode(encoded) * fmt.scale.decode(scales).unsqueeze(-1)
        return (values * scaled.tensor_scale - blocks).abs().pow(power).sum(-1)

    chosen = error(other.scales, others) < error(scaled.scales, codes)
    scales = torch.where(chosen, other.scales, scaled.scales)
    return scaled._replace(scales=scales), torch.where(chosen.unsqueeze(-1), others, codes)


_WHICH = {True: "a", False: "no"}
