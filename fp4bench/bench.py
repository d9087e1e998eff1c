"""The work of the measuring process: build a candidate, prove it, time it, race the finalists."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fp4bench import timing
from fp4bench.operands import Operands
from fp4bench.trials import Accuracy, FailedStatus, Measurement, Policy, Status
from fp4bench.workloads import Problem
from fp4kernels import gate
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import variant
from fp4kernels.variants import Candidate, Launcher

FRESH_SEEDS = (1000, 2000, 3000)  # of the gate: for every candidate, finalists, validation
RACE_ROUNDS = 31


@dataclass(frozen=True)
class Failure:
    """A candidate that may not be timed, and why."""

    status: FailedStatus
    reason: str


@dataclass(frozen=True)
class Success:
    accuracy: Accuracy
    measurement: Measurement


@dataclass(frozen=True)
class RaceResult:
    """Paired measurements: the candidates in the order given, then torch bf16."""

    candidates: tuple[Measurement, ...]
    baseline: Measurement
    accuracies: tuple[Accuracy, ...]


class Bench:
    """Measures candidates of one problem at a time on one device."""

    def __init__(self, device: Device, toolchain: Toolchain, policy: Policy, seed: int) -> None:
        self.device, self.toolchain, self.policy, self.seed = device, toolchain, policy, seed
        self._clock = timing.clock_for(device.kind, policy)
        self._operands: Operands | None = None
        if device.kind == "cpu":
            torch.set_num_threads(device.cores)

    def evaluate(
        self, problem: Problem, candidate: Candidate, best_ns: float | None
    ) -> Success | Failure:
        """Build, gate, time; nothing that fails the gate is timed."""
        operands, kernel = self._for(problem), variant(candidate.variant)
        recipe = recipe_named(candidate.recipe)
        why = kernel.illegal(
            candidate.config, recipe, problem.workload, self.device, self.toolchain
        )
        if why is not None:
            return Failure(Status.ILLEGAL, why)
        try:
            launch = kernel.build(candidate.config, recipe, self.device, self.toolchain)
            outcome = self._gate(launch, operands, candidate, FRESH_SEEDS[0])
        except BuildError as error:
            return Failure(Status.COMPILE_ERROR, str(error))
        except Exception as error:  # whatever a kernel does is its own trial's failure
            return Failure(_status_of(error), f"{type(error).__name__}: {error}"[:500])
        if outcome.why is not None:
            return Failure(Status.WRONG, outcome.why)
        calls = operands.calls(launch, kernel.layout, recipe)
        measured = timing.measure(self._clock, calls, self.policy, best_ns)
        return Success(self._accuracy(operands, candidate, outcome.used), measured)

    def race(
        self, problem: Problem, candidates: list[Candidate], seconds: float
    ) -> RaceResult | Failure:
        """Re-prove the candidates on fresh inputs, then time them interleaved with torch bf16."""
        operands = self._for(problem)
        operations, accuracies = [], []
        for candidate in candidates:
            kernel, recipe = variant(candidate.variant), recipe_named(candidate.recipe)
            launch = kernel.build(candidate.config, recipe, self.device, self.toolchain)
            outcome = self._gate(launch, operands, candidate, FRESH_SEEDS[1])
            if outcome.why is not None:
                return Failure(Status.WRONG, f"{candidate.key}: {outcome.why}")
            accuracies.append(self._accuracy(operands, candidate, outcome.used))
            operations.append(operands.calls(launch, kernel.layout, recipe))
        operations.append(operands.baseline_calls())
        *raced, baseline = timing.interleaved(
            self._clock, operations, self.policy, seconds, RACE_ROUNDS
        )
        return RaceResult(tuple(raced), baseline, tuple(accuracies))

    def validate(self, problem: Problem, candidate: Candidate) -> Accuracy | Failure:
        """The gate alone, on fresh inputs."""
        kernel, recipe = variant(candidate.variant), recipe_named(candidate.recipe)
        try:
            launch = kernel.build(candidate.config, recipe, self.device, self.toolchain)
        except BuildError as error:
            return Failure(Status.COMPILE_ERROR, str(error))
        operands = self._for(problem)
        outcome = self._gate(launch, operands, candidate, FRESH_SEEDS[2])
        if outcome.why is not None:
            return Failure(Status.WRONG, outcome.why)
        return self._accuracy(operands, candidate, outcome.used)

    def _gate(
        self, launch: Launcher, operands: Operands, candidate: Candidate, seed: int
    ) -> gate.Outcome:
        kernel, recipe = variant(candidate.variant), recipe_named(candidate.recipe)
        dtype = getattr(torch, operands.problem.workload.output_dtype)
        used = 0.0
        for case in operands.gate_cases(recipe, self.seed + seed):
            outcome = gate.check(launch, kernel.layout, kernel.accumulator_unit, case, dtype)
            if outcome.why is not None:
                return outcome
            used = max(used, outcome.used)
        return gate.Outcome(used, None)

    def _accuracy(self, operands: Operands, candidate: Candidate, used: float) -> Accuracy:
        error = operands.format_error_db(recipe_named(candidate.recipe))
        return Accuracy(kernel_error=used, format_error_db=error)

    def _for(self, problem: Problem) -> Operands:
        if self._operands is None or self._operands.problem != problem:
            self._operands = None  # free the last problem's copies first
            self._operands = Operands(problem, self.device, self.policy, self.seed)
        return self._operands


def _status_of(error: Exception) -> FailedStatus:
    """A kernel compiled at its first launch may raise Triton's own types, or MLIR's bare one."""
    compiling = type(error).__module__.startswith("triton") or "PassManager" in str(error)
    return Status.COMPILE_ERROR if compiling else Status.RUNTIME_ERROR
