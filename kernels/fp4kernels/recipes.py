"""Recipes: a block format plus what its bytes do not tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from fp4kernels.elements import E2M1
from fp4kernels.formats import (
    FORMATS,
    FP4_E4M3,
    FP4_GROUPS,
    MXFP4,
    MXINT8,
    NVFP4,
    TENSOR,
    BlockFormat,
    named,
)
from fp4kernels.scales import ScaleFormat
from fp4kernels.scaling import FOUR_SIX, WINDOWS, ScaleRule

__all__ = ["RECIPES", "Outliers", "Recipe", "Rounding", "ScaleRule", "Transform", "recipe"]


class Rounding(StrEnum):
    NEAREST_EVEN = "nearest-even"
    # unbiased where nothing clips: E4M3 scales leave room for their own rounding, if they are normal
    # numbers; of the rules for E8M0 choose floor-3/4, ceil or rceil
    STOCHASTIC = "stochastic"
    STOCHASTIC_NAIVE = "stochastic-naive"  # without that room the largest values clip: biased


class Transform(StrEnum):
    """What is done to both operands before, and undone after: see `fp4kernels.transforms`."""

    NONE = "none"
    HADAMARD_16 = "hadamard-16"
    HADAMARD_32 = "hadamard-32"
    HADAMARD_64 = "hadamard-64"
    HADAMARD_128 = "hadamard-128"
    CENTER = "center"  # the mean over rows is kept apart (K-mean smoothing)


@dataclass(frozen=True)
class Outliers:
    """Values beyond the `quantile`, and beyond 1 - quantile, are clamped to it; with `compensate`
    what was cut off is kept as a sparse float32 residual. arXiv 2501.17116, section 3.2."""

    quantile: float
    compensate: bool

    @property
    def name(self) -> str:
        return f"occ-{self.quantile:g}" if self.compensate else f"clamp-{self.quantile:g}"


@dataclass(frozen=True)
class Recipe:
    """How the operands of a GEMM become FP4. `weight_only` leaves activations in bf16 (W4A16);
    `activation` is their format where it is another than the weight's (W4A8)."""

    name: str
    format: BlockFormat
    scale_rule: ScaleRule
    rounding: Rounding = Rounding.NEAREST_EVEN
    transform: Transform = Transform.NONE
    outliers: Outliers | None = None
    weight_only: bool = False
    activation: BlockFormat | None = None

    @property
    def plain(self) -> bool:
        """Whether codes and scales are all there is, so that a kernel can multiply them."""
        return self.transform is Transform.NONE and self.outliers is None

    @property
    def tensor_scaled(self) -> bool:
        """Whether a tensor scale may be another number than 1."""
        return self.format.tensor_scale or self.scale_rule is ScaleRule.FLOOR_3_4

    @property
    def window(self) -> int | None:
        """The largest ratio of two block scales in a row, as a power of two; None without limit."""
        return WINDOWS.get(self.scale_rule)

    @property
    def activations(self) -> Recipe:
        """How the other operand is quantized: blocks of several rows are for weights alone, since
        any number of rows is multiplied with them. As in arXiv 2509.25149."""
        if self.activation is not None:
            rule = default_rule(self.activation)
            return replace(self, format=self.activation, scale_rule=rule, activation=None)
        if self.format.block_shape[0] <= 1:
            return self
        one_row = replace(self.format, block_shape=(1, self.format.block_size))
        return replace(self, format=one_row)

    @property
    def multiples(self) -> tuple[int, int]:
        """What N and K of a GEMM must be multiples of, for whole blocks of both operands."""
        rows, columns = self.format.multiples
        return rows, math.lcm(columns, self.activations.format.multiples[1])

    @property
    def headroom(self) -> float:
        """What scales are made larger by, so that a scale rounded down clips no value.

        17/16 for E4M3. Scales that are powers of two have a rule of their own for that.
        """
        fmt = self.format
        if self.rounding is not Rounding.STOCHASTIC or fmt.scale is ScaleFormat.E8M0:
            return 1.0
        return 1 + fmt.scale.unit


def default_rule(fmt: BlockFormat) -> ScaleRule:
    """What the format's own specification asks for."""
    if fmt.scale is ScaleFormat.E8M0:
        return ScaleRule.RCEIL if fmt.block_shape == TENSOR else ScaleRule.FLOOR
    return ScaleRule.NV if fmt.tensor_scale else ScaleRule.AMAX


def rules_for(fmt: BlockFormat) -> tuple[ScaleRule, ...]:
    """The rules that fit the format's scales, its default first."""
    if fmt.scale is ScaleFormat.E8M0:
        fitting = [ScaleRule.FLOOR, ScaleRule.CEIL, ScaleRule.RCEIL, ScaleRule.EVEN]
        if fmt.element.max >= 1.5 * 2**fmt.element.emax:  # else 3/4 of the values clip, too
            fitting.append(ScaleRule.FLOOR_3_4)
        if fmt == MXFP4:
            fitting += WINDOWS
    elif fmt.scale is ScaleFormat.E4M3:
        fitting = [ScaleRule.AMAX, ScaleRule.AMAX_CLAMPED]
        if fmt.tensor_scale:
            four_six = FOUR_SIX if fmt.element == E2M1 else ()
            fitting = [ScaleRule.NV, ScaleRule.NV_CLAMPED, *four_six]
    else:
        fitting = [ScaleRule.AMAX]
    default = default_rule(fmt)
    return (default, *(rule for rule in fitting if rule is not default))


_OWN = {name: Recipe(name, fmt, default_rule(fmt)) for name, fmt in FORMATS.items()}

RECIPES: Mapping[str, Recipe] = {
    **_OWN,
    **{
        f"{fmt.name}-w4a16": replace(_OWN[fmt.name], name=f"{fmt.name}-w4a16", weight_only=True)
        for fmt in (MXFP4, NVFP4, *FP4_E4M3, *FP4_GROUPS)
    },
    # a power of two for a block of activations: what it loses to a finer scale, the FP4 weight hides,
    # and kernels add it to exponents
    **{
        f"{fmt.name}-w4a8": replace(_OWN[fmt.name], name=f"{fmt.name}-w4a8", activation=MXINT8)
        for fmt in (MXFP4, NVFP4)
    },
    # for kernels that fold the scales of a row into FP8
    **{
        f"mxfp4-row-{window}": Recipe(f"mxfp4-row-{window}", MXFP4, rule)
        for rule, window in WINDOWS.items()
    },
}


def recipe(name: str) -> Recipe:
    """The recipe called `name`; FormatError with the nearest name where there is none."""
    return named("recipe", name, RECIPES)
