"""Every case of every variant: recipe x configuration x size x data, proven without the device.

Triton's kernels run under its interpreter, where launch options (warps, stages) are without effect:
of configurations that differ in nothing else one is run. The others run as they are.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from typing import Any

import torch

from fp4bench.covering import covering
from fp4bench.proof.targets import ARCHES
from fp4bench.spaces import values_of
from fp4kernels import gate
from fp4kernels.devices import Device, Toolchain, probe_device, probe_toolchain
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import VARIANTS, variant
from fp4kernels.triton.dot_scaled import DotScaledGemm
from fp4kernels.triton.persistent import PersistentDotScaledGemm
from fp4kernels.triton.variant import TritonVariant
from fp4kernels.variants import KernelVariant
from fp4kernels.workloads import GemmWorkload

OPTIONS = ("warps", "stages", "maxnreg")  # fields that an interpreter may not see
SIZES = ("full", "ragged", "small")
DTYPES = ("bfloat16", "float32")
INTERPRETED_UNIT = 2.0**-24  # the interpreter sums in float32, whatever the device does
FEW_VALUES = 1 << 16  # a second's work for an interpreter, and often less
MOST_SAID = 500  # characters
BLOCK_SCALED = (DotScaledGemm, PersistentDotScaledGemm)
LEAST_K = 32  # whole blocks of any recipe
INTERPRETER = Device("cpu", "interpreter", "none", 1, 1 << 20, 0, 1 << 30)


@dataclass(frozen=True)
class SweepCase:
    """One product of matrices to prove."""

    variant: str
    recipe: str
    config: Mapping[str, int]
    size: str
    data: str
    dtype: str

    @property
    def key(self) -> str:
        fields = " ".join(f"{name}={value}" for name, value in self.config.items())
        return f"{self.variant}/{self.recipe}/{fields}/{self.size}/{self.data}/{self.dtype}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, N, K by the configuration's tiles: one that is full, several of which the last are
        ragged and odd, or a part of one."""
        block_m, block_n, block_k = self._tile
        m, n, k = 1, block_n // 2 + 1, max(block_k - LEAST_K, LEAST_K)
        if self.size == "full":
            m, n, k = block_m, block_n, block_k
        elif self.size == "ragged":
            m, n, k = block_m + 1, block_n + 3, block_k + LEAST_K
        of_kernel = variant(self.variant).multiples
        high, wide = map(math.lcm, recipe_named(self.recipe).multiples, of_kernel)
        return m, -(-n // high) * high, -(-k // wide) * wide

    @property
    def values(self) -> int:
        """How many an interpreter works on, about: operands of all tiles, full or not."""
        tile_m, tile_n, tile_k = self._tile
        m, n, k = (-(-size // tile) for size, tile in zip(self.shape, self._tile, strict=True))
        return m * n * k * (tile_m + tile_n) * tile_k

    @property
    def _tile(self) -> tuple[int, int, int]:
        """Along M, N, and K in all shares; a CPU's kernel has blocks of its caches for that."""
        held = self.config
        block_m = held.get("block_m") or held.get("mc") or 16
        block_k = held.get("block_k") or held.get("kc") or 128
        return block_m, held.get("block_n", 64), block_k * held.get("split_k", 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sweep:
    """All cases of one variant."""

    kernel: KernelVariant

    @cached_property
    def _values(self) -> dict[str, list[int]]:
        return values_of(self.kernel, "full")

    @cached_property
    def factors(self) -> dict[str, list[Any]]:
        """What is varied: recipe, size, data, dtype, and every field that has an effect."""
        fields = dict(self._values)
        if isinstance(self.kernel, TritonVariant):
            seen = {name: values[:1] for name, values in fields.items() if not self._acts(name)}
            fields |= seen
        return {
            "recipe": [name for name, recipe in RECIPES.items() if self._takes(recipe)],
            "size": [*SIZES], "data": [*gate.DATA], "dtype": [*DTYPES], **fields,
        }  # fmt: skip

    def array(self) -> list[SweepCase]:
        """A covering array: every pair of values, of two factors."""
        rows = covering(self.factors, lambda row: self._sound(self._case(row)))
        return [self._case(row) for row in rows]

    @property
    def count(self) -> int:
        """Of the whole product, with those that no device could run."""
        return math.prod(map(len, self.factors.values()))

    def every(self, seed: int) -> Iterator[SweepCase]:
        """The whole product in an order of chance, without those."""
        for index in random.Random(seed).sample(range(self.count), self.count):
            row = {}
            for name, values in self.factors.items():
                index, place = divmod(index, len(values))
                row[name] = values[place]
            case = self._case(row)
            if self._sound(case):
                yield case

    def _case(self, row: Mapping[str, Any]) -> SweepCase:
        config = {name: row[name] for name in self._values}
        rest = {name: row[name] for name in ("recipe", "size", "data", "dtype")}
        return SweepCase(self.kernel.name, config=config, **rest)

    def _acts(self, field: str) -> bool:
        """Whether the compiled code differs by more than launch options where `field` does."""
        if field not in OPTIONS:
            return True
        assert isinstance(self.kernel, TritonVariant)
        values = self._values
        recipe = next(recipe for recipe in RECIPES.values() if self._takes(recipe))
        constants = []
        for value in values[field][:2]:
            config = self.kernel.config(
                {name: all_[0] for name, all_ in values.items()} | {field: value}
            )
            sources = self.kernel.sources(config, recipe, GemmWorkload(64, 256, 1024))
            constants.append([dict(source.constants) for source in sources])
        return constants[0] != constants[-1]

    def _takes(self, recipe: Recipe) -> bool:
        if isinstance(self.kernel, TritonVariant):
            return any(self.kernel.takes(recipe, *place) is None for place in _boards())
        return self.kernel.takes(recipe, probe_device("cpu"), probe_toolchain("cpu")) is None

    def _sound(self, case: SweepCase) -> bool:
        """Whether the configuration, with some launch options, may run one full tile on some GPU. A
        kernel that is no GPU's may run whatever is well formed."""
        recipe, held = recipe_named(case.recipe), dict(case.config)
        if not isinstance(self.kernel, TritonVariant):
            return self.kernel.malformed(self.kernel.config(held), recipe) is None
        full = replace(case, size=SIZES[0]).shape
        workload = GemmWorkload(*full, output_dtype=case.dtype)
        if "group_m" in held:
            held["group_m"] = 1  # there is one tile
        ways = itertools.product(*(self._values[name] for name in OPTIONS if name in held))
        options = [name for name in OPTIONS if name in held]
        return any(
            self.kernel.illegal(config, recipe, workload, board, here) is None
            for way in ways
            for config in [self.kernel.config(held | dict(zip(options, way, strict=True)))]
            for board, here in _boards()
            if self.kernel.takes(recipe, board, here) is None
        )


@functools.cache
def _boards() -> tuple[tuple[Device, Toolchain], ...]:
    here = replace(probe_toolchain("cpu"), triton=metadata.version("triton"))
    return tuple((board, here) for board in ARCHES.values())


def arrays(seed: int = 0) -> list[SweepCase]:
    """The covering arrays of all variants that run here, in an order of chance."""
    found = [case for sweep in sweeps() for case in sweep.array()]
    random.Random(seed).shuffle(found)
    return found


def sample(count: int, seed: int = 0) -> list[SweepCase]:
    """Of the array of each of Triton's kernels `count` cases of few values, always the same ones."""
    found = []
    for sweep in sweeps():
        if isinstance(sweep.kernel, TritonVariant):
            few = [case for case in sweep.array() if case.values <= FEW_VALUES]
            found += random.Random(seed).sample(few, count)
    return found


def everything(seed: int = 0) -> Iterator[SweepCase]:
    """All cases of all variants that run here, one of each in turn."""
    for cases in itertools.zip_longest(*(sweep.every(seed) for sweep in sweeps())):
        yield from filter(None, cases)


def sweeps() -> list[Sweep]:
    """Of the variants that run here: an older interpreter lacks block-scaled products."""
    from triton.runtime.interpreter import InterpreterBuilder

    scaled = hasattr(InterpreterBuilder, "create_dot_scaled")
    kernels = [v for v in VARIANTS.values() if scaled or not isinstance(v, BLOCK_SCALED)]
    return [Sweep(kernel) for kernel in kernels if Sweep(kernel).factors["recipe"]]


def run(case: SweepCase) -> gate.Outcome:
    """Through the gate. Triton must have been imported with its interpreter on."""
    kernel, recipe = variant(case.variant), recipe_named(case.recipe)
    config, interpreted = kernel.config(dict(case.config)), isinstance(kernel, TritonVariant)
    device = INTERPRETER if interpreted else probe_device("cpu")
    unit = INTERPRETED_UNIT if interpreted else kernel.accumulator_unit(config)
    seed = zlib.crc32(case.key.encode())
    try:
        launch = kernel.build(config, recipe, device, probe_toolchain("cpu"))
        operands = gate.synthetic_case(case.data, recipe, case.shape, seed, torch.device("cpu"))
        return gate.check(launch, kernel.layout, unit, operands, getattr(torch, case.dtype))
    except Exception as error:  # the interpreter's own, too: a case that failed, like any other
        return gate.Outcome(math.inf, f"{type(error).__name__}: {error}"[:MOST_SAID])
