"""FP4 attention of whole sequences, as an op that trains and compiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fp4kernels.attention.backward import gradients
from fp4kernels.attention.device import gpu
from fp4kernels.attention.operands import prepare
from fp4kernels.attention.problem import (
    Mask,
    Segments,
    check,
    check_finite,
    mask_named,
    segments_of,
)
from fp4kernels.attention.recipes import attention_recipe, check_four_bit
from fp4kernels.attention.simulate import simulate
from fp4kernels.cpu.attention_prefill import prefill as by_cpp
from fp4kernels.devices import surroundings
from fp4kernels.errors import FormatError

if TYPE_CHECKING:
    from fp4kernels.tables import Table

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Lengths = Tensor | Sequence[int]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    recipe: str = "nvfp4",
    mask: str = "full",
    window: int | None = None,
    cu_q: Lengths | None = None,
    cu_k: Lengths | None = None,
    scale: float | None = None,
    checked: bool = True,
    table: Table | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ scale) v with Q, K, V and P in FP4; nothing of the caller's is changed.

    q [B, Sq, H, D] with k and v [B, Sk, H/group, D], or the tokens [T, H, D] of several sequences
    with cumulative lengths (host numbers; a tensor of a GPU is waited for). `mask` is full, causal
    (right-aligned) or sliding with a `window`. `recipe` is as attention_recipe reads it. Returns O
    as q, and LSE (float32, natural logarithm, not differentiated) [B, H, Sq] or [H, T]. By Triton
    on a GPU, by C++ on a CPU; where that has no compiler simulated in torch. Gradients pass quantizers
    straight through and are products in bf16 of the dequantized operands.

    A `table` chooses the kernel and its sizes; TableError where it has no such heads and recipe.
    FormatError for types, head dims, recipes and, if `checked`, what is not finite (which waits for
    a GPU); WorkloadError for shapes, lengths and masks; BuildError where Triton fails.
    """
    how, seen = attention_recipe(recipe), mask_named(mask, window)
    check_four_bit(how)
    cu_q, cu_k = _host(cu_q), _host(cu_k)
    check(q, k, v, segments_of(q, k, cu_q, cu_k), seen)
    if q.dtype not in DTYPES:
        raise FormatError(f"q, k and v are bfloat16, float16 or float32, but got {q.dtype}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    tuned = "" if table is None else _tuned(table, q, k, how.text)
    out, lse = attention_op(
        q, k, v, how.text, mask, window or 0, scale, cu_q or [], cu_k or [], checked, tuned
    )
    return out, lse


@torch.library.custom_op("fp4kernels::attention", mutates_args=())
def attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    recipe: str,
    mask: str,
    window: int,
    scale: float,
    cu_q: Sequence[int],
    cu_k: Sequence[int],
    checked: bool,
    tuned: str = "",
) -> tuple[Tensor, Tensor]:
    """As `attention`, with what it fills in; no cumulative lengths where q is dense, and a tuned
    candidate's JSON, or nothing."""
    if checked:
        check_finite(q=q, k=k, v=v)
    how, seen, segments = _parsed(q, k, recipe, mask, window, cu_q, cu_k)
    tokens = [x.flatten(0, 1) if x.dim() == 4 else x for x in (q, k, v)]
    operands = prepare(tokens[0], tokens[1], tokens[2], segments, how, scale)
    if tuned:
        from fp4kernels.attention.dispatch import prefill_tuned  # which knows all kernels
        from fp4kernels.attention.variant import Quantized

        out = torch.empty_like(tokens[0], memory_format=torch.contiguous_format)
        lse = prefill_tuned(tuned, Quantized(operands, seen, scale), out)
    elif q.device.type == "cuda":
        from fp4kernels.triton.attention_prefill import prefill  # imports triton

        out = torch.empty_like(tokens[0], memory_format=torch.contiguous_format)
        lse = prefill(operands, how, seen, scale, out, device=gpu())
    else:
        by = by_cpp if _compiles(q.device) else simulate
        out, lse = by(operands, how, seen, scale, q.shape[-1])
    if q.dim() == 4:
        lse = lse.view(-1, *q.shape[:2]).transpose(0, 1).contiguous()
    return out.to(q.dtype).view(q.shape), lse


@attention_op.register_fake
def _attention_fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *lead, heads, _ = q.shape
    shape = (lead[0], heads, lead[1]) if len(lead) == 2 else (heads, lead[0])
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("fp4kernels::attention_backward", mutates_args=())
def attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    recipe: str,
    mask: str,
    window: int,
    scale: float,
    cu_q: Sequence[int],
    cu_k: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their types and shapes."""
    how, seen, segments = _parsed(q, k, recipe, mask, window, cu_q, cu_k)
    inputs = (grad, q, k, v)
    tokens = [x.flatten(0, 1) if q.dim() == 4 else x for x in inputs]
    if q.dim() == 4:
        lse = lse.transpose(0, 1).flatten(1)
    operands = prepare(tokens[1], tokens[2], tokens[3], segments, how, scale)
    found = gradients(tokens[0], operands, lse, how, seen, scale)
    dq, dk, dv = (
        g.to(x.dtype).view(x.shape) for g, x in zip(found, (q, k, v), strict=True)
    )  # fmt: skip
    return dq, dk, dv


@attention_backward_op.register_fake
def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)
    )  # fmt: skip
    return dq, dk, dv


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.how, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, output[1])


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    found = attention_backward_op(grad, *ctx.saved_tensors, *ctx.how)
    return (*found, *[None] * 8)


torch.library.register_autograd("fp4kernels::attention", _backward, setup_context=_setup)


def _compiles(device: torch.device) -> bool:
    return device.type == "cpu" and surroundings("cpu")[1].compiler is not None


def _tuned(table: Table, q: Tensor, k: Tensor, recipe: str) -> str:
    from fp4kernels.attention.plans import AttentionKey, candidate_text  # which know all kernels

    key = AttentionKey("prefill", q.shape[-2], k.shape[-2], q.shape[-1], recipe)
    batch, keys = (q.shape[0], k.shape[1]) if q.dim() == 4 else (1, len(k))
    return candidate_text(table.lookup_attention(key).choose(batch, keys))


def _parsed(
    q: Tensor,
    k: Tensor,
    recipe: str,
    mask: str,
    window: int,
    cu_q: Sequence[int],
    cu_k: Sequence[int],
) -> tuple[Any, Mask, Segments]:
    segments = segments_of(q, k, cu_q or None, cu_k or None)
    return attention_recipe(recipe), mask_named(mask, window or None), segments


def _host(lengths: Lengths | None) -> list[int] | None:
    if lengths is None:
        return None
    return lengths.tolist() if isinstance(lengths, Tensor) else [int(n) for n in lengths]
