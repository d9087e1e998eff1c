"""From tensors to launches of the quantize kernels, and from a shape to offline builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import cdiv
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.errors import BuildError, FormatError
from fp4kernels.formats import MXFP4, NVFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe, Rounding, ScaleRule
from fp4kernels.reference import check_blocks
from fp4kernels.swizzle import swizzled_size
from fp4kernels.triton.offline import KernelSource
from fp4kernels.triton.quantize_kernel import STEPS, amax_kernel, quantize_kernel

MOST_BLOCKS = (1 << 30) - 1  # the kernel counts them, and some beyond the last, in 32 bits
_RULES = {
    *((MXFP4, rule) for rule in (ScaleRule.FLOOR, ScaleRule.CEIL, ScaleRule.RCEIL, ScaleRule.EVEN)),
    (NVFP4, ScaleRule.NV),
}
_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class QuantizeConfig:
    """How the work is cut up: `values` (a power of two) of one program, and its warps."""

    values: int = 4096
    warps: int = 4


DEFAULT = QuantizeConfig()


def quantizes(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Whether `quantize` takes the recipe, and values of `dtype`."""
    known = (recipe.format, recipe.scale_rule) in _RULES
    return known and recipe.rounding is Rounding.NEAREST_EVEN and dtype in _POINTERS


def quantize(
    x: Tensor,
    recipe: Recipe,
    amax: Tensor | None = None,
    *,
    swizzle: bool = False,
    config: QuantizeConfig = DEFAULT,
) -> Packed:
    """As reference.quantize for `x` [..., K], on its device, bit for bit but for the sign of a NaN.

    NVFP4 with an `amax`, a float32 scalar on that device, takes one pass and clips what is larger;
    a block that holds NaN or Inf then dequantizes to NaN, alone unless `amax` is not finite.
    Without one, a first pass finds it. The host never waits for either. With `swizzle` the scales
    are one line, as fp4kernels.swizzle lays out those of all rows.

    Raises FormatError unless `quantizes`, for shapes as the reference does, and for an `amax` that
    is another kind of tensor or that the format has no use for; BuildError where Triton fails.
    """
    if not quantizes(recipe, x.dtype):
        raise FormatError(
            "the Triton quantizer takes mxfp4 with floor, ceil, rceil or even and nvfp4 with nv, "
            "to nearest even, of bfloat16, float16 or float32, but got "
            f"{recipe.format.name} with {recipe.scale_rule}, {recipe.rounding}, of {x.dtype}"
        )
    fmt = recipe.format
    check_blocks(x, fmt)
    _check_amax(amax, x, recipe)
    total, across = x.numel() // fmt.block_size, x.shape[-1] // fmt.block_size
    if total > MOST_BLOCKS:
        raise FormatError(f"at most {MOST_BLOCKS} blocks can be quantized, but got {total}")
    x = x.contiguous()
    codes = x.new_empty(fmt.codes_shape(x.shape), dtype=torch.uint8)
    if swizzle:  # the padding is zeros
        scales = x.new_zeros(swizzled_size(total // across, across), dtype=torch.uint8)
    else:
        scales = x.new_empty(fmt.scales_shape(x.shape), dtype=torch.uint8)
    tensor_scale = x.new_ones((), dtype=torch.float32)
    constants = _constants(recipe, swizzle, config)
    programs = max(1, cdiv(total, constants["blocks"]))  # one writes the tensor scale of no rows
    try:
        with torch.cuda.device(x.get_device()):
            if fmt.tensor_scale and amax is None:
                bits = x.new_zeros((), dtype=torch.int32)
                amax_kernel[(max(1, cdiv(x.numel(), config.values * STEPS.value)),)](
                    x, bits, x.numel(), values=config.values, **_options(config)
                )
                amax = bits.view(torch.float32)
            quantize_kernel[(programs,)](
                x, amax, codes, scales, tensor_scale, total, across, **constants, **_options(config)
            )
    except (CompilationError, OutOfResources, PTXASError) as error:
        raise BuildError(f"the quantizer of {recipe.name} did not build: {error}") from error
    return Packed(codes, scales, tensor_scale)


def quantize_sources(
    shape: Sequence[int],
    dtype: torch.dtype,
    recipe: Recipe,
    *,
    swizzle: bool = False,
    config: QuantizeConfig = DEFAULT,
) -> list[KernelSource]:
    """All kernels that `quantize` compiles for such an x, without a given amax."""
    size = torch.Size(shape).numel()
    block, pointer = recipe.format.block_size, _POINTERS[dtype]
    arguments: dict[str, str | int | None] = {
        "x": pointer,
        "amax": "*fp32" if recipe.format.tensor_scale else None,
        "codes": "*u8",
        "scales": "*u8",
        "tensor_scale": "*fp32",
        "total": size // block,
        "across": shape[-1] // block,
    }
    constants, options = _constants(recipe, swizzle, config), _options(config)
    sources = [KernelSource(quantize_kernel, arguments, constants, options)]
    if recipe.format.tensor_scale:
        arguments = {"x": pointer, "amax": "*i32", "size": size}
        sources.append(KernelSource(amax_kernel, arguments, {"values": config.values}, options))
    return sources


def _check_amax(amax: Tensor | None, x: Tensor, recipe: Recipe) -> None:
    if amax is None:
        return
    if not recipe.format.tensor_scale:
        raise FormatError(f"{recipe.format.name} has no tensor scale, so it takes no amax")
    if amax.dtype is not torch.float32 or amax.numel() != 1 or amax.device != x.device:
        raise FormatError(
            f"amax must be one float32 on {x.device}, but got {tuple(amax.shape)} of {amax.dtype} "
            f"on {amax.device}"
        )


def _constants(recipe: Recipe, swizzle: bool, config: QuantizeConfig) -> dict[str, Any]:
    block = recipe.format.block_size
    return {
        "block": block,
        "rule": recipe.scale_rule.value,
        "swizzle": swizzle,
        "blocks": config.values // block,
    }


def _options(config: QuantizeConfig) -> dict[str, Any]:
    # the reference rounds every product
    return {"num_warps": config.warps, "enable_fp_fusion": False}
