"""Activations to FP4 with what stands before that in a layer: by Triton on a GPU, else in plain torch.

The plain way does one step after the other, and is what the fused kernels are tested against.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.packing import Packed
from fp4kernels.philox import Philox
from fp4kernels.prologues import Prologue, RmsNorm, SwiGlu
from fp4kernels.swizzle import swizzled
from fp4kernels.targets import Target, check_count, check_transposable
from fp4kernels.transforms import transformed

__all__ = ["Philox", "RmsNorm", "SwiGlu", "Target", "quantize_fused", "quantize_with_transpose"]

MIN_CAPABILITY = 8  # major; the kernels were never compiled for less


def quantize_fused(
    x: Tensor,
    target: Target,
    *,
    prologue: Prologue | None = None,
    swizzle: bool = False,
    raised: Tensor | None = None,
) -> Packed:
    """Quantize what `prologue` makes of `x` [..., K] along K, in one kernel where there is one.

    `RmsNorm(weight, eps)` and `SwiGlu(up)` say what they compute, to the bit; the recipe's Hadamard
    transform comes after them. With `amax` NVFP4 takes one pass and clips what is larger; without, a
    first pass finds it. (Plain torch clips before scales are chosen, a kernel after that, so that
    four-over-six and stochastic codes of such blocks may differ.) `raised`, an int64 scalar on the
    device, grows by the number of blocks whose scale a recipe such as mxfp4-row-14 raised; the host
    waits for none of it. With `swizzle` the scales are those of all rows, as fp4kernels.swizzle lays
    them out.

    Raises FormatError for shapes and operands that do not go together, a chance that the rounding
    lacks or has no use for, an amax without a tensor scale, and a count without a window.
    """
    if _by_triton(x, target):
        from fp4kernels.triton import quantize_launch as gpu  # imports triton

        return gpu.quantize(
            x, target.recipe, target.amax,
            prologue=prologue, chance=target.chance, swizzle=swizzle, raised=raised,
        )  # fmt: skip
    target.check(x)
    check_count(raised, x, target.recipe)
    y, _ = transformed(x if prologue is None else prologue.applied(x), target.recipe.transform)
    if raised is not None:
        raised += reference.count_raised(y, target.recipe)
    return _plain(y, target, swizzle)


def quantize_with_transpose(
    x: Tensor,
    target: Target,
    transposed: Target,
    *,
    prologue: SwiGlu | None = None,
    swizzle: bool = False,
) -> tuple[Packed, Packed]:
    """The matrix `x` [M, K] quantized along K, and its transpose [K, M] along M, as a layer's weight
    gradient reads it; on a GPU x is read from memory once.

    Each is what `quantize_fused` would give of x, and of x.mT. Raises as that does, and FormatError
    for a tensor that is no matrix, a recipe with a window, or a prologue that looks at whole rows.
    """
    if _by_triton(x, target) and _by_triton(x, transposed):
        from fp4kernels.triton import both_launch as gpu  # imports triton

        return gpu.quantize_both(x, target, transposed, prologue=prologue, swizzle=swizzle)
    check_transposable(x, prologue, target, transposed)
    y = x if prologue is None else prologue.applied(x)
    along, below = (
        _plain(transformed(values, each.recipe.transform)[0], each, swizzle)
        for values, each in ((y, target), (y.mT, transposed))
    )
    return along, below


def _by_triton(x: Tensor, target: Target) -> bool:
    if x.device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(x.device)[0] < MIN_CAPABILITY:
        return False
    from fp4kernels.triton.quantize_launch import quantizes  # imports triton

    return quantizes(target.recipe, x.dtype)


def _plain(y: Tensor, target: Target, swizzle: bool) -> Packed:
    if target.amax is None:
        found = reference.quantize(y, target.recipe, target.chance)
    else:
        found = reference.quantize_within(y, target.recipe, target.amax, target.chance)
    if not swizzle:
        return found
    return found._replace(scales=swizzled(found.scales.reshape(-1, found.scales.shape[-1])))
