"""Operands of a measurement: the weight in FP4, copies of it for cold caches, activations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fp4bench.accuracy.errors import relative_energy
from fp4bench.baselines import Baseline
from fp4bench.timing import Operation
from fp4bench.trials import Policy, decibels
from fp4bench.workloads import Problem
from fp4kernels import gate, reference
from fp4kernels.devices import Device
from fp4kernels.gate import Case
from fp4kernels.layouts import Layout
from fp4kernels.packing import Packed
from fp4kernels.pages import in_large_pages
from fp4kernels.recipes import Recipe
from fp4kernels.variants import Launcher

T = TypeVar("T")

COLD_CACHES = 2  # rotated operands fill the last cache this often
MOST_COPIES = 8192


class Kept:
    """Things of one problem on one device, each made once, when first asked for."""

    def __init__(self, problem: Problem, device: Device, seed: int) -> None:
        self.problem, self.device, self.seed = problem, device, seed
        self._kept: dict[Hashable, Any] = {}

    def _copy_count(self, size: float, policy: Policy) -> int:
        if policy.cache == "warm":
            return 1
        return min(MOST_COPIES, max(2, math.ceil(COLD_CACHES * self.device.cache_bytes / size)))

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept


class Operands(Kept):
    """What one product is measured and proven on."""

    @functools.cached_property
    def weight(self) -> Tensor:
        """float32 [N, K]."""
        work = self.problem.gemm
        return self.problem.weights.load(work.n, work.k, self.seed).to(self.device.torch_device)

    @functools.cached_property
    def activations(self) -> Tensor:
        """Synthetic Gaussian, bf16 [M, K]."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        work = self.problem.gemm
        x = torch.randn(work.m, work.k, generator=generator)
        return x.to(torch.bfloat16).to(self.device.torch_device)

    @functools.cached_property
    def product(self) -> Tensor:
        """float32 [M, N] of the operands before any quantizing."""
        return self.activations.float() @ self.weight.T

    def own_case(self, recipe: Recipe) -> Case:
        """The gate's case on these very operands."""
        name = self.problem.weights.name
        return self._once(
            ("own", recipe), lambda: gate.make_case(name, recipe, self.activations, self.weight)
        )

    def gate_cases(self, recipe: Recipe, seed: int) -> list[Case]:
        """These operands, and fresh ones of every kind, some with odd tails in M, N and K."""
        work, (high, wide) = self.problem.gemm, recipe.multiples
        n, k = min(work.n, 83 // high * high), min(work.k, 9 * max(wide, 16))
        full = (work.m, work.n, work.k)
        # fewer rows than M too: a table runs this kernel down to the next smaller tuned M
        tails = [(max(1, min(m, 21)), n, k) for m in (work.m - 1, work.m // 2 + 1)]
        device = self.device.torch_device
        fresh = self._once(
            ("fresh", recipe, seed),
            lambda: [
                gate.synthetic_case(data, recipe, shape, seed, device)
                for shape, data in (
                    (full, "gaussian"), (full, "scales"), (tails[0], "outliers"), (tails[1], "scales"),
                )
            ],
        )  # fmt: skip
        return [self.own_case(recipe), *fresh]

    def calls(self, launch: Launcher, layout: Layout, recipe: Recipe, policy: Policy) -> Operation:
        """The operation on every copy of the weight; one copy where the cache stays warm."""
        x = self.own_case(recipe).x
        copies = self._once(
            ("copies", recipe, layout, policy.cache), lambda: self._copies(recipe, layout, policy)
        )
        calls = [functools.partial(launch, x, w, self._out) for w in copies]
        return Operation(calls, self.device.kind, policy)

    def baseline_calls(self, baseline: Baseline, policy: Policy) -> Operation:
        """Another library's way to do the same, under the same policy."""
        work = self.problem.gemm
        count = self._copy_count(baseline.weight_bytes(work.n, work.k), policy)
        calls = self._once(
            (baseline.name, policy.cache),
            lambda: baseline.prepare(self.activations, self.weight, count),
        )
        return Operation(calls, self.device.kind, policy)

    def format_error_db(self, recipe: Recipe) -> float:
        """Error energy over signal energy of the GEMM's output, against FP32 on the originals."""

        def compute() -> float:
            case = self.own_case(recipe)
            exact = reference.gemm(self.activations[case.rows], self.weight)
            return decibels(relative_energy(case.expected, exact))

        return self._once(("error", recipe), compute)

    @functools.cached_property
    def _out(self) -> Tensor:
        """One for all kernels: where it lies must not tell them apart."""
        work = self.problem.gemm
        dtype = getattr(torch, work.output_dtype)
        return torch.empty(work.m, work.n, dtype=dtype, device=self.device.torch_device)

    def _copies(self, recipe: Recipe, layout: Layout, policy: Policy) -> list[Packed]:
        w = self.own_case(recipe).weight(layout)
        count = self._copy_count(w.codes.nbytes + w.scales.nbytes, policy)
        # in pages like those of the first
        return [w, *(Packed(*(in_large_pages(t.clone()) for t in w)) for _ in range(count - 1))]
