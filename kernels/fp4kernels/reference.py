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
from fp4kernels.philox import Philox
from fp4kernels.recipes import Recipe, Rounding
from fp4kernels.scaling import FOUR_SIX, TIE, ScaleRule, Scaling, alternative, raised, scaling

E4M3_NAN = 0x7F
ALL_LARGEST = 0x77  # a byte of two codes
CHUNK = 1 << 18  # values that are rounded at once: what they need on the way fits into a cache


def quantize(x: Tensor, recipe: Recipe, generator: Generator | Philox | None = None) -> Packed:
    """Quantize `x` [..., K] along K; K must be a multiple of the block size.

    Returns codes [..., K/2] (or [..., K], where codes have more than four bits), scales
    [..., K/block] and the tensor scale, in row-major order, whatever the order of `x` in memory; a
    format with blocks of more than one row takes a matrix. Other float types are converted to
    float32 first. No rows give no codes and no scales.

    -0 stays -0 where the element has one. Subnormal numbers are numbers. A block of zeros has the
    smallest scale of its rule. A block that holds NaN or Inf dequantizes to NaN; under a tensor
    scale the whole tensor is lost to NaN or Inf. Numbers from 2^127 on may be rounded up to Inf.

    Stochastic roundings need a `generator`: not one seeded as that which drew `x`, for then chance
    depends on the values. With Philox the draws are those of the values' places in `x`. Raises
    FormatError where a generator is missing or too many, and where `x` is not floating or not whole
    blocks.
    """
    fmt = recipe.format
    check_blocks(x, fmt)
    if (recipe.rounding is Rounding.NEAREST_EVEN) != (generator is None):
        raise FormatError(f"{recipe.rounding} rounding takes {_WHICH[generator is None]} generator")
    blocks = _split(x, fmt)
    amax = blocks.abs().amax(-1)
    scaled = scaling(amax, fmt, recipe.scale_rule, recipe.headroom)
    if recipe.scale_rule in FOUR_SIX:
        other = alternative(amax * recipe.headroom, fmt, recipe.scale_rule)
        scaled = _better(blocks, recipe, scaled, other)
    chance: Generator | Tensor | None
    if isinstance(generator, Philox):
        chance = _split(generator.uniform(x.shape, x.device), fmt)
    else:
        chance = generator
    codes = _encode(blocks, scaled.multiplier, fmt, chance)
    codes = _join(codes, fmt, x.shape)
    return Packed(
        pack_nibbles(codes) if fmt.codes_per_byte == 2 else codes,
        scaled.scales.view(fmt.scales_shape(x.shape)).contiguous(),
        scaled.tensor_scale,
    )


def quantize_within(
    x: Tensor, recipe: Recipe, amax: Tensor, generator: Generator | Philox | None = None
) -> Packed:
    """As `quantize`, as though `amax`, a float32 scalar, were the largest magnitude of `x`: what is
    larger clips, and a block that is not finite is lost alone. For formats with a tensor scale.
    """
    fmt, rows = recipe.format, x.reshape(-1, x.shape[-1])
    check_blocks(x, fmt)
    lost = ~rows.view(*fmt.scales_shape(rows.shape), fmt.block_size).isfinite().all(-1)
    each = lost.repeat_interleave(fmt.block_size, -1)
    within = rows.float().masked_fill(each, 0.0).clamp(-amax, amax)
    # one row more makes amax the largest of all
    seen = torch.cat((within, amax.reshape(1, 1).expand(1, x.shape[-1])))
    codes, scales, tensor_scale = quantize(seen, recipe, generator)
    codes = torch.where(each[:, ::2], ALL_LARGEST, codes[:-1])
    scales = torch.where(lost, E4M3_NAN, scales[:-1])
    return Packed(
        codes.view(fmt.codes_shape(x.shape)), scales.view(fmt.scales_shape(x.shape)), tensor_scale
    )


def count_raised(x: Tensor, recipe: Recipe) -> Tensor:
    """How many blocks of `x` [..., K] have a larger scale than they need, for their row's sake.

    An int64 scalar on the device of `x`, which nobody waits for; blocks of zeros do not count. 0
    where the recipe has no window. Raises FormatError as `quantize` does.
    """
    check_blocks(x, recipe.format)
    amax = _split(x, recipe.format).abs().amax(-1)
    if recipe.window is None:
        return torch.zeros((), dtype=torch.int64, device=x.device)
    wanted, given = (
        scaling(largest, recipe.format, ScaleRule.FLOOR).scales
        for largest in (amax, raised(amax, recipe.window))
    )
    return ((given != wanted) & (amax > 0)).sum()


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
            f"{fmt.name} needs K to be {multiple}, but got shape {tuple(x.shape)}; pad K with zeros"
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
    return x.float().reshape(down, high, across, wide).transpose(1, 2).flatten(2).contiguous()


def _join(blocks: Tensor, fmt: BlockFormat, shape: torch.Size) -> Tensor:
    """What `_split` did, undone."""
    rows, columns = shape[:-1].numel(), shape[-1]
    (down, across), (high, wide) = fmt.grid(rows, columns), fmt.tile(rows, columns)
    return blocks.view(down, across, high, wide).transpose(1, 2).reshape(shape)


def _encode(
    blocks: Tensor, multiplier: Tensor, fmt: BlockFormat, chance: Generator | Tensor | None
) -> Tensor:
    """Codes of `blocks`; draws are arranged as they are."""
    return torch.cat([
        fmt.element.encode(
            blocks[rows] * multiplier[rows].unsqueeze(-1),
            chance[rows] if isinstance(chance, Tensor) else chance,
        )
        for rows in _chunks(blocks)
    ])  # fmt: skip


def _better(blocks: Tensor, recipe: Recipe, one: Scaling, other: Scaling) -> Scaling:
    """Block by block the scales that err less, `one` where both err alike.

    Codes are to nearest here, also where chance will round them: a choice by what chance made would
    bias the mean.
    """
    best = _error(blocks, one, recipe) * (1 - TIE)
    better = _error(blocks, other, recipe) < best
    scales = torch.where(better, other.scales, one.scales)
    return Scaling(scales, torch.where(better, other.multiplier, one.multiplier), one.tensor_scale)


def _error(blocks: Tensor, scaled: Scaling, recipe: Recipe) -> Tensor:
    """Of each block, float64."""
    element, power = recipe.format.element, 2 if recipe.scale_rule is ScaleRule.FOUR_SIX_MSE else 1
    scales = recipe.format.scale.decode(scaled.scales).unsqueeze(-1)
    errors = []
    for rows in _chunks(blocks):
        codes = element.encode(blocks[rows] * scaled.multiplier[rows].unsqueeze(-1))
        back = element.decode(codes) * scales[rows] * scaled.tensor_scale
        errors.append((back.double() - blocks[rows]).abs().pow(power).sum(-1))
    return torch.cat(errors)


def _chunks(blocks: Tensor) -> list[slice]:
    """Rows of blocks that are worked on at once; one empty slice where there are none."""
    rows = max(1, CHUNK // max(1, blocks.shape[1:].numel()))
    return [slice(start, start + rows) for start in range(0, max(1, len(blocks)), rows)]


_WHICH = {True: "a", False: "no"}
