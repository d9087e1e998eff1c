"""A cache's tensors, filled at once: what decoding is measured and proven on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.storing import Held, Order, quantize_under
from fp4kernels.attention.variant import Paged
from fp4kernels.recipes import Recipe
from fp4kernels.transforms import transformed

LARGEST = 2688.0  # of what NVFP4 holds under a tensor scale of 1


def paged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    recipe: AttentionRecipe,
    page_size: int,
    *,
    window: int,
    scale: float,
    shuffled: int | None = None,
) -> Paged:
    """q [S, Sq, heads, D] over tokens k, v [T, kv_heads, D] of S sequences, one after the other.

    Pages are in order, or `shuffled` by that seed, with one between that no sequence has.
    """
    counts = [-(-length // page_size) for length in lengths]
    total = sum(counts) + 1
    if shuffled is None:
        order = torch.arange(total)
    else:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(shuffled))
    table = torch.zeros(len(lengths), max(*counts, 1), dtype=torch.int32)
    slots, first = [], 0
    for sequence, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine = order[first : first + count]
        table[sequence, :count] = mine
        at = torch.arange(length)
        slots.append(mine[at // page_size] * page_size + at % page_size if length else at)
        first += count
    placed = torch.cat(slots).to(k.device)
    turned, _ = transformed(k, recipe.rotation(k.shape[-1]))
    keys, values = (
        stored(x, how, placed, total, page_size) for x, how in ((turned, recipe.k), (v, recipe.v))
    )
    held = torch.tensor(lengths, dtype=torch.int32)
    return Paged(
        q, keys, values, table.to(k.device), held.to(k.device), max(lengths), Order.NHD, window, scale
    )  # fmt: skip


def repeated(one: Paged, q: Tensor) -> Paged:
    """The cache of one sequence for each of q's, in pages of its own."""
    sequences, pages = len(q), one.keys.codes.shape[0]
    keys, values = (
        Held(held.codes.repeat(sequences, 1, 1, 1), held.scales.repeat(sequences, 1, 1, 1), held.scale)
        for held in (one.keys, one.values)
    )  # fmt: skip
    starts = torch.arange(sequences, dtype=torch.int32, device=q.device)[:, None] * pages
    return Paged(
        q, keys, values, one.page_table + starts, one.lengths.repeat(sequences), one.longest,
        one.order, one.window, one.scale,
    )  # fmt: skip


def stored(x: Tensor, how: Recipe, slots: Tensor, pages: int, page_size: int) -> Held:
    """Tokens [T, kv_heads, D] in their slots, under the scale that just holds the largest."""
    amax = float(x.abs().max()) if x.numel() else 0.0
    scale = amax / LARGEST if how.format.tensor_scale and amax else 1.0
    under = torch.tensor(scale, dtype=torch.float32, device=x.device)
    rooms = []
    for rows in quantize_under(x.float(), how, under):
        room = rows.new_zeros(pages * page_size, *rows.shape[1:])
        room[slots] = rows
        rooms.append(room.view(pages, page_size, *rows.shape[1:]))
    return Held(rooms[0], rooms[1], under)
