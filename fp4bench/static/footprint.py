"""What a kernel takes of a core: registers, shared memory, and instructions of one K step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fp4bench.proof.rows import KernelCode
from fp4bench.static.product import Product, Tiling
from fp4kernels.devices import Device
from fp4kernels.triton.variant import TritonVariant
from fp4kernels.variants import Arithmetic, Config

# instructions outside the K loop: 13 codes of decode_bf16 on sm_80, 90 and 100, tiles from 16x32 to
# 128x128 and 2 to 6 stages, are met within 11%; the first tiles are loaded there, for every value
# that a thread decodes in a step, and the epilogue works on every sum that it holds
OUTSIDE, OUTSIDE_PER_VALUE, OUTSIDE_PER_SUM = 220.0, 2.3, 6.0
LEAST_LOOP = 0.25  # of the code
THREADS = 32  # of a warp, as instructions are counted here
MEMORY = ("global", "shared", "local")
INTEGER = ("integer", "convert")
FLOAT = ("float",)


@dataclass(frozen=True)
class Footprint:
    """Registers of a thread, bytes of a program; `step` holds how many instructions of each class
    (`fp4kernels.triton.instructions`) one warp executes in one K step."""

    registers: int
    shared_bytes: int
    step: Mapping[str, float]
    outside: float  # instructions of one warp before and after the loop

    @property
    def issued(self) -> float:
        return sum(self.step.values())

    def of(self, classes: tuple[str, ...]) -> float:
        return sum(self.step.get(name, 0.0) for name in classes)


def compiled(
    code: KernelCode, product: Product, loop: Mapping[str, float] | None = None
) -> Footprint:
    """Of a compiled kernel. `loop` counts the instructions of one K step where they are known.

    Without, they are estimated from the whole code, in which the loop stands once: all but what is
    outside, as a mix of the same classes, and every matrix instruction.
    """
    whole = sum(code.instructions.values())
    if loop is None:
        matrix = code.instructions.get("mma", 0)
        share = max(whole - _outside(product) - matrix, LEAST_LOOP * whole) / max(whole - matrix, 1)
        loop = {name: min(share, 1.0) * count for name, count in code.instructions.items()}
        loop["mma"] = matrix
    outside = max(whole - sum(loop.values()), 0.0)
    return Footprint(code.registers, code.shared_bytes, loop, outside)


def _sums(tile: Tiling) -> float:
    """Accumulators of a thread."""
    return tile.block_m * tile.block_n / (THREADS * tile.warps)


def _decoded(product: Product) -> float:
    """Values that a thread decodes in a step."""
    tile = product.tiling
    rows = tile.block_n if product.recipe.weight_only else tile.block_m + tile.block_n
    return rows * tile.block_k / (THREADS * tile.warps)


def _outside(product: Product) -> float:
    by_value, by_sum = (
        OUTSIDE_PER_VALUE * _decoded(product),
        OUTSIDE_PER_SUM * _sums(product.tiling),
    )
    return OUTSIDE + by_value + by_sum


# instructions for each value that a thread decodes, by the type it is multiplied in and by class
DECODING = {
    # decode_bf16 on sm_90: what the loop at block_k = 256 has more than that at 128
    Arithmetic.BF16: {"integer": 4.3, "float": 1.0, "shared": 0.25, "move": 0.1},
    # two byte permutes for four values, and as much to place them
    Arithmetic.FP8: {"integer": 1.0, "shared": 0.125},
}
BYTES_PER_LOAD = 16.0  # of a thread
MMA_FLOPS = 4096.0  # of one warp's mma.m16n8k16
ADDRESSES = 40  # registers beside tiles
MOST_REGISTERS = 255


def guessed(kernel: TritonVariant, config: Config, product: Product, device: Device) -> Footprint:
    """Before anything is compiled: the order of candidates more than their times."""
    tile, decoded = product.tiling, _decoded(product)
    threads = THREADS * tile.warps
    step = {name: count * decoded for name, count in DECODING.get(product.arithmetic, {}).items()}
    step["mma"] = product.step_flops / MMA_FLOPS / tile.warps
    step["global"] = product.step_bytes / BYTES_PER_LOAD / threads
    wanted = min(int(_sums(tile) + decoded / 2 + ADDRESSES), MOST_REGISTERS)
    registers = min(wanted, tile.maxnreg or wanted)
    step["local"] = 2.0 * (wanted - registers)  # what has no register is stored, and loaded again
    shared = kernel.shared_limit(config, product.recipe, product.workload, device)
    return Footprint(registers, shared, step, _outside(product))
