"""From new tokens to launches that store them in a cache, and from a shape to offline builds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import cdiv
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.storing import Held, Order
from fp4kernels.errors import BuildError
from fp4kernels.recipes import Recipe, Transform
from fp4kernels.transforms import HADAMARD_SIZES, signs
from fp4kernels.triton.attention_append_kernel import append_kernel
from fp4kernels.triton.offline import KernelSource

VALUES, WARPS, LANES = 4096, 4, 32  # of a program; a thread has whole groups
_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
_OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}


def append(
    k: Tensor,
    v: Tensor,
    keys: Held,
    values: Held,
    slots: Tensor,
    how: AttentionRecipe,
    order: Order,
) -> None:
    """k, v [T, kv_heads, D] into `slots` of a cache on a GPU. BuildError where Triton fails."""
    page_size = keys.codes.shape[1 if order is Order.NHD else 2]
    rotation = how.rotation(k.shape[-1])
    try:
        with torch.cuda.device(k.get_device()):
            for x, held, of, turned in (
                (k, keys, how.k, rotation), (v, values, how.v, Transform.NONE)
            ):  # fmt: skip
                constants = _constants(x.shape[-1], of, turned, page_size, order)
                total = x.numel() // constants["step"]
                codes = held.codes if constants["eight_bit"] else held.codes.view(torch.int32)
                append_kernel[(cdiv(total, constants["groups"]),)](
                    x.contiguous(), codes, held.scales, _scale(held, of), slots, total, x.shape[1],
                    **constants, **_OPTIONS,
                )  # fmt: skip
    except (CompilationError, OutOfResources, PTXASError) as error:
        raise BuildError(f"storing {how.name} keys did not build: {error}") from error


def append_sources(
    head_dim: int, kv_heads: int, how: AttentionRecipe, page_size: int, order: Order,
    dtype: torch.dtype = torch.bfloat16,
) -> list[KernelSource]:  # fmt: skip
    """The kernels that `append` compiles, for K and for V."""
    sources = []
    for of, turned in ((how.k, how.rotation(head_dim)), (how.v, Transform.NONE)):
        constants = _constants(head_dim, of, turned, page_size, order)
        arguments: dict[str, str | int | None] = {
            "x": _POINTERS[dtype],
            "codes": "*u8" if constants["eight_bit"] else "*i32",
            "scales": "*u8",
            "scale": "*fp32" if of.format.tensor_scale else None,
            "slots": "*i64",
            "total": 3,  # neither 1 nor a multiple of 16
            "kv_heads": kv_heads,
        }
        sources.append(KernelSource(append_kernel, arguments, constants, _OPTIONS))
    return sources


def _scale(held: Held, of: Recipe) -> Tensor | None:
    return held.scale if of.format.tensor_scale else None


def _constants(
    head_dim: int, of: Recipe, turned: Transform, page_size: int, order: Order
) -> dict[str, Any]:
    size = HADAMARD_SIZES.get(turned, 0)
    step = size or 32  # every head dim is whole groups of 32 values
    return {
        "d": head_dim,
        "block": of.format.block_size,
        "eight_bit": of.format.element.bits == 8,
        "size": size,
        "minus": sum(1 << i for i, sign in enumerate(signs(size)) if sign < 0) if size else 0,
        "page_size": page_size,
        "tokens_first": order is Order.NHD,
        "groups": max(VALUES // step, LANES * WARPS),
        "step": step,
    }
