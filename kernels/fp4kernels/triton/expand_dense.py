"""GEMM on CUDA GPUs by expanding FP4 to bf16 in memory, then the vendor's own GEMM of bf16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fp4kernels.devices import Device, Toolchain
from fp4kernels.recipes import Recipe
from fp4kernels.triton.variant import (
    TritonVariant,
    needs_nvidia,
    unsuited_warps,
    unsupported_dtypes,
)
from fp4kernels.variants import Arithmetic, Badge, Config, Launcher, Proof, needs_fp4
from fp4kernels.workloads import GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

MIN_CAPABILITY = 80  # bf16 tensor cores
THREADS = 32  # in a warp
THREAD_VALUES = 8  # of one store: 16 bytes of bf16
MOST_STEPS = 64  # unrolled


@dataclass(frozen=True)
class ExpandConfig(Config):
    """How the pass that expands is cut up; how the GEMM is, its library decides."""

    warps: int
    steps: int  # of 8 values a thread


class ExpandDense(TritonVariant):
    """Exact bf16 copies of FP4 operands, made at every call, and torch.mm: the floor at large M.

    Needs 2 bytes of workspace for each value of the FP4 operands, and with tensor scales 4 for
    each output: these are multiplied in float32 before the only rounding.
    """

    name = "expand_dense"
    config_type: ClassVar[type[Config]] = ExpandConfig
    arithmetic = Arithmetic.BF16
    proof = Proof.INTERPRETER
    varies = "multiplies by a library that chooses by M in which order it sums"

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        lacking = needs_nvidia(device, toolchain, MIN_CAPABILITY, "bf16 tensor cores")
        return lacking or needs_fp4(recipe)

    def badge(self, recipe: Recipe, device: Device) -> Badge:
        return Badge.STORAGE

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> ExpandConfig:
        return ExpandConfig(warps=4, steps=4)

    def malformed(self, config: Config, recipe: Recipe) -> str | None:
        assert isinstance(config, ExpandConfig)
        if not 1 <= config.steps <= MOST_STEPS:
            return f"steps must lie between 1 and {MOST_STEPS}, but got {config.steps}"
        return unsuited_warps(config.warps)

    def illegal(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
    ) -> str | None:
        return self.malformed(config, recipe) or unsupported_dtypes(recipe, workload)

    def sources(self, config: Config, recipe: Recipe, workload: GemmWorkload) -> list[KernelSource]:
        from fp4kernels.triton.expand_launch import expand_sources  # imports triton

        assert isinstance(config, ExpandConfig)
        return expand_sources(config, recipe, workload)

    def shared_limit(
        self, config: Config, recipe: Recipe, workload: GemmWorkload, device: Device
    ) -> int:
        assert isinstance(config, ExpandConfig)
        return 2 * step_values(config)  # none, unless values change threads before the store

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        from fp4kernels.triton.expand_launch import expand_launcher  # imports triton

        assert isinstance(config, ExpandConfig)
        return expand_launcher(config, recipe)


def step_values(config: ExpandConfig) -> int:
    """Values that one program expands at once."""
    return THREAD_VALUES * THREADS * config.warps
