"""What GPUs and Triton's versions can do with `dot_scaled`: instructions, faults, memory."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from fp4kernels.devices import Device
from fp4kernels.formats import MXFP4, NVFP4
from fp4kernels.recipes import Recipe
from fp4kernels.triton.variant import unheld
from fp4kernels.workloads import GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.dot_scaled import DotScaledConfig

FULL_ROWS = 128  # of tcgen05.mma; with fewer Triton decodes
REGISTER_FILE = 65536  # of NVIDIA: shared by the threads of a program
MOST_REGISTERS = 255  # of a thread
MOST_SUMS = 64  # accumulators a thread, where the operands are in registers, too
MOST_STORED = 128  # accumulators a thread, where they are in registers alone, or for the store only
TENSOR_COLUMNS = 512  # of tensor memory: a column is 128 float32 sums, or 512 scales
MARGIN = 1024  # bytes: barriers, and what changes layout


class BlockScaled(Enum):
    """The instruction that multiplies FP4 codes under block scales."""

    NONE = "none"
    TENSOR_MEMORY = "tcgen05.mma"  # sums and scales are in tensor memory
    WARP = "mma.sync"
    AMD = "v_mfma_scale, v_wmma_scale"

    @property
    def least_k(self) -> int:
        """Values of K that it takes at once."""
        return {BlockScaled.NONE: 16, BlockScaled.AMD: 128}.get(self, 64)

    @property
    def swizzled(self) -> bool:
        """Whether it may read its scales in the layout of fp4kernels.swizzle."""
        return self in (BlockScaled.TENSOR_MEMORY, BlockScaled.WARP)


def block_scaled(recipe: Recipe, device: Device) -> BlockScaled:
    """What `device` multiplies the recipe's codes with; NONE where they are decoded first."""
    if recipe.weight_only:
        return BlockScaled.NONE  # one operand is bf16
    family = device.compute_capability // 10
    if family in (10, 12):
        return BlockScaled.TENSOR_MEMORY if family == 10 else BlockScaled.WARP
    scales_of_32 = recipe.format == MXFP4 and device.arch == "gfx950"
    return BlockScaled.AMD if scales_of_32 or device.arch == "gfx1250" else BlockScaled.NONE


def not_compiled(recipe: Recipe, device: Device, triton: str) -> str | None:
    """Why this Triton does not compile dot_scaled for the recipe there, or None.

    The tests compile each of these, so that a rule whose fault is mended is seen.
    """
    arch, nvfp4 = device.arch, recipe.format == NVFP4
    if nvfp4 and device.compute_capability in range(1, 89):
        return f"loads scales as E4M3, which Triton knows from sm_89 on, but got {arch}"
    if nvfp4 and (arch, recipe.weight_only) in (("gfx950", False), ("gfx1250", True)):
        return f"does not compile under E4M3 scales for {arch}: no Triton has a lowering for it yet"
    needed = (3, 0)
    if arch == "gfx1250" and recipe.weight_only:
        needed = (3, 7)
    if (nvfp4 and not block_scaled(recipe, device).swizzled) or (
        arch == "gfx942" and not recipe.weight_only
    ):
        needed = (3, 9)
    if version(triton) >= needed:
        return None
    return (
        f"compiles for {arch} in Triton {needed[0]}.{needed[1]} and later, but got {triton}, whose "
        f"passes fail on {recipe.name}"
    )


def no_descriptors(device: Device, triton: str) -> str | None:
    """Why this Triton's code with tensor descriptors is none to run there, or None."""
    if device.compute_capability // 10 != 12 or version(triton) >= (3, 7):
        return None
    return (
        f"copies by descriptors for {device.arch} in Triton 3.7 and later, but got {triton}, which "
        "waits for them with a stack in local memory"
    )


def version(triton: str) -> tuple[int, ...]:
    """3.9.0 → (3, 9)."""
    return tuple(int(part) for part in triton.split("+")[0].split(".")[:2])


def too_large(
    config: DotScaledConfig, recipe: Recipe, workload: GemmWorkload, device: Device
) -> str | None:
    """Why the tile does not fit the device's memories."""
    threads = config.warps * warp_size(device)
    if threads > 1024:
        return f"a program has at most 1024 threads, but {config.warps} warps have {threads}"
    kind, amd = block_scaled(recipe, device), device.arch.startswith("gfx")
    sums = config.block_m * config.block_n // threads
    beside = kind is not BlockScaled.TENSOR_MEMORY and not amd and not _reads_shared(device)
    most = MOST_SUMS if beside else MOST_STORED
    if sums > most:
        return f"holds {sums} sums a thread, but {most} fit into registers"
    if kind is BlockScaled.NONE and not amd:
        rows = config.block_n + (0 if recipe.weight_only else config.block_m)
        held = sums + rows * config.block_k // threads
        limit = min(MOST_REGISTERS, REGISTER_FILE // threads)
        if held > limit:
            return (
                f"holds {held} registers a thread, but with {config.warps} warps there are {limit}"
            )
    if kind is BlockScaled.TENSOR_MEMORY:
        blocks = (config.block_m + config.block_n) * config.block_k // recipe.format.block_size
        columns = config.block_m * config.block_n // 128 + blocks // 512
        if columns > TENSOR_COLUMNS:
            return f"needs {columns} columns of tensor memory, but there are {TENSOR_COLUMNS}"
    shared = shared_bytes(config, recipe, workload, device)
    if shared > device.shared_memory:
        return (
            f"needs {shared} bytes of shared memory, but {device.name} has {device.shared_memory}"
        )
    held = 0 if kind is BlockScaled.TENSOR_MEMORY else sums
    return unheld(config.maxnreg, held, config.warps, shared, device)


def shared_bytes(
    config: DotScaledConfig, recipe: Recipe, workload: GemmWorkload, device: Device
) -> int:
    """Shared memory of one program, from above."""
    rows, values, block = config.block_m, config.block_k, recipe.format.block_size
    x_tile = rows * values * 2 if recipe.weight_only else rows * values // 2
    codes = x_tile + config.block_n * values // 2
    scales = (config.block_n + (0 if recipe.weight_only else rows)) * values // block
    loop = config.stages * (codes + scales) + MARGIN
    if device.arch.startswith("gfx"):
        loop += config.stages * codes // 16  # padding against bank conflicts
    elif block_scaled(recipe, device) is BlockScaled.NONE and _reads_shared(device):
        loop += (rows + config.block_n) * values * 2  # decoded operands, read from there
    return max(loop, config.block_m * config.block_n * 4)  # the sums change layout, too


def warp_size(device: Device) -> int:
    """Threads that run as one."""
    return 64 if device.arch.startswith("gfx9") else 32


def _reads_shared(device: Device) -> bool:
    """Whether the matrix instruction is wgmma or tcgen05, whose operands are in shared memory."""
    return device.compute_capability in range(90, 110)
