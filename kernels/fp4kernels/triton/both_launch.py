"""From a matrix to launches of the kernels that quantize it and its transpose, and to offline builds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from triton import cdiv

from fp4kernels.packing import Packed
from fp4kernels.prologues import SwiGlu
from fp4kernels.reference import check_blocks
from fp4kernels.targets import Target, check_transposable
from fp4kernels.transforms import check_whole
from fp4kernels.triton.offline import KernelSource
from fp4kernels.triton.quantize_both import amax_both_kernel, quantize_both_kernel
from fp4kernels.triton.quantize_config import (
    QuantizeConfig,
    code_constants,
    group_of,
    value_constants,
)
from fp4kernels.triton.quantize_launch import (
    SOURCE_SEED,
    check_known,
    converts,
    run,
    seed_of,
    sources_of,
)
from fp4kernels.triton.quantize_work import INTERPRETED, Launch, Work, work

TILE_M = 128  # four blocks of the transpose lie side by side in its scales
DEFAULT = QuantizeConfig(values=8192)


def quantize_both(
    x: Tensor,
    target: Target,
    transposed: Target,
    *,
    prologue: SwiGlu | None = None,
    swizzle: bool = False,
    config: QuantizeConfig = DEFAULT,
) -> tuple[Packed, Packed]:
    """The matrix `x` [M, K], or what the prologue makes of it, and its transpose [K, M]: each as
    `quantize_launch.quantize` would give it, but x is read from memory once.

    Both M and K are whole blocks of the recipe that goes along them, and whole transforms. Raises as
    `quantize` does, and FormatError for a tensor that is no matrix, a recipe with a window, or another
    prologue: those look at whole rows.
    """
    for each in (target, transposed):
        check_known(each.recipe, x.dtype)
    pair = _pair(x, target, transposed, prologue, swizzle, config)
    outs = tuple(one.empty() for one in pair.works)
    seeds = (seed_of(target.chance), seed_of(transposed.chance))
    launches = pair.launches(outs, (target.amax, transposed.amax), seeds, converts(x))
    run(launches, x, target.recipe)
    return outs[0], outs[1]


def both_sources(
    shape: tuple[int, int],
    dtype: torch.dtype,
    targets: tuple[Target, Target],
    *,
    prologue: SwiGlu | None = None,
    converts: bool = False,
    config: QuantizeConfig = DEFAULT,
) -> list[KernelSource]:
    """As quantize_launch.quantize_sources."""
    x = torch.empty(shape, dtype=dtype, device="meta")
    pair = _pair(x, *targets, prologue, False, config)
    outs = tuple(one.empty() for one in pair.works)
    launches = pair.launches(outs, (None, None), (SOURCE_SEED, SOURCE_SEED), converts)
    return sources_of([*launches][::-1])


@dataclass(frozen=True, eq=False)
class _Pair:
    """The work for x and that for its transpose, of which each program does a tile."""

    works: tuple[Work, Work]
    config: QuantizeConfig

    def launches(
        self,
        outs: tuple[Packed, ...],
        amaxes: tuple[Tensor | None, Tensor | None],
        seeds: tuple[tuple[int, int], tuple[int, int]],
        converts: bool,
    ) -> Iterator[Launch]:
        """In their order: first one for the amaxes that are needed and not given."""
        one = self.works[0]
        (m, k), groups = one.shape, [group_of(w.shape[-1], w.recipe) for w in self.works]
        tile_k = max(self.config.values // TILE_M, groups[0])
        programs = max(1, cdiv(m, TILE_M) * cdiv(k, tile_k))
        options = {**one.cut.options, "num_warps": self.config.warps}
        read: dict[str, Tensor | int | None] = {
            "x": one.x, "other": one.other, "m": m, "k": k, "stride": one.stride,
        }  # fmt: skip
        constants: dict[str, Any] = {"tile_m": TILE_M, "tile_k": tile_k}
        codes: dict[str, Any] = {}
        for each, group, mark in zip(self.works, groups, MARKS, strict=True):
            values = value_constants(each.recipe, each.prologue, INTERPRETED)
            constants |= {"prologue": values["prologue"], "interpreted": INTERPRETED}
            constants |= {mark + name: values[name] for name in ("size", "minus")}
            constants[mark + "group"], codes[mark + "block"] = group, values["block"]
            written = code_constants(each.recipe, each.swizzle, converts)
            codes["swizzle"] = written.pop("swizzle")
            codes |= {mark + name: value for name, value in written.items()}

        wanted = [
            amax is None and each.recipe.format.tensor_scale
            for amax, each in zip(amaxes, self.works, strict=True)
        ]
        if any(wanted):
            found = [one.x.new_zeros((), dtype=torch.int32) if want else None for want in wanted]
            looked = read | {"amax": found[0], "t_amax": found[1]}
            yield Launch(amax_both_kernel, programs, looked, constants, options)
            amaxes = tuple(  # type: ignore[assignment]
                amax if bits is None else bits.view(torch.float32)
                for amax, bits in zip(amaxes, found, strict=True)
            )
        for out, amax, seed, mark in zip(outs, amaxes, seeds, MARKS, strict=True):
            read |= {
                mark + "amax": amax, mark + "codes": out.codes.view(torch.int32),
                mark + "scales": out.scales, mark + "tensor_scale": out.tensor_scale,
                mark + "seed_low": seed[0], mark + "seed_high": seed[1],
            }  # fmt: skip
        yield Launch(quantize_both_kernel, programs, read, constants | codes, options)


MARKS = ("", "t_")  # before the names of what belongs to x, and to its transpose


def _pair(
    x: Tensor,
    target: Target,
    transposed: Target,
    prologue: SwiGlu | None,
    swizzle: bool,
    config: QuantizeConfig,
) -> _Pair:
    check_transposable(x, prologue, target, transposed)
    one = work(x, target.recipe, prologue, swizzle, config)
    values = one.x.mT
    check_blocks(values, transposed.recipe.format)
    check_whole(values, transposed.recipe.transform)
    other = replace(one, recipe=transposed.recipe, shape=values.shape)
    return _Pair((one, other), config)
