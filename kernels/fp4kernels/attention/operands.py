"""Q, K and V of prefill as its kernels take them: smoothed, rotated, quantized, in whole tiles.

Every sequence starts on a multiple of TILE tokens; what lies between is zeros, as are the columns
from a head dim of 96 to 128. Keys and queries have blocks along D, values along their sequence,
which is what each is summed over. Smoothing comes before rotation, in float32, and sums of it are
trees, neighbours first: kernels and torch agree on every bit but those of `bias`.

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
from fp4kernels.recipes import Recipe, Transform
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
    """From tokens [T, heads, D]; none of them is changed. The recipe is of four bits throughout.

    By Triton on a GPU, where it knows the formats, elsewhere in torch, but for codes and scales, which
    C++ makes on a CPU. BuildError where Triton fails.
    """
    if q.device.type == "cuda":
        from fp4kernels.triton import attention_operands as gpu  # imports triton

        if gpu.takes(recipe, q.dtype):
            return gpu.prepare(q, k, v, Places(segments), recipe, scale)
    return plain(q, k, v, Places(segments), recipe, scale)


def plain(
    q: Tensor, k: Tensor, v: Tensor, places: Places, recipe: AttentionRecipe, scale: float
) -> Operands:
    """As `prepare`, in torch, on any device."""
    assert recipe.q is not None
    segments, group, head_dim = places.segments, q.shape[1] // k.shape[1], q.shape[2]
    counts = [[lengths[side] for lengths in segments.lengths] for side in (0, 1)]
    queries, keys = _laid(q, segments.q, places.q), _laid(k, segments.k, places.k)
    of_q, of_k = _occupied(counts[0], places.q, q.device), _occupied(counts[1], places.k, k.device)
    bias = shift = means = None
    if recipe.smooth_k:
        mean = _sequence_means(keys, counts[1], places.k)
        keys = torch.where(of_k, keys - _spread(mean, places.k), 0)
        shift = tree(queries * _spread(mean.repeat_interleave(group, 0), places.q), -1) * scale
    if recipe.smooth_q:
        means = _tile_sums(queries) / of_q.view(-1, TILE).sum(1, dtype=torch.float32)[:, None]
        queries = torch.where(of_q, queries - means.repeat_interleave(TILE, 1), 0)
        bias = _bias(means, keys.repeat_interleave(group, 0), places)
    rotation = recipe.rotation(head_dim)
    queries, keys = (
        torch.where(real, _turned(x, rotation, head_dim), 0)
        for x, real in ((queries, of_q), (keys, of_k))
    )
    values = _laid(v, segments.k, places.k).transpose(1, 2).contiguous()
    return Operands(
        _quantized(queries, recipe.q),
        _quantized(keys, recipe.k),
        _quantized(values, recipe.v),
        bias, shift, means, places,
    )  # fmt: skip


def tree(x: Tensor, dim: int) -> Tensor:
    """The sum over `dim`, which counts from the last and is a power of two long: neighbours first,
    then theirs."""
    while x.shape[dim] > 1:
        one, other = torch.unflatten(x, dim, (-1, 2)).unbind(dim)
        x = one + other
    return x.squeeze(dim)


def _starts(lengths: list[int]) -> list[int]:
    return [0, *itertools.accumulate(-(-length // TILE) * TILE for length in lengths)]


def _laid(x: Tensor, tokens: tuple[int, ...], places: list[int]) -> Tensor:
    """Tokens [T, heads, D] → float32 [heads, places, D up to a power of two], zeros between."""
    head_dim, heads = x.shape[2], x.shape[1]
    wide = (places[-1], heads, 1 << (head_dim - 1).bit_length())
    room = torch.zeros(wide, dtype=torch.float32, device=x.device)
    for start, place, after in zip(tokens[:-1], places[:-1], tokens[1:], strict=True):
        room[place : place + after - start, :, :head_dim] = x[start:after]
    return room.transpose(0, 1).contiguous()


def _tile_sums(rows: Tensor) -> Tensor:
    """[heads, places, D] → [heads, tiles, D]"""
    return tree(torch.unflatten(rows, 1, (-1, TILE)), -2)


def _sequence_means(rows: Tensor, counts: list[int], places: list[int]) -> Tensor:
    """[heads, sequences, D]; zeros for a sequence of no tokens. Sums of tiles are added as tokens are,
    TILE of them in a tree, and one such sum after the other."""
    sums, means = _tile_sums(rows), []
    for count, (start, after) in zip(counts, itertools.pairwise(places), strict=True):
        tiles = sums[:, start // TILE : after // TILE]
        padded = torch.nn.functional.pad(tiles, (0, 0, 0, -tiles.shape[1] % TILE))
        total = torch.zeros_like(sums[:, 0])
        for part in _tile_sums(padded).unbind(1):
            total = total + part
        means.append(total / total.new_tensor(max(count, 1)))
    return torch.stack(means, 1)


def _spread(means: Tensor, places: list[int]) -> Tensor:
    """A mean for each sequence [heads, sequences, D] → for each place."""
    sizes = [after - start for start, after in itertools.pairwise(places)]
    repeats = torch.tensor(sizes, device=means.device)
    return means.repeat_interleave(repeats, 1, output_size=places[-1])


def _occupied(counts: list[int], places: list[int], device: torch.device) -> Tensor:
    """bool [places, 1]: which of them hold a token."""
    held = torch.zeros(places[-1], 1, dtype=torch.bool)
    for start, count in zip(places[:-1], counts, strict=True):
        held[start : start + count] = True
    return held.to(device)


def _turned(x: Tensor, rotation: Transform, head_dim: int) -> Tensor:
    """The first `head_dim` columns, rotated, and the zeros beside them."""
    return torch.cat((transformed(x[..., :head_dim], rotation)[0], x[..., head_dim:]), -1)


def _bias(means: Tensor, keys: Tensor, places: Places) -> Tensor:
    """Each tile's mean times the keys of its sequence, smoothed, but not rotated or quantized."""
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
