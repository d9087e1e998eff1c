"""W4A8 GEMM on CPUs: activations of MXINT8, weights of FP4."""

from __future__ import annotations

from fp4kernels.cpu.gemm import CppGemm
from fp4kernels.formats import MXINT8
from fp4kernels.recipes import Recipe
from fp4kernels.variants import needs_fp4_weight


class CppW4A8(CppGemm):
    """As CppGemm: the same weights, the same exact block sums. Its activations take twice the bytes,
    and need no table. What two scales multiply to is a power of two, or an E4M3 number shifted."""

    name = "cpp_w4a8"
    source = "w4a8.cpp"

    def lacks(self, recipe: Recipe) -> str | None:
        if recipe.activation != MXINT8:
            return "multiplies activations of mxint8, but the recipe has others"
        return needs_fp4_weight(recipe)
