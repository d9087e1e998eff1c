"""The work of the measuring process: build a candidate, prove it, time it, race the finalists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fp4bench import limits, operations, telemetry, timing
from fp4bench.outcomes import Failure, RaceResult, Success
from fp4bench.subjects import Subject
from fp4bench.timing import Operation
from fp4bench.trials import (
    END_TO_END,
    Accuracy,
    FailedStatus,
    Limits,
    Policy,
    Status,
)  # fmt: skip
from fp4bench.workloads import Problem
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError
from fp4kernels.variants import Candidate

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
        self.here, self.policy, self.seed = (device, toolchain), policy, seed
        self._monitor = telemetry.monitor(device)
        self._subject: Subject | None = None
        self._defaults: dict[str, Operation] = {}

    def limits(self) -> Limits:
        return limits.measure(*self.here)

    def prepare(self, problem: Problem, candidates: Sequence[Candidate]) -> None:
        """Make the operands that the candidates are proven on; so it is no candidate's time."""
        subject = self._for(problem)
        for name in {candidate.recipe for candidate in candidates}:
            subject.prepare(name, self._seed_of(EVALUATION))

    def evaluate(self, problem: Problem, candidate: Candidate, best: float) -> Success | Failure:
        """Build, gate, time beside the default, which passed before; nothing that fails is timed."""
        proven = self._build_and_prove(problem, candidate, EVALUATION)
        if isinstance(proven, Failure):
            return proven
        launch, accuracy = proven
        operation = self._for(problem).calls(launch, candidate, self.policy)
        default = self._default(problem, candidate.recipe)
        measured, beside = timing.measure(operation, default, self._monitor, best)
        return Success(accuracy, measured, beside)

    def prove(self, problem: Problem, candidate: Candidate, proof: int) -> Accuracy | Failure:
        """The gate alone, on the inputs of `proof`."""
        proven = self._build_and_prove(problem, candidate, proof)
        return proven if isinstance(proven, Failure) else proven[1]

    def try_baseline(self, problem: Problem, name: str) -> Failure | None:
        """Why the baseline must not race here, or None: it may be absent, fail, or be wrong."""
        return self._for(problem).try_baseline(name)

    def race(
        self, problem: Problem, entrants: Entrants, seconds: float, energy: bool
    ) -> tuple[RaceResult, ...]:
        """Time candidates, proven before, and baselines under every policy, all interleaved.

        END_TO_END among the baselines is the last candidate, with quantizing what is new, and
        END_TO_END/RECIPE the last of that recipe.
        """
        subject = self._for(problem)
        launches = [self._build(candidate) for candidate in entrants.candidates]
        entered = []
        for policy in entrants.policies:
            for candidate, launch in zip(entrants.candidates, launches, strict=True):
                entered.append(subject.calls(launch, candidate, policy))
            for name in entrants.baselines:
                if name.startswith(END_TO_END):
                    whole = _last(entrants, name.removeprefix(END_TO_END).removeprefix("/"))
                    on = launches[whole], entrants.candidates[whole], policy
                    entered.append(subject.end_to_end(*on))
                else:
                    entered.append(subject.baseline_calls(name, policy))
        timed = timing.interleaved(entered, self._monitor, seconds, len(entrants.candidates))
        if energy:  # of the first policy alone: each takes a second
            first = len(entered) // len(entrants.policies)
            counted = zip(timed[:first], entered[:first], strict=True)
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
    ) -> tuple[Any, Accuracy] | Failure:
        subject = self._for(problem)
        why = operations.illegal(candidate, problem.workload, self.here)
        if why is not None:
            return Failure(Status.ILLEGAL, why)
        try:
            launch = self._build(candidate)
            outcome = subject.gate(launch, candidate, self._seed_of(proof))
        except BuildError as error:
            return Failure(Status.COMPILE_ERROR, str(error))
        except Exception as error:  # whatever a kernel does is its own trial's failure
            return Failure(_status_of(error), f"{type(error).__name__}: {error}"[:500])
        if outcome.why is not None:
            return Failure(Status.WRONG, outcome.why)
        return launch, subject.accuracy(launch, candidate, outcome.used)

    def _build(self, candidate: Candidate) -> Any:
        return operations.build(candidate, self.here)

    def _default(self, problem: Problem, recipe: str) -> Operation:
        """Kept for a problem: on a GPU its graph takes longer to record than to run."""
        subject = self._for(problem)
        if recipe not in self._defaults:
            default = operations.default_for(problem.workload, recipe, self.here)
            self._defaults[recipe] = subject.calls(self._build(default), default, self.policy)
        return self._defaults[recipe]

    def _seed_of(self, proof: int) -> int:
        return self.seed + 1000 * (proof + 1)

    def _for(self, problem: Problem) -> Subject:
        if self._subject is None or self._subject.problem != problem:
            self._subject = None  # free the last problem's copies first
            self._defaults.clear()
            self._subject = operations.subject_of(problem, self.here, self.seed)
        return self._subject


def _last(entrants: Entrants, recipe: str) -> int:
    """Of all, or of a recipe."""
    named = [i for i, one in enumerate(entrants.candidates) if recipe in ("", one.recipe)]
    return named[-1]


def _status_of(error: Exception) -> FailedStatus:
    """A kernel compiled at its first launch may raise Triton's own types, or MLIR's bare one."""
    compiling = type(error).__module__.startswith("triton") or "PassManager" in str(error)
    return Status.COMPILE_ERROR if compiling else Status.RUNTIME_ERROR
