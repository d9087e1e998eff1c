"""The loop: ask, compile, prove, time, tell; then race the finalists against the default."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from fp4bench import known, limits
from fp4bench.compilers import Compilers
from fp4bench.errors import OperandsError
from fp4bench.evidence import Evidence, Recorder
from fp4bench.judging import Final, Judge
from fp4bench.ledger import Ledger, Outcome, Progress
from fp4bench.outcomes import Failure, Success
from fp4bench.pace import Pace
from fp4bench.ranking import Ranking, hints
from fp4bench.spaces import Space
from fp4bench.static.guess import advice
from fp4bench.study import Study
from fp4bench.trials import FailedTrial, PassedTrial, Status
from fp4bench.worker import Setup, Worker
from fp4bench.workloads import Problem
from fp4kernels.attention.workload import Workload
from fp4kernels.variants import Candidate

LEAST_TRIAL, MOST_TRIAL = 10.0, 60.0  # seconds for building, proving and timing one candidate
PASSES = 4  # of the races: the first right after the search, the others after all searches
RACE_SECONDS = 5.0  # of sampling at most, for all races of a recipe
RACE_SHARE = 0.6  # of the time at most is kept for races
LIMITS_BUDGET = 30.0  # seconds: measuring the device's limits takes some 3


@dataclass(frozen=True)
class Options:
    recipes: tuple[str, ...]
    setup: Setup
    effort: str
    budget: float  # seconds of wall time in all


class Tuner:
    """Tunes problems one after the other within the budget; then races all finals once more."""

    def __init__(
        self, options: Options, recorder: Recorder, prior: Evidence, progress: Progress
    ) -> None:
        setup = options.setup
        self.options = options
        self._prior = list(prior.trials)
        self._limits = limits.latest(prior, setup.device)
        self._worker = Worker(setup)
        self._compilers = Compilers(setup.device, setup.toolchain)
        self._ledger = Ledger(setup, recorder, progress)
        self._judge = Judge(self._worker, self._ledger)
        self._pace = Pace(LEAST_TRIAL, MOST_TRIAL)
        self._chosen = known.choices(setup.device)
        self._finals: list[Final] = []
        self.outcome = self._ledger.outcome

    def run(self, problems: Sequence[Problem]) -> Outcome:
        """Ctrl-C ends the run early; what was measured until then is recorded and returned."""
        start = time.monotonic()
        with self._worker, self._compilers:
            try:
                self._worker.start()
                self._limit()
                self._run(problems, start + self.options.budget)
            except KeyboardInterrupt:
                self.outcome.interrupted = True
        self.outcome.wall = time.monotonic() - start
        return self.outcome

    def _run(self, problems: Sequence[Problem], deadline: float) -> None:
        races = len(problems) * len(self.options.recipes)
        left = deadline - time.monotonic()
        seconds = min(RACE_SHARE * left / races, RACE_SECONDS) / PASSES  # of sampling, for each
        for index, problem in enumerate(problems):
            each = mean([final.seconds for final in self._finals] or [seconds])
            left = deadline - time.monotonic() - (PASSES - 1) * races * each
            if deadline <= time.monotonic():
                self.outcome.unreached.append(problem)
                continue
            share = left / (len(problems) - index) - each * len(self.options.recipes)
            try:
                found = self._search(problem, (index, len(problems)), share)
                for final in found:
                    self._judge.judge(final, seconds)
                self._finals += found
            except OperandsError as error:
                self.outcome.problems.append(str(error))
        for _ in range(PASSES - 1):
            for final in self._finals:
                if time.monotonic() < deadline:
                    self._judge.judge(final, seconds)

    def _limit(self) -> None:
        """The device's limits as recorded, or measured now where the budget can spare it."""
        if self._limits is None and self.options.budget >= LIMITS_BUDGET:
            found = self._ledger.measuring(self._worker.limits)
            if isinstance(found, Failure):
                self.outcome.problems.append(f"the device's limits: {found.reason}")
            else:
                self._ledger.limits(found)
                self._limits = found
        self.outcome.limits = self._limits

    def _search(self, problem: Problem, place: tuple[int, int], seconds: float) -> list[Final]:
        """Try candidates for so long, at least a batch; the finals of every recipe that passed."""
        setup, recipes = self.options.setup, self.options.recipes
        work = problem.workload
        space = Space(work, recipes, setup.device, setup.toolchain, self.options.effort)
        fastest: list[tuple[Workload, list[Candidate]]]
        fastest = [(workload, [candidate]) for workload, candidate in self._chosen]
        fastest += [(one.problem.workload, one.finalists) for one in self._finals]
        promising, hopeless = advice(space)
        first = [*hints(work, fastest, recipes), *promising]
        study, best = Study(space, setup.seed, first, hopeless), Ranking()
        reused = [trial for trial in self._prior if self._same(trial, problem)]
        for trial in reused:
            study.tell(trial)
            best.add(trial)
        self.outcome.reused += len(reused)
        self._ledger.progress.workload(*place, problem, len(reused))
        end = time.monotonic() + seconds
        for candidates in self._batches(study, problem):
            for candidate, failure in candidates:
                default = space.default(candidate.recipe)
                if candidate != default and default not in best:
                    continue  # asked for before the default failed
                trial = self._evaluate(problem, candidate, failure, best)
                study.tell(trial)
                best.add(trial)
            if time.monotonic() > end:
                break
        finals = []
        for recipe in recipes:
            default, finalists = space.default(recipe), best.finalists(recipe)
            if default in best:
                incumbent = self._incumbent(work, recipe, best)
                if incumbent is not None and incumbent not in finalists:
                    finalists.append(incumbent)
                others = [candidate for candidate in finalists if candidate != default]
                finals.append(Final(problem, default, others, incumbent))
            else:
                reason = study.ended.get(recipe, "it was not reached")
                self.outcome.problems.append(
                    f"{work.label} {recipe}: nothing can win, since the default failed: {reason}"
                )
        return finals

    def _incumbent(self, work: Workload, recipe: str, best: Ranking) -> Candidate | None:
        """What an earlier run chose for this very problem, if it passed here."""
        own = (one for workload, one in self._chosen if workload == work)
        return next((one for one in own if one.recipe == recipe and one in best), None)

    def _batches(
        self, study: Study, problem: Problem
    ) -> Iterator[list[tuple[Candidate, Failure | None]]]:
        """Candidates compiled side by side while nothing is timed, a few of every recipe.

        The next are asked for while these are compiled.
        """
        each = max(1, self.options.setup.device.cores // len(self.options.recipes))
        batch = study.ask_for(self.options.recipes, each)
        while batch:
            self._worker.keep_spare()
            start = time.monotonic()
            compiling = self._compilers.submit(problem.workload, batch)
            following = study.ask_for(self.options.recipes, each)
            failures = [job.result() for job in compiling]
            self.outcome.compiling += time.monotonic() - start
            yield list(zip(batch, failures, strict=True))
            batch = following

    def _evaluate(
        self, problem: Problem, candidate: Candidate, failure: Failure | None, best: Ranking
    ) -> PassedTrial | FailedTrial:
        result: Success | Failure
        if failure is not None:
            result = failure
        else:
            ratio = best.ratio(candidate.recipe)
            start = time.monotonic()
            result = self._ledger.measuring(
                lambda: self._worker.evaluate(problem, candidate, ratio, self._pace.limit)
            )
            if isinstance(result, Success):
                self._pace.add(time.monotonic() - start)
        self.outcome.tried += 1
        return self._ledger.trial(problem, candidate, result)

    def _same(self, trial: PassedTrial | FailedTrial, problem: Problem) -> bool:
        if isinstance(trial, PassedTrial) and trial.beside_default is None:
            return False  # of an earlier schema: it cannot be ranked
        failed = isinstance(trial, FailedTrial) and not trial.killed
        if failed and trial.status is Status.COMPILE_ERROR:
            return False  # a full disk or a broken compiler may have been mended
        return all(
            getattr(trial, name) == value for name, value in self._ledger.common(problem).items()
        )
