"""Mixture-of-experts layers: every token times the weights of its expert.

Tokens are sorted by expert. `offsets`, int32 [E + 1] on the device, ascends from 0 to T: expert e has
rows offsets[e] to offsets[e + 1], perhaps none. Weights are E quantized matrices N x K, one behind
the other:

    codes [E, N, K/2]   scales [E, N, K/block]   tensor_scale [E]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.devices import surroundings
from fp4kernels.errors import FormatError
from fp4kernels.ops import quantize_rows
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.triton.grouped import default, takes
from fp4kernels.workloads import GroupedWorkload


def stack(weights: Sequence[Packed]) -> Packed:
    """Canonical weights of one shape and format, one behind the other."""
    codes, scales, tensor_scales = zip(*weights, strict=True)
    return Packed(torch.stack(codes), torch.stack(scales), torch.stack(tensor_scales))


def expected(x: Packed | Tensor, w: Packed, offsets: Tensor, recipe: Recipe) -> Tensor:
    """What a kernel is judged by: [T, N] in float64. Waits for the offsets."""
    values = (
        x.double() if isinstance(x, Tensor) else reference.dequantize(x, recipe.activations.format)
    )
    ends = offsets.tolist()
    products = [
        reference.gemm(values[start:end], reference.dequantize(Packed(*one), recipe.format))
        for one, start, end in zip(zip(*w, strict=True), ends[:-1], ends[1:], strict=True)
    ]
    return torch.cat(products)


@torch.library.custom_op("fp4kernels::grouped_linear", mutates_args=())
def grouped_linear_op(
    x: Tensor, codes: Tensor, scales: Tensor, tensor_scales: Tensor, offsets: Tensor, recipe: str
) -> Tensor:
    """x [T, K] of bfloat16 or float32, sorted by expert → [T, N] in its dtype.

    A kernel of one launch on a GPU that has one for the recipe, which never waits for the host; the
    reference elsewhere. x is quantized as the recipe, under one tensor scale for all tokens.
    FormatError where shapes or dtypes do not fit.
    """
    how, w = recipe_named(recipe), Packed(codes, scales, tensor_scales)
    _check(x, w, offsets, how)
    out = x.new_empty((x.shape[0], codes.shape[1]))
    if x.shape[0] == 0:
        return out
    left = x.bfloat16() if how.weight_only else quantize_rows(x.contiguous(), recipe)
    device, toolchain = surroundings(x.device.type)
    if takes(how, device, toolchain) is not None:
        return out.copy_(expected(left, w, offsets, how))
    from fp4kernels.triton.grouped_launch import grouped_launcher  # imports triton

    experts, n = codes.shape[:2]
    config = default(GroupedWorkload(x.shape[0], experts, n, x.shape[1]), how, device)
    grouped_launcher(config, how)(left, w, offsets, out)
    return out


@grouped_linear_op.register_fake
def _grouped_linear_fake(
    x: Tensor, codes: Tensor, scales: Tensor, tensor_scales: Tensor, offsets: Tensor, recipe: str
) -> Tensor:
    return x.new_empty((x.shape[0], codes.shape[1]))


def _check(x: Tensor, w: Packed, offsets: Tensor, recipe: Recipe) -> None:
    fmt = recipe.format
    reference.check_blocks(x, recipe.activations.format)
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise FormatError(f"activations are bfloat16 or float32, but got {x.dtype}")
    experts, n = w.codes.shape[:2]
    shapes = ((experts, *fmt.codes_shape((n, x.shape[1]))),
              (experts, *fmt.scales_shape((n, x.shape[1]))), (experts,))  # fmt: skip
    if shapes != tuple(tuple(part.shape) for part in w) or x.dim() != 2:
        raise FormatError(
            "x [T, K] takes codes [E, N, K/2], scales [E, N, K/block] and tensor scales [E], but got "
            f"{tuple(x.shape)} and {[tuple(part.shape) for part in w]}"
        )
    if offsets.dtype is not torch.int32 or tuple(offsets.shape) != (experts + 1,):
        raise FormatError(
            f"offsets are {experts + 1} of int32 for {experts} experts, but got "
            f"{tuple(offsets.shape)} of {offsets.dtype}"
        )
