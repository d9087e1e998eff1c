"""What every GEMM variant in Triton offers beyond the contract: its sources, for offline builds."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from fp4kernels.devices import Device
from fp4kernels.recipes import Recipe
from fp4kernels.variants import Config, KernelVariant
from fp4kernels.workloads import GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton


class TritonVariant(KernelVariant):
    """A variant whose kernels compile for any GPU on a machine that has none."""

    backend = "triton"
    compiles_inside = True

    @abstractmethod
    def sources(self, config: Config, recipe: Recipe, workload: GemmWorkload) -> list[KernelSource]:
        """All kernels that a launch compiles, the GEMM first."""

    @abstractmethod
    def shared_limit(
        self, config: Config, recipe: Recipe, workload: GemmWorkload, device: Device
    ) -> int:
        """Bytes of shared memory that legality counts on; the compiled GEMM needs no more."""

    def compiles_for(self, arch: str) -> bool:
        """Whether an offline build for `arch` makes sense, even where the variant is not for use."""
        return True

    def compiles_as(self, config: Config) -> Config:
        """One configuration for all that compile to the same code."""
        return config
