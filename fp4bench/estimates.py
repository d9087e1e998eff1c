"""How much one thing changed between two runs that were not paired in time.

B's time over A's is estimated beside several things that no one changed, each way once:

- beside the drift between the runs: the median of what all baselines of all races did;
- beside each baseline that ran in the same rounds;
- beside the same role of the workload's other recipes, raced within seconds in every pass.

Each is B's median over its passes of (log time less the control's), less A's. The mean counts of all
within the baselines' own 90% about the median: a control in a slow mode does not move it, nor one
that was changed itself. The interval is as wide as
the noise, and holds all but one in OUTLIERS of them with half of it.

The noise is a 99% half-width, so that of dozens of pairs none is named by chance. It is read off the
shortest interval that holds half of all candidates' estimates: kernels that really changed are few,
or far from it. Where most changed it is at most twice the scatter of the baselines, which did not.
With fewer than ENOUGH races neither drift nor noise is known and only the samples speak: a bootstrap,
widened by the medians of the halves of every series (drift within a run).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp4bench.matching import Match
from fp4bench.summary import Line
from fp4bench.trials import BATCH_INVARIANT, Measurement, Race

ENOUGH = 6  # races, for a median and a scatter of what the baselines did
OUTLIERS = 5  # one in so many controls may say anything
CONFIDENCE = 0.99
WIDE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
QUARTILE = NormalDist().inv_cdf(0.75)
NEAR = NormalDist().inv_cdf(0.95)
CANDIDATES = ("default", "tuned")
Logs = NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """B's time over A's, as logarithms."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Noise:
    """What happened to things that no one changed, as logarithms; half-widths of 99% intervals."""

    races: int
    drift: float = 0.0  # of the baselines over all races
    baselines: float = 0.0  # around that
    candidates: float = 0.0  # of their estimates


@dataclass(frozen=True)
class Levels:
    """One match: what each role took in every pass of A and of B, as logs of medians."""

    match: Match
    roles: dict[str, tuple[Logs, Logs]]

    @staticmethod
    def of(match: Match) -> Levels:
        sides = ((match.a, match.a_passes), (match.b, match.b_passes))
        every = [[_entries(line, one) for one in passes] for line, passes in sides]
        shared = every[0][0].keys() & every[1][0].keys()
        return Levels(match, {
            role: (_medians(every[0], role), _medians(every[1], role)) for role in sorted(shared)
        })  # fmt: skip

    def moved(self, role: str) -> float:
        a, b = self.roles[role]
        return float(np.median(b) - np.median(a))

    def beside(self, role: str, other: Levels, control: str) -> float:
        """How `role` moved against `control` of the other match, pass by pass."""
        mine, its = self.roles[role], other.roles[control]
        if any(len(x) != len(y) for x, y in zip(mine, its, strict=True)):
            return self.moved(role) - other.moved(control)
        (a, b), (c, d) = mine, its
        return float(np.median(b - d) - np.median(a - c))

    @property
    def baselines(self) -> list[str]:
        return [role for role in self.roles if role not in (*CANDIDATES, BATCH_INVARIANT)]


class Estimates:
    """Of all matches of two runs."""

    def __init__(self, matches: Sequence[Match]) -> None:
        self._levels = {id(match): Levels.of(match) for match in matches}
        self._siblings: dict[tuple[object, ...], list[Levels]] = {}
        for one in self._levels.values():
            self._siblings.setdefault(_thing(one.match), []).append(one)
        self._drift = self._deviation = 0.0  # of the baselines, the latter about the former
        self.noise = Noise(len(matches))
        if len(matches) >= ENOUGH:
            self.noise = self._measured()

    def span(self, match: Match, role: str) -> Span:
        if self.noise.races < ENOUGH:
            return _by_samples(match, role)
        found = self._beside(self._levels[id(match)], role)
        half = self.noise.candidates if role in CANDIDATES else self.noise.baselines
        middle, outside = self._middle(found), len(found) // OUTLIERS
        return Span(
            min(middle - half, found[outside] - half / 2), middle,
            max(middle + half, found[-1 - outside] + half / 2),
        )  # fmt: skip

    def _beside(self, one: Levels, role: str) -> list[float]:
        """Every estimate, ascending."""
        beside = [one.moved(role) - self._drift]
        beside += [one.beside(role, one, name) for name in one.baselines if name != role]
        if role in CANDIDATES:
            for other in self._siblings[_thing(one.match)]:
                # what moved more than any noise was changed itself, and is no control
                if other is not one and abs(other.moved(role) - self._drift) <= self._most:
                    beside.append(one.beside(role, other, role))
        return sorted(beside)

    @property
    def _most(self) -> float:
        """What noise may move anything."""
        return 2 * WIDE * self._deviation

    def _middle(self, found: Sequence[float]) -> float:
        values = np.array(found)
        far = abs(values - np.median(values))  # no value is at the median of an even count
        return float(np.mean(values[far <= max(NEAR * self._deviation, 1.001 * far.min())]))

    def _measured(self) -> Noise:
        levels = list(self._levels.values())
        moved = np.array([one.moved(name) for one in levels for name in one.baselines])
        self._drift = float(np.median(moved))
        rest = abs(moved - self._drift)
        self._deviation = float(np.median(rest)) / QUARTILE
        estimates = [
            self._middle(self._beside(one, role)) for one in levels for role in _distinct(one.match)
        ]
        return Noise(
            len(levels), self._drift, float(np.quantile(rest, CONFIDENCE)),
            min(_scatter(estimates), self._most),
        )  # fmt: skip


def shared_roles(match: Match) -> list[str]:
    """Roles that both races have, candidates first."""
    theirs = _entries(match.b, match.b.race)
    return [role for role in _entries(match.a, match.a.race) if role in theirs]


def entry(line: Line, role: str) -> Measurement:
    """The candidate or baseline of a race in this role; `tuned` is the candidate that was chosen."""
    return _entries(line, line.race)[role]


def _entries(line: Line, race: Race) -> dict[str, Measurement]:
    tuned = race.tuned if line.won else race.default
    return {"default": race.default, "tuned": tuned, **race.baselines}


def _medians(passes: Sequence[dict[str, Measurement]], role: str) -> Logs:
    found: Logs = np.log(np.array([one[role].median_ns for one in passes]))
    return found


def _thing(match: Match) -> tuple[object, ...]:
    """What the races of a workload's recipes have in common."""
    return match.a.race.identity


def _distinct(match: Match) -> Sequence[str]:
    """Candidate roles, without the chosen one where it is the default in both runs."""
    return CANDIDATES if match.a.won or match.b.won else CANDIDATES[:1]


def _scatter(values: Sequence[float]) -> float:
    """Half-width of a normal 99%, from the shortest interval that holds half of the values."""
    ordered, half = np.sort(values), len(values) // 2 + 1
    shortest = float(np.min(ordered[half - 1 :] - ordered[: len(ordered) - half + 1]))
    return shortest / 2 * WIDE / QUARTILE


def _by_samples(match: Match, role: str) -> Span:
    """The samples themselves, and what they are over the baselines of the same round."""
    a, b = (_logs(entry(line, role)) for line in (match.a, match.b))
    spans = [_bootstrapped(a, b)]
    names = match.a.race.baselines.keys() & match.b.race.baselines.keys() - {role, BATCH_INVARIANT}
    if names:
        spans.append(_bootstrapped(
            a - _common(match.a, names), b - _common(match.b, names)
        ))  # fmt: skip
    return Span(
        min(span.low for span in spans), float(np.mean([span.middle for span in spans])),
        max(span.high for span in spans),
    )  # fmt: skip


def _common(line: Line, names: set[str]) -> Logs:
    """What the median baseline took in every round."""
    every = [_logs(line.race.baselines[name]) for name in sorted(names)]
    found: Logs = np.median(every, axis=0)
    return found


def _logs(measured: Measurement) -> Logs:
    logs: Logs = np.log(np.array(measured.samples_ns, dtype=np.float64))
    return logs


def _bootstrapped(a: Logs, b: Logs) -> Span:
    from scipy import stats  # slow to import, and every command would wait for it

    interval = stats.bootstrap(
        (b, a), _difference, vectorized=True, paired=False, n_resamples=2000,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    halves_a, halves_b = ([np.median(h) for h in np.array_split(x, 2)] for x in (a, b))
    return Span(
        min(float(interval.low), float(min(halves_b) - max(halves_a))),
        float(np.median(b) - np.median(a)),
        max(float(interval.high), float(max(halves_b) - min(halves_a))),
    )


def _difference(b: Logs, a: Logs, axis: int = -1) -> Any:
    return np.median(b, axis=axis) - np.median(a, axis=axis)
