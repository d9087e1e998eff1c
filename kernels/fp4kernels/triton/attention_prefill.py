"""From operands to launches of FP4 prefill, and from a shape to offline builds."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton import JITFunction, cdiv, next_power_of_2
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.attention.operands import TILE, Operands
from fp4kernels.attention.problem import Mask
from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.devices import Device
from fp4kernels.errors import BuildError, FormatError
from fp4kernels.triton.attention_prefill_kernel import prefill_kernel
from fp4kernels.triton.flash_prefill import (
    PrefillConfig,
    badge,
    block_of,
    default,
    not_compiled,
    unfit,
)  # fmt: skip
from fp4kernels.triton.offline import KernelSource
from fp4kernels.variants import Badge

INTERPRETED = not isinstance(prefill_kernel, JITFunction)  # decided when it was imported
CONVERTS = (10, 11, 12)  # major compute capabilities that convert to E2M1
_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


def prefill(
    operands: Operands,
    recipe: AttentionRecipe,
    mask: Mask,
    scale: float,
    out: Tensor,
    *,
    device: Device,
    config: PrefillConfig | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """Fills out [T, heads, D] and returns LSE [heads, T], float32: `lse` where that is given.

    Raises FormatError for a recipe that is not of four bits throughout or a config that is none,
    BuildError where Triton fails.
    """
    config = config or default(out.shape[2], recipe, device)
    if why := unfit(config, badge(recipe, device) is Badge.NATIVE):
        raise FormatError(why)
    if why := None if INTERPRETED else not_compiled(recipe, device, triton.__version__):
        raise BuildError(why)
    tokens, heads, _ = out.shape
    if lse is None:
        lse = out.new_empty((heads, tokens), dtype=torch.float32)
    places, sequences = operands.places, len(operands.places.segments.lengths)
    group = heads // operands.k.codes.shape[0]
    constants = _constants(recipe, mask, out.shape[2], group, config, device)
    grid = (max(1, cdiv(places.longest_q, config.block_m)), heads, sequences)
    try:
        with torch.cuda.device(out.get_device()):
            prefill_kernel[grid](
                *operands.q, *operands.k, *operands.v, operands.bias, operands.shift,
                places.table(out.device), out, lse, heads, tokens, places.q[-1], places.k[-1],
                places.longest_k, mask.window, scale, **constants, **_options(config),
            )  # fmt: skip
    except (CompilationError, OutOfResources, PTXASError) as error:
        raise BuildError(f"prefill of {recipe.name}, {config.label}: {error}") from error
    return lse


def prefill_source(
    recipe: AttentionRecipe,
    mask: Mask,
    head_dim: int,
    device: Device,
    config: PrefillConfig | None = None,
    *,
    heads: int = 32,
    kv_heads: int = 8,
    dtype: torch.dtype = torch.bfloat16,
) -> KernelSource:
    """What `prefill` compiles for many tokens."""
    config = config or default(head_dim, recipe, device)
    arguments: dict[str, str | int | None] = {
        **{f"{x}{part}": "*u8" for x in "qkv" for part in ("", "_scales")},
        **{f"{x}_scale": "*fp32" for x in "qkv"},
        "bias": "*fp32" if recipe.smooth_q else None,
        "shift": "*fp32" if recipe.smooth_k else None,
        "table": "*i32", "out": _POINTERS[dtype], "lse": "*fp32", "heads": heads, "tokens": 16,
        "tq": 16, "tk": 16, "longest_k": 16, "window": mask.window, "scale": "fp32",
    }  # fmt: skip
    constants = _constants(recipe, mask, head_dim, heads // kv_heads, config, device)
    return KernelSource(prefill_kernel, arguments, constants, _options(config))


def _constants(
    recipe: AttentionRecipe, mask: Mask, head_dim: int, group: int, config: PrefillConfig,
    device: Device,
) -> dict[str, Any]:  # fmt: skip
    return {
        "d": head_dim,
        "dims": next_power_of_2(head_dim),
        "group": group,
        "block": block_of(recipe),
        "causal": mask.causal,
        "windowed": mask.window > 0,
        "exponent": math.log2(recipe.p_scale),
        "round_scale": recipe.round_scale,
        "reverse": recipe.reverse,
        "block_m": config.block_m,
        "block_n": config.block_n,
        "tile": TILE,
        "native": badge(recipe, device) is Badge.NATIVE,
        "converts": device.compute_capability // 10 in CONVERTS and not INTERPRETED,
        "interpreted": INTERPRETED,
    }


def _options(config: PrefillConfig) -> dict[str, Any]:
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
