"""What every GEMM variant in Triton offers beyond the contract: its sources, for offline builds."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from fp4kernels.devices import Device, Toolchain
from fp4kernels.recipes import Recipe
from fp4kernels.variants import Config, KernelVariant
from fp4kernels.workloads import GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

MAX_WARPS = 32  # of a program


class TritonVariant(KernelVariant):
    """A variant whose kernels compile for any GPU on a machine that has none."""

    backend = "triton"
    compiles_inside = True

    @abstractmethod
    def sources(self, config: Config, recipe: Recipe, workload: GemmWorkload) -> list[KernelSource]:
        """All kernels that a launch compiles, the GEMM first if it is among them."""

    @abstractmethod
    def shared_limit(
        self, config: Config, recipe: Recipe, workload: GemmWorkload, device: Device
    ) -> int:
        """Bytes of shared memory that legality counts on; the first source needs no more."""

    def compile(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
        seconds: float,
    ) -> None:
        from fp4kernels.triton.ahead import compile_ahead  # imports triton

        compile_ahead(self.sources(config, recipe, workload), device.arch)

    def compiles_for(self, arch: str) -> bool:
        """Whether an offline build for `arch` makes sense, even where the variant is not for use."""
        return True

    def compiles_as(self, config: Config) -> Config:
        """One configuration for all that compile to the same code."""
        return config


def needs_nvidia(device: Device, toolchain: Toolchain, capability: int, unit: str) -> str | None:
    """Why Triton reaches no such `unit` here, which NVIDIA GPUs have from `capability` on."""
    if device.kind != "cuda" or device.arch.startswith("gfx"):
        return f"runs on an NVIDIA GPU, but the device is {device.name}"
    if device.compute_capability < capability:
        return f"needs {unit}, sm_{capability} or later, but got {device.arch}"
    if toolchain.triton is None:
        return "needs Triton, which is not installed"
    return None


def unsupported_dtypes(recipe: Recipe, workload: GemmWorkload) -> str | None:
    """Why a kernel of bfloat16 activations, with outputs of bfloat16 or float32, cannot run it."""
    if recipe.weight_only and workload.activation_dtype != "bfloat16":
        return f"multiplies bfloat16 activations, but got {workload.activation_dtype}"
    if workload.output_dtype == "float16":
        return "writes bfloat16 or float32, but the output is float16"
    return None


def unsuited_warps(warps: int) -> str | None:
    """Why no program has so many warps."""
    if warps < 1 or warps & (warps - 1) or warps > MAX_WARPS:
        return f"warps must be a power of two up to {MAX_WARPS}, but got {warps}"
    return None
