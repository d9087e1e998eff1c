"""One interleaved run for each workload: default, tuned, and every baseline, hot and cold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fp4bench.bench import FINAL
from fp4bench.compilers import Compilers
from fp4bench.errors import OperandsError
from fp4bench.evidence import Recorder
from fp4bench.operations import baselines_of, default_for, has_end_to_end
from fp4bench.outcomes import Failure
from fp4bench.trials import (
    BATCH_INVARIANT,
    END_TO_END,
    Accuracy,
    Limits,
    Policy,
    Race,
    reference_of,
)
from fp4bench.worker import RaceOptions, Setup, Worker
from fp4bench.workloads import Problem
from fp4kernels import source
from fp4kernels.attention.workload import Workload
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import default_candidate
from fp4kernels.variants import Candidate
from fp4kernels.workloads import product

PROOF_LIMIT, RACE_LIMIT = 120.0, 600.0  # seconds

Choices = Mapping[tuple[Workload, str], Candidate]  # workload and recipe → what was tuned


class Entrants(NamedTuple):
    """Of one recipe; `steady` is batch-invariant, where that is asked for."""

    default: Candidate
    tuned: Candidate
    steady: Candidate | None


Proven = dict[Entrants, Accuracy]  # the tuned one's errors


class Progress(Protocol):
    """Told what happens; shows it."""

    def stage(self, text: str) -> None: ...

    def workload(self, index: int, total: int, problem: Problem) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What to run: `seconds` of sampling for each workload, shared out over `passes`.

    A pass goes over all workloads, so that a machine's bad minute does not meet all of one's.
    """

    recipes: tuple[str, ...]
    policies: tuple[Policy, ...]
    seconds: float
    passes: int
    choices: Choices
    limits: Limits | None  # of the device, as recorded; measured where there are none
    batch_invariant: bool = False  # race the untuned kernel of one order of summing, too


@dataclass
class Outcome:
    """What a run did; `problems` has one line each."""

    limits: Limits | None = None
    races: list[Race] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  # baseline → why it did not run everywhere
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False


class Benchmark:
    """Races what a user would choose between, and records it."""

    def __init__(self, setup: Setup, plan: Plan, recorder: Recorder, progress: Progress) -> None:
        self.setup, self.plan = setup, plan
        self._recorder, self._progress = recorder, progress
        self._worker = Worker(setup)
        self._compilers = Compilers(setup.device, setup.toolchain)
        self._entrants: dict[Problem, tuple[Proven, tuple[tuple[str, ...], dict[str, str]]]] = {}
        self.outcome = Outcome()

    def run(self, problems: Sequence[Problem]) -> Outcome:
        """Ctrl-C ends the run early; what was measured until then is recorded and returned."""
        with self._worker, self._compilers:
            try:
                self._limit()
                for turn in range(self.plan.passes):
                    for index, problem in enumerate(problems):
                        at = turn * len(problems) + index
                        total = self.plan.passes * len(problems)
                        self._progress.workload(at, total, problem)
                        self._one(problem)
            except KeyboardInterrupt:
                self.outcome.interrupted = True
        return self.outcome

    def _limit(self) -> None:
        self._progress.stage("measuring the device's limits")
        found = self.plan.limits or self._worker.limits()
        if isinstance(found, Failure):
            self.outcome.problems.append(f"the device's limits were not measured: {found.reason}")
            return
        if found is not self.plan.limits:
            self._recorder.append(found)
        self.outcome.limits = found

    def _one(self, problem: Problem) -> None:
        try:
            if problem not in self._entrants:
                self._entrants[problem] = self._proven(problem), self._baselines(problem)
            (entrants, (baselines, absent)) = self._entrants[problem]
        except OperandsError as error:
            self._entrants[problem] = {}, ((), {})
            self.outcome.problems.append(str(error))
            return
        if not entrants:
            return
        # a default that nothing was tuned against races once
        candidates = [*dict.fromkeys(c for each in entrants for c in each if c is not None)]
        seconds = self.plan.seconds / self.plan.passes
        whole = [
            f"{END_TO_END}/{each.default.recipe}"
            for each in entrants
            if has_end_to_end(problem.workload)
        ]
        baselines = (*baselines, *whole)
        how = RaceOptions(seconds, RACE_LIMIT + seconds, self.plan.policies, baselines, energy=True)
        raced = self._worker.race(problem, candidates, how)
        if isinstance(raced, Failure):
            self.outcome.problems.append(f"{problem.workload.label}: {raced.reason}")
            return
        for policy, result in zip(self.plan.policies, raced, strict=True):
            of = dict(zip(candidates, result.candidates, strict=True))
            for (default, tuned, steady), accuracy in entrants.items():
                others = {} if steady is None else {BATCH_INVARIANT: of[steady]}
                beside = {
                    name: measured
                    for name, measured in result.baselines.items()
                    if not name.startswith(END_TO_END)
                }
                own = result.baselines.get(f"{END_TO_END}/{default.recipe}")
                if own is not None:
                    others[END_TO_END] = own
                race = Race(
                    device=self.setup.device,
                    toolchain=self.setup.toolchain,
                    policy=policy,
                    workload=problem.workload,
                    weights=problem.weights.name,
                    kernels=source.digest(),
                    recipe=default.recipe,
                    default_values=default.to_json(),
                    tuned_values=tuned.to_json(),
                    default=of[default],
                    tuned=of[tuned],
                    baselines=beside | others,
                    absent=absent,
                    accuracy=accuracy,
                )
                self._recorder.append(race)
                self.outcome.races.append(race)

    def _proven(self, problem: Problem) -> Proven:
        """The entrants of every recipe where all passed the gate; with the tuned one's errors."""
        work, found = problem.workload, {}
        for name in self.plan.recipes:
            default = default_for(work, name, (self.setup.device, self.setup.toolchain))
            tuned = self.plan.choices.get((work, name), default)
            entrants = Entrants(default, tuned, self._steady(work, name))
            each = [*dict.fromkeys(c for c in entrants if c is not None)]
            failures = self._compilers.compile_all(work, each)
            results = {
                candidate: failure or self._worker.prove(problem, candidate, FINAL, PROOF_LIMIT)
                for candidate, failure in zip(each, failures, strict=True)
            }
            failed = [result for result in results.values() if isinstance(result, Failure)]
            errors = results[tuned]
            if failed:
                self.outcome.problems.append(f"{work.label} {name}: {failed[0].reason}")
            elif isinstance(errors, Accuracy):
                found[entrants] = errors
        return found

    def _steady(self, work: Workload, recipe: str) -> Candidate | None:
        if not self.plan.batch_invariant:
            return None
        work = product(work)
        device, toolchain = self.setup.device, self.setup.toolchain
        return default_candidate(
            work, recipe_named(recipe), device, toolchain, batch_invariant=True
        )

    def _baselines(self, problem: Problem) -> tuple[tuple[str, ...], dict[str, str]]:
        """Those that run here and are right, and why the others do not."""
        work = problem.workload
        tried = {name: self._worker.try_baseline(problem, name) for name in baselines_of(work)}
        absent = {name: failure.reason for name, failure in tried.items() if failure is not None}
        reference = reference_of(work)
        if reference in absent:
            raise OperandsError(
                f"every race has {reference} beside it, but on {work.label} it "
                f"failed: {absent[reference]}"
            )
        self.outcome.absent |= absent
        return tuple(name for name in tried if name not in absent), absent
