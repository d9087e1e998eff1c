"""Grouped GEMM on GPUs: configuration, legality and the untuned choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fp4kernels.devices import Device, Toolchain
from fp4kernels.recipes import Recipe
from fp4kernels.triton.dot_scaled import DotScaledGemm
from fp4kernels.triton.gemm import DecodeGemm
from fp4kernels.variants import Badge, Config
from fp4kernels.workloads import GroupedWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

FULL_ROWS = 128  # of a native matrix instruction
MOST_EXPERTS = 1024  # whose offsets every program reads


@dataclass(frozen=True)
class GroupedConfig(Config):
    """Tile sizes and launch options, compiled in as constants."""

    block_m: int
    block_n: int
    block_k: int  # values, two to a byte
    warps: int
    stages: int  # K tiles in flight
    scaled: int  # 1: dot_scaled, native where the device is; 0: decoded to bf16

    @property
    def swapped(self) -> bool:
        """As DotScaledConfig.swapped; decoded values are no better either way."""
        return bool(self.scaled) and self.block_m < FULL_ROWS


def takes(recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
    """Why neither way to multiply can run the recipe here, or None."""
    if DotScaledGemm().takes(recipe, device, toolchain) is None:
        return None
    return DecodeGemm().takes(recipe, device, toolchain)


def illegal(workload: GroupedWorkload) -> str | None:
    """Why no configuration can run the workload, or None."""
    if workload.experts > MOST_EXPERTS:
        return f"has at most {MOST_EXPERTS} experts, but got {workload.experts}"
    return None


def default(workload: GroupedWorkload, recipe: Recipe, device: Device) -> GroupedConfig:
    """The fewest rows that hold an expert's mean share of the tokens, up to 128."""
    mean = -(-workload.tokens // workload.experts)
    block_m = next((rows for rows in (16, 32, 64) if mean <= rows), FULL_ROWS)
    few, amd = block_m < FULL_ROWS, device.arch.startswith("gfx")
    native = DotScaledGemm().badge(recipe, device) is Badge.NATIVE
    return GroupedConfig(
        block_m=block_m,
        block_n=128 if native or not few else 64,
        block_k=128 if native or few else 64,
        warps=4 if few or amd else 8,
        stages=2 if amd else 3,
        scaled=int(native or amd),  # bf16 decoding is for NVIDIA
    )


def sources(config: GroupedConfig, recipe: Recipe, workload: GroupedWorkload) -> list[KernelSource]:
    """What a launch compiles, for offline builds."""
    from fp4kernels.triton.grouped_launch import grouped_sources  # imports triton

    return grouped_sources(config, recipe, workload)
