"""The loop: ask, compile, prove, time, tell; then race the finalists against the default."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from fp4bench.bench import Failure, RaceResult, Success
from fp4bench.evidence import Evidence, Recorder
from fp4bench.spaces import Space
from fp4bench.study import Study
from fp4bench.trials import REFERENCE, FailedTrial, PassedTrial, Race, Status
from fp4bench.worker import Setup, Worker
from fp4bench.workloads import Problem
from fp4kernels import source
from fp4kernels.errors import BuildError
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import variant
from fp4kernels.variants import Candidate

TRIAL_LIMIT = 60.0  # seconds for building, proving and timing one candidate
RACE_LIMIT = 120.0
RACE_SECONDS = 0.4  # of sampling, per race
RACE_SHARE = 0.35  # of a workload's time at most is kept for its races
FINALISTS = 2


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
    unreached: list[Problem] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # one line each
    interrupted: bool = False


class Tuner:
    """Tunes problems one after the other, each within its share of the budget that is left."""

    def __init__(
        self, options: Options, recorder: Recorder, prior: Evidence, progress: Progress
    ) -> None:
        self.options, self._recorder, self._progress = options, recorder, progress
        self._prior = list(prior.trials)
        self._worker = Worker(options.setup)
        self._compilers = ThreadPoolExecutor(max_workers=max(2, options.setup.device.cores))
        self.outcome = Outcome()

    def run(self, problems: Sequence[Problem]) -> Outcome:
        """Ctrl-C ends the run early; what was measured until then is recorded and returned."""
        deadline = time.monotonic() + self.options.budget
        with self._worker, self._compilers:
            try:
                self._worker.start()
                for index, problem in enumerate(problems):
                    left = deadline - time.monotonic()
                    if left > 0:
                        self._tune(problem, index, len(problems), left / (len(problems) - index))
                    else:
                        self.outcome.unreached.append(problem)
            except KeyboardInterrupt:
                self.outcome.interrupted = True
                self._compilers.shutdown(cancel_futures=True)
        return self.outcome

    def _tune(self, problem: Problem, index: int, total: int, seconds: float) -> None:
        setup = self.options.setup
        space = Space(
            problem.workload, self.options.recipes, setup.device, setup.toolchain,
            self.options.effort,
        )  # fmt: skip
        study = Study(space, setup.seed)
        best = _Best()
        reused = [trial for trial in self._prior if self._same(trial, problem)]
        for trial in reused:
            study.tell(trial)
            best.add(trial)
        self.outcome.reused += len(reused)
        self._progress.workload(index, total, problem, len(reused))
        start = time.monotonic()
        races = min(RACE_SHARE * seconds, 3 * RACE_SECONDS * len(space.recipes))
        for candidates in self._batches(study):
            for candidate, error in candidates:
                trial = self._evaluate(problem, candidate, error, best)
                study.tell(trial)
                best.add(trial)
            if time.monotonic() - start > seconds - races:
                break
        for recipe in space.recipes:
            self._race(problem, space.default(recipe), best.finalists(recipe))

    def _batches(self, study: Study) -> Iterator[list[tuple[Candidate, BuildError | None]]]:
        """Candidates compiled side by side while nothing is timed, a few of every recipe."""
        each = max(1, self.options.setup.device.cores // len(self.options.recipes))
        while not study.exhausted:
            asked = [study.ask(recipe) for _ in range(each) for recipe in self.options.recipes]
            batch = [candidate for candidate in asked if candidate is not None]
            yield list(zip(batch, self._compilers.map(self._compile, batch), strict=True))

    def _compile(self, candidate: Candidate) -> BuildError | None:
        setup = self.options.setup
        recipe = recipe_named(candidate.recipe)
        try:
            variant(candidate.variant).compile(
                candidate.config, recipe, setup.device, setup.toolchain
            )
        except BuildError as error:
            return error
        return None

    def _evaluate(
        self, problem: Problem, candidate: Candidate, error: BuildError | None, best: _Best
    ) -> PassedTrial | FailedTrial:
        common = {**self._common(problem), "candidate_values": candidate.to_json()}
        result: Success | Failure
        if error is not None:
            result = Failure(Status.COMPILE_ERROR, str(error))
        else:
            best_ns = best.time(candidate.recipe)
            result = self._worker.evaluate(problem, candidate, best_ns, TRIAL_LIMIT)
        trial: PassedTrial | FailedTrial
        if isinstance(result, Failure):
            self.outcome.failures[result.status] += 1
            trial = FailedTrial(**common, status=result.status, reason=result.reason)
        else:
            trial = PassedTrial(**common, accuracy=result.accuracy, measurement=result.measurement)
        self.outcome.tried += 1
        self._recorder.append(trial)
        self._progress.trial(trial)
        return trial

    def _race(self, problem: Problem, default: Candidate, finalists: list[Candidate]) -> None:
        """Pick the best finalist in one race, and judge it against the default in another."""
        if not finalists:
            self.outcome.problems.append(
                f"{problem.workload.label} {default.recipe}: no candidate passed"
            )
            return
        contenders = [candidate for candidate in finalists if candidate != default]
        tuned = contenders[0] if contenders else default
        if len(contenders) > 1:
            picked = self._worker.race(problem, contenders, RACE_SECONDS / 2, RACE_LIMIT)
            if isinstance(picked, RaceResult):
                times = [measured.median_ns for measured in picked.candidates]
                tuned = contenders[times.index(min(times))]
        # without a contender the default races alone: it still needs a time beside bf16's
        pair = [default, tuned] if tuned != default else [default]
        result = self._worker.race(problem, pair, RACE_SECONDS, RACE_LIMIT)
        if isinstance(result, Failure):
            self.outcome.problems.append(
                f"{problem.workload.label} {default.recipe}: the race failed: {result.reason}"
            )
            return
        race = Race(
            **self._common(problem),
            recipe=default.recipe,
            default_values=default.to_json(),
            tuned_values=tuned.to_json(),
            default=result.candidates[0],
            tuned=result.candidates[-1],
            baselines={REFERENCE: result.baseline},
            accuracy=result.accuracies[-1],
        )
        self._recorder.append(race)
        self.outcome.races.append(race)
        self._progress.race(race)

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
        if isinstance(trial, FailedTrial) and trial.status is Status.COMPILE_ERROR:
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
