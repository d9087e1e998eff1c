"""Every configuration of the C++ GEMMs on every instruction set of this machine, through the gate.

One is built and run in a process that may die, with outputs beside forbidden pages.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fp4bench import scale_codes
from fp4bench.child import ChildDiedError, ChildLateError, serve
from fp4bench.children import Children
from fp4bench.spaces import values_of
from fp4kernels import gate
from fp4kernels.cpu.build import compile_object
from fp4kernels.cpu.gemm import CppKernel
from fp4kernels.devices import probe_device, probe_toolchain
from fp4kernels.errors import BuildError
from fp4kernels.formats import BlockFormat
from fp4kernels.recipes import RECIPES
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import VARIANTS, variant
from fp4kernels.source import digest
from fp4kernels.variants import Config

MODULE = "fp4bench.cpu_sweeping"
# M, N, K, of which M and N are odd and end in parts of tiles and panels: K longer than a cache block and
# few rows, both of middling size, and more rows than a cache block has
SHAPES = ((5, 83, 4256), (37, 129, 544), (515, 259, 32))
WITHOUT_EFFECT = "prefetch"  # the field that changes no number
CASE_SECONDS = 300.0  # with the start of a process, and a precompiled header
MOST_CASES = 200  # of a process: each leaves a library, and its buffers, in memory
SEED = 11


def sources() -> str:
    """The digest of what a verdict rests on: C++ sources but those of attention and quantizers, what
    compiles and calls them, packing, and the gate."""
    parts = (
        "cpu/src/*", "cpu/build.py", "cpu/launch.py", "layouts.py", "packing.py", "reference.py", "gate.py",
    )  # fmt: skip
    others = ("cpu/src/attention*", "cpu/src/quantize*", "cpu/src/blocks*")
    return digest(*parts, without=others)


@dataclass(frozen=True)
class CpuCase:
    """One configuration on one instruction set."""

    isa: str
    variant: str
    recipe: str
    config: Mapping[str, int]

    @property
    def key(self) -> str:
        fields = " ".join(f"{name}={value}" for name, value in self.config.items())
        return f"{self.isa}/{self.variant}/{self.recipe}/{fields}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def products() -> list[tuple[CppKernel, str]]:
    """The C++ GEMMs, each with a recipe of every format that it takes."""
    found: dict[tuple[CppKernel, BlockFormat], str] = {}
    for kernel in VARIANTS.values():
        if isinstance(kernel, CppKernel):
            for recipe in RECIPES.values():
                if kernel.lacks(recipe) is None:
                    found.setdefault((kernel, recipe.format), recipe.name)
    return [(kernel, name) for (kernel, _), name in found.items()]


def legal(kernel: CppKernel, recipe: str) -> list[Config]:
    """Of the full space, all that some product of matrices may be run with."""
    space = itertools.product(*values_of(kernel, "full").values())
    configs = (kernel.config_type(*values) for values in space)
    return [c for c in configs if kernel.malformed(c, recipe_named(recipe)) is None]


def cases(isas: Sequence[str]) -> list[CpuCase]:
    """All legal configurations, objects in an order of chance, the instruction sets in turn. Of objects
    that differ in WITHOUT_EFFECT alone one is there."""
    every = [(k.name, name, group) for k, name in products() for group in _objects(k, name)]
    random.Random(SEED).shuffle(every)
    return [
        CpuCase(isa, variant, recipe, config.values())
        for variant, recipe, group in every
        for config in group
        for isa in isas
    ]


def _objects(kernel: CppKernel, recipe: str) -> list[list[Config]]:
    """The legal configurations of every object, whose value of WITHOUT_EFFECT goes round with its place
    among those of the other fields."""
    spread = {field: [*values] for field, values in values_of(kernel, "full").items()}
    free = spread.pop(WITHOUT_EFFECT)
    groups: dict[tuple[int, ...], dict[Config, None]] = {}
    for config in legal(kernel, recipe):
        bare = replace(config, **{WITHOUT_EFFECT: 0})
        compiled = kernel.translated(bare, recipe_named(recipe))[1].values()
        groups.setdefault((*compiled,), {})[bare] = None
    found: list[list[Config]] = []
    for group in groups.values():
        first = next(iter(group)).values()
        place = sum(values.index(first[field]) for field, values in spread.items())
        found.append([replace(c, **{WITHOUT_EFFECT: free[place % len(free)]}) for c in group])
    return found


def prove(children: Children, case: CpuCase, many: bool) -> gate.Outcome:
    """In a process that may die. Where `many` are to come, a precompiled header pays."""
    try:
        answer = children.ask(json.dumps([case.to_json(), many]).encode(), CASE_SECONDS)
        return gate.Outcome(*json.loads(answer))
    except (ChildDiedError, ChildLateError) as end:
        return gate.Outcome(math.inf, str(end))


def run(case: CpuCase, many: bool = False, expendable: bool = False) -> gate.Outcome:
    """In this process, all of SHAPES with all data, up to the first failure."""
    kernel, recipe = variant(case.variant), recipe_named(case.recipe)
    assert isinstance(kernel, CppKernel)
    config, toolchain = kernel.config(dict(case.config)), probe_toolchain("cpu")
    device = probe_device(f"cpu:{case.isa}")
    used = 0.0
    try:
        compile_object(*kernel.translated(config, recipe), device, toolchain, many=many)
        launch = kernel.build(config, recipe, device, toolchain)
    except BuildError as error:
        return gate.Outcome(math.inf, str(error))
    for given in _inputs(case.recipe):
        way = scale_codes.held(launch) if given.name in scale_codes.BYTES else launch
        unit = kernel.accumulator_unit(config)
        outcome = gate.check(way, kernel.layout, unit, given, torch.float32, expendable)
        if outcome.why is not None:
            return outcome
        used = max(used, outcome.used)
    return gate.Outcome(used, None)


@functools.cache
def _inputs(recipe: str) -> list[gate.Case]:
    """Every shape with the gate's distributions, and with all ranges of scale codes."""
    found, how, place = [], recipe_named(recipe), torch.device("cpu")
    for shape in SHAPES:
        found += [gate.synthetic_case(data, how, shape, SEED, place) for data in gate.DATA]
        found += [scale_codes.case(which, how, shape, SEED) for which in scale_codes.BYTES]
    return found


def main() -> None:
    """Serve until the parent is gone."""
    torch.set_num_threads(1)

    def answer(question: bytes) -> bytes:
        case, many = json.loads(question)
        outcome = run(CpuCase(**case), many, expendable=True)
        return json.dumps([outcome.used, outcome.why]).encode()

    serve(lambda hello: answer)


if __name__ == "__main__":
    main()
