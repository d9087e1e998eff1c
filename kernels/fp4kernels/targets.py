"""What a quantizer is to make of values, and which demands do not go together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fp4kernels.errors import FormatError
from fp4kernels.philox import Philox
from fp4kernels.prologues import Prologue, SwiGlu
from fp4kernels.recipes import Recipe, Rounding


@dataclass(frozen=True, eq=False)
class Target:
    """A recipe with what it needs beyond the values: an `amax` that is known already, a float32
    scalar on the device, and the `chance` of a stochastic rounding."""

    recipe: Recipe
    amax: Tensor | None = None
    chance: Philox | None = None

    def check(self, x: Tensor) -> None:
        """FormatError for an amax or a chance that the recipe has no use for, or lacks."""
        fmt, amax = self.recipe.format, self.amax
        if amax is not None:
            if not fmt.tensor_scale:
                raise FormatError(f"{fmt.name} has no tensor scale, so it takes no amax")
            _check_scalar("amax", amax, torch.float32, x)
        if (self.recipe.rounding is Rounding.NEAREST_EVEN) != (self.chance is None):
            which = "a" if self.chance is None else "no"
            raise FormatError(f"{self.recipe.rounding} rounding takes {which} chance")


def check_count(raised: Tensor | None, x: Tensor, recipe: Recipe) -> None:
    """FormatError for a count of raised scales where none can be, or that is another kind of tensor."""
    if raised is None:
        return
    if recipe.window is None:
        raise FormatError(f"{recipe.scale_rule} raises no scales, so it takes no count of them")
    _check_scalar("raised", raised, torch.int64, x)


def check_transposable(
    x: Tensor, prologue: Prologue | None, target: Target, transposed: Target
) -> None:
    """FormatError unless x [M, K] can be quantized together with its transpose."""
    if x.dim() != 2:
        raise FormatError(f"a transpose needs a matrix, but got shape {tuple(x.shape)}")
    if not isinstance(prologue, SwiGlu | None):
        raise FormatError(
            "a transpose takes no prologue that looks at whole rows, but got "
            f"{type(prologue).__name__}; quantize prologue.applied(x)"
        )
    for each in (target, transposed):
        each.check(x)
        if each.recipe.window is not None:
            raise FormatError(
                f"the scales of {each.recipe.name} depend on whole rows, so it takes no transpose; "
                "quantize each alone"
            )


def _check_scalar(name: str, given: Tensor, dtype: torch.dtype, x: Tensor) -> None:
    if (given.dtype, given.numel(), given.device) != (dtype, 1, x.device):
        raise FormatError(
            f"{name} must be one {str(dtype).removeprefix('torch.')} on {x.device}, but got "
            f"{tuple(given.shape)} of {given.dtype} on {given.device}"
        )
