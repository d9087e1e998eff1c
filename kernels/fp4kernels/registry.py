"""All kernel variants, and which of them run a recipe on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fp4kernels.attention.registry import ATTENTION_VARIANTS
from fp4kernels.cpu.gemm import CppGemm
from fp4kernels.cpu.w4a8 import CppW4A8
from fp4kernels.cpu.w4a16 import CppW4A16
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.formats import named
from fp4kernels.layouts import Layout
from fp4kernels.recipes import Recipe
from fp4kernels.torch_gemm import TorchGemm, TorchRows
from fp4kernels.triton.dot_scaled import DotScaledGemm, SwizzledDotScaledGemm
from fp4kernels.triton.expand_dense import ExpandDense
from fp4kernels.triton.fold_fp8 import FoldFp8
from fp4kernels.triton.gemm import DecodeGemm
from fp4kernels.triton.interleaved_gemm import InterleavedGemm
from fp4kernels.triton.persistent import PersistentDotScaledGemm
from fp4kernels.variants import Candidate, KernelVariant, Variant
from fp4kernels.workloads import GemmWorkload

FALLBACK, ROWS = TorchGemm(), TorchRows()
STEADY_M = 64  # whose kernel serves every M of a batch-invariant product: a full tile, few reads
# of those that take a recipe on a device, the first is the default, but for one that leads
VARIANTS: Mapping[str, KernelVariant] = {
    v.name: v
    for v in (
        CppGemm(), CppW4A16(), CppW4A8(), InterleavedGemm(), DecodeGemm(), SwizzledDotScaledGemm(),
        PersistentDotScaledGemm(), DotScaledGemm(), ExpandDense(), FoldFp8(), FALLBACK, ROWS,
    )
}  # fmt: skip


def variant(name: str) -> KernelVariant:
    """The GEMM called `name`; FormatError with the nearest name where there is none."""
    return named("kernel variant", name, VARIANTS)


def any_variant(name: str) -> Variant[Any, Any, Any]:
    """The variant called `name`, of whatever operation."""
    if name in VARIANTS:
        return VARIANTS[name]
    return named("kernel variant", name, {**ATTENTION_VARIANTS, **VARIANTS})


def variants_for(
    recipe: Recipe, device: Device, toolchain: Toolchain, *, batch_invariant: bool = False
) -> list[KernelVariant]:
    """The kernels that take `recipe` here; a torch fallback only where there is no other.

    `batch_invariant` leaves those alone that can give a row the same bits in any batch. Raises
    FormatError where a fallback does not take it, either.
    """
    fallback = ROWS if batch_invariant else FALLBACK
    able = [
        v
        for v in VARIANTS.values()
        if v not in (FALLBACK, ROWS)
        and v.takes(recipe, device, toolchain) is None
        and not (batch_invariant and v.varies)
    ]
    why = fallback.takes(recipe, device, toolchain)
    if not able and why is not None:
        raise FormatError(f"no kernel runs {recipe.name}: {fallback.name} {why}")
    return able or [fallback]


def default_candidate(
    workload: GemmWorkload,
    recipe: Recipe,
    device: Device,
    toolchain: Toolchain,
    *,
    batch_invariant: bool = False,
) -> Candidate:
    """What runs without a table."""
    able = variants_for(recipe, device, toolchain, batch_invariant=batch_invariant)
    return untuned(able, workload, recipe, device, batch_invariant=batch_invariant)


def untuned(
    able: Sequence[KernelVariant],
    workload: GemmWorkload,
    recipe: Recipe,
    device: Device,
    *,
    batch_invariant: bool = False,
) -> Candidate:
    """Which of the kernels that can run does so without a table: the first that leads, or else the
    first, by its default; `batch_invariant` as `steady`."""
    chosen = next((v for v in able if v.leads(workload, recipe, device)), able[0])
    config = chosen.default(workload, recipe, device)
    mine = Candidate(recipe.name, chosen.name, chosen.layout, config)
    if not batch_invariant or workload.m == STEADY_M:
        return mine
    return steady(mine, untuned(able, replace(workload, m=STEADY_M), recipe, device))


def steady(mine: Candidate, fixed: Candidate) -> Candidate:
    """`mine`, tuned for an M, if it gives rows the bits that `fixed` gives them; else `fixed`."""
    order = variant(mine.variant).order
    alike = mine.variant == fixed.variant and order(mine.config) == order(fixed.config)
    return mine if alike else fixed


def candidate_from_json(values: Mapping[str, Any]) -> Candidate:
    """The inverse of Candidate.to_json, for untrusted input. Raises FormatError."""
    try:
        recipe, name, layout, config = (
            values[key] for key in ("recipe", "variant", "layout", "config")
        )
        kernel = any_variant(name)
        if layout != kernel.layout.value:
            raise FormatError(f"{name} reads layout {kernel.layout.value!r}, but got {layout!r}")
        text = kernel.recipe_text(kernel.recipe(recipe))
        return Candidate(text, name, Layout(layout), kernel.config(config))
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"a candidate has a recipe, a variant, a layout and a config, but got {values}"
        ) from error
