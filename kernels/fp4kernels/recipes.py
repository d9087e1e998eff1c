"""Recipes: a block format plus what its bytes do not tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from fp4kernels.formats import MXFP4, NVFP4, BlockFormat, named


class ScaleRule(StrEnum):
    """How a block's scale follows from its largest magnitude."""

    FLOOR = "floor"  # OCP MX v1.0: 2^(floor(log2 amax) - emax)
    NV = "nv"  # arXiv 2509.25149 appendix B: amax / 6 under a tensor scale


class Rounding(StrEnum):
    NEAREST_EVEN = "nearest-even"


class Transform(StrEnum):
    NONE = "none"


@dataclass(frozen=True)
class Recipe:
    """How the operands of a GEMM become FP4. `weight_only` leaves activations in bf16 (W4A16)."""

    name: str
    format: BlockFormat
    scale_rule: ScaleRule
    rounding: Rounding = Rounding.NEAREST_EVEN
    transform: Transform = Transform.NONE
    weight_only: bool = False


_MXFP4 = Recipe("mxfp4", MXFP4, ScaleRule.FLOOR)
_NVFP4 = Recipe("nvfp4", NVFP4, ScaleRule.NV)

RECIPES: Mapping[str, Recipe] = {
    r.name: r
    for r in (
        _MXFP4,
        _NVFP4,
        replace(_MXFP4, name="mxfp4-w4a16", weight_only=True),
        replace(_NVFP4, name="nvfp4-w4a16", weight_only=True),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe called `name`; FormatError with the nearest name where there is none."""
    return named("recipe", name, RECIPES)
