"""GEMM on CUDA GPUs by decoding FP4 to bf16 in the K loop: configuration, legality and build."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fp4kernels.devices import Device, Toolchain
from fp4kernels.epilogues import Epilogue, FinishedLauncher
from fp4kernels.recipes import Recipe
from fp4kernels.scales import ScaleFormat
from fp4kernels.triton.finishing import FinishingVariant
from fp4kernels.triton.variant import (
    MAX_WARPS,
    REGISTER_FILE,
    THREADS,
    needs_nvidia,
    unheld,
    unsuited_registers,
    unsupported_dtypes,
)
from fp4kernels.variants import Arithmetic, Badge, Config, Launcher, Proof, needs_fp4_blocks
from fp4kernels.workloads import DTYPE_BYTES, GemmWorkload

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

MIN_CAPABILITY = 80  # bf16 tensor cores
MIN_DOT = 16  # each side of a tl.dot
MOST_REGISTERS = 256  # a thread has 255, and a few spills are cheap
ROOMY = 192  # of them for sums and values, in a default
MOST_SUMS = 64  # accumulators a thread, where the operands are in registers, too
BARRIERS = 1024  # bytes, about
PROGRAMS_PER_CORE = 2


@dataclass(frozen=True)
class DecodeConfig(Config):
    """Tile sizes and launch options, compiled in as constants."""

    block_m: int
    block_n: int
    block_k: int  # values, two to a byte
    warps: int
    stages: int  # K tiles in flight
    group_m: int  # rows of tiles that share weights in the L2
    split_k: int  # shares of K, summed in order by a second kernel
    maxnreg: int = 0  # registers that a thread is held to; 0: what the compiler takes


class DecodeGemm(FinishingVariant):
    """Exact bf16 values on the tensor cores, accumulated in float32."""

    name = "decode_canonical"
    config_type: ClassVar[type[Config]] = DecodeConfig
    arithmetic = Arithmetic.BF16
    proof = Proof.INTERPRETER
    varies = None  # shares of K are summed in order

    def takes(self, recipe: Recipe, device: Device, toolchain: Toolchain) -> str | None:
        lacking = needs_nvidia(device, toolchain, MIN_CAPABILITY, "bf16 tensor cores")
        return lacking or needs_fp4_blocks(recipe)

    def badge(self, recipe: Recipe, device: Device) -> Badge:
        return Badge.EMULATED  # exact, but through bf16

    def default(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> DecodeConfig:
        """The fewest rows that hold M, up to 128; K is split until the grid fills the device."""
        m, k = workload.m, workload.k
        block_m = next((rows for rows in (16, 32, 64) if m <= rows), 128)
        wide = block_m == 128 and tiles(workload, 128, 128) >= device.cores
        twice = _of_sums(recipe)  # a block's and all
        block_n = fit(128 if wide and not twice else 64, workload.n)
        block_k = max(fit(128 if block_m < 64 else 64, k), recipe.format.block_size)
        if twice:
            block_k = recipe.format.block_size
        warps = 8 if wide or (twice and block_m == 128) else 4
        tile = DecodeConfig(block_m, block_n, block_k, warps, stages=4, group_m=1, split_k=1)
        if registers(tile, recipe) > ROOMY:  # long blocks, or sums twice
            block_n, warps = min(block_n, 64), 8
        programs, shares = tiles(workload, block_m, block_n), 1
        while (
            shares < 8
            and 2 * shares * programs <= PROGRAMS_PER_CORE * device.cores
            and 2 * shares * 4 * block_k <= k  # every share has a pipeline to fill
            and 2 * shares * 16 * m <= k  # partial sums move no more bytes than the weights
        ):
            shares *= 2
        group_m = 8 if m > block_m else 1
        for stages in (4, 3, 2):
            config = DecodeConfig(block_m, block_n, block_k, warps, stages, group_m, shares)
            if shared_bytes(config, recipe, workload, device) <= device.shared_memory:
                break
        return config

    def malformed(self, config: Config, recipe: Recipe) -> str | None:
        assert isinstance(config, DecodeConfig)
        if _of_sums(recipe) and config.block_k != recipe.format.block_size:
            return (
                f"an FP32 scale multiplies the sum of its block, so block_k is one block of "
                f"{recipe.format.block_size}, but got {config.block_k}"
            )
        return malformed(config, recipe)

    def illegal(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
    ) -> str | None:
        assert isinstance(config, DecodeConfig)
        return (
            self.malformed(config, recipe)
            or unsupported_dtypes(recipe, workload)
            or _too_large(config, recipe, workload, device)
            or _pointless(config, workload, device)
        )

    def sources(self, config: Config, recipe: Recipe, workload: GemmWorkload) -> list[KernelSource]:
        from fp4kernels.triton.decode_launch import decode_sources  # imports triton

        assert isinstance(config, DecodeConfig)
        return decode_sources(config, recipe, workload)

    def shared_limit(
        self, config: Config, recipe: Recipe, workload: GemmWorkload, device: Device
    ) -> int:
        assert isinstance(config, DecodeConfig)
        return shared_bytes(config, recipe, workload, device)

    def compiles_as(self, config: Config) -> DecodeConfig:
        """How programs are numbered, and into how many shares K is split, are single constants."""
        assert isinstance(config, DecodeConfig)
        return replace(config, group_m=8, split_k=min(config.split_k, 2))

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        from fp4kernels.triton.decode_launch import decode_launcher  # imports triton

        assert isinstance(config, DecodeConfig)
        return decode_launcher(config, recipe)

    def fused(self, epilogue: Epilogue, config: Config, recipe: Recipe) -> FinishedLauncher:
        from fp4kernels.triton.decode_launch import decode_finished_launcher  # imports triton

        assert isinstance(config, DecodeConfig)
        return decode_finished_launcher(config, recipe, epilogue)

    def finished_sources(
        self, epilogue: Epilogue, config: Config, recipe: Recipe, workload: GemmWorkload
    ) -> list[KernelSource]:
        from fp4kernels.triton.decode_launch import decode_finished_sources  # imports triton

        assert isinstance(config, DecodeConfig)
        return decode_finished_sources(config, recipe, workload, epilogue)


def shared_bytes(
    config: DecodeConfig, recipe: Recipe, workload: GemmWorkload, device: Device
) -> int:
    """Shared memory of one program, from above; compiled kernels agree to about a kilobyte."""
    block_m, block_n, values = config.block_m, config.block_n, config.block_k
    w_codes = block_n * values // 2
    x_tile = block_m * values * 2 if recipe.weight_only else block_m * values // 2
    loop = (config.stages - 1) * (x_tile + w_codes) + BARRIERS
    loop += max(block_m, block_n) * values // recipe.format.block_size  # scales change layout
    if reads_shared(config, device):  # the decoded weights, and plain activations
        loop += block_n * values * 2 + (x_tile if recipe.weight_only else 0)
        if recipe.format.block_size >= 64 and device.compute_capability >= 100:
            loop += block_m * values * 2  # decoded activations keep no layout of registers
    output_bytes = 4 if config.split_k > 1 else DTYPE_BYTES[workload.output_dtype]
    return max(loop, block_m * block_n * output_bytes)  # the output tile changes layout, too


def registers(config: DecodeConfig, recipe: Recipe) -> int:
    """What the accumulator and the values being decoded take of a thread's registers, about."""
    rows = config.block_n if recipe.weight_only else config.block_m + config.block_n
    sums = config.block_m * config.block_n * (2 if _of_sums(recipe) else 1)
    return (sums + rows * config.block_k) // (THREADS * config.warps)


def malformed(config: DecodeConfig, recipe: Recipe) -> str | None:
    """Why no GPU could run `config`."""
    block = recipe.format.block_size
    for name, value in config.values().items():
        if value < 1 and name != "maxnreg":
            return f"{name} must be at least 1, but got {value}"
        if name not in ("stages", "group_m", "split_k", "maxnreg") and value & (value - 1):
            return f"{name} must be a power of two, but got {value}"
    if min(config.block_m, config.block_n, config.block_k) < MIN_DOT:
        return f"a matrix instruction takes at least {MIN_DOT} a side, but got {config.label}"
    if config.block_k % block:
        return f"block_k must be whole scale blocks of {block}, but got {config.block_k}"
    if config.warps > MAX_WARPS:
        return f"a program has at most {MAX_WARPS} warps, but got {config.warps}"
    return unsuited_registers(config.maxnreg)


def _too_large(
    config: DecodeConfig, recipe: Recipe, workload: GemmWorkload, device: Device
) -> str | None:
    shared = shared_bytes(config, recipe, workload, device)
    if shared > device.shared_memory:
        return (
            f"needs {shared} bytes of shared memory, but {device.name} has {device.shared_memory}"
        )
    held = registers(config, recipe)
    limit = min(MOST_REGISTERS, REGISTER_FILE // (THREADS * config.warps))
    if held > limit:
        return f"holds {held} registers a thread, but with {config.warps} warps there are {limit}"
    sums = config.block_m * config.block_n // (THREADS * config.warps)
    if sums > MOST_SUMS and not reads_shared(config, device):
        return f"holds {sums} sums a thread, but beside operands {MOST_SUMS} fit into registers"
    return unheld(config.maxnreg, held, config.warps, shared, device)


def reads_shared(config: DecodeConfig, device: Device) -> bool:
    """Whether the matrix instruction is wgmma or tcgen05, whose operands are in shared memory."""
    has_it = device.compute_capability in range(90, 120)
    return has_it and config.warps >= 4 and config.block_m >= 64  # 4 warps share 64 rows


def _pointless(config: DecodeConfig, workload: GemmWorkload, device: Device) -> str | None:
    """Why another configuration does the same or better."""
    for name, size in (("block_m", workload.m), ("block_n", workload.n), ("block_k", workload.k)):
        block = config.values()[name]
        if block > MIN_DOT and block >= 2 * size:
            return f"{name}={block} would be at least half empty at {workload.label}"
    tiles_m = -(-workload.m // config.block_m)
    if config.block_m < 64 and tiles_m > 1:
        return f"block_m={config.block_m} would decode every weight {tiles_m} times; take 64 rows"
    if config.group_m > 1 and tiles_m == 1:
        return f"group_m={config.group_m} groups rows of tiles, but M={workload.m} has one"
    tiles_k = -(-workload.k // config.block_k)
    if config.split_k > tiles_k:
        return f"split_k={config.split_k} shares, but K={workload.k} has only {tiles_k} blocks"
    programs = tiles(workload, config.block_m, config.block_n) * config.split_k
    if config.split_k > 1 and programs > PROGRAMS_PER_CORE * device.cores:
        return (
            f"split_k={config.split_k} makes {programs} programs, "
            f"but {PROGRAMS_PER_CORE} on each of {device.cores} cores fill the device"
        )
    return None


def _of_sums(recipe: Recipe) -> bool:
    """Whether scales are no bf16 numbers: they multiply the sums of blocks, not the values."""
    return recipe.format.scale is ScaleFormat.FP32


def fit(block: int, size: int) -> int:
    """`block`, halved until `size` fills more than half of it."""
    while block > MIN_DOT and block >= 2 * size:
        block //= 2
    return block


def tiles(workload: GemmWorkload, block_m: int, block_n: int) -> int:
    return -(-workload.m // block_m) * -(-workload.n // block_n)
