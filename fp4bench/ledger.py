"""What a run did: every result is recorded, counted and shown; the clock says what it took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from fp4bench.evidence import Recorder
from fp4bench.outcomes import Failure, Success
from fp4bench.trials import FailedTrial, Limits, PassedTrial, Race, Status
from fp4bench.worker import Setup
from fp4bench.workloads import Problem
from fp4kernels import source
from fp4kernels.variants import Candidate

T = TypeVar("T")


class Progress(Protocol):
    """Told what happens; shows it."""

    def workload(self, index: int, total: int, problem: Problem, reused: int) -> None: ...

    def trial(self, trial: PassedTrial | FailedTrial) -> None: ...

    def race(self, race: Race, again: bool) -> None: ...


@dataclass
class Outcome:
    """Of a whole run. Of every race the last row, which holds the samples of those before."""

    races: dict[tuple[Problem, str], Race] = field(default_factory=dict)  # by recipe
    tried: int = 0
    reused: int = 0
    failures: Counter[Status] = field(default_factory=Counter)
    limits: Limits | None = None  # of the device
    unreached: list[Problem] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # one line each
    interrupted: bool = False
    wall: float = 0.0  # seconds in all, and what of them went into
    compiling: float = 0.0
    measuring: float = 0.0  # preparing operands, proving, timing


class Ledger:
    """Writes down what happens under one setup."""

    def __init__(self, setup: Setup, recorder: Recorder, progress: Progress) -> None:
        self.setup, self.progress, self._recorder = setup, progress, recorder
        self.outcome = Outcome()

    def limits(self, found: Limits) -> None:
        self._recorder.append(found)

    def trial(
        self, problem: Problem, candidate: Candidate, result: Success | Failure
    ) -> PassedTrial | FailedTrial:
        common = {**self.common(problem), "candidate_values": candidate.to_json()}
        trial: PassedTrial | FailedTrial
        if isinstance(result, Failure):
            self.outcome.failures[result.status] += 1
            trial = FailedTrial(**common, **asdict(result))
        else:
            trial = PassedTrial(
                **common, accuracy=result.accuracy, measurement=result.measurement,
                beside_default=result.beside_default,
            )  # fmt: skip
        self._recorder.append(trial)
        self.progress.trial(trial)
        return trial

    def race(self, problem: Problem, race: Race) -> None:
        again = (problem, race.recipe) in self.outcome.races
        self._recorder.append(race)
        self.outcome.races[problem, race.recipe] = race
        self.progress.race(race, again)

    def measuring(self, work: Callable[[], T]) -> T:
        start = time.monotonic()
        try:
            return work()
        finally:
            self.outcome.measuring += time.monotonic() - start

    def common(self, problem: Problem) -> dict[str, Any]:
        """What all rows about a problem have in common."""
        setup = self.setup
        return {
            "device": setup.device,
            "toolchain": setup.toolchain,
            "policy": setup.policy,
            "workload": problem.workload,
            "weights": problem.weights.name,
            "kernels": source.digest(),
        }
