"""Prefill attention in C++ as a variant: one way to run it, and where."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fp4kernels.attention.plain import PlainConfig
from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.variant import (
    AttentionLauncher,
    AttentionVariant,
    Launched,
    Quantized,
    Rounding,
)
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.cpu.attention_prefill import PrefillKernel
from fp4kernels.cpu.build import unavailable
from fp4kernels.devices import Device, Toolchain
from fp4kernels.scales import ScaleFormat
from fp4kernels.variants import Arithmetic, Badge, Config, Proof


class CppAttentionPrefill(AttentionVariant):
    """K and V decoded once to float32, an online softmax, P rounded as it is made."""

    name = "cpp_attention_prefill"
    backend = "cpu"
    config_type: ClassVar[type[Config]] = PlainConfig
    arithmetic = Arithmetic.FP32
    proof = Proof.DEVICE
    phase = Phase.PREFILL

    def takes(self, recipe: AttentionRecipe, device: Device, toolchain: Toolchain) -> str | None:
        lacking = unavailable(device, toolchain)
        if lacking is not None:
            return lacking
        if not recipe.four_bit:
            return f"multiplies FP4 under one kind of scale, but {recipe.name} has other operands"
        return None

    def badge(self, recipe: AttentionRecipe, device: Device) -> Badge:
        return Badge.EMULATED

    def rounding(self, config: Config, recipe: AttentionRecipe, device: Device) -> Rounding:
        return Rounding()

    def default(
        self, workload: AttentionWorkload, recipe: AttentionRecipe, device: Device
    ) -> PlainConfig:
        return PlainConfig()

    def build(
        self, config: Config, recipe: AttentionRecipe, device: Device, toolchain: Toolchain
    ) -> AttentionLauncher:
        """Compiled for a head dim when it first meets it."""
        kernels: dict[int, PrefillKernel] = {}
        nvfp4 = recipe.k.format.scale is ScaleFormat.E4M3

        def launch(on: Launched, out: Tensor, lse: Tensor) -> None:
            assert isinstance(on, Quantized)
            head_dim = out.shape[-1]
            if head_dim not in kernels:
                kernels[head_dim] = PrefillKernel(nvfp4, head_dim, device, toolchain)
            found = kernels[head_dim](on.operands, recipe, on.mask, on.scale)
            out.copy_(found[0])
            lse.copy_(found[1])

        return launch
