"""W4A4 GEMM on CPUs, in exact integers: configuration, legality and build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fp4kernels.cpu.build import COMPILE_SECONDS, SOURCES, compile_object
from fp4kernels.cpu.launch import gemm_launcher, start_pool
from fp4kernels.devices import Device, Toolchain
from fp4kernels.formats import NVFP4
from fp4kernels.layouts import Layout
from fp4kernels.recipes import Recipe
from fp4kernels.variants import (
    Arithmetic,
    Badge,
    Config,
    KernelVariant,
    Launcher,
    Proof,
    needs_fp4,
)
from fp4kernels.workloads import GemmWorkload

MAX_BLOCK = 32  # values of the longest scale block
MAX_ROWS = 16
MAX_CACHED_ROWS = 1024
FETCH_AHEAD = 4096  # bytes
VECTOR_REGISTERS = 32  # zmm0 to zmm31


@dataclass(frozen=True)
class CppConfig(Config):
    """Tile sizes, compiled in as constants."""

    mr: int  # rows of a tile
    rg: int  # rows in flight
    kc: int  # K values of a cache block; 0 is all of K
    mc: int  # rows of a cache block
    panels: int  # panels of 16 columns at once
    prefetch: int  # bytes ahead in the weight stream


class CppGemm(KernelVariant):
    """Block dot products in int8 x int8 → int32, each scaled once in float32."""

    name = "cpp_w4a4"
    backend = "cpp"
    config_type: ClassVar[type[Config]] = CppConfig
    layout = Layout.PANEL16
    arithmetic = Arithmetic.INT8
    proof = Proof.DEVICE

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        if device.kind != "cpu":
            return f"runs on a CPU, but the device is {device.name}"
        if toolchain.compiler is None:
            return "needs a C++ compiler, but none of c++, g++, clang++ is on PATH"
        if recipe.weight_only:
            return "multiplies two FP4 operands, but the recipe keeps activations in 16 bits"
        return needs_fp4(recipe)

    def badge(self, recipe: Recipe, device: Device) -> Badge:
        return Badge.EMULATED  # exact, but through int8

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> CppConfig:
        """As many rows as M has, up to 16; two panels share each load of an activation.

        Few rows wait for the weights: these are fetched 4 KB ahead, past what hardware does.
        """
        if workload.m == 1:
            return CppConfig(mr=1, rg=1, kc=0, mc=128, panels=4, prefetch=FETCH_AHEAD)
        mr = next((mr for mr in (2, 4, 8) if workload.m <= mr), 16)
        ahead = FETCH_AHEAD if workload.m <= 16 else 0
        return CppConfig(mr=mr, rg=min(mr, 4), kc=0, mc=128, panels=2, prefetch=ahead)

    def malformed(self, config: Config, recipe: Recipe) -> str | None:
        assert isinstance(config, CppConfig)
        if min(config.mr, config.rg, config.mc, config.panels) < 1 or config.prefetch < 0:
            return f"sizes must be at least 1, and prefetch at least 0, but got {config.label}"
        if config.kc < 0 or config.kc % MAX_BLOCK:
            return f"kc must be 0 or a multiple of {MAX_BLOCK}, but got {config.kc}"
        if config.mr > MAX_ROWS or config.mc > MAX_CACHED_ROWS:
            return f"at most {MAX_ROWS} rows a tile and {MAX_CACHED_ROWS} a block, but got {config.label}"
        if config.mr % config.rg:
            return f"rows in flight must divide the tile, but got rg={config.rg}, mr={config.mr}"
        # decoded weights of a block and integer sums in flight; one row needs no decoded block
        registers = config.panels * (recipe.format.block_size // 4 + config.rg)
        if config.panels > 4 or (config.mr > 1 and registers > VECTOR_REGISTERS + 4):
            # a few spills are cheap
            return (
                f"keeps {registers} vectors in flight, but there are {VECTOR_REGISTERS} registers"
            )
        return None

    def illegal(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
    ) -> str | None:
        assert isinstance(config, CppConfig)
        why = self.malformed(config, recipe)
        if why is not None:
            return why
        if config.mr > 1 and config.mr >= 2 * workload.m:
            return f"a tile of {config.mr} rows would be at least half empty at M={workload.m}"
        if config.kc and config.kc >= workload.k:
            return f"kc={config.kc} does not split K={workload.k}; kc=0 says the same"
        if config.mc > 128 and config.mc >= 2 * workload.m:
            return f"mc={config.mc} does not split M={workload.m}; mc=128 does the same"
        return None

    def compile(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
        seconds: float,
    ) -> None:
        self._object(config, recipe, device, toolchain, seconds)

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        path = self._object(config, recipe, device, toolchain)
        return gemm_launcher(str(path), start_pool(device, toolchain), device.cores)

    @staticmethod
    def _object(
        config: Config,
        recipe: Recipe,
        device: Device,
        toolchain: Toolchain,
        seconds: float = COMPILE_SECONDS,
    ) -> Path:
        defines = {name.upper(): value for name, value in config.values().items()}
        defines["NVFP4"] = int(recipe.format == NVFP4)
        return compile_object(SOURCES / "gemm.cpp", defines, device, toolchain, seconds)
