"""A GEMM cut into tiles: how many programs, steps and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from fp4bench.errors import BenchError
from fp4kernels.devices import Device
from fp4kernels.recipes import Recipe
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import variant
from fp4kernels.triton.variant import TritonVariant
from fp4kernels.variants import Arithmetic, Candidate
from fp4kernels.workloads import DTYPE_BYTES, GemmWorkload

PARTIAL_BYTES = 4  # shares of a split K are summed in float32
HELD = 0.5  # of the L2, by one operand: the other and the output pass through it


@dataclass(frozen=True)
class Tiling:
    """What the model reads of a Config."""

    block_m: int
    block_n: int
    block_k: int  # values of one step of the K loop
    warps: int
    stages: int = 1  # K tiles in flight, that being multiplied included
    group_m: int = 1
    split_k: int = 1
    maxnreg: int = 0  # registers that a thread is held to, if it is

    @classmethod
    def of(cls, config: Mapping[str, int]) -> Self:
        """BenchError unless the config has tiles; fields that the model has no use for are left."""
        names = cls.__dataclass_fields__
        missing = [
            name for name in ("block_m", "block_n", "block_k", "warps") if name not in config
        ]
        if missing:
            raise BenchError(
                f"the static model knows kernels by their tiles, but {', '.join(missing)} is not "
                f"among the fields {[*config]}"
            )
        return cls(**{name: value for name, value in config.items() if name in names})


@dataclass(frozen=True)
class Product:
    """One workload by one tiling. Bytes are those that a GEMM kernel moves, not its reduction."""

    workload: GemmWorkload
    recipe: Recipe
    arithmetic: Arithmetic
    tiling: Tiling
    persistent: bool = False  # a program for each core works off all tiles

    @property
    def tiles_m(self) -> int:
        return -(-self.workload.m // self.tiling.block_m)

    @property
    def tiles_n(self) -> int:
        return -(-self.workload.n // self.tiling.block_n)

    @property
    def programs(self) -> int:
        return self.tiles_m * self.tiles_n * self.tiling.split_k

    @property
    def steps(self) -> int:
        """Of the K loop, in the program with the largest share of K."""
        tiles_k = -(-self.workload.k // self.tiling.block_k)
        return -(-tiles_k // self.tiling.split_k)

    @property
    def step_flops(self) -> int:
        """Of one program; rows beyond M are multiplied, too."""
        return 2 * self.tiling.block_m * self.tiling.block_n * self.tiling.block_k

    @property
    def bytes_per_x(self) -> float:
        if self.recipe.weight_only:
            return DTYPE_BYTES[self.workload.activation_dtype]
        return self.recipe.activations.format.bits_per_value / 8

    @property
    def bytes_per_w(self) -> float:
        return self.recipe.format.bits_per_value / 8

    @property
    def step_bytes(self) -> float:
        """Loaded by one program: rows beyond M read a row that is read anyway."""
        rows = min(self.tiling.block_m, self.workload.m)
        values = rows * self.bytes_per_x + self.tiling.block_n * self.bytes_per_w
        return values * self.tiling.block_k

    @property
    def output_bytes(self) -> float:
        """Written by the GEMM: the output, or float32 shares of it."""
        outputs = self.workload.m * self.workload.n
        if self.tiling.split_k > 1:
            return self.tiling.split_k * outputs * PARTIAL_BYTES
        return outputs * DTYPE_BYTES[self.workload.output_dtype]

    def partial_held(self, l2_bytes: float) -> bool:
        """Whether the shares of a split K stay in the L2 until they are summed."""
        return self.tiling.split_k > 1 and self.output_bytes <= HELD * l2_bytes

    @property
    def l2_bytes(self) -> float:
        """Between the L2 and the cores."""
        return self.programs * self.steps * self.step_bytes + self.output_bytes

    def memory_bytes(self, at_once: int, l2_bytes: float) -> float:
        """Between memory and the L2, with `at_once` programs running together.

        They go through K in step, so what several of them read comes from memory once. An operand
        that fits into its part of the L2 is read once in all; another is read anew by every wave:

            at_once = rows x columns tiles;  waves = tiles / at_once
            x: waves x rows x block_m x K,   w: waves x columns x block_n x K
        """
        work, tile = self.workload, self.tiling
        tiles = self.tiles_m * self.tiles_n
        together = max(1, min(at_once // tile.split_k, tiles))
        high = min(tile.group_m, self.tiles_m)
        columns = min(-(-together // high), self.tiles_n)
        rows = min(high * -(-together // (high * self.tiles_n)), self.tiles_m)
        waves = tiles / together
        x, w = (
            once if once <= HELD * l2_bytes else max(once, waves * side * work.k * width)
            for once, side, width in (
                (work.m * work.k * self.bytes_per_x, rows * tile.block_m, self.bytes_per_x),
                (work.n * work.k * self.bytes_per_w, columns * tile.block_n, self.bytes_per_w),
            )
        )
        return x + w + (0.0 if self.partial_held(l2_bytes) else self.output_bytes)


def product_of(workload: GemmWorkload, candidate: Candidate, device: Device) -> Product:
    """What `candidate` makes of `workload` there. BenchError for a kernel without tiles."""
    tiling, recipe = Tiling.of(candidate.config.values()), recipe_named(candidate.recipe)
    kernel = variant(candidate.variant)
    persistent = isinstance(kernel, TritonVariant) and kernel.persistent
    return Product(workload, recipe, kernel.computes_with(recipe, device), tiling, persistent)
