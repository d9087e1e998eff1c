"""FP4 prefill in Triton as a variant: configuration and legality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fp4kernels.attention.operands import TILE
from fp4kernels.attention.recipes import AttentionRecipe, check_four_bit
from fp4kernels.attention.variant import AttentionLauncher, Launched, Quantized, Rounding
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.devices import Device, Toolchain
from fp4kernels.triton.attention_variant import TritonAttention
from fp4kernels.triton.dot_scaled_limits import version
from fp4kernels.variants import Arithmetic, Badge, Config

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

SIZES = (32, 64, TILE)  # of tiles; sequences are padded to the largest


@dataclass(frozen=True)
class PrefillConfig(Config):
    """Queries and keys of a tile, warps and pipeline stages."""

    block_m: int = 128
    block_n: int = 128
    warps: int = 8
    stages: int = 2


def badge(recipe: AttentionRecipe, device: Device) -> Badge:
    """Whether the device multiplies codes under scales, or Triton decodes to bf16 for it."""
    family, block = device.compute_capability // 10, block_of(recipe)
    native = family in (10, 12) or (device.arch == "gfx950" and block == 32)
    return Badge.NATIVE if native else Badge.EMULATED


def default(head_dim: int, recipe: AttentionRecipe, device: Device) -> PrefillConfig:
    """The untuned choice: the largest tiles that leave no registers to spill."""
    large, native = head_dim > 128, badge(recipe, device) is Badge.NATIVE
    match device.compute_capability // 10:
        case 10:  # sums are in tensor memory
            return PrefillConfig(128, 64, stages=1) if large else PrefillConfig(128, 128)
        case 12:
            return PrefillConfig(32, 64) if large else PrefillConfig(128, 64)
        case 9:
            return PrefillConfig(64, 32, stages=1) if large else PrefillConfig(128, 32)
        case 0:  # AMD
            return PrefillConfig(
                32 if large and native else 64, 32 if large and not native else 64, warps=4
            )
        case _:
            return PrefillConfig(32, 32) if large else PrefillConfig(64, 32)


def not_compiled(recipe: AttentionRecipe, device: Device, installed: str) -> str | None:
    """Why this Triton does not compile prefill there, or None."""
    native = badge(recipe, device) is Badge.NATIVE
    if not native or device.compute_capability // 10 != 10 or version(installed) >= (3, 9):
        return None
    return (
        f"scores in tensor memory compile for {device.arch} in Triton 3.9 and later, but got {installed}, "
        "whose compiler fails on this kernel; update Triton"
    )


def unfit(config: PrefillConfig, native: bool) -> str | None:
    """Why no launch can have `config`."""
    least = 64 if native else 32  # values along keys that a block-scaled instruction takes at once
    if config.block_m not in SIZES or config.block_n not in SIZES or config.block_n < least:
        return (
            f"block_m and block_n are {', '.join(map(str, SIZES))}, and block_n at least {least} here, "
            f"but got {config.block_m} and {config.block_n}"
        )
    return None


def block_of(recipe: AttentionRecipe) -> int:
    """Values under a scale. FormatError unless prefill can multiply the recipe."""
    check_four_bit(recipe)
    assert recipe.p is not None
    return recipe.p.format.block_size


class FlashPrefill(TritonAttention):
    """FlashAttention's form; block-scaled instructions for both products where there are any."""

    name = "flash_prefill"
    config_type = PrefillConfig
    phase = Phase.PREFILL
    least = 32

    def takes(self, recipe: AttentionRecipe, device: Device, toolchain: Toolchain) -> str | None:
        if not recipe.four_bit:
            return f"multiplies FP4 under one kind of scale, but {recipe.name} has other operands"
        why = super().takes(recipe, device, toolchain)
        assert why is not None or toolchain.triton is not None
        return why or not_compiled(recipe, device, toolchain.triton or "")

    def badge(self, recipe: AttentionRecipe, device: Device) -> Badge:
        return badge(recipe, device)

    def computes_with(self, recipe: AttentionRecipe, device: Device) -> Arithmetic:
        native = badge(recipe, device) is Badge.NATIVE
        return Arithmetic.FP4 if native else Arithmetic.BF16

    def rounding(self, config: Config, recipe: AttentionRecipe, device: Device) -> Rounding:
        return Rounding()

    def tile(self, config: Config) -> int:
        assert isinstance(config, PrefillConfig)
        return config.block_n

    def default(
        self, workload: AttentionWorkload, recipe: AttentionRecipe, device: Device
    ) -> PrefillConfig:
        return default(workload.head_dim, recipe, device)

    def unsuited(
        self, config: Config, recipe: AttentionRecipe, workload: AttentionWorkload, device: Device
    ) -> str | None:
        assert isinstance(config, PrefillConfig)
        return unfit(config, badge(recipe, device) is Badge.NATIVE)

    def sources(
        self,
        config: Config,
        recipe: AttentionRecipe,
        workload: AttentionWorkload,
        device: Device,
    ) -> list[KernelSource]:
        from fp4kernels.triton.attention_prefill import prefill_source  # imports triton

        assert isinstance(config, PrefillConfig)
        return [prefill_source(
            recipe, workload.mask, workload.head_dim, device, config,
            heads=workload.heads, kv_heads=workload.kv_heads, dtype=getattr(torch, workload.dtype),
        )]  # fmt: skip

    def build(
        self, config: Config, recipe: AttentionRecipe, device: Device, toolchain: Toolchain
    ) -> AttentionLauncher:
        from fp4kernels.triton.attention_prefill import prefill  # imports triton

        assert isinstance(config, PrefillConfig)
        chosen: PrefillConfig = config

        def launch(on: Launched, out: Tensor, lse: Tensor) -> None:
            assert isinstance(on, Quantized)
            prefill(
                on.operands, recipe, on.mask, on.scale, out, device=device, config=chosen, lse=lse
            )

        return launch
