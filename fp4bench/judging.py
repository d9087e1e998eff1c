"""The finals: the fastest finalist, proven anew, is raced against the default, in several minutes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from statistics import median

from fp4bench.bench import FINAL
from fp4bench.ledger import Ledger
from fp4bench.operations import beside_final
from fp4bench.outcomes import Failure, RaceResult
from fp4bench.racing import paired_ratio
from fp4bench.summary import joined
from fp4bench.trials import Accuracy, Race
from fp4bench.worker import RaceOptions, Worker
from fp4bench.workloads import Problem
from fp4kernels.variants import Candidate

RACE_LIMIT = 120.0
CLEARLY = 0.04  # in log time: a heat is off by 2%, and several finalists challenge an incumbent
HEAT = 0.4  # of a pass goes into a race among the finalists
OPEN = 2  # passes in which any finalist may become the contender: after all, a winner raced twice


@dataclass
class Final:
    """One recipe of one problem. `incumbent` is the finalist that an earlier run chose; `heats`
    holds, of every pass, each finalist's log time over the first one's; `races` all samples so far of
    the default and each contender; `seconds` what the races of the last pass took."""

    problem: Problem
    default: Candidate
    finalists: list[Candidate]  # without the default
    incumbent: Candidate | None = None
    proven: dict[Candidate, Accuracy | None] = field(default_factory=dict)
    heats: dict[Candidate, list[float]] = field(default_factory=dict)
    races: dict[Candidate, Race] = field(default_factory=dict)
    passes: int = 0
    seconds: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.problem.workload.label} {self.default.recipe}"

    def ranked(self) -> list[Candidate]:
        """The fastest over all heats first, but only a clearly faster one before the incumbent."""

        def time(one: Candidate) -> float:
            return median(self.heats.get(one, [0.0])) - (CLEARLY if one == self.incumbent else 0.0)

        return sorted(self.finalists, key=time)

    def narrow(self) -> None:
        """Keep the finalists that have met the default. Without it a finalist that one minute
        favours could win by the last pass alone."""
        raced = [one for one in self.finalists if one in self.races]
        if not raced or raced == self.finalists:
            return
        first = self.heats.get(raced[0], [])
        self.finalists = raced
        self.heats = {
            one: [heat - base for heat, base in zip(self.heats[one], first, strict=True)]
            for one in raced
            if one in self.heats
        }


class Judge:
    """Runs finals. A machine may favour one kernel for a minute, so each is raced in several."""

    def __init__(self, worker: Worker, ledger: Ledger) -> None:
        self._worker, self._ledger = worker, ledger

    def judge(self, final: Final, seconds: float) -> None:
        """One pass: a heat, and a race with the default. What keeps it from one is a problem."""
        problems = self._ledger.outcome.problems
        accuracy = self._proven(final, final.default)
        if accuracy is None:
            problems.append(
                f"{final.label}: nothing can win, since the default failed a second proof"
            )
            return
        final.seconds = 0.0
        if final.passes >= OPEN:
            final.narrow()
        final.passes += 1
        heat = HEAT * seconds if len(final.finalists) > 1 else 0.0
        if heat:
            self._heat(final, heat)
        tuned = final.default
        for contender in final.ranked():
            proven = self._proven(final, contender)
            if proven is not None:
                tuned, accuracy = contender, proven
                break
        # without a contender the default races alone: it still needs a time beside bf16's
        pair = [final.default, *([tuned] if tuned != final.default else [])]
        setup = self._ledger.setup
        beside = beside_final(final.problem.workload, (setup.device, setup.toolchain))
        result = self._race(final, pair, seconds - heat, beside)
        if isinstance(result, Failure):
            problems.append(f"{final.label}: the race failed: {result.reason}")
            return
        race = Race(
            **self._ledger.common(final.problem),
            recipe=final.default.recipe,
            default_values=final.default.to_json(),
            tuned_values=tuned.to_json(),
            default=result.candidates[0],
            tuned=result.candidates[-1],
            baselines=result.baselines,
            accuracy=accuracy,
        )
        known = final.races.get(tuned)
        final.races[tuned] = race if known is None else joined([known, race])
        self._ledger.race(final.problem, final.races[tuned])

    def _heat(self, final: Final, seconds: float) -> None:
        raced = self._race(final, final.finalists, seconds, ())
        if isinstance(raced, Failure):
            return  # the search's own order stands
        for finalist, measured in zip(final.finalists, raced.candidates, strict=True):
            ratio = paired_ratio(measured, raced.candidates[0]).middle
            final.heats.setdefault(finalist, []).append(math.log(ratio))

    def _proven(self, final: Final, candidate: Candidate) -> Accuracy | None:
        """By the gate on inputs that the search did not see; a failure is recorded as a trial."""
        if candidate not in final.proven:
            result = self._ledger.measuring(
                lambda: self._worker.prove(final.problem, candidate, FINAL, RACE_LIMIT)
            )
            if isinstance(result, Failure):
                self._ledger.trial(final.problem, candidate, result)
            final.proven[candidate] = None if isinstance(result, Failure) else result
        return final.proven[candidate]

    def _race(
        self,
        final: Final,
        candidates: list[Candidate],
        seconds: float,
        baselines: tuple[str, ...],
    ) -> RaceResult | Failure:
        options = RaceOptions(seconds, RACE_LIMIT, baselines=baselines)
        start = time.monotonic()
        raced = self._ledger.measuring(
            lambda: self._worker.race(final.problem, candidates, options)
        )
        final.seconds += time.monotonic() - start
        return raced if isinstance(raced, Failure) else raced[0]
