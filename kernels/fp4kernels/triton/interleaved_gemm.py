"""GEMM on CUDA GPUs over interleaved weights: configuration, legality and build."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from fp4kernels.devices import Device, Toolchain
from fp4kernels.epilogues import Epilogue, FinishedLauncher
from fp4kernels.interleaved import CHUNK
from fp4kernels.layouts import Layout
from fp4kernels.recipes import Recipe
from fp4kernels.triton.gemm import (
    BARRIERS,
    MOST_REGISTERS,
    DecodeConfig,
    DecodeGemm,
    fit,
    malformed,
    tiles,
)
from fp4kernels.triton.variant import REGISTER_FILE, THREADS, unheld, unsupported_dtypes
from fp4kernels.variants import Config, Launcher, needs_fp4
from fp4kernels.workloads import DTYPE_BYTES, GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

FEW_ROWS = 64  # of x, up to which the weights are the matrix instruction's M side
PROGRAMS_PER_CORE = 4  # of two warps each, which keep enough loads in flight


class InterleavedGemm(DecodeGemm):
    """Exact bf16 values, but for a power of two, on the tensor cores, accumulated in float32.

    Up to 64 rows the weights never leave the registers that they are unpacked into; beyond, they
    go through shared memory. FP4 activations are expanded to bf16 once, by a kernel of their own.
    """

    name = "decode_bf16"
    layout = Layout.INTERLEAVED

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        return super().takes(recipe, device, toolchain) or needs_fp4(recipe)

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> DecodeConfig:
        """The fewest rows that hold M, up to 128; K is split until the grid fills the device."""
        m, k = workload.m, workload.k
        block_m = next((rows for rows in (16, 32, 64) if m <= rows), 128)
        few = block_m <= FEW_ROWS
        block_n = fit(64 if few else 128, workload.n)
        programs, shares = tiles(workload, block_m, block_n), 1
        while (
            few
            and shares < 8
            and 2 * shares * programs <= PROGRAMS_PER_CORE * device.cores
            and 2 * shares * 4 * CHUNK <= k  # every share has a pipeline to fill
            and 2 * shares * 16 * m <= k  # partial sums move no more bytes than the weights
        ):
            shares *= 2
        group_m = 8 if m > block_m else 1
        # two warps wait less for each other, but before sm_90 the assembler then spills
        pair = 2 if device.compute_capability >= 90 else 4
        warps = (pair if block_n >= 32 else 1) if few else 8
        # left alone, the assembler aims at as many and spills two
        most = 128 if warps == 2 and block_m == 32 else 0
        for stages in (4, 3, 2):
            config = DecodeConfig(block_m, block_n, CHUNK, warps, stages, group_m, shares, most)
            if self.shared_limit(config, recipe, workload, device) <= device.shared_memory:
                break
        return config

    def malformed(self, config: Config, recipe: Recipe) -> str | None:
        assert isinstance(config, DecodeConfig)
        if config.block_k % CHUNK:
            return (
                f"block_k must be whole chunks of the interleaved layout, {CHUNK} values each, "
                f"but got {config.block_k}"
            )
        return malformed(config, recipe)

    def illegal(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
    ) -> str | None:
        assert isinstance(config, DecodeConfig)
        return (
            self.malformed(config, recipe)
            or unsupported_dtypes(recipe, workload)
            or self._too_large(config, recipe, workload, device)
            or _through_shared(config, device)
            or _pointless(config, workload, device)
        )

    def compile(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
        seconds: float,
    ) -> None:
        from fp4kernels.triton.ahead import compile_ahead  # imports triton
        from fp4kernels.triton.interleaved_launch import interleaved_sources

        assert isinstance(config, DecodeConfig)
        both = (
            interleaved_sources(config, recipe, workload, direct) for direct in (True, False)
        )  # which of them runs is known when the weights are
        compile_ahead([*chain.from_iterable(both)], device.arch)

    def sources(self, config: Config, recipe: Recipe, workload: GemmWorkload) -> list[KernelSource]:
        from fp4kernels.triton.interleaved_launch import interleaved_sources  # imports triton

        assert isinstance(config, DecodeConfig)
        return interleaved_sources(config, recipe, workload, direct=True)

    def shared_limit(
        self, config: Config, recipe: Recipe, workload: GemmWorkload, device: Device
    ) -> int:
        assert isinstance(config, DecodeConfig)
        x_tile = config.block_m * config.block_k * 2
        codes = config.block_n * config.block_k // 2
        scales = config.block_n * config.block_k // recipe.format.block_size
        loop = (config.stages - 1) * (x_tile + codes + scales) + BARRIERS
        if not weights_first(config) and has_groups(device):  # both operands, as wgmma reads them
            loop += config.block_n * CHUNK * 2 + x_tile
        output_bytes = DTYPE_BYTES["float32"]  # sums change layout before they are rounded
        return max(loop, config.block_m * config.block_n * output_bytes + BARRIERS)

    def compiles_for(self, arch: str) -> bool:
        return arch.startswith("sm_")  # inline PTX

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        from fp4kernels.triton.interleaved_launch import interleaved_launcher  # imports triton

        assert isinstance(config, DecodeConfig)
        return interleaved_launcher(config, recipe)

    def fused(self, epilogue: Epilogue, config: Config, recipe: Recipe) -> FinishedLauncher:
        from fp4kernels.triton.interleaved_launch import interleaved_finished_launcher

        assert isinstance(config, DecodeConfig)
        return interleaved_finished_launcher(config, recipe, epilogue)

    def finished_sources(
        self, epilogue: Epilogue, config: Config, recipe: Recipe, workload: GemmWorkload
    ) -> list[KernelSource]:
        from fp4kernels.triton.interleaved_launch import interleaved_finished_sources

        assert isinstance(config, DecodeConfig)
        return interleaved_finished_sources(config, recipe, workload, epilogue, direct=True)

    def _too_large(
        self, config: DecodeConfig, recipe: Recipe, workload: GemmWorkload, device: Device
    ) -> str | None:
        shared = self.shared_limit(config, recipe, workload, device)
        if shared > device.shared_memory:
            return (
                f"needs {shared} bytes of shared memory, but {device.name} has "
                f"{device.shared_memory}"
            )
        # the sums, and a chunk of the weights: two bf16 values to a register
        held = config.block_n * (config.block_m + CHUNK // 2) // (THREADS * config.warps)
        limit = min(MOST_REGISTERS, REGISTER_FILE // (THREADS * config.warps)) * 3 // 4
        if held > limit:
            return f"holds {held} registers a thread, but beside addresses {limit} are free"
        return unheld(config.maxnreg, held, config.warps, shared, device)


def weights_first(config: DecodeConfig) -> bool:
    """Whether the weights are on the M side of the matrix instruction, in registers."""
    return config.block_m <= FEW_ROWS


def has_groups(device: Device) -> bool:
    """Whether 4 warps together multiply by wgmma or tcgen05, from shared memory."""
    return device.compute_capability in range(90, 120)


def _through_shared(config: DecodeConfig, device: Device) -> str | None:
    """Why the weights would leave the registers that they are unpacked into."""
    groups = has_groups(device) and config.warps >= 4 and config.block_n >= 64
    if weights_first(config) and groups:
        return (
            f"with {config.warps} warps {device.name} would read the unpacked weights from shared "
            "memory; take 2"
        )
    return None


def _pointless(config: DecodeConfig, workload: GemmWorkload, device: Device) -> str | None:
    """Why another configuration does the same or better."""
    for name, size, least in (
        ("block_m", workload.m, 16), ("block_n", workload.n, 16), ("block_k", workload.k, CHUNK)
    ):  # fmt: skip
        block = config.values()[name]
        if block > least and block >= 2 * size:
            return f"{name}={block} would be at least half empty at {workload.label}"
    if config.block_n < 16 * config.warps and weights_first(config):
        return f"{config.warps} warps of 16 rows each share only {config.block_n} rows of weights"
    tiles_m = -(-workload.m // config.block_m)
    if config.block_m < FEW_ROWS and tiles_m > 1:
        return f"block_m={config.block_m} would unpack every weight {tiles_m} times; take 64 rows"
    if config.group_m > 1 and tiles_m == 1:
        return f"group_m={config.group_m} groups rows of tiles, but M={workload.m} has one"
    tiles_k = -(-workload.k // config.block_k)
    if config.split_k > tiles_k:
        return f"split_k={config.split_k} shares, but K={workload.k} has only {tiles_k} blocks"
    programs = tiles(workload, config.block_m, config.block_n) * config.split_k
    most = 2 * PROGRAMS_PER_CORE * device.cores
    if config.split_k > 1 and programs > most:
        return (
            f"split_k={config.split_k} makes {programs} programs, "
            f"but {2 * PROGRAMS_PER_CORE} on each of {device.cores} cores fill the device"
        )
    return None
