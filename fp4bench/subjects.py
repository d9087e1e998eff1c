"""What a Bench measures and proves on: one problem's operands, whatever its operation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from fp4bench.baselines import BASELINES
from fp4bench.operands import Operands
from fp4bench.outcomes import Failure
from fp4bench.timing import Operation
from fp4bench.trials import Accuracy, Policy, Status
from fp4bench.workloads import Problem
from fp4kernels import gate
from fp4kernels.devices import Device
from fp4kernels.gate import Outcome
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import variant
from fp4kernels.variants import Candidate, Launcher


class Subject(ABC):
    """Everything is made once, when first asked for. A launcher is its candidate's."""

    problem: Problem

    @abstractmethod
    def prepare(self, recipe: str, seed: int) -> None:
        """Make what candidates of the recipe are proven on; so it is no candidate's time."""

    @abstractmethod
    def gate(self, launch: Any, candidate: Candidate, seed: int) -> Outcome:
        """On these operands and on fresh ones, of `seed`."""

    @abstractmethod
    def accuracy(self, launch: Any, candidate: Candidate, used: float) -> Accuracy:
        """Of what passed the gate; `used` is the share of its allowance."""

    @abstractmethod
    def calls(self, launch: Any, candidate: Candidate, policy: Policy) -> Operation:
        """The kernel on every copy of its operands; one copy where the cache stays warm."""

    @abstractmethod
    def end_to_end(self, launch: Any, candidate: Candidate, policy: Policy) -> Operation:
        """The same with quantizing what is new."""

    @abstractmethod
    def baseline_calls(self, name: str, policy: Policy) -> Operation:
        """Another way to do the same, under the same policy."""

    @abstractmethod
    def try_baseline(self, name: str) -> Failure | None:
        """Why the baseline must not race here, or None: it may be absent, fail, or be wrong."""


class GemmSubject(Subject):
    """A product's operands."""

    def __init__(self, problem: Problem, device: Device, seed: int) -> None:
        self.problem, self.device = problem, device
        self.operands = Operands(problem, device, seed)

    def prepare(self, recipe: str, seed: int) -> None:
        self.operands.gate_cases(recipe_named(recipe), seed)

    def gate(self, launch: Launcher, candidate: Candidate, seed: int) -> Outcome:
        kernel, recipe = variant(candidate.variant), recipe_named(candidate.recipe)
        dtype = getattr(torch, self.problem.gemm.output_dtype)
        used, unit = 0.0, kernel.accumulator_unit(candidate.config)
        for case in self.operands.gate_cases(recipe, seed):
            outcome = gate.check(launch, kernel.layout, unit, case, dtype, expendable=True)
            if outcome.why is not None:
                return outcome
            used = max(used, outcome.used)
        return Outcome(used, None)

    def accuracy(self, launch: Launcher, candidate: Candidate, used: float) -> Accuracy:
        error_db = self.operands.format_error_db(recipe_named(candidate.recipe))
        return Accuracy(kernel_error=used, format_error_db=error_db)

    def calls(self, launch: Launcher, candidate: Candidate, policy: Policy) -> Operation:
        layout, recipe = variant(candidate.variant).layout, recipe_named(candidate.recipe)
        return self.operands.calls(launch, layout, recipe, policy)

    def end_to_end(self, launch: Launcher, candidate: Candidate, policy: Policy) -> Operation:
        raise NotImplementedError("products are timed over operands that are quantized before")

    def baseline_calls(self, name: str, policy: Policy) -> Operation:
        return self.operands.baseline_calls(BASELINES[name], policy)

    def try_baseline(self, name: str) -> Failure | None:
        baseline, operands = BASELINES[name], self.operands
        absent = baseline.absent(self.problem.gemm, self.device)
        if absent is not None:
            return Failure(Status.ILLEGAL, absent)
        try:
            (call,) = baseline.prepare(operands.activations, operands.weight, copies=1)
            wrong = baseline.implausible(call(), operands.product)
        except Exception as error:  # another library's, on a device it may not know
            return Failure(Status.RUNTIME_ERROR, f"{type(error).__name__}: {error}"[:500])
        return None if wrong is None else Failure(Status.WRONG, wrong)
