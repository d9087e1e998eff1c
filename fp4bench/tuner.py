"""The loop: ask, compile, prove, time, tell; then race the finalists against the default."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from fp4bench import limits
from fp4bench.bench import FINAL
from fp4bench.compilers import Compilers
from fp4bench.errors import OperandsError
from fp4bench.evidence import Evidence, Recorder
from fp4bench.outcomes import Failure, RaceResult, Success
from fp4bench.pace import Pace
from fp4bench.spaces import Space
from fp4bench.study import Study
from fp4bench.trials import Accuracy, FailedTrial, Limits, PassedTrial, Race, Status
from fp4bench.worker import RaceOptions, Setup, Worker
from fp4bench.workloads import Problem
from fp4kernels import source
from fp4kernels.variants import Candidate

T = TypeVar("T")

LEAST_TRIAL, MOST_TRIAL = 10.0, 60.0  # seconds for building, proving and timing one candidate
RACE_LIMIT = 120.0
RACE_SECONDS = 2.5  # of sampling at most, for both races of a recipe
JUDGING = 0.75  # of them goes into the race against the default
RACE_SHARE = 0.4  # of a workload's time at most is kept for its races
FINALISTS = 4
LIMITS_BUDGET = 30.0  # seconds: measuring the device's limits takes some 3


class Progress(Protocol):
    """Told what happens; shows it."""

    def workload(self, index: int, total: int, problem: Problem, reused: int) -> None: ...

    def trial(self, trial: PassedTrial | FailedTrial) -> None: ...

    def race(self, race: Race) -> None: ...


@dataclass(frozen=True)
class Options:
    recipes: tuple[str, ...]
    setup: Setup
    effort: str
    budget: float  # seconds of wall time in all


@dataclass
class Outcome:
    """What a run did."""

    races: list[Race] = field(default_factory=list)
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


class Tuner:
    """Tunes problems one after the other, each within its share of the budget that is left."""

    def __init__(
        self, options: Options, recorder: Recorder, prior: Evidence, progress: Progress
    ) -> None:
        self.options, self._recorder, self._progress = options, recorder, progress
        self._prior = list(prior.trials)
        self._limits = limits.latest(prior, options.setup.device)
        self._worker = Worker(options.setup)
        self._compilers = Compilers(options.setup.device, options.setup.toolchain)
        self._pace = Pace(LEAST_TRIAL, MOST_TRIAL)
        self.outcome = Outcome()

    def run(self, problems: Sequence[Problem]) -> Outcome:
        """Ctrl-C ends the run early; what was measured until then is recorded and returned."""
        start = time.monotonic()
        deadline = start + self.options.budget
        with self._worker, self._compilers:
            try:
                self._worker.start()
                self._limit()
                for index, problem in enumerate(problems):
                    left = deadline - time.monotonic()
                    if left <= 0:
                        self.outcome.unreached.append(problem)
                        continue
                    try:
                        self._tune(problem, index, len(problems), left / (len(problems) - index))
                    except OperandsError as error:
                        self.outcome.problems.append(str(error))
            except KeyboardInterrupt:
                self.outcome.interrupted = True
        self.outcome.wall = time.monotonic() - start
        return self.outcome

    def _limit(self) -> None:
        """The device's limits as recorded, or measured now where the budget can spare it."""
        if self._limits is None and self.options.budget >= LIMITS_BUDGET:
            found = self._measuring(self._worker.limits)
            if isinstance(found, Failure):
                self.outcome.problems.append(f"the device's limits: {found.reason}")
            else:
                self._recorder.append(found)
                self._limits = found
        self.outcome.limits = self._limits

    def _tune(self, problem: Problem, index: int, total: int, seconds: float) -> None:
        setup = self.options.setup
        space = Space(
            problem.workload, self.options.recipes, setup.device, setup.toolchain,
            self.options.effort,
        )  # fmt: skip
        study = Study(space, setup.seed)
        earlier, best = _Best(), _Best()  # times of different runs do not rank each other
        reused = [trial for trial in self._prior if self._same(trial, problem)]
        for trial in reused:
            study.tell(trial)
            earlier.add(trial)
        self.outcome.reused += len(reused)
        self._progress.workload(index, total, problem, len(reused))
        start = time.monotonic()
        race_seconds = min(RACE_SHARE * seconds / len(space.recipes), RACE_SECONDS)
        for candidates in self._batches(study, problem):
            for candidate, failure in candidates:
                trial = self._evaluate(problem, candidate, failure, best)
                study.tell(trial)
                best.add(trial)
            if time.monotonic() - start > seconds - race_seconds * len(space.recipes):
                break
        for recipe in space.recipes:
            finalists = [*dict.fromkeys(best.finalists(recipe) + earlier.finalists(recipe))]
            self._race(problem, space.default(recipe), finalists, race_seconds)

    def _batches(
        self, study: Study, problem: Problem
    ) -> Iterator[list[tuple[Candidate, Failure | None]]]:
        """Candidates compiled side by side while nothing is timed, a few of every recipe."""
        each = max(1, self.options.setup.device.cores // len(self.options.recipes))
        while not study.exhausted:
            asked = [study.ask(recipe) for _ in range(each) for recipe in self.options.recipes]
            batch = [candidate for candidate in asked if candidate is not None]
            self._worker.keep_spare()
            start = time.monotonic()
            failures = self._compilers.compile_all(problem.workload, batch)
            self.outcome.compiling += time.monotonic() - start
            yield list(zip(batch, failures, strict=True))

    def _evaluate(
        self, problem: Problem, candidate: Candidate, failure: Failure | None, best: _Best
    ) -> PassedTrial | FailedTrial:
        result: Success | Failure
        if failure is not None:
            result = failure
        else:
            best_ns = best.time(candidate.recipe)
            start = time.monotonic()
            result = self._measuring(
                lambda: self._worker.evaluate(problem, candidate, best_ns, self._pace.limit)
            )
            if isinstance(result, Success):
                self._pace.add(time.monotonic() - start)
        self.outcome.tried += 1
        return self._record(problem, candidate, result)

    def _record(
        self, problem: Problem, candidate: Candidate, result: Success | Failure
    ) -> PassedTrial | FailedTrial:
        common = {**self._common(problem), "candidate_values": candidate.to_json()}
        trial: PassedTrial | FailedTrial
        if isinstance(result, Failure):
            self.outcome.failures[result.status] += 1
            trial = FailedTrial(**common, **asdict(result))
        else:
            trial = PassedTrial(**common, accuracy=result.accuracy, measurement=result.measurement)
        self._recorder.append(trial)
        self._progress.trial(trial)
        return trial

    def _race(
        self, problem: Problem, default: Candidate, finalists: list[Candidate], seconds: float
    ) -> None:
        """Pick the best finalist in a short race, prove it anew, and judge it in a longer race."""
        label = f"{problem.workload.label} {default.recipe}"
        if not finalists:
            self.outcome.problems.append(f"{label}: no candidate passed")
            return
        accuracy = self._prove(problem, default)
        if accuracy is None:
            self.outcome.problems.append(f"{label}: the default did not pass, so nothing can win")
            return
        tuned = default
        contenders = [candidate for candidate in finalists if candidate != default]
        for contender in self._ranked(problem, contenders, (1 - JUDGING) * seconds):
            proven = self._prove(problem, contender)
            if proven is not None:
                tuned, accuracy = contender, proven
                break
        # without a contender the default races alone: it still needs a time beside bf16's
        pair = [default, tuned] if tuned != default else [default]
        result = self._worker_race(problem, pair, JUDGING * seconds)
        if isinstance(result, Failure):
            self.outcome.problems.append(f"{label}: the race failed: {result.reason}")
            return
        race = Race(
            **self._common(problem),
            recipe=default.recipe,
            default_values=default.to_json(),
            tuned_values=tuned.to_json(),
            default=result.candidates[0],
            tuned=result.candidates[-1],
            baselines=result.baselines,
            accuracy=accuracy,
        )
        self._recorder.append(race)
        self.outcome.races.append(race)
        self._progress.race(race)

    def _ranked(
        self, problem: Problem, contenders: list[Candidate], seconds: float
    ) -> list[Candidate]:
        """The fastest in a race of their own first; in the given order where that fails."""
        if len(contenders) < 2:
            return contenders
        raced = self._worker_race(problem, contenders, seconds)
        if isinstance(raced, Failure):
            return contenders
        times = {c: m.median_ns for c, m in zip(contenders, raced.candidates, strict=True)}
        return sorted(contenders, key=times.__getitem__)

    def _prove(self, problem: Problem, candidate: Candidate) -> Accuracy | None:
        """The gate on inputs that the search did not see; a failure is recorded as a trial."""
        result = self._measuring(lambda: self._worker.prove(problem, candidate, FINAL, RACE_LIMIT))
        if isinstance(result, Failure):
            self._record(problem, candidate, result)
            return None
        return result

    def _worker_race(
        self, problem: Problem, candidates: list[Candidate], seconds: float
    ) -> RaceResult | Failure:
        options = RaceOptions(seconds, RACE_LIMIT)
        raced = self._measuring(lambda: self._worker.race(problem, candidates, options))
        return raced if isinstance(raced, Failure) else raced[0]

    def _measuring(self, work: Callable[[], T]) -> T:
        start = time.monotonic()
        try:
            return work()
        finally:
            self.outcome.measuring += time.monotonic() - start

    def _common(self, problem: Problem) -> dict[str, Any]:
        setup = self.options.setup
        return {
            "device": setup.device,
            "toolchain": setup.toolchain,
            "policy": setup.policy,
            "workload": problem.workload,
            "weights": problem.weights.tensor,
            "kernels": source.digest(),
        }

    def _same(self, trial: PassedTrial | FailedTrial, problem: Problem) -> bool:
        failed = isinstance(trial, FailedTrial) and not trial.killed
        if failed and trial.status is Status.COMPILE_ERROR:
            return False  # a full disk or a broken compiler may have been mended
        return all(getattr(trial, name) == value for name, value in self._common(problem).items())


class _Best:
    """The fastest passed trials per recipe."""

    def __init__(self) -> None:
        self._times: dict[str, dict[Candidate, float]] = {}

    def add(self, trial: PassedTrial | FailedTrial) -> None:
        if isinstance(trial, PassedTrial):
            times = self._times.setdefault(trial.candidate.recipe, {})
            times[trial.candidate] = trial.measurement.median_ns

    def time(self, recipe: str) -> float | None:
        return min(self._times.get(recipe, {}).values(), default=None)

    def finalists(self, recipe: str) -> list[Candidate]:
        times = self._times.get(recipe, {})
        return sorted(times, key=lambda candidate: times[candidate])[:FINALISTS]
