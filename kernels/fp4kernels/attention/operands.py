"""Q, K and V of prefill as its kernels take them: smoothed, rotated, quantized, in whole tiles.

Every sequence starts on a multiple of TILE tokens; what lies between is zeros, as are the columns
from a head dim of 96 to 128. Keys and queries have blocks along D, values along their sequence,
which is what each is summed over:

    q  codes [heads, Tq, D/2]        scales [heads, Tq, D/block]
    k  codes [kv_heads, Tk, D/2]     scales [kv_heads, Tk, D/block]
    v  codes [kv_heads, D, Tk/2]     scales [kv_heads, D, Tk/block]
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.attention.problem import Segments
from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.cpu import launch as cpu
from fp4kernels.devices import surroundings
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.transforms import transformed

TILE = 128  # tokens: queries are smoothed by it, and no tile of a kernel is larger


@dataclass(frozen=True)
class Places:
    """Where the tokens of `segments` lie when sequences are padded to whole tiles."""

    segments: Segments

    @cached_property
    def q(self) -> list[int]:
        """The first place of each sequence, and the end of all."""
        return _starts([queries for queries, _ in self.segments.lengths])

    @cached_property
    def k(self) -> list[int]:
        return _starts([keys for _, keys in self.segments.lengths])

    @property
    def longest_q(self) -> int:
        return max(queries for queries, _ in self.segments.lengths)

    @property
    def longest_k(self) -> int:
        """In whole tiles."""
        return max(after - start for start, after in itertools.pairwise(self.k))

    def table(self, device: torch.device) -> Tensor:
        """int32 [sequences, 5]: queries and keys, the first token of q, first places of q and k."""
        rows = zip(
            self.segments.lengths, self.segments.q[:-1], self.q[:-1], self.k[:-1], strict=True
        )
        values = [(*lengths, *starts) for lengths, *starts in rows]
        return torch.tensor(values, dtype=torch.int32, device=device)


@dataclass(frozen=True, eq=False)
class Operands:
    q: Packed
    k: Packed
    v: Packed
    bias: Tensor | None  # float32 [heads, Tq / TILE, longest_k]: means of Q times K, unscaled
    shift: Tensor | None  # float32 [heads, Tq]: what smoothing K took from each LSE
    means: Tensor | None  # float32 [heads, Tq / TILE, D]: of Q, where they were taken off
    places: Places


def prepare(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, recipe: AttentionRecipe, scale: float
) -> Operands:
    """From tokens [T, heads, D]; none of them is changed. The recipe is of four bits throughout."""
    assert recipe.q is not None
    places, group = Places(segments), q.shape[1] // k.shape[1]
    rotation = recipe.rotation(q.shape[-1])
    queries = _laid(transformed(q, rotation)[0], places.segments.q, places.q)
    keys = _laid(transformed(k, rotation)[0], places.segments.k, places.k)
    bias = shift = means = None
    if recipe.smooth_k:
        counts = [keys for _, keys in segments.lengths]
        mean = _sequence_means(keys, counts, places.k)
        keys = keys - _real(mean, counts, places.k)
        of_q = mean.repeat_interleave(group, 0)
        spread = _spread(of_q, places.q)
        shift = (queries * spread).sum(-1) * scale
    if recipe.smooth_q:
        counts = [queries for queries, _ in segments.lengths]
        means = _tile_means(queries, counts, places.q)
        queries = queries - _within(means, counts, places.q)
        bias = _bias(means, keys.repeat_interleave(group, 0), places)
    values = _laid(v.float(), places.segments.k, places.k).transpose(1, 2).contiguous()
    return Operands(
        _quantized(queries, recipe.q), _quantized(keys, recipe.k), _quantized(values, recipe.v),
        bias, shift, means, places,
    )  # fmt: skip


def _starts(lengths: list[int]) -> list[int]:
    return [0, *itertools.accumulate(-(-length // TILE) * TILE for length in lengths)]


def _laid(x: Tensor, tokens: tuple[int, ...], places: list[int]) -> Tensor:
    """float32 tokens [T, heads, D] → [heads, places, D up to a power of two], zeros between."""
    head_dim = x.shape[-1]
    room = x.new_zeros(places[-1], x.shape[1], 1 << (head_dim - 1).bit_length())
    for start, place, after in zip(tokens[:-1], places[:-1], tokens[1:], strict=True):
        room[place : place + after - start, :, :head_dim] = x[start:after]
    return room.transpose(0, 1).contiguous()


def _sequence_means(rows: Tensor, counts: list[int], places: list[int]) -> Tensor:
    """[heads, sequences, D]; zeros for a sequence of no tokens."""
    parts = [rows[:, start:after] for start, after in itertools.pairwise(places)]
    return torch.stack(
        [part.sum(1) / max(count, 1) for part, count in zip(parts, counts, strict=True)], 1
    )


def _spread(means: Tensor, places: list[int]) -> Tensor:
    """A mean for each sequence [heads, sequences, D] → for each place."""
    sizes = [after - start for start, after in itertools.pairwise(places)]
    repeats = torch.tensor(sizes, device=means.device)
    return means.repeat_interleave(repeats, 1, output_size=places[-1])


def _real(means: Tensor, counts: list[int], places: list[int]) -> Tensor:
    return _spread(means, places) * _occupied(counts, places, means.device)[:, None]


def _occupied(counts: list[int], places: list[int], device: torch.device) -> Tensor:
    """1.0 for each place that holds a token, else 0.0."""
    held = torch.zeros(places[-1])
    for start, count in zip(places[:-1], counts, strict=True):
        held[start : start + count] = 1
    return held.to(device)


def _tile_means(rows: Tensor, counts: list[int], places: list[int]) -> Tensor:
    """[heads, tiles, D], over the tokens of each tile."""
    held = _occupied(counts, places, rows.device).view(-1, TILE).sum(1).clamp(min=1)
    tiles = rows.view(rows.shape[0], -1, TILE, rows.shape[2])
    return tiles.sum(2) / held[:, None]


def _within(means: Tensor, counts: list[int], places: list[int]) -> Tensor:
    held = _occupied(counts, places, means.device)
    return means.repeat_interleave(TILE, 1) * held[:, None]


def _bias(means: Tensor, keys: Tensor, places: Places) -> Tensor:
    """Each tile's mean times the keys of its sequence, as they are before they are quantized."""
    bias = means.new_zeros(*means.shape[:2], places.longest_k)
    ends = zip(itertools.pairwise(places.q), itertools.pairwise(places.k), strict=True)
    for (q0, q1), (k0, k1) in ends:
        tiles = slice(q0 // TILE, q1 // TILE)
        bias[:, tiles, : k1 - k0] = means[:, tiles] @ keys[:, k0:k1].transpose(1, 2)
    return bias


def _quantized(x: Tensor, recipe: Recipe) -> Packed:
    """By Triton on a GPU and by C++ on a CPU, where they know the recipe."""
    if x.device.type == "cuda":
        from fp4kernels.triton import quantize_launch as gpu  # imports triton

        if gpu.quantizes(recipe, x.dtype):
            return gpu.quantize(x, recipe)
    if x.device.type == "cpu" and cpu.quantizes(recipe, x.dtype):
        device, toolchain = surroundings("cpu")
        if toolchain.compiler is not None:
            return cpu.quantize(x.contiguous(), recipe, device, toolchain)
    return reference.quantize(x, recipe)
