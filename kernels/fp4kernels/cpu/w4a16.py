"""W4A16 GEMM on CPUs: bf16 activations, weights decoded to bf16 with their scales folded in."""

from __future__ import annotations

from fp4kernels.cpu.gemm import CppConfig, CppKernel, fetch_ahead
from fp4kernels.devices import Device
from fp4kernels.recipes import Recipe
from fp4kernels.variants import Arithmetic, needs_fp4
from fp4kernels.workloads import GemmWorkload

CHUNK = 16  # K values decoded at once, in pairs
LONG_K, SHORT_TILE = 8192, 128  # beyond this K, blocks of half of it, and tiles of so many rows
TILES = (16, 24, 48, 80, 128, 256)  # rows: of the last, sums take two thirds of a first-level cache


class CppW4A16(CppKernel):
    """Products of bf16, each added to a float32 sum of 1024 with one rounding; these added along K.

    By vdpbf16ps where the CPU has it, else by float32 FMA. The instruction takes subnormal numbers
    for zero: tiles whose activations and scales could make such a number take the FMA, too, in the
    same order, so that a row has the same bits either way.

    On level amx, which must be asked for and was never timed, tiles of AMX multiply any number of
    rows: even and odd k-values of 32 are summed apart, and both sums added to the float32 sum.
    """

    name = "cpp_w4a16"
    source = "w4a16.cpp"
    kc_step = 1024  # SEGMENT of w4a16.cpp
    arithmetic = Arithmetic.BF16

    def computes_with(self, recipe: Recipe, device: Device) -> Arithmetic:
        """By the CPU's level. Nearly every CPU of avx512vnni has vdpbf16ps; the limits of one that
        has not know no bf16, and it multiplies in float32."""
        return Arithmetic.BF16 if device.has_avx512 else Arithmetic.FP32

    def lacks(self, recipe: Recipe) -> str | None:
        if not recipe.weight_only:
            return "multiplies activations in bf16, but the recipe quantizes them"
        return needs_fp4(recipe)

    def vectors(self, config: CppConfig, recipe: Recipe) -> int:
        decoded = 1 if config.mr == config.rg else CHUNK // 2
        return config.panels * (decoded + config.rg)

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> CppConfig:
        """One tile as high as M, up to 256 rows; eight sums in flight hide a latency of four. Tiles of
        a long K would leave the second-level cache: there both are cut, to 128 rows and 4,096 values."""
        m = workload.m
        few = next((mr for mr in (1, 2, 4, 8) if m <= mr), None)
        if few is not None:
            panels = 4 if few <= 4 else 2
            return CppConfig(mr=few, rg=few, kc=0, mc=128, panels=panels, prefetch=fetch_ahead(m))
        mr = next((mr for mr in TILES if m <= mr), TILES[-1])
        mc = 512 if m > TILES[-1] else 128  # two tiles read the weights one after the other
        kc = 0
        if workload.k > LONG_K:
            mr, kc = min(mr, SHORT_TILE), LONG_K // 2
        return CppConfig(mr=mr, rg=4, kc=kc, mc=mc, panels=2, prefetch=fetch_ahead(m))
