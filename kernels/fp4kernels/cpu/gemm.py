"""W4A4 GEMM on CPUs, in exact integers: configuration, legality and build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fp4kernels.cpu.build import compile_object
from fp4kernels.cpu.launch import gemm_launcher, start_pool
from fp4kernels.devices import Device, Toolchain
from fp4kernels.formats import ScaleFormat
from fp4kernels.layouts import Layout
from fp4kernels.recipes import Recipe
from fp4kernels.variants import Badge, Config, KernelVariant, Launcher, Proof
from fp4kernels.workloads import GemmWorkload

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
    proof = Proof.DEVICE

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        if device.kind != "cpu":
            return f"runs on a CPU, but the device is {device.name}"
        if toolchain.compiler is None:
            return "needs a C++ compiler, but none of c++, g++, clang++ is on PATH"
        if recipe.weight_only:
            return "multiplies two FP4 operands, but the recipe keeps activations in 16 bits"
        return None

    def badge(self, recipe: Recipe, device: Device) -> Badge:
        return Badge.EMULATED  # exact, but through int8

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> CppConfig:
        """Rows as M allows; what was best on one 2-core Zen 5 machine for most shapes."""
        mr = next((mr for mr in (1, 2, 4, 8) if workload.m <= mr), 16)
        panels = {1: 4, 2: 2}.get(mr, 1)
        return CppConfig(mr=mr, rg=min(mr, 8), kc=0, mc=128, panels=panels, prefetch=0)

    def illegal(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
    ) -> str | None:
        assert isinstance(config, CppConfig)
        if config.mr % config.rg:
            return f"rows in flight must divide the tile, but got rg={config.rg}, mr={config.mr}"
        # float sums of the tile, decoded weights of a block, integer sums in flight
        registers = config.panels * config.mr + recipe.format.block_size // 4 + config.rg
        if registers > VECTOR_REGISTERS + 2:  # the compiler can leave two of them in memory
            return f"needs {registers} vector registers, but there are {VECTOR_REGISTERS}"
        if config.mr > 1 and config.mr >= 2 * workload.m:
            return f"a tile of {config.mr} rows would be at least half empty at M={workload.m}"
        if config.kc and config.kc >= workload.k:
            return f"kc={config.kc} does not split K={workload.k}; kc=0 says the same"
        if config.mc > 128 and config.mc >= 2 * workload.m:
            return f"mc={config.mc} does not split M={workload.m}; mc=128 does the same"
        return None

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        defines = {name.upper(): value for name, value in config.values().items()}
        defines["NVFP4"] = int(recipe.format.scale is ScaleFormat.E4M3)
        path = compile_object("gemm.cpp", defines, device, toolchain)
        return gemm_launcher(str(path), start_pool(device, toolchain), device.cores)
