"""A roofline with occupancy, waves and pipeline depth. Nothing in it was measured on the board.

Programs run in waves of cores x resident programs (`occupancy`). Within a wave the busiest core runs
r programs, each with `steps` passes through its K loop. The time is that of memory, the L2 and the
core (its slowest bound) together: what is slowest counts, and what is nearly as slow delays it, so
(sum of time^4)^(1/4), of

    memory        bytes from memory / bandwidth                       Williams et al. 2009,
    l2            bytes from the L2 / bandwidth                         doi 10.1145/1498765.1498785
    tensor        r x steps x flops / peak of a core
    instructions  r x steps x instructions / rate, for the scheduler and for each kind of unit
    latency       steps x (chain and fetch together): one program when nothing else delays it.
                  chain: its instructions, then its products, one after the other.
                  fetch: memory latency / (stages - 1), Little's law over the tiles in flight;
                  Volkov 2016, "Understanding Latency Hiding on GPUs"

Every wave adds what stands outside the loop: the first tile's latency and the code before and after.
A wave that fills half the device takes as long as a full one where cores bound it, which is the wave
quantization of NVIDIA's "Matrix Multiplication Background User's Guide". A split K adds a kernel.
A persistent kernel has one program on a core for all waves, and the edge but once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fp4bench.boards import Board
from fp4bench.errors import BenchError
from fp4bench.static.footprint import FLOAT, INTEGER, MEMORY, Footprint
from fp4bench.static.occupancy import resident
from fp4bench.static.product import Product
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import DTYPE_BYTES

MEMORY_SHARE = 0.92  # of the stated bandwidth that copies attain: BabelStream on A100 and H100
TENSOR_SHARE = 0.8  # of the stated peak that dense products attain at the power limit, at most
LAUNCH_SECONDS = 1.5e-6  # from one kernel of a CUDA graph to the next, with its first instructions
OVERLAP = 4.0  # 1: nothing overlaps; infinity: the slowest alone counts
L2_BYTES_PER_CYCLE = 47  # of a core, where no figure of the board is known: A100's, 5120 / 108
ISSUE_GAP = 2  # cycles between two instructions of a warp: results take 4, and some are independent
STEP_LATENCY = 60  # cycles: a barrier, then a load from shared memory
MMA_LATENCY = 33  # cycles of one mma.sync m16n8k16: arXiv 2402.13499
MMA_BYTES = 32  # of K in one matrix instruction, in any type
LOADS_PER_CYCLE = 1  # warp loads and stores of a core
TYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5}


@dataclass(frozen=True)
class Prediction:
    """Seconds of one call, and of its parts. `bounds` overlap each other; what they bound, the
    edges of the waves, launches and the reduction follow one another."""

    seconds: float
    limit_seconds: float  # the plain roofline at the stated figures: no kernel takes less
    bounds: Mapping[str, float]  # memory, l2, tensor, instructions, latency; summed over waves
    loop_seconds: float
    edge_seconds: float  # pipeline fill, and code outside the loop
    reduction_seconds: float  # summing a split K, without its launch
    launch_seconds: float
    programs: int
    resident: int  # programs that fit on one core
    waves: float  # programs / (cores x resident)
    occupancy: float  # share of a core's warps, while its busiest wave runs

    @property
    def bound_by(self) -> str:
        """What takes longest of all that follow one another."""
        parts = {
            "launch": self.launch_seconds,
            "edges": self.edge_seconds,
            "reduction": self.reduction_seconds,
            max(self.bounds, key=self.bounds.__getitem__): self.loop_seconds,
        }
        return max(parts, key=parts.__getitem__)

    @property
    def share_of_limit(self) -> float:
        return self.limit_seconds / self.seconds


def predict(board: Board, product: Product, needs: Footprint) -> Prediction:
    """BenchError where not one program fits on a core."""
    tile = product.tiling
    fitting = resident(board.core, needs.registers, needs.shared_bytes, tile.warps)
    if not fitting:
        raise BenchError(
            f"a program must fit on a core, but one with {tile.warps} warps of {needs.registers} "
            f"registers and {needs.shared_bytes} bytes of shared memory does not on {board.name}"
        )
    if product.persistent:
        fitting = 1  # there are no more programs than cores
    at_once = board.cores * fitting
    full, rest = divmod(product.programs, at_once)
    waves = [(full, at_once)] * (full > 0) + [(1, rest)] * (rest > 0)
    bounds: Counter[str] = Counter()
    loop = 0.0
    for count, running in waves:
        found = _wave(board, product, needs, running)
        core = max(found[name] for name in ("tensor", "instructions", "latency"))
        loop += count * _together(found["memory"], found["l2"], core)
        bounds.update({name: count * seconds for name, seconds in found.items()})
    edges = 1 if product.persistent else sum(count for count, _ in waves)
    edge = edges * _edge(board, needs, tile.warps)
    split = tile.split_k > 1
    reduction = _reduction(board, product) if split else 0.0
    launch = LAUNCH_SECONDS * (1 + split)
    busiest = -(-min(product.programs, at_once) // board.cores)
    return Prediction(
        seconds=loop + edge + reduction + launch, limit_seconds=_limit(board, product),
        bounds=dict(bounds), loop_seconds=loop, edge_seconds=edge, reduction_seconds=reduction,
        launch_seconds=launch, programs=product.programs, resident=fitting,
        waves=product.programs / at_once, occupancy=busiest * tile.warps / board.core.warps,
    )  # fmt: skip


def _together(*times: float) -> float:
    """Of what overlaps."""
    most = max(times)
    return most * math.pow(math.fsum((one / most) ** OVERLAP for one in times), 1 / OVERLAP)


def _wave(board: Board, product: Product, needs: Footprint, running: int) -> dict[str, float]:
    """Seconds that each resource takes for the loops of `running` programs."""
    tile = product.tiling
    share = running / product.programs
    depth = -(-running // board.cores)
    per_step = {
        "tensor": depth * _tensor(board, product),
        "instructions": _instructions(board, needs, depth * tile.warps),
        "latency": _latency(board, product, needs),
    }
    seconds = {name: product.steps * cycles / board.clock for name, cycles in per_step.items()}
    l2_gbps = board.l2_gbps or core_gbps(board)
    memory_bytes = product.memory_bytes(running, board.l2_mib << 20)
    seconds["memory"] = share * memory_bytes / (board.memory_gbps * 1e9 * MEMORY_SHARE)
    seconds["l2"] = share * product.l2_bytes / (l2_gbps * 1e9)
    return seconds


def core_gbps(board: Board) -> float:
    """What the cores can read of the L2 together, GB/s."""
    return L2_BYTES_PER_CYCLE * board.cores * board.clock / 1e9


def peak(board: Board, arithmetic: Arithmetic) -> float:
    """Operations a second; a type that the board does not multiply is widened to bf16."""
    return board.peaks.get(arithmetic.value, board.peaks["bf16"]) * 1e12


def _tensor(board: Board, product: Product) -> float:
    """Cycles of a core's matrix units for one step of one program."""
    rate = peak(board, product.arithmetic) / board.cores / board.clock
    return product.step_flops / rate / TENSOR_SHARE


def _instructions(board: Board, needs: Footprint, warps: int) -> float:
    """Cycles of a core for one step of `warps` warps; fewer warps than schedulers leave some idle."""
    core = board.core
    busy = min(1.0, warps / core.issue_per_cycle)
    return (warps / busy) * max(
        needs.issued / core.issue_per_cycle,
        needs.of(INTEGER) / core.integer_per_cycle,
        needs.of(FLOAT) / core.float_per_cycle,
        needs.of(MEMORY) / LOADS_PER_CYCLE,
    )


def _latency(board: Board, product: Product, needs: Footprint) -> float:
    """Cycles that one program needs for a step however idle the device is."""
    tile = product.tiling
    issue = max(ISSUE_GAP * needs.issued, _instructions(board, needs, tile.warps))
    products = tile.block_k * TYPE_BYTES[product.arithmetic.value] / MMA_BYTES
    chain = STEP_LATENCY + issue + max(_tensor(board, product), products * MMA_LATENCY)
    if tile.stages == 1:
        return chain + board.memory_latency_cycles
    return _together(chain, board.memory_latency_cycles / (tile.stages - 1))


def _edge(board: Board, needs: Footprint, warps: int) -> float:
    """Seconds of a wave outside its loop: the first tile's way, and the code around."""
    code = needs.outside * max(ISSUE_GAP, warps / board.core.issue_per_cycle)
    return (board.memory_latency_cycles + code) / board.clock


def _reduction(board: Board, product: Product) -> float:
    """Seconds to sum the shares: a load's way, and the bytes from where they are."""
    output = product.workload.m * product.workload.n * DTYPE_BYTES[product.workload.output_dtype]
    held = product.partial_held(board.l2_mib << 20)
    gbps = (board.l2_gbps or core_gbps(board)) if held else board.memory_gbps * MEMORY_SHARE
    moving = product.output_bytes / (gbps * 1e9) + output / (board.memory_gbps * 1e9)
    return board.memory_latency_cycles / board.clock + moving


def _limit(board: Board, product: Product) -> float:
    work = product.workload
    moving = work.fewest_bytes(product.recipe) / (board.memory_gbps * 1e9)
    return max(work.flops / peak(board, product.arithmetic), moving)
