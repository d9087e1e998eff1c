"""The work of the measuring process: build a candidate, prove it, time it, race the finalists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fp4bench import limits, telemetry, timing
from fp4bench.baselines import BASELINES
from fp4bench.operands import Operands
from fp4bench.outcomes import Failure, RaceResult, Success
from fp4bench.timing import Operation
from fp4bench.trials import (
    Accuracy,
    FailedStatus,
    Limits,
    Policy,
    Status,
)  # fmt: skip
from fp4bench.workloads import Problem
from fp4kernels import gate
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import default_candidate, variant
from fp4kernels.variants import Candidate, Launcher

EVALUATION, FINAL, VALIDATION = range(3)  # proofs, each on inputs of its own


@dataclass(frozen=True)
class Entrants:
    """Who races: all of them under every policy."""

    candidates: tuple[Candidate, ...]
    baselines: tuple[str, ...]
    policies: tuple[Policy, ...]


class Bench:
    """Measures candidates of one problem at a time on one device."""

    def __init__(self, device: Device, toolchain: Toolchain, policy: Policy, seed: int) -> None:
        self.device, self.toolchain, self.policy, self.seed = device, toolchain, policy, seed
        self._monitor = telemetry.monitor(device)
        self._operands: Operands | None = None
        self._defaults: dict[str, Operation] = {}

    def limits(self) -> Limits:
        return limits.measure(self.device, self.toolchain)

    def prepare(self, problem: Problem, candidates: Sequence[Candidate]) -> None:
        """Make the operands that the candidates are proven on; so it is no candidate's time."""
        operands = self._for(problem)
        for name in {candidate.recipe for candidate in candidates}:
            operands.gate_cases(recipe_named(name), self._seed_of(EVALUATION))

    def evaluate(self, problem: Problem, candidate: Candidate, best: float) -> Success | Failure:
        """Build, gate, time beside the default, which passed before; nothing that fails is timed."""
        proven = self._build_and_prove(problem, candidate, EVALUATION)
        if isinstance(proven, Failure):
            return proven
        launch, accuracy = proven
        operation = self._operation(problem, candidate, launch, self.policy)
        default = self._default(problem, candidate.recipe)
        measured, beside = timing.measure(operation, default, self._monitor, best)
        return Success(accuracy, measured, beside)

    def prove(self, problem: Problem, candidate: Candidate, proof: int) -> Accuracy | Failure:
        """The gate alone, on the inputs of `proof`."""
        proven = self._build_and_prove(problem, candidate, proof)
        return proven if isinstance(proven, Failure) else proven[1]

    def try_baseline(self, problem: Problem, name: str) -> Failure | None:
        """Why the baseline must not race here, or None: it may be absent, fail, or be wrong."""
        baseline, operands = BASELINES[name], self._for(problem)
        absent = baseline.absent(problem.workload, self.device)
        if absent is not None:
            return Failure(Status.ILLEGAL, absent)
        try:
            (call,) = baseline.prepare(operands.activations, operands.weight, copies=1)
            wrong = baseline.implausible(call(), operands.product)
        except Exception as error:  # another library's, on a device it may not know
            return Failure(Status.RUNTIME_ERROR, f"{type(error).__name__}: {error}"[:500])
        return None if wrong is None else Failure(Status.WRONG, wrong)

    def race(
        self, problem: Problem, entrants: Entrants, seconds: float, energy: bool
    ) -> tuple[RaceResult, ...]:
        """Time candidates, proven before, and baselines under every policy, all interleaved."""
        operands = self._for(problem)
        launches = [self._build(candidate) for candidate in entrants.candidates]
        operations = []
        for policy in entrants.policies:
            for candidate, launch in zip(entrants.candidates, launches, strict=True):
                operations.append(self._operation(problem, candidate, launch, policy))
            for name in entrants.baselines:
                operations.append(operands.baseline_calls(BASELINES[name], policy))
        timed = timing.interleaved(operations, self._monitor, seconds, len(entrants.candidates))
        if energy:  # of the first policy alone: each takes a second
            first = len(operations) // len(entrants.policies)
            counted = zip(timed[:first], operations[:first], strict=True)
            timed[:first] = [timing.with_energy(m, o, self._monitor) for m, o in counted]
        measured = iter(timed)
        return tuple(
            RaceResult(
                tuple(next(measured) for _ in entrants.candidates),
                {name: next(measured) for name in entrants.baselines},
            )
            for _ in entrants.policies
        )

    def _build_and_prove(
        self, problem: Problem, candidate: Candidate, proof: int
    ) -> tuple[Launcher, Accuracy] | Failure:
        operands, kernel = self._for(problem), variant(candidate.variant)
        recipe = recipe_named(candidate.recipe)
        why = kernel.illegal(
            candidate.config, recipe, problem.workload, self.device, self.toolchain
        )
        if why is not None:
            return Failure(Status.ILLEGAL, why)
        try:
            launch = self._build(candidate)
            outcome = self._gate(launch, operands, candidate, proof)
        except BuildError as error:
            return Failure(Status.COMPILE_ERROR, str(error))
        except Exception as error:  # whatever a kernel does is its own trial's failure
            return Failure(_status_of(error), f"{type(error).__name__}: {error}"[:500])
        if outcome.why is not None:
            return Failure(Status.WRONG, outcome.why)
        error_db = operands.format_error_db(recipe)
        return launch, Accuracy(kernel_error=outcome.used, format_error_db=error_db)

    def _build(self, candidate: Candidate) -> Launcher:
        return variant(candidate.variant).build(
            candidate.config, recipe_named(candidate.recipe), self.device, self.toolchain
        )

    def _gate(
        self, launch: Launcher, operands: Operands, candidate: Candidate, proof: int
    ) -> gate.Outcome:
        kernel, recipe = variant(candidate.variant), recipe_named(candidate.recipe)
        dtype = getattr(torch, operands.problem.workload.output_dtype)
        used, unit = 0.0, kernel.accumulator_unit(candidate.config)
        for case in operands.gate_cases(recipe, self._seed_of(proof)):
            outcome = gate.check(launch, kernel.layout, unit, case, dtype, expendable=True)
            if outcome.why is not None:
                return outcome
            used = max(used, outcome.used)
        return gate.Outcome(used, None)

    def _operation(
        self, problem: Problem, candidate: Candidate, launch: Launcher, policy: Policy
    ) -> Operation:
        layout, recipe = variant(candidate.variant).layout, recipe_named(candidate.recipe)
        return self._for(problem).calls(launch, layout, recipe, policy)

    def _default(self, problem: Problem, recipe: str) -> Operation:
        """Kept for a problem: on a GPU its graph takes longer to record than to run."""
        self._for(problem)
        if recipe not in self._defaults:
            default = default_candidate(
                problem.workload, recipe_named(recipe), self.device, self.toolchain
            )
            launch = self._build(default)
            self._defaults[recipe] = self._operation(problem, default, launch, self.policy)
        return self._defaults[recipe]

    def _seed_of(self, proof: int) -> int:
        return self.seed + 1000 * (proof + 1)

    def _for(self, problem: Problem) -> Operands:
        if self._operands is None or self._operands.problem != problem:
            self._operands = None  # free the last problem's copies first
            self._defaults.clear()
            self._operands = Operands(problem, self.device, self.seed)
        return self._operands


def _status_of(error: Exception) -> FailedStatus:
    """A kernel compiled at its first launch may raise Triton's own types, or MLIR's bare one."""
    compiling = type(error).__module__.startswith("triton") or "PassManager" in str(error)
    return Status.COMPILE_ERROR if compiling else Status.RUNTIME_ERROR
