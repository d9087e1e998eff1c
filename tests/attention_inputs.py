"""The error of attention that a format explains."""

from __future__ import annotations

import math

from fp4kernels.attention.recipes import AttentionRecipe

# relative squared error of a block format on Gaussian values, as published and in test_goldens
FORMAT_ERROR = {"nvfp4": 9.0e-3, "nvfp4-single": 9.0e-3, "mxfp4": 13.3e-3}
MARGIN_DB = 2.0


def explained(recipe: AttentionRecipe) -> float:
    """The SQNR in dB that rounding explains where smoothed scores have a variance of 1, less 2 dB.

    Errors of V and P pass to the output as they are; those of Q and K move each score by that
    share of its standard deviation, and the score's weight by as much.
    """
    error = FORMAT_ERROR[recipe.name]
    return -10 * math.log10(4 * error) - MARGIN_DB
