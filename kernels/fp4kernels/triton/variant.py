"""What every GEMM variant in Triton offers beyond the contract: its sources, for offline builds."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from fp4kernels.devices import Device, Toolchain
from fp4kernels.recipes import Recipe
from fp4kernels.variants import Config, KernelVariant
from fp4kernels.workloads import GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

MAX_WARPS = 32  # of a program
THREADS = 32  # in a warp of NVIDIA
LEAST_REGISTERS, MOST_REGISTERS = 32, 248  # that a thread may be held to
REGISTERS_AT_ONCE = 8  # of a thread, as the hardware hands them out
REGISTER_FILE = 65536  # of NVIDIA: shared by the threads of a core


class TritonVariant(KernelVariant):
    """A variant whose kernels compile for any GPU on a machine that has none."""

    backend = "triton"
    compiles_inside = True
    persistent: ClassVar[bool] = False  # a program for each core works off all tiles

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


def unsuited_registers(maxnreg: int) -> str | None:
    """Why no thread is held to so many registers; 0 is the compiler's choice."""
    within = LEAST_REGISTERS <= maxnreg <= MOST_REGISTERS and not maxnreg % REGISTERS_AT_ONCE
    if maxnreg and not within:
        return (
            f"maxnreg must be 0, or whole {REGISTERS_AT_ONCE}s from {LEAST_REGISTERS} to "
            f"{MOST_REGISTERS} registers of a thread, but got {maxnreg}"
        )
    return None


def unheld(maxnreg: int, held: int, warps: int, shared_bytes: int, device: Device) -> str | None:
    """Why a thread that holds `held` registers of sums and values is not held to `maxnreg`."""
    if not maxnreg:
        return None
    if device.arch.startswith("gfx"):
        return f"maxnreg is for NVIDIA's assembler, but got {maxnreg} for {device.arch}; take 0"
    free = REGISTER_FILE // (THREADS * warps)
    if maxnreg >= free:
        return f"maxnreg={maxnreg} limits nothing: a thread of {warps} warps has {free}; take 0"
    if held >= maxnreg:
        return f"holds {held} registers a thread beside addresses, but maxnreg={maxnreg}"
    if 2 * shared_bytes > device.shared_memory:  # a core has little more than a program may take
        return (
            f"maxnreg={maxnreg} lets no second program onto a core, whose shared memory holds only "
            f"one of {shared_bytes} bytes; take 0"
        )
    return None


def limited(maxnreg: int) -> dict[str, int]:
    """The launch option."""
    return {"maxnreg": maxnreg} if maxnreg else {}
