"""From tokens to launches that smooth, rotate and quantize the operands of prefill, and from a shape
to offline builds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import cdiv

from fp4kernels.attention.operands import TILE, Operands, Places
from fp4kernels.attention.problem import Segments
from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.formats import MXFP4, NVFP4, NVFP4_SINGLE
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe, ScaleRule
from fp4kernels.transforms import HADAMARD_SIZES, signs
from fp4kernels.triton.attention_operands_kernel import (
    bias_kernel,
    columns_kernel,
    rows_kernel,
    sequence_means_kernel,
    tile_sums_kernel,
)
from fp4kernels.triton.offline import KernelSource
from fp4kernels.triton.quantize_launch import converts, run, sources_of, warp_size
from fp4kernels.triton.quantize_work import Launch

GROUP, WARP, WARPS, VALUES = 32, 32, 4, 4096  # values of a thread's group; of a program
WIDE = 64  # columns of a program that transposes
BIAS = {"rows": 16, "keys": 64, "depth": 32}  # of a tile of the product
_RULES = {(MXFP4, ScaleRule.RCEIL), (NVFP4, ScaleRule.NV), (NVFP4_SINGLE, ScaleRule.AMAX)}
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def takes(recipe: AttentionRecipe, dtype: torch.dtype) -> bool:
    """Whether `prepare` knows the formats of Q, K and V, and values of `dtype`."""
    known = (recipe.q, recipe.k, recipe.v)
    return dtype in _FLOATS and all(
        how is not None and (how.format, how.scale_rule) in _RULES for how in known
    )


def prepare(
    q: Tensor, k: Tensor, v: Tensor, places: Places, recipe: AttentionRecipe, scale: float
) -> Operands:
    """As fp4kernels.attention.operands.plain, bit for bit but `bias`, whose part beyond a sequence's
    places is not written. BuildError where Triton fails."""
    work = _Work(q.contiguous(), k.contiguous(), v.contiguous(), places, recipe, scale)
    operands = work.empty()
    run(work.launches(operands, converts(q), warp_size(q)), q, recipe.k)
    return operands


def operand_sources(
    recipe: AttentionRecipe, head_dim: int, *, heads: int = 32, kv_heads: int = 8,
    dtype: torch.dtype = torch.bfloat16, converts: bool = False, warp: int = WARP,
) -> list[KernelSource]:  # fmt: skip
    """All kernels that `prepare` compiles for many tokens, on a GPU that `converts` to E2M1 or not and
    has so many threads a `warp`."""
    tokens = 2 * TILE + 3
    q, k = (
        torch.empty((tokens, count, head_dim), dtype=dtype, device="meta")
        for count in (heads, kv_heads)
    )
    places = Places(Segments((0, tokens), (0, tokens)))
    work = _Work(q, k, torch.empty_like(k), places, recipe, 1.0)
    return sources_of([*work.launches(work.empty(), converts, warp)])


@dataclass(frozen=True, eq=False)
class _Work:
    q: Tensor
    k: Tensor
    v: Tensor
    places: Places
    recipe: AttentionRecipe
    scale: float

    @property
    def dims(self) -> int:
        return 1 << (self.q.shape[2] - 1).bit_length()

    @property
    def formats(self) -> tuple[Recipe, Recipe, Recipe]:
        assert self.recipe.q is not None
        return self.recipe.q, self.recipe.k, self.recipe.v

    def empty(self) -> Operands:
        """What the kernels write, on the device of q."""
        heads, kv_heads, places = self.q.shape[1], self.k.shape[1], self.places
        tq, tk = places.q[-1], places.k[-1]
        shapes = (heads, tq, self.dims), (kv_heads, tk, self.dims), (kv_heads, self.dims, tk)
        packed = [self._packed(*each) for each in zip(shapes, self.formats, strict=True)]
        bias = shift = means = None
        if self.recipe.smooth_k:
            shift = self._floats(heads, tq)
        if self.recipe.smooth_q:
            means = self._floats(heads, tq // TILE, self.dims)
            bias = self._floats(heads, tq // TILE, places.longest_k)
        return Operands(packed[0], packed[1], packed[2], bias, shift, means, places)

    def launches(self, out: Operands, converts: bool, warp: int) -> Iterator[Launch]:
        """In their order."""
        places, kv_heads = self.places, self.k.shape[1]
        lengths = places.segments.lengths
        of_q, of_k = (
            self._integers(_tiles(places.segments, side)) for side in (0, 1)
        )  # of each tile
        spans = self._integers([
            (k0 // TILE, (k1 - k0) // TILE, keys, q0 // TILE, (q1 - q0) // TILE)
            for (_, keys), (q0, q1), (k0, k1) in zip(
                lengths, itertools.pairwise(places.q), itertools.pairwise(places.k), strict=True
            )
        ])  # fmt: skip
        k_mean = None
        if self.recipe.smooth_k:
            tiles = places.k[-1] // TILE
            sums = self._floats(kv_heads, tiles, self.dims)
            yield self._tile_sums(self.k, sums, of_k, mean=False)
            k_mean = self._floats(kv_heads, len(lengths), self.dims)
            yield Launch(
                sequence_means_kernel, len(lengths) * kv_heads,
                {"sums": sums, "means": k_mean, "spans": spans, "heads": kv_heads,
                 "sequences": len(lengths), "tiles": tiles},
                {"dims": self.dims, "tile": TILE}, _options(self.dims // WARP),
            )  # fmt: skip
        if out.means is not None and out.bias is not None:
            yield self._tile_sums(self.q, out.means, of_q, mean=True)
            yield self._bias(out.means, out.bias, k_mean, of_k, spans)
        for x, packed, how, table in (
            (self.q, out.q, self.formats[0], of_q), (self.k, out.k, self.formats[1], of_k)
        ):  # fmt: skip
            yield from self._rows(x, packed, how, table, out, k_mean, converts, warp)
        yield from self._columns(out.v, of_k, converts)

    def _tile_sums(self, x: Tensor, sums: Tensor, table: Tensor, *, mean: bool) -> Launch:
        return Launch(
            tile_sums_kernel, len(table) * x.shape[1],
            {"x": x, "sums": sums, "table": table, "heads": x.shape[1], "tiles": len(table)},
            {"d": x.shape[2], "dims": self.dims, "tile": TILE, "mean": mean},
            _options(self.dims // WARP),
        )  # fmt: skip

    def _bias(
        self, means: Tensor, bias: Tensor, k_mean: Tensor | None, table: Tensor, spans: Tensor
    ) -> Launch:
        heads, q_tiles, longest_k = bias.shape
        most = max(after - start for start, after in itertools.pairwise(self.places.q)) // TILE
        chunks = cdiv(most, BIAS["rows"])
        arguments: dict[str, Any] = {
            "means": means, "k": self.k, "k_mean": k_mean, "bias": bias, "table": table,
            "spans": spans, "heads": heads, "kv_heads": self.k.shape[1], "q_tiles": q_tiles,
            "sequences": len(spans), "longest_k": longest_k, "chunks": chunks,
        }  # fmt: skip
        constants = {"d": self.k.shape[2], "dims": self.dims, "tile": TILE, **BIAS}
        programs = self.places.k[-1] // BIAS["keys"] * chunks * heads
        return Launch(bias_kernel, programs, arguments, constants, _options(WARPS))

    def _rows(
        self, x: Tensor, packed: Packed, how: Recipe, table: Tensor, out: Operands,
        k_mean: Tensor | None, converts: bool, warp: int,
    ) -> Iterator[Launch]:  # fmt: skip
        heads, head_dim = x.shape[1:]
        size = HADAMARD_SIZES.get(self.recipe.rotation(head_dim), 0)
        step = size or GROUP
        lanes = max(VALUES // step, WARP * WARPS)
        of_q = packed is out.q
        read = {
            "x": x, "mean": out.means if of_q else k_mean, "table": table, "heads": heads,
            "tiles": len(table), "sequences": len(self.places.segments.lengths),
            "scale": float(self.scale), "k_mean": None, "shift": None,
        }  # fmt: skip
        constants = {
            "d": head_dim, "dims": self.dims, "tile": TILE, "group": heads // self.k.shape[1],
            "by_tile": of_q, "size": size,
            "minus": sum(1 << i for i, sign in enumerate(signs(size)) if sign < 0) if size else 0,
            "lanes": lanes, "step": step,
        }  # fmt: skip
        programs = len(table) * heads * (TILE * self.dims // (lanes * step))
        once = {"k_mean": k_mean, "shift": out.shift} if of_q else {}
        warps = min(WARPS, lanes // warp)  # threads without values cost registers
        yield from _passes(
            rows_kernel, programs, packed, how, read, once, constants, converts, warps
        )

    def _columns(self, packed: Packed, table: Tensor, converts: bool) -> Iterator[Launch]:
        heads, head_dim = self.v.shape[1:]
        read = {"x": self.v, "table": table, "heads": heads, "tiles": len(table)}
        constants = {
            "d": head_dim, "dims": self.dims, "tile": TILE, "wide": WIDE, "step": GROUP
        }  # fmt: skip
        programs = len(table) * heads * (self.dims // WIDE)
        yield from _passes(
            columns_kernel, programs, packed, self.formats[2], read, {}, constants, converts
        )

    def _packed(self, shape: tuple[int, ...], how: Recipe) -> Packed:
        codes, scales = (
            self.q.new_empty(held, dtype=torch.uint8)
            for held in (how.format.codes_shape(shape), how.format.scales_shape(shape))
        )
        return Packed(codes, scales, self.q.new_ones((), dtype=torch.float32))

    def _floats(self, *shape: int) -> Tensor:
        return self.q.new_empty(shape, dtype=torch.float32)

    def _integers(self, rows: list[tuple[int, ...]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int32, device=self.q.device)


def _passes(
    kernel: Any, programs: int, packed: Packed, how: Recipe, read: dict[str, Any],
    once: dict[str, Any], constants: dict[str, Any], converts: bool, warps: int = WARPS,
) -> Iterator[Launch]:  # fmt: skip
    """One for the tensor's amax where the format has its scale, and one for the codes, which alone
    takes what is in `once`."""
    constants = constants | {
        "block": how.format.block_size, "rule": how.scale_rule.value,
        "rounding": "hardware" if converts else "nearest",
    }  # fmt: skip
    amax, nothing = None, dict.fromkeys(("codes", "scales", "tensor_scale"))
    if how.format.tensor_scale:
        amax = packed.codes.new_zeros((), dtype=torch.int32)
        yield Launch(kernel, programs, read | nothing | {"amax": amax}, constants, _options(warps))
        amax = amax.view(torch.float32)
    written = {
        "amax": amax, "codes": packed.codes.view(torch.int32), "scales": packed.scales,
        "tensor_scale": packed.tensor_scale,
    }  # fmt: skip
    yield Launch(kernel, programs, read | once | written, constants, _options(warps))


def _tiles(segments: Segments, side: int) -> list[tuple[int, ...]]:
    """Of each tile of queries (side 0) or keys (1): its first token, how many, their sequence."""
    starts = (segments.q, segments.k)[side]
    return [
        (start, min(TILE, after - start), sequence)
        for sequence, (first, after) in enumerate(itertools.pairwise(starts))
        for start in range(first, after, TILE)
    ]


def _options(warps: int) -> dict[str, Any]:
    """torch rounds every product."""
    return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": False}
