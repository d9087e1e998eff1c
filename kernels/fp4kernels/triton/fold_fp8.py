"""GEMM on CUDA GPUs in FP8, with MXFP4's block scales folded in: configuration, legality, build."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4kernels.devices import Device, Toolchain
from fp4kernels.epilogues import Epilogue, FinishedLauncher
from fp4kernels.layouts import Layout
from fp4kernels.recipes import Recipe
from fp4kernels.triton.finishing import FinishingVariant
from fp4kernels.triton.variant import (
    needs_nvidia,
    unheld,
    unsuited_registers,
    unsuited_warps,
    unsupported_dtypes,
)
from fp4kernels.variants import Arithmetic, Badge, Config, Launcher, Proof, needs_fp4
from fp4kernels.workloads import DTYPE_BYTES, GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

MIN_CAPABILITY = 89  # FP8 tensor cores
PROMOTING = 90  # where partial sums can leave the tensor core
MIN_ROWS = 16  # of a tl.dot
MMA_VALUES = 32  # along K, of one FP8 matrix instruction
KEPT = 2.0**-13  # what Hopper's tensor core cuts off, over the largest addend: it keeps 14 bits
THREADS = 32  # in a warp
REGISTERS = 65536  # shared by the threads of a program
LOOP_REGISTERS = 40  # a thread has beside its sums
MOST_REGISTERS = 255  # of a thread
BARRIERS = 1024  # bytes, about


@dataclass(frozen=True)
class FoldConfig(Config):
    """Tile sizes and launch options, compiled in as constants."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int  # K tiles in flight
    group_m: int  # rows of tiles that share weights in the L2
    promote: int  # values along K until a partial sum is added in float32; 0 for never
    maxnreg: int = 0  # registers that a thread is held to; 0: what the compiler takes


class FoldFp8(FinishingVariant):
    """Exact FP8 operands, each row times a power of two, summed as the FP8 tensor core sums.

    The weight is folded where it is arranged, so that its scales are known to fit; activations at
    every call, into a workspace of a byte a value, within the window that the recipe keeps to.
    """

    name = "fold_fp8"
    config_type: ClassVar[type[Config]] = FoldConfig
    layout = Layout.FOLDED
    arithmetic = Arithmetic.FP8
    proof = Proof.INTERPRETER
    varies = None  # rows are folded one by one

    def accumulator_unit(self, config: Config) -> float:
        """From the 14 bits that Hopper's tensor core is said to keep; not measured yet.

        A sum of so many values errs by at most KEPT of their magnitudes for each instruction and
        once more for its own alignment; the gate multiplies by 4 (1 + log2 K). Without promotion
        such a bound would let anything pass: KEPT itself is for sums that do not all grow one way,
        and the gate finds where one does.
        """
        assert isinstance(config, FoldConfig)
        if not config.promote:
            return KEPT
        steps = config.promote // MMA_VALUES + 1
        return steps * KEPT / (4 * (1 + math.log2(config.promote)))

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        lacking = needs_nvidia(device, toolchain, MIN_CAPABILITY, "FP8 tensor cores")
        if lacking or needs_fp4(recipe):
            return lacking or needs_fp4(recipe)
        if recipe.weight_only:
            return "multiplies two FP4 operands, but the recipe keeps activations in 16 bits"
        if recipe.window is None:
            return (
                "folds the scales of a row into FP8, but the recipe lets them spread without limit; "
                "choose mxfp4-row-14 or mxfp4-row-28"
            )
        return None

    def badge(self, recipe: Recipe, device: Device) -> Badge:
        return Badge.EMULATED  # exact, but through FP8

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> FoldConfig:
        """Sums leave the tensor core after every tile of K, where the device can do that."""
        block_m = next((rows for rows in (16, 32, 64) if workload.m <= rows), 128)
        block_n = 128 if workload.n > 64 else 64
        roomy = device.shared_memory > 128 << 10
        return FoldConfig(
            block_m, block_n, 128, warps=8 if block_m == 128 else 4, stages=4 if roomy else 2,
            group_m=8 if workload.m > block_m else 1,
            promote=128 if device.compute_capability == PROMOTING and block_m >= 64 else 0,
        )  # fmt: skip

    def malformed(self, config: Config, recipe: Recipe) -> str | None:
        assert isinstance(config, FoldConfig)
        return _malformed(config)

    def illegal(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
    ) -> str | None:
        assert isinstance(config, FoldConfig)
        return (
            _malformed(config)
            or unsupported_dtypes(recipe, workload)
            or _unpromoted(config, device)
            or _too_large(config, workload, device)
            or _pointless(config, workload)
        )

    def sources(self, config: Config, recipe: Recipe, workload: GemmWorkload) -> list[KernelSource]:
        from fp4kernels.triton.fold_launch import fold_sources  # imports triton

        assert isinstance(config, FoldConfig)
        return fold_sources(config, recipe, workload)

    def shared_limit(
        self, config: Config, recipe: Recipe, workload: GemmWorkload, device: Device
    ) -> int:
        assert isinstance(config, FoldConfig)
        return shared_bytes(config, workload)

    def compiles_as(self, config: Config) -> FoldConfig:
        """How programs are numbered is a single constant."""
        assert isinstance(config, FoldConfig)
        return replace(config, group_m=8)

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        from fp4kernels.triton.fold_launch import fold_launcher  # imports triton

        assert isinstance(config, FoldConfig)
        return fold_launcher(config, recipe)

    def fused(self, epilogue: Epilogue, config: Config, recipe: Recipe) -> FinishedLauncher:
        from fp4kernels.triton.fold_launch import fold_finished_launcher  # imports triton

        assert isinstance(config, FoldConfig)
        return fold_finished_launcher(config, recipe, epilogue)

    def finished_sources(
        self, epilogue: Epilogue, config: Config, recipe: Recipe, workload: GemmWorkload
    ) -> list[KernelSource]:
        from fp4kernels.triton.fold_launch import fold_finished_sources  # imports triton

        assert isinstance(config, FoldConfig)
        return fold_finished_sources(config, recipe, workload, epilogue)


def shared_bytes(config: FoldConfig, workload: GemmWorkload) -> int:
    """Shared memory of one program, from above."""
    tile = (config.block_m + config.block_n) * config.block_k
    output = config.block_m * config.block_n * DTYPE_BYTES[workload.output_dtype]
    return max(config.stages * tile, output) + BARRIERS


def _malformed(config: FoldConfig) -> str | None:
    """Why no GPU could run `config`."""
    for name, value in config.values().items():
        least = 0 if name in ("promote", "maxnreg") else 1
        if value < least:
            return f"{name} must be at least {least}, but got {value}"
        if name not in ("stages", "group_m", "promote", "maxnreg") and value & (value - 1):
            return f"{name} must be a power of two, but got {value}"
    if min(config.block_m, config.block_n) < MIN_ROWS or config.block_k < MMA_VALUES:
        return (
            f"an FP8 matrix instruction takes {MIN_ROWS} rows and {MMA_VALUES} values along K, "
            f"but got {config.label}"
        )
    if config.promote % MMA_VALUES or config.promote > config.block_k:
        return (
            f"promote must be 0 or whole instructions of {MMA_VALUES} values within "
            f"block_k={config.block_k}, but got {config.promote}"
        )
    return unsuited_warps(config.warps) or unsuited_registers(config.maxnreg)


def _unpromoted(config: FoldConfig, device: Device) -> str | None:
    """Why no partial sum would leave the tensor core, as the bound has it."""
    if config.promote and device.compute_capability != PROMOTING:
        return f"promote={config.promote} is for sm_{PROMOTING}, but got {device.arch}; take 0"
    if config.promote and (config.block_m < 64 or config.warps < 4):
        return (
            f"promote={config.promote} needs wgmma, 64 rows and 4 warps at least, but got "
            f"{config.block_m} rows and {config.warps} warps; take 0"
        )
    return None


def _too_large(config: FoldConfig, workload: GemmWorkload, device: Device) -> str | None:
    shared = shared_bytes(config, workload)
    if shared > device.shared_memory:
        return (
            f"needs {shared} bytes of shared memory, but {device.name} has {device.shared_memory}"
        )
    threads = THREADS * config.warps
    sums = config.block_m * config.block_n // threads
    held = (2 if config.promote else 1) * sums + LOOP_REGISTERS  # partial sums, too
    limit = min(MOST_REGISTERS, REGISTERS // threads)
    if held > limit:
        return f"holds {held} registers a thread, but with {config.warps} warps there are {limit}"
    return unheld(config.maxnreg, held, config.warps, shared, device)


def _pointless(config: FoldConfig, workload: GemmWorkload) -> str | None:
    """Why another configuration does the same or better."""
    for name, size in (("block_m", workload.m), ("block_n", workload.n), ("block_k", workload.k)):
        block = config.values()[name]
        if block > (MMA_VALUES if name == "block_k" else MIN_ROWS) and block >= 2 * size:
            return f"{name}={block} would be at least half empty at {workload.label}"
    tiles_m = -(-workload.m // config.block_m)
    if config.block_m < 64 and tiles_m > 1:
        return f"block_m={config.block_m} would read every weight {tiles_m} times; take 64 rows"
    if config.group_m > 1 and tiles_m == 1:
        return f"group_m={config.group_m} groups rows of tiles, but M={workload.m} has one"
    return None
