"""GEMM variants in Triton that do an epilogue where their sums are: legality and build."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from fp4kernels.devices import Device, Toolchain
from fp4kernels.epilogues import Epilogue, FinishedLauncher
from fp4kernels.recipes import Recipe, ScaleRule
from fp4kernels.triton.variant import TritonVariant
from fp4kernels.variants import Config
from fp4kernels.workloads import GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

FUSED_RULES = (
    ScaleRule.FLOOR, ScaleRule.CEIL, ScaleRule.RCEIL, ScaleRule.EVEN, ScaleRule.FLOOR_3_4,
    ScaleRule.NV,
)  # fmt: skip
ROW_RULES = (ScaleRule.FLOOR_ROW_14, ScaleRule.FLOOR_ROW_28)


class FinishingVariant(TritonVariant):
    """A variant whose GEMM, or the kernel that sums its shares of K, finishes what it has summed.

    Its Config has block_n and, where K may be shared out, split_k.
    """

    @abstractmethod
    def fused(self, epilogue: Epilogue, config: Config, recipe: Recipe) -> FinishedLauncher:
        """As `build`, with an epilogue that `unfused` has nothing against."""

    @abstractmethod
    def finished_sources(
        self, epilogue: Epilogue, config: Config, recipe: Recipe, workload: GemmWorkload
    ) -> list[KernelSource]:
        """All kernels that `fused` compiles, with a bias and a residual of bfloat16."""

    def unfused(self, epilogue: Epilogue, config: Config) -> str | None:
        how = epilogue.next_recipe
        if how is None:
            return None
        if how.scale_rule not in FUSED_RULES:
            why = ", since they follow from a whole row" if how.scale_rule in ROW_RULES else ""
            return f"{self.name} makes no scales by the rule {how.scale_rule} in its kernel{why}"
        values = config.values()
        columns = epilogue.columns(values["block_n"])
        shared_out = values.get("split_k", 1) > 1  # a reduction sees whole rows
        if not shared_out and columns % how.format.block_size:
            return (
                f"a tile has whole blocks of the output, of {how.format.block_size} columns, but "
                f"{values['block_n']} columns of sums make {columns} of them"
            )
        return None

    def build_finished(
        self,
        epilogue: Epilogue,
        config: Config,
        recipe: Recipe,
        device: Device,
        toolchain: Toolchain,
    ) -> FinishedLauncher:
        if self.unfused(epilogue, config) is not None:
            return super().build_finished(epilogue, config, recipe, device, toolchain)
        return self.fused(epilogue, config, recipe)
