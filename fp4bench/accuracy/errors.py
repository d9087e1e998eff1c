"""The error of a recipe: what `tune` records and what the study reports are made here."""

from __future__ import annotations

from torch import Tensor

from fp4kernels.recipes import Recipe, Transform

RESIDUAL_BITS = 64  # of a value that was cut off: float32 and where it belongs


def relative_energy(approximation: Tensor, exact: Tensor) -> float:
    """Error energy over signal energy, sum (a - e)^2 / sum e^2, in float64; NaN where e is zero."""
    exact = exact.double()
    error = (approximation.double() - exact).square().sum() / exact.square().sum()
    return float(error)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two tensors, taken as vectors."""
    a, b = a.double().flatten(), b.double().flatten()
    return min(1.0, max(-1.0, float(a @ b / (a.norm() * b.norm()))))


def largest_error(approximation: Tensor, exact: Tensor) -> float:
    """max |a - e| over the root mean square of e."""
    exact = exact.double()
    largest = (approximation.double() - exact).abs().max()
    return float(largest / exact.square().mean().sqrt())


def bits_per_value(recipe: Recipe, rows: int, columns: int) -> float:
    """Of a matrix in storage: codes, every scale, and what the recipe keeps apart from them."""
    bits = recipe.format.bits(rows, columns)
    if recipe.transform is Transform.CENTER:
        bits += 32 * columns  # the means
    outliers, values = recipe.outliers, rows * columns
    if outliers is not None and outliers.compensate:
        beyond = values - 1 - round(outliers.quantile * (values - 1))
        bits += 2 * beyond * RESIDUAL_BITS  # at both ends
    return bits / values
