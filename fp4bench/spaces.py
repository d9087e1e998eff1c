"""The candidates of a workload: the TOML's values, filtered by each variant's own legality."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from fp4bench import operations
from fp4bench.errors import BenchError
from fp4bench.workloads import SPACES
from fp4kernels.attention.workload import Workload
from fp4kernels.devices import Device, Toolchain
from fp4kernels.variants import Candidate, Variant
from fp4kernels.workloads import GemmWorkload, product

EFFORTS = ("quick", "full")


def values_of(kernel: Variant[Any, Any, Any], effort: str) -> dict[str, list[int]]:
    """Searched values per field of one variant's Config, from search_spaces/<variant>.toml."""
    names = [field.name for field in fields(kernel.config_type)]
    if not names:
        return {}
    file: Path = SPACES / f"{kernel.name}.toml"
    table = tomllib.loads(file.read_text())[effort]
    if set(table) != set(names):
        raise BenchError(f"{file.name} [{effort}] must have the keys {names}, but has {[*table]}")
    return {name: list(table[name]) for name in names}


@dataclass(frozen=True)
class Space:
    """All legal candidates for one workload on one device, per recipe."""

    workload: Workload
    recipes: tuple[str, ...]
    device: Device
    toolchain: Toolchain
    effort: str

    @property
    def gemm(self) -> GemmWorkload:
        """The workload, which must be a product."""
        return product(self.workload)

    @cached_property
    def values(self) -> Mapping[str, Mapping[str, list[int]]]:
        """Searched values per variant name."""
        kernels = {k.name: k for name in self.recipes for k in self._kernels(name)}
        return {name: values_of(kernel, self.effort) for name, kernel in kernels.items()}

    @cached_property
    def candidates(self) -> Mapping[str, tuple[Candidate, ...]]:
        """Recipe name → its legal candidates, the default first, none twice."""
        return {name: self._enumerate(name) for name in self.recipes}

    def default(self, recipe: str) -> Candidate:
        return operations.default_for(self.workload, recipe, (self.device, self.toolchain))

    def illegal(self, candidate: Candidate) -> str | None:
        return operations.illegal(candidate, self.workload, (self.device, self.toolchain))

    def _kernels(self, recipe: str) -> Sequence[Variant[Any, Any, Any]]:
        return operations.kernels_for(self.workload, recipe, (self.device, self.toolchain))

    def _enumerate(self, recipe: str) -> tuple[Candidate, ...]:
        found = {self.default(recipe): None}  # a dict keeps order and drops repeats
        for kernel in self._kernels(recipe):
            values = self.values[kernel.name]
            for combination in itertools.product(*values.values()):
                config = kernel.config_type(*combination)
                candidate = Candidate(recipe, kernel.name, kernel.layout, config)
                if self.illegal(candidate) is None:
                    found[candidate] = None
        return tuple(found)
