"""What both phases of attention in Triton share: where they run, and offline builds."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.variant import AttentionVariant
from fp4kernels.attention.workload import AttentionWorkload
from fp4kernels.devices import Device, Toolchain
from fp4kernels.triton.variant import unsuited_warps
from fp4kernels.variants import Arithmetic, Badge, Config, Proof

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

MIN_CAPABILITY = 80  # bf16 tensor cores
MOST_STAGES = 8


class TritonAttention(AttentionVariant):
    """A variant whose kernels compile for any GPU on a machine that has none."""

    backend = "triton"
    compiles_inside = True
    arithmetic = Arithmetic.BF16
    proof = Proof.INTERPRETER
    least: ClassVar[int] = 16  # keys of a tile

    @abstractmethod
    def sources(
        self,
        config: Config,
        recipe: AttentionRecipe,
        workload: AttentionWorkload,
        device: Device,
    ) -> list[KernelSource]:
        """All kernels that a launch compiles, the attention first."""

    def takes(self, recipe: AttentionRecipe, device: Device, toolchain: Toolchain) -> str | None:
        nvidia = bool(device.compute_capability)
        if device.kind != "cuda" or not (nvidia or device.arch.startswith("gfx")):
            return f"runs on a GPU, but the device is {device.name}"
        if nvidia and device.compute_capability < MIN_CAPABILITY:
            return f"needs bf16 tensor cores, sm_{MIN_CAPABILITY} or later, but got {device.arch}"
        if toolchain.triton is None:
            return "needs Triton, which is not installed"
        return None

    def badge(self, recipe: AttentionRecipe, device: Device) -> Badge:
        return Badge.EMULATED

    def malformed(self, config: Config, recipe: AttentionRecipe) -> str | None:
        values = config.values()
        for name in (name for name in ("block_m", "block_n") if name in values):
            if values[name] < self.least or values[name] & (values[name] - 1):
                return f"{name} is a power of two from {self.least} on, but got {values[name]}"
        if not 1 <= values["stages"] <= MOST_STAGES:
            return f"stages are 1 to {MOST_STAGES}, but got {values['stages']}"
        return unsuited_warps(values["warps"])

    def compile(
        self,
        config: Config,
        recipe: AttentionRecipe,
        workload: AttentionWorkload,
        device: Device,
        toolchain: Toolchain,
        seconds: float,
    ) -> None:
        from fp4kernels.triton.ahead import compile_ahead  # imports triton

        compile_ahead(self.sources(config, recipe, workload, device), device.arch)
