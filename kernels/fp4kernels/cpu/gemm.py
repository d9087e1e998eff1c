"""GEMMs on CPUs: configuration, legality and build; W4A4 in exact integers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fp4kernels.cpu.build import SOURCES, compile_object, unavailable
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
MAX_ROWS = 256
TILES = (8, 16, 24, 40, 80, 128)  # rows: of the last, sums take half of a first-level cache
MAX_CACHED_ROWS = 1024
MOST_PANELS = 4
VECTOR_REGISTERS = 32  # zmm0 to zmm31


@dataclass(frozen=True)
class CppConfig(Config):
    """Tile sizes, compiled in as constants, and cache blocks, which are arguments: kernels that differ in
    these alone are one object."""

    mr: int  # rows of a tile, which share weights decoded once
    rg: int  # rows in flight of them
    kc: int  # K values of a cache block; 0 is all of K
    mc: int  # rows of a cache block
    panels: int  # panels of 16 columns at once
    prefetch: int  # bytes ahead in the weight stream


class CppKernel(KernelVariant):
    """What the C++ GEMMs share: a file of src/, the weight's layout, sizes of tiles, legality."""

    source: ClassVar[str]
    kc_step: ClassVar[int] = MAX_BLOCK  # a cache block ends where a sum does
    backend = "cpp"
    config_type: ClassVar[type[Config]] = CppConfig
    layout = Layout.PANEL16
    proof = Proof.DEVICE
    varies = None

    def order(self, config: Config) -> None:
        """Every configuration adds one product, or one block, after the other, along K."""

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        return unavailable(device, toolchain) or self.lacks(recipe)

    @abstractmethod
    def lacks(self, recipe: Recipe) -> str | None:
        """Why no machine could run the recipe by this kernel, or None."""

    def badge(self, recipe: Recipe, device: Device) -> Badge:
        return Badge.EMULATED  # exact, but through another type

    def vectors(self, config: CppConfig, recipe: Recipe) -> int:
        """Registers that the inner kernel would like to have."""
        # sums in flight, and decoded weights of a block; where all rows are in flight, these come
        # one by one, but totals stay in registers
        beside = config.rg if config.mr == config.rg else recipe.format.block_size // 4
        return config.panels * (beside + config.rg)

    def malformed(self, config: Config, recipe: Recipe) -> str | None:
        assert isinstance(config, CppConfig)
        if min(config.mr, config.rg, config.mc, config.panels) < 1 or config.prefetch < 0:
            return f"sizes must be at least 1, and prefetch at least 0, but got {config.label}"
        if config.kc < 0 or config.kc % self.kc_step:
            return f"kc must be 0 or a multiple of {self.kc_step}, but got {config.kc}"
        if config.mr > MAX_ROWS or config.mc > MAX_CACHED_ROWS:
            return f"at most {MAX_ROWS} rows a tile and {MAX_CACHED_ROWS} a block, but got {config.label}"
        if config.mr % config.rg:
            return f"rows in flight must divide the tile, but got rg={config.rg}, mr={config.mr}"
        registers = self.vectors(config, recipe)
        if config.panels > MOST_PANELS or registers > VECTOR_REGISTERS + 4:
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
        if config.rg >= 2 * workload.m:
            return f"{config.rg} rows in flight would be at least half empty at M={workload.m}"
        if config.mr - config.rg > 2 * workload.m:
            return f"mr={config.mr} does not split M={workload.m}; a smaller tile does the same"
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
        compile_object(*self.translated(config, recipe), device, toolchain, seconds, many=True)

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        path = compile_object(*self.translated(config, recipe), device, toolchain)
        assert isinstance(config, CppConfig)
        pool = start_pool(device, toolchain)
        return gemm_launcher(str(path), pool, device.cores, config.kc, config.mc)

    def translated(self, config: Config, recipe: Recipe) -> tuple[Path, dict[str, int]]:
        """The file that is compiled, and what is defined meanwhile."""
        assert isinstance(config, CppConfig)
        defines = {
            "MR": config.mr, "RG": config.rg, "PANELS": config.panels, "PREFETCH": config.prefetch,
        }  # fmt: skip
        return SOURCES / self.source, defines | {"NVFP4": int(recipe.format == NVFP4)}


class CppGemm(CppKernel):
    """Block dot products in int8 x int8 → int32, each scaled once in float32.

    On level amx, which must be asked for and was never timed, tiles of 16 rows or more are products
    of AMX; rows have the same bits.
    """

    name = "cpp_w4a4"
    source = "gemm.cpp"
    arithmetic = Arithmetic.INT8

    def lacks(self, recipe: Recipe) -> str | None:
        if recipe.weight_only:
            return "multiplies two FP4 operands, but the recipe keeps activations in 16 bits"
        return needs_fp4(recipe)

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> CppConfig:
        """One tile as high as M, up to 128 rows, of which one at a time meets the decoded weights;
        up to four rows decode weights as they are needed."""
        m, wide = workload.m, device.has_avx512
        # a second row of tiles, or waiting for memory, evens the work out
        panels = even_panels(workload.n, device.cores) if 2 < m <= TILES[-1] else MOST_PANELS
        few = next((mr for mr in (1, 2, 4) if m <= mr), None)
        if few is not None:
            return CppConfig(mr=few, rg=few, kc=0, mc=128, panels=panels, prefetch=fetch_ahead(m))
        mr, rg = next((mr for mr in TILES if m <= mr), TILES[-1]), 1
        if wide and recipe.format != NVFP4 and m > 32:
            rg, panels = 4, 2  # registers hold the longer blocks of two panels
        elif not wide:
            panels = 2
        return CppConfig(mr=mr, rg=rg, kc=0, mc=128, panels=panels, prefetch=fetch_ahead(m))


def fetch_ahead(m: int) -> int:
    """Bytes that the codes of weights are fetched ahead, scales as far: past what hardware does. One or
    two rows wait for memory alone; there hardware, left to itself, is a sixth faster (on Zen 4)."""
    return 2048 if m > 2 else 0


def even_panels(n: int, cores: int) -> int:
    """Of groups of 4, 3 or 2 panels of 16 columns, the one that leaves cores idle least; the widest
    of equals. Memory and decoding favour wide groups, but few of them end far apart."""
    panels = -(-n // 16)

    def paid(group: int) -> int:
        return -(-panels // (group * cores)) * group

    return min((MOST_PANELS, 3, 2), key=paid)
