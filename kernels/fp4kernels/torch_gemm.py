"""The fallbacks that run anywhere: dequantize both operands, multiply in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fp4kernels import reference
from fp4kernels.devices import Device, Toolchain
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.variants import Arithmetic, Badge, Config, KernelVariant, Launcher, Proof
from fp4kernels.workloads import GemmWorkload


@dataclass(frozen=True)
class TorchConfig(Config):
    """Nothing to search."""


class TorchGemm(KernelVariant):
    """Keeps the weight in FP4 and expands all of it at every call."""

    name = "torch_expand"
    backend = "torch"
    config_type: ClassVar[type[Config]] = TorchConfig
    arithmetic = Arithmetic.FP32
    proof = Proof.DEVICE
    varies: ClassVar[str | None] = (
        "multiplies by a library that chooses by M in which order it sums"
    )

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        if not recipe.plain:
            return "multiplies codes under scales, but the recipe transforms or clamps operands"
        return None

    def badge(self, recipe: Recipe, device: Device) -> Badge:
        return Badge.STORAGE

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> TorchConfig:
        return TorchConfig()

    def illegal(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
    ) -> str | None:
        return None

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        activations, weights = recipe.activations.format, recipe.format

        def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
            left = reference.dequantize(x, activations) if isinstance(x, Packed) else x.float()
            out.copy_(left @ reference.dequantize(w, weights).T)

        return launch


class TorchRows(TorchGemm):
    """One row at a time, each in memory of its own, so that no row is summed otherwise than alone.

    Slow; for a batch-invariant product where no other kernel runs.
    """

    name = "torch_rows"
    varies = None

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        activations, weights = recipe.activations.format, recipe.format

        def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
            left = reference.dequantize(x, activations) if isinstance(x, Packed) else x.float()
            right = reference.dequantize(w, weights)
            for row, into in zip(left, out, strict=True):
                into.copy_(right @ row.clone())  # aligned as every other row is

        return launch
