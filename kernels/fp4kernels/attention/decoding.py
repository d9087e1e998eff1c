"""Attention of a few new queries a sequence over a KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fp4kernels.attention.cache import KVCache
from fp4kernels.attention.device import gpu
from fp4kernels.attention.problem import Mask, MaskKind, Segments, check_finite
from fp4kernels.attention.recipes import AttentionRecipe, attention_recipe
from fp4kernels.attention.reference import attention as exact
from fp4kernels.attention.storing import Held, Order, gathered
from fp4kernels.cpu.attention import decode as by_cpp
from fp4kernels.devices import surroundings
from fp4kernels.errors import FormatError, WorkloadError
from fp4kernels.transforms import transformed

if TYPE_CHECKING:
    from fp4kernels.tables import Table

QUERY_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def decode(
    q: Tensor,
    cache: KVCache,
    *,
    window: int | None = None,
    scale: float | None = None,
    table: Table | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of the last tokens of every sequence of `cache`, whose K and V it holds.

    q [sequences, Sq, heads, D]; query i of a sequence stands Sq-i places before its end and sees
    what is not behind it, with a `window` only so many keys. Returns O, as q, and LSE (float32)
    [sequences, heads, Sq]. A sequence that holds nothing gets O = 0 and LSE = -inf. WorkloadError
    for shapes, or fewer tokens held than queries; FormatError for types, and for q that is not
    finite where the cache is `checked`. By Triton on a GPU, by C++ on a CPU; where that has no
    compiler by the plain reference, which is slow. A `table` chooses the kernel and its sizes;
    TableError where it has no such heads and recipe.
    """
    _check(q, cache, window)
    if cache.checked:
        check_finite(q=q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    tuned = "" if table is None else _tuned(table, q, cache)
    out, lse = decode_op(
        q, *cache.keys, *cache.values, cache.page_table, cache.lengths, cache.longest,
        cache.recipe.text, cache.order.value, window or 0, scale, tuned,
    )  # fmt: skip
    return out, lse


@torch.library.custom_op("fp4kernels::attention_decode", mutates_args=())
def decode_op(
    q: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    k_scale: Tensor,
    v_codes: Tensor,
    v_scales: Tensor,
    v_scale: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    longest: int,
    recipe: str,
    order: str,
    window: int,
    scale: float,
    tuned: str = "",
) -> tuple[Tensor, Tensor]:
    """O [S, Sq, heads, D] and LSE [S, heads, Sq] over pages; `window` 0 is none, and `tuned` a
    candidate's JSON, or nothing for the untuned choice."""
    how = attention_recipe(recipe)
    keys, values = Held(k_codes, k_scales, k_scale), Held(v_codes, v_scales, v_scale)
    if tuned:
        from fp4kernels.attention.dispatch import (
            decode_tuned,  # which knows all kernels, this one too
        )

        place = keys, values, page_table, lengths
        return decode_tuned(tuned, q, place, longest, Order(order), window=window, scale=scale)
    if q.device.type == "cuda":
        return _by_triton(
            q, keys, values, page_table, lengths, longest, how, Order(order), window, scale
        )
    if q.device.type == "cpu" and surroundings("cpu")[1].compiler is not None:
        return by_cpp(
            q, keys, values, page_table, lengths, how, Order(order), window=window, scale=scale
        )
    return plain_decode(q, keys, values, page_table, lengths, how, Order(order), window, scale)


@decode_op.register_fake
def _decode_fake(q: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    sequences, queries, heads, _ = q.shape
    return torch.empty_like(q), q.new_empty((sequences, heads, queries), dtype=torch.float32)


def _tuned(table: Table, q: Tensor, cache: KVCache) -> str:
    from fp4kernels.attention.plans import AttentionKey, candidate_text  # which know all kernels

    at = cache.shape
    key = AttentionKey("decode", q.shape[2], at.kv_heads, at.head_dim, cache.recipe.text)
    return candidate_text(table.lookup_attention(key).choose(at.sequences, cache.longest))


def _by_triton(
    q: Tensor,
    keys: Held,
    values: Held,
    page_table: Tensor,
    lengths: Tensor,
    longest: int,
    how: AttentionRecipe,
    order: Order,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    from fp4kernels.triton.attention_decode import DecodeShape, flash_decode  # imports triton

    sequences, queries, heads, head_dim = q.shape
    by_token, by_head = keys.codes.shape[1:3] if order is Order.NHD else keys.codes.shape[2:0:-1]
    shape = DecodeShape(
        sequences, queries, heads, by_head, head_dim, by_token, page_table.shape[1], longest,
        window > 0,
    )  # fmt: skip
    return flash_decode(
        q, keys, values, page_table, lengths, shape, how, order,
        window=window, scale=scale, cores=gpu().cores,
    )  # fmt: skip


def plain_decode(
    q: Tensor,
    keys: Held,
    values: Held,
    page_table: Tensor,
    lengths: Tensor,
    how: AttentionRecipe,
    order: Order,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """By the reference, in float32, one sequence after the other."""
    sequences, queries, heads, head_dim = q.shape
    turned, _ = transformed(q, how.rotation(head_dim))
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    lse = out.new_full((sequences, heads, queries), -torch.inf)
    mask = Mask(MaskKind.SLIDING, window) if window else Mask(MaskKind.CAUSAL)
    for sequence, length in enumerate(lengths.tolist()):
        if not length:
            continue
        k = gathered(keys, how.k, page_table[sequence], length, order)
        v = gathered(values, how.v, page_table[sequence], length, order)
        segments = Segments((0, queries), (0, length))
        out[sequence], lse[sequence] = exact(
            turned[sequence], k, v, mask, segments, scale=scale, dtype=torch.float32
        )
    return out.to(q.dtype), lse


def _check(q: Tensor, cache: KVCache, window: int | None) -> None:
    at = cache.shape
    if q.dim() != 4 or q.shape[0] != at.sequences or q.shape[3] != at.head_dim or not q.numel():
        raise WorkloadError(
            f"q is [{at.sequences}, Sq, heads, {at.head_dim}] for this cache, with at least one "
            f"query, but got {tuple(q.shape)}"
        )
    if q.shape[2] % at.kv_heads:
        raise WorkloadError(
            f"query heads are a multiple of kv heads, but got {q.shape[2]} and {at.kv_heads}"
        )
    if q.dtype not in QUERY_DTYPES or q.device.type != cache.device.type:
        raise FormatError(
            f"q is bfloat16, float16 or float32 on {cache.device}, but got {q.dtype} on {q.device}"
        )
    if window is not None and window < 1:
        raise WorkloadError(f"a window has at least one key, but got {window}")
    for sequence in range(at.sequences):
        if 0 < cache.length(sequence) < q.shape[1]:
            raise WorkloadError(
                "a sequence holds at least as many tokens as it has queries, but sequence "
                f"{sequence} holds {cache.length(sequence)} of {q.shape[1]}; append their K and V "
                "first"
            )
