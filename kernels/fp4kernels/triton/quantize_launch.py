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
from fp4kernels.philox import Philox
from fp4kernels.recipes import Recipe, Rounding, ScaleRule, Transform
from fp4kernels.reference import check_blocks
from fp4kernels.scaling import FOUR_SIX
from fp4kernels.swizzle import swizzled_size
from fp4kernels.transforms import HADAMARD_SIZES, check_whole, signs
from fp4kernels.triton.offline import KernelSource
from fp4kernels.triton.quantize_kernel import STEPS, amax_kernel, quantize_kernel

MOST_BLOCKS = (1 << 30) - 1  # the kernel counts them, and some beyond the last, in 32 bits
WARP = 32  # threads
GROUP = 32  # values that a thread packs into one store of 16 bytes
CONVERTS = (10, 11, 12)  # major compute capabilities that convert to E2M1
_MX_RULES = ("floor", "ceil", "rceil", "even", "floor-3/4")
_RULES = {
    *((MXFP4, ScaleRule(rule)) for rule in _MX_RULES),
    *((NVFP4, rule) for rule in (ScaleRule.NV, *FOUR_SIX)),
}
_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class QuantizeConfig:
    """How the work is cut up: `values` (a power of two) of one program, or more where its warps hold
    more, and its warps."""

    values: int = 4096
    warps: int = 4


DEFAULT = QuantizeConfig()


def quantizes(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Whether `quantize` takes the recipe, and values of `dtype`."""
    known = (recipe.format, recipe.scale_rule) in _RULES and dtype in _POINTERS
    fused = recipe.transform is Transform.NONE or recipe.transform in HADAMARD_SIZES
    return known and fused and recipe.outliers is None


def quantize(
    x: Tensor,
    recipe: Recipe,
    amax: Tensor | None = None,
    *,
    chance: Philox | None = None,
    swizzle: bool = False,
    config: QuantizeConfig = DEFAULT,
) -> Packed:
    """As reference.quantize, on its device, of what the recipe's transform makes of `x` [..., K];
    bit for bit but for the sign of a NaN.

    NVFP4 with an `amax`, a float32 scalar on that device, takes one pass and clips what is larger;
    a block that holds NaN or Inf then dequantizes to NaN, alone unless `amax` is not finite. It is
    the largest magnitude after the transform. Without one, a first pass finds it. The host never
    waits for either. With `swizzle` the scales are one line, as fp4kernels.swizzle lays out those
    of all rows.

    Raises FormatError unless `quantizes`, for shapes as the reference and the transform do, where a
    stochastic rounding has no `chance` or another one has, and for an `amax` that is another kind
    of tensor or that the format has no use for; BuildError where Triton fails.
    """
    if not quantizes(recipe, x.dtype):
        raise FormatError(
            "the Triton quantizer takes mxfp4 with floor, ceil, rceil, even or floor-3/4 and nvfp4 "
            "with nv or four-six, without outliers, of bfloat16, float16 or float32, but got "
            f"{recipe.format.name} with {recipe.scale_rule}, {recipe.transform}, of {x.dtype}"
        )
    fmt = recipe.format
    check_blocks(x, fmt)
    check_whole(x, recipe.transform)
    _check_amax(amax, x, recipe)
    if (recipe.rounding is Rounding.NEAREST_EVEN) != (chance is None):
        which = "a" if chance is None else "no"
        raise FormatError(f"{recipe.rounding} rounding takes {which} chance")
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
    if recipe.scale_rule is ScaleRule.FLOOR_3_4:
        tensor_scale = tensor_scale * 4 / 3
    constants = _constants(x.numel(), recipe, swizzle, _converts(x), config)
    groups = x.numel() // constants["group"]
    programs = max(1, cdiv(groups, constants["rows"]))  # one writes the tensor scale of no rows
    low, high = (_signed(word) for word in (chance.key if chance else (0, 0)))
    try:
        with torch.cuda.device(x.get_device()):
            if fmt.tensor_scale and amax is None:
                bits = x.new_zeros((), dtype=torch.int32)
                amax_kernel[(max(1, cdiv(programs, STEPS.value)),)](
                    x, bits, groups, **_of_amax(constants), **_options(config)
                )
                amax = bits.view(torch.float32)
            quantize_kernel[(programs,)](
                x, amax, codes.view(torch.int32), scales, tensor_scale, low, high, groups, across,
                **constants, **_options(config),
            )  # fmt: skip
    except (CompilationError, OutOfResources, PTXASError) as error:
        raise BuildError(f"the quantizer of {recipe.name} did not build: {error}") from error
    return Packed(codes, scales, tensor_scale)


def quantize_sources(
    shape: Sequence[int],
    dtype: torch.dtype,
    recipe: Recipe,
    *,
    swizzle: bool = False,
    converts: bool = False,
    config: QuantizeConfig = DEFAULT,
) -> list[KernelSource]:
    """All kernels that `quantize` compiles for such an x, without a given amax, for a GPU that
    `converts` to E2M1 or not."""
    size = torch.Size(shape).numel()
    constants, options = _constants(size, recipe, swizzle, converts, config), _options(config)
    pointer, groups = _POINTERS[dtype], size // constants["group"]
    arguments: dict[str, str | int | None] = {
        "x": pointer,
        "amax": "*fp32" if recipe.format.tensor_scale else None,
        "codes": "*i32",
        "scales": "*u8",
        "tensor_scale": "*fp32",
        "seed_low": 3,  # neither 1 nor a multiple of 16, of which Triton would make use
        "seed_high": 3,
        "total": groups,
        "across": shape[-1] // recipe.format.block_size,
    }
    sources = [KernelSource(quantize_kernel, arguments, constants, options)]
    if recipe.format.tensor_scale:
        arguments = {"x": pointer, "amax": "*i32", "total": groups}
        sources.append(KernelSource(amax_kernel, arguments, _of_amax(constants), options))
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


def _converts(x: Tensor) -> bool:
    """Whether the GPU that holds `x` has the instruction."""
    if x.device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(x.device)[0] in CONVERTS


def _constants(
    size: int, recipe: Recipe, swizzle: bool, converts: bool, config: QuantizeConfig
) -> dict[str, Any]:
    block, turned = recipe.format.block_size, HADAMARD_SIZES.get(recipe.transform, 0)
    group = max(turned, block if size % GROUP else GROUP)
    nearest = "hardware" if converts else "nearest"
    minus = sum(1 << place for place, sign in enumerate(signs(turned)) if sign < 0) if turned else 0
    return {
        "block": block,
        "rule": recipe.scale_rule.value,
        "rounding": nearest if recipe.rounding is Rounding.NEAREST_EVEN else "stochastic",
        "headroom": recipe.headroom,
        "size": turned,
        "minus": minus,
        "swizzle": swizzle,
        "group": group,
        "rows": max(config.values // group, WARP * config.warps),  # a thread has whole groups
    }


def _of_amax(constants: dict[str, Any]) -> dict[str, Any]:
    return {name: constants[name] for name in ("size", "minus", "group", "rows")}


def _options(config: QuantizeConfig) -> dict[str, Any]:
    # the reference rounds every product
    return {"num_warps": config.warps, "enable_fp_fusion": False}


def _signed(word: int) -> int:
    """The int32 of the same bits, which a launch always passes as such."""
    return word - (1 << 32) if word >> 31 else word
