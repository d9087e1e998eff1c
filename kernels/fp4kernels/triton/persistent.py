"""Persistent GEMM by Blackwell's block-scaled instructions: configuration, legality and build."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4kernels.devices import Device, Toolchain
from fp4kernels.layouts import Layout
from fp4kernels.recipes import Recipe
from fp4kernels.swizzle import TILE_COLUMNS, TILE_ROWS
from fp4kernels.triton.dot_scaled_limits import (
    FULL_ROWS,
    MARGIN,
    MOST_STORED,
    MOST_SUMS,
    TENSOR_COLUMNS,
    BlockScaled,
    block_scaled,
    no_descriptors,
    warp_size,
)
from fp4kernels.triton.gemm import tiles
from fp4kernels.triton.variant import TritonVariant, unsuited_warps, unsupported_dtypes
from fp4kernels.variants import Arithmetic, Badge, Config, Launcher, Proof, needs_fp4
from fp4kernels.workloads import DTYPE_BYTES, GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

MOST_SIDE = 256  # of a box, in elements
COPIED = 16  # bytes: the copy engine's unit, on which rows start


@dataclass(frozen=True)
class PersistentConfig(Config):
    """Tile sizes and launch options, compiled in as constants."""

    block_m: int
    block_n: int
    block_k: int  # values, two to a byte
    warps: int
    stages: int  # K tiles in flight
    group_m: int  # rows of tiles that share weights in the L2
    parts: int  # a tile is stored in so many, of its columns, one after the other
    flatten: int  # 1: one loop over the K steps of all tiles; the next loads while one is stored
    warp_specialize: int  # 1: copies, products and stores on warps of their own
    ctas: int  # that multiply a tile together


class PersistentDotScaledGemm(TritonVariant):
    """`dot_scaled` with descriptors and as many programs as cores, each for one tile after another."""

    name = "dot_scaled_persistent"
    config_type: ClassVar[type[Config]] = PersistentConfig
    layout = Layout.SWIZZLED
    arithmetic = Arithmetic.FP4
    proof = Proof.INTERPRETER
    varies = None
    persistent = True
    multiples = (8, 32)  # 16 bytes of outputs of 16 bits, and of codes

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        if not block_scaled(recipe, device).swizzled:
            return (
                "multiplies FP4 by FP4 as Blackwell does, sm_100 and sm_120, but "
                f"{device.name} multiplies {recipe.name} otherwise"
            )
        if toolchain.triton is None:
            return "needs Triton, which is not installed"
        return needs_fp4(recipe) or no_descriptors(device, toolchain.triton)

    def compiles_for(self, arch: str) -> bool:
        return arch in ("sm_100", "sm_120")

    def badge(self, recipe: Recipe, device: Device) -> Badge:
        return Badge.NATIVE

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> PersistentConfig:
        """The wide tile where those fill the device, as the L2 then feeds the multiplier longest; else
        the square one, of which the tensor memory holds two: stores hide behind products."""
        tensor_memory = block_scaled(recipe, device) is BlockScaled.TENSOR_MEMORY
        wide = tensor_memory and tiles(workload, 128, 256) >= device.cores
        overlapped = int(tensor_memory and not wide)
        config = PersistentConfig(
            block_m=FULL_ROWS,
            block_n=256 if wide else FULL_ROWS,
            block_k=256 if tensor_memory else 128,
            warps=4 if overlapped else 8,
            stages=4,
            group_m=8 if workload.m > FULL_ROWS else 1,
            parts=1,
            flatten=overlapped,
            warp_specialize=overlapped,
            ctas=1,
        )
        while config.block_k >= 2 * workload.k and config.block_k > least_k(recipe):
            config = replace(config, block_k=config.block_k // 2)
        fitting = (
            replace(config, stages=stages, parts=parts) for stages in (4, 3, 2) for parts in (1, 2)
        )
        return next(
            one for one in fitting
            if shared_bytes(one, recipe, workload, device) <= device.shared_memory
        )  # fmt: skip

    def malformed(self, config: Config, recipe: Recipe) -> str | None:
        assert isinstance(config, PersistentConfig)
        for name in ("flatten", "warp_specialize"):
            if config.values()[name] not in (0, 1):
                return f"{name} is 0 or 1, but got {config.values()[name]}"
        for name, value in config.values().items():
            if name in ("flatten", "warp_specialize"):
                continue
            if value < 1:
                return f"{name} must be at least 1, but got {value}"
            if name not in ("stages", "group_m") and value & (value - 1):
                return f"{name} must be a power of two, but got {value}"
        for name, least, most in (
            ("block_m", TILE_ROWS, MOST_SIDE),
            ("block_n", TILE_ROWS, MOST_SIDE),
            ("block_k", least_k(recipe), 2 * MOST_SIDE),
        ):
            if not least <= config.values()[name] <= most:
                return (
                    f"{name} is whole tiles of scales and one box of codes, {least} to {most}, but "
                    f"got {config.values()[name]}"
                )
        if config.block_n // config.parts < 32:
            return f"a part has at least 32 columns, but parts={config.parts} cut {config.block_n}"
        return unsuited_warps(config.warps)

    def illegal(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
    ) -> str | None:
        assert isinstance(config, PersistentConfig)
        return (
            self.malformed(config, recipe)
            or unsupported_dtypes(recipe, workload)
            or misaligned(workload.n, workload.k, DTYPE_BYTES[workload.output_dtype])
            or _not_overlapped(config, recipe, device)
            or _too_large(config, recipe, workload, device)
            or _pointless(config, recipe, workload)
        )

    def sources(self, config: Config, recipe: Recipe, workload: GemmWorkload) -> list[KernelSource]:
        from fp4kernels.triton.persistent_launch import persistent_sources  # imports triton

        assert isinstance(config, PersistentConfig)
        return persistent_sources(config, recipe, workload)

    def shared_limit(
        self, config: Config, recipe: Recipe, workload: GemmWorkload, device: Device
    ) -> int:
        assert isinstance(config, PersistentConfig)
        return shared_bytes(config, recipe, workload, device)

    def compiles_as(self, config: Config) -> PersistentConfig:
        """How tiles are numbered is a single constant."""
        assert isinstance(config, PersistentConfig)
        return replace(config, group_m=8)

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        from fp4kernels.triton.persistent_launch import persistent_launcher  # imports triton

        assert isinstance(config, PersistentConfig)
        return persistent_launcher(config, recipe, device)


def least_k(recipe: Recipe) -> int:
    """Values of K in one column of tiles of scales; no instruction takes fewer than 64."""
    return TILE_COLUMNS * recipe.format.block_size


def misaligned(n: int, k: int, output_bytes: int) -> str | None:
    """Why the copy engine cannot reach the rows of codes, or of an output of so many bytes each."""
    for what, size in ((f"codes of K={k}", k // 2), (f"outputs of N={n}", n * output_bytes)):
        if size % COPIED:
            return (
                f"copies rows that start on {COPIED} bytes, but those of {what} have {size} bytes"
            )
    return None


def shared_bytes(
    config: PersistentConfig, recipe: Recipe, workload: GemmWorkload, device: Device
) -> int:
    """Shared memory of one program, from above; compiled kernels agree to about a kilobyte."""
    rows = config.block_m + config.block_n
    step = rows * config.block_k // 2 + rows * config.block_k // recipe.format.block_size
    held = config.block_m * config.block_n // config.parts
    # an instruction that reads registers leaves its own step free
    registers = block_scaled(recipe, device) is BlockScaled.WARP
    depth = max(config.stages - registers, 1)
    return depth * step + held * DTYPE_BYTES[workload.output_dtype] + MARGIN


def _not_overlapped(config: PersistentConfig, recipe: Recipe, device: Device) -> str | None:
    """Why loads, products and stores cannot be spread so, over warps or CTAs."""
    if config.ctas > 1:
        return (
            f"ctas={config.ctas} do not multiply together: no Triton up to 3.9 compiles dot_scaled "
            f"for clusters to the FP4 instruction of {device.arch}"
        )
    tensor_memory = block_scaled(recipe, device) is BlockScaled.TENSOR_MEMORY
    if (config.flatten or config.warp_specialize) and not tensor_memory:
        return (
            f"sums are in registers on {device.arch}, where the warps that multiply also store: take "
            "flatten=0 and warp_specialize=0"
        )
    if config.warp_specialize and not config.flatten:
        return "warps specialize in one flat loop (Triton 3.6 fails on nested ones): take flatten=1"
    return None


def _too_large(
    config: PersistentConfig, recipe: Recipe, workload: GemmWorkload, device: Device
) -> str | None:
    """Why the tile does not fit the device's memories."""
    threads = config.warps * warp_size(device)
    tensor_memory = block_scaled(recipe, device) is BlockScaled.TENSOR_MEMORY
    sums, most = config.block_m * config.block_n // threads, MOST_STORED
    if not tensor_memory:
        most = MOST_SUMS
    if sums > most:
        return f"holds {sums} sums a thread, but {most} fit into registers"
    if tensor_memory:
        blocks = (config.block_m + config.block_n) * config.block_k // recipe.format.block_size
        held = 1 + config.flatten  # tiles: one is stored while the next is multiplied
        columns = held * config.block_m * config.block_n // 128 + blocks // 512
        if columns > TENSOR_COLUMNS:
            return f"needs {columns} columns of tensor memory, but there are {TENSOR_COLUMNS}"
    shared = shared_bytes(config, recipe, workload, device)
    if shared > device.shared_memory:
        return (
            f"needs {shared} bytes of shared memory, but {device.name} has {device.shared_memory}"
        )
    return None


def _pointless(config: PersistentConfig, recipe: Recipe, workload: GemmWorkload) -> str | None:
    """Why another configuration does the same or better."""
    for name, size, least in (
        ("block_m", workload.m, TILE_ROWS),
        ("block_n", workload.n, TILE_ROWS),
        ("block_k", workload.k, least_k(recipe)),
    ):
        block = config.values()[name]
        if block > least and block >= 2 * size:
            return f"{name}={block} would be at least half empty at {workload.label}"
    if config.group_m > 1 and workload.m <= config.block_m:
        return f"group_m={config.group_m} groups rows of tiles, but M={workload.m} has one"
    return None
