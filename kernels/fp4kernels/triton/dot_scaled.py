"""GEMM by Triton's `dot_scaled` on NVIDIA and AMD GPUs: configuration, legality and build."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4kernels.devices import Device, Toolchain
from fp4kernels.epilogues import Epilogue, FinishedLauncher
from fp4kernels.layouts import Layout
from fp4kernels.recipes import Recipe
from fp4kernels.swizzle import TILE_COLUMNS, TILE_ROWS
from fp4kernels.triton.dot_scaled_limits import (
    FULL_ROWS,
    BlockScaled,
    block_scaled,
    not_compiled,
    shared_bytes,
    too_large,
)
from fp4kernels.triton.finishing import FinishingVariant
from fp4kernels.triton.gemm import fit, tiles
from fp4kernels.triton.variant import unsuited_registers, unsupported_dtypes
from fp4kernels.variants import Arithmetic, Badge, Config, Launcher, Proof, needs_fp4
from fp4kernels.workloads import GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

MIN_CAPABILITY = 80  # bf16 tensor cores
AMD = ("gfx942", "gfx950", "gfx1250")  # whose code the offline proof reads
MIN_DOT = 16  # each side of a tl.dot
LARGE_M = 64  # from here on the multiplier, not the memory, is what an FP4 product waits for


@dataclass(frozen=True)
class DotScaledConfig(Config):
    """Tile sizes and launch options, compiled in as constants."""

    block_m: int
    block_n: int
    block_k: int  # values, two to a byte
    warps: int
    stages: int  # K tiles in flight
    group_m: int  # rows of tiles that share weights in the L2
    maxnreg: int = 0  # registers that a thread is held to; 0: what the compiler takes

    @property
    def swapped(self) -> bool:
        """Whether weights are the rows of the matrix instruction, which has at least 128 of them
        where it is native, and would be fed padding by a few activations."""
        return self.block_m < FULL_ROWS


class DotScaledGemm(FinishingVariant):
    """Block-scaled matrix instructions where the device has them, Triton's own decoding elsewhere."""

    name = "dot_scaled"
    config_type: ClassVar[type[Config]] = DotScaledConfig
    arithmetic = Arithmetic.FP4
    proof = Proof.INTERPRETER
    varies = None

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        amd = device.arch.startswith("gfx")
        if device.kind != "cuda" or not (amd or device.compute_capability):
            return f"runs on a GPU, but the device is {device.name}"
        if amd and device.arch not in AMD:
            return f"was compiled for {', '.join(AMD)} of AMD's GPUs, but got {device.arch}"
        if not amd and device.compute_capability < MIN_CAPABILITY:
            return f"needs bf16 tensor cores, sm_{MIN_CAPABILITY} or later, but got {device.arch}"
        if toolchain.triton is None:
            return "needs Triton, which is not installed"
        return needs_fp4(recipe) or not_compiled(recipe, device, toolchain.triton)

    def badge(self, recipe: Recipe, device: Device) -> Badge:
        native = block_scaled(recipe, device) is not BlockScaled.NONE
        return Badge.NATIVE if native else Badge.EMULATED

    def computes_with(self, recipe: Recipe, device: Device) -> Arithmetic:
        native = self.badge(recipe, device) is Badge.NATIVE
        return Arithmetic.FP4 if native else Arithmetic.BF16

    def leads(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> bool:
        """At a large M, where the multiplier is native; before it, reading weights is all there is."""
        return workload.m > LARGE_M and self.badge(recipe, device) is Badge.NATIVE

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> DotScaledConfig:
        """The fewest rows that hold M, up to 128, and a line of codes in K if none is decoded."""
        m, kind = workload.m, block_scaled(recipe, device)
        block_m = next((rows for rows in (16, 32, 64) if m <= rows), FULL_ROWS)
        few = block_m < FULL_ROWS
        tensor_memory = kind is BlockScaled.TENSOR_MEMORY
        wide = tensor_memory and not few and tiles(workload, 128, 256) >= device.cores
        block_n = 256 if wide else 64 if few and kind is BlockScaled.NONE else 128
        block_k = 256 if tensor_memory else 128 if few or kind is not BlockScaled.NONE else 64
        amd = device.arch.startswith("gfx")
        return DotScaledConfig(
            block_m=block_m,
            block_n=max(fit(block_n, workload.n), self._least_n(recipe, device, block_m)),
            block_k=max(fit(block_k, workload.k), self._least_k(recipe, device)),
            warps=4 if few or amd else 8,
            stages=2 if amd else 4 if few or tensor_memory else 3,
            group_m=8 if m > block_m else 1,
        )

    def malformed(self, config: Config, recipe: Recipe) -> str | None:
        assert isinstance(config, DotScaledConfig)
        for name, value in config.values().items():
            if value < 1 and name != "maxnreg":
                return f"{name} must be at least 1, but got {value}"
            if name not in ("stages", "group_m", "maxnreg") and value & (value - 1):
                return f"{name} must be a power of two, but got {value}"
        if min(config.block_m, config.block_n) < MIN_DOT:
            return f"a matrix instruction takes at least {MIN_DOT} a side, but got {config.label}"
        if config.block_k < 32 or config.block_k % recipe.format.block_size:
            return f"block_k must be whole scale blocks, and at least 32, but got {config.block_k}"
        return unsuited_registers(config.maxnreg)

    def illegal(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
    ) -> str | None:
        assert isinstance(config, DotScaledConfig)
        return (
            self.malformed(config, recipe)
            or unsupported_dtypes(recipe, workload)
            or self._not_native(config, recipe, device)
            or too_large(config, recipe, workload, device)
            or self._pointless(config, recipe, workload, device)
        )

    def sources(self, config: Config, recipe: Recipe, workload: GemmWorkload) -> list[KernelSource]:
        from fp4kernels.triton.dot_scaled_launch import scaled_sources  # imports triton

        assert isinstance(config, DotScaledConfig)
        return scaled_sources(config, recipe, workload, self.layout)

    def shared_limit(
        self, config: Config, recipe: Recipe, workload: GemmWorkload, device: Device
    ) -> int:
        assert isinstance(config, DotScaledConfig)
        return shared_bytes(config, recipe, workload, device)

    def compiles_as(self, config: Config) -> DotScaledConfig:
        """How programs are numbered is a single constant."""
        assert isinstance(config, DotScaledConfig)
        return replace(config, group_m=8)

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        from fp4kernels.triton.dot_scaled_launch import scaled_launcher  # imports triton

        assert isinstance(config, DotScaledConfig)
        return scaled_launcher(config, recipe, self.layout)

    def fused(self, epilogue: Epilogue, config: Config, recipe: Recipe) -> FinishedLauncher:
        from fp4kernels.triton.dot_scaled_launch import scaled_finished_launcher  # imports triton

        assert isinstance(config, DotScaledConfig)
        return scaled_finished_launcher(config, recipe, self.layout, epilogue)

    def finished_sources(
        self, epilogue: Epilogue, config: Config, recipe: Recipe, workload: GemmWorkload
    ) -> list[KernelSource]:
        from fp4kernels.triton.dot_scaled_launch import scaled_finished_sources  # imports triton

        assert isinstance(config, DotScaledConfig)
        return scaled_finished_sources(config, recipe, workload, self.layout, epilogue)

    def _least_n(self, recipe: Recipe, device: Device, block_m: int) -> int:
        rows = block_scaled(recipe, device) is BlockScaled.TENSOR_MEMORY and block_m < FULL_ROWS
        return FULL_ROWS if rows else MIN_DOT

    def _least_k(self, recipe: Recipe, device: Device) -> int:
        return max(32, block_scaled(recipe, device).least_k)

    def _not_native(self, config: DotScaledConfig, recipe: Recipe, device: Device) -> str | None:
        """Why a device that has the instruction would not use it: Triton falls back silently."""
        least = self._least_n(recipe, device, config.block_m)
        if config.block_n < least:
            return (
                f"the block-scaled instruction of {device.arch} has {FULL_ROWS} rows, of "
                f"activations or weights, but got {config.label}"
            )
        least = self._least_k(recipe, device)
        if config.block_k < least:
            return f"a matrix instruction takes {least} values of K, but got {config.block_k}"
        return None

    def _pointless(
        self, config: DotScaledConfig, recipe: Recipe, workload: GemmWorkload, device: Device
    ) -> str | None:
        """Why another configuration does the same or better."""
        least_n = self._least_n(recipe, device, config.block_m)
        for name, size, least in (
            ("block_m", workload.m, MIN_DOT),
            ("block_n", workload.n, least_n),
            ("block_k", workload.k, self._least_k(recipe, device)),
        ):
            block = config.values()[name]
            if block > least and block >= 2 * size:
                return f"{name}={block} would be at least half empty at {workload.label}"
        tiles_m = -(-workload.m // config.block_m)
        tensor_memory = block_scaled(recipe, device) is BlockScaled.TENSOR_MEMORY
        full = FULL_ROWS if tensor_memory else 64
        if config.block_m < full and tiles_m > 1:
            return (
                f"block_m={config.block_m} would read every weight {tiles_m} times; "
                f"take {full} rows"
            )
        if config.group_m > 1 and tiles_m == 1:
            return f"group_m={config.group_m} groups rows of tiles, but M={workload.m} has one"
        return None


class SwizzledDotScaledGemm(DotScaledGemm):
    """With the scales of weights in whole lines of 128 x 4, as the multiplier of Blackwell reads
    them; the launcher lays out those of activations so, where a tile has 128 of them."""

    name = "dot_scaled_swizzled"
    layout = Layout.SWIZZLED

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        why = super().takes(recipe, device, toolchain)
        if why is None and not block_scaled(recipe, device).swizzled:
            return (
                "reads scales as Blackwell's FP4 instructions do, sm_100 and sm_120, but "
                f"{device.name} multiplies {recipe.name} otherwise"
            )
        return why

    def _least_n(self, recipe: Recipe, device: Device, block_m: int) -> int:
        return TILE_ROWS

    def _least_k(self, recipe: Recipe, device: Device) -> int:
        across = TILE_COLUMNS * recipe.format.block_size
        return max(super()._least_k(recipe, device), across)
