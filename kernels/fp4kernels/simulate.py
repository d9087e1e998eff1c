"""What a recipe makes of a tensor, in float32: the way there and back."""

from __future__ import annotations

from torch import Generator, Tensor

from fp4kernels import reference
from fp4kernels.philox import Philox
from fp4kernels.recipes import Recipe
from fp4kernels.transforms import clamped, transformed


def approximate(x: Tensor, recipe: Recipe, generator: Generator | Philox | None = None) -> Tensor:
    """`x` [..., K] transformed, clamped, quantized, and all of it undone; float32.

    Raises FormatError where K does not fit the format or the transform, or where a stochastic
    rounding has no `generator`.
    """
    reference.check_blocks(x, recipe.format)
    y, undo = transformed(x, recipe.transform)
    residual = None
    if recipe.outliers is not None:
        y, residual = clamped(y, recipe.outliers)
    back = reference.dequantize(reference.quantize(y, recipe, generator), recipe.format)
    return undo(back if residual is None else back + residual)
