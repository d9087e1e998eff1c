"""The fallbacks of attention that run anywhere: the reference, and the simulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fp4kernels.attention.decoding import plain_decode
from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.simulate import simulate
from fp4kernels.attention.variant import (
    AttentionLauncher,
    AttentionVariant,
    Launched,
    Paged,
    Quantized,
    Rounding,
)
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.devices import Device, Toolchain
from fp4kernels.variants import Arithmetic, Badge, Config, Proof


@dataclass(frozen=True)
class PlainConfig(Config):
    """Nothing to search."""


class PlainDecode(AttentionVariant):
    """Expands the cache of one sequence after the other, at every call."""

    name = "torch_decode"
    backend = "torch"
    config_type: ClassVar[type[Config]] = PlainConfig
    arithmetic = Arithmetic.FP32
    proof = Proof.DEVICE
    phase: ClassVar[Phase] = Phase.DECODE

    def takes(self, recipe: AttentionRecipe, device: Device, toolchain: Toolchain) -> str | None:
        return None

    def badge(self, recipe: AttentionRecipe, device: Device) -> Badge:
        return Badge.STORAGE

    def rounding(self, config: Config, recipe: AttentionRecipe, device: Device) -> Rounding:
        return Rounding()

    def default(
        self, workload: AttentionWorkload, recipe: AttentionRecipe, device: Device
    ) -> PlainConfig:
        return PlainConfig()

    def build(
        self, config: Config, recipe: AttentionRecipe, device: Device, toolchain: Toolchain
    ) -> AttentionLauncher:
        def launch(on: Launched, out: Tensor, lse: Tensor) -> None:
            assert isinstance(on, Paged)
            found = plain_decode(
                on.q, on.keys, on.values, on.page_table, on.lengths, recipe, on.order,
                on.window, on.scale,
            )  # fmt: skip
            out.copy_(found[0])
            lse.copy_(found[1])

        return launch


class PlainPrefill(PlainDecode):
    """The simulation, which holds all scores of a sequence."""

    name = "torch_prefill"
    phase: ClassVar[Phase] = Phase.PREFILL

    def takes(self, recipe: AttentionRecipe, device: Device, toolchain: Toolchain) -> str | None:
        if not recipe.four_bit:
            return f"simulates FP4 under one kind of scale, but {recipe.name} has other operands"
        return None

    def build(
        self, config: Config, recipe: AttentionRecipe, device: Device, toolchain: Toolchain
    ) -> AttentionLauncher:
        def launch(on: Launched, out: Tensor, lse: Tensor) -> None:
            assert isinstance(on, Quantized)
            found = simulate(on.operands, recipe, on.mask, on.scale, out.shape[-1])
            out.copy_(found[0])
            lse.copy_(found[1])

        return launch
