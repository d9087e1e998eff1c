"""Two recorded runs: what became slower, what faster, and what cannot be said.

Pairs are made by device, policy, workload, recipe and role: `default`, `tuned` (the candidate that
the race chose) and each baseline. Both sides must have the toolchain in common; the kernels' digest
may differ, since that is what is compared. Of several races of one thing by the last candidates (as
`bench` records them, in passes), the samples are pooled.

The rule. Two runs are not paired in time, so B's time over A's is estimated twice:

- *steady*: the ratio of medians, over the drift between the runs. The drift is the median, over all
  races, of what torch_bf16 did: a slow mode of torch_bf16 in some races does not move it, but what
  only this race suffered stays in.
- *beside*: the ratio of medians of (sample over what the baselines took in the same round, the
  median of those that both races have). What slowed all is out, but a slow mode of most baselines in
  this race is in.

Each has a 99% interval, so that of dozens of pairs none is named by chance: a bootstrap, and at least
2.58 times the estimate's scatter from race to race. That scatter is read off the shortest interval
that holds half of all candidates' estimates: kernels that really changed are few, or far from it.
Where most changed it is at most twice the scatter of torch_bf16, which did not. A pair's ratio is the
mean of both estimates and its interval spans both. A verdict other than tie needs a ratio beyond the
threshold and an interval without 1: both must agree. torch_bf16 has the steady estimate alone, at
least as wide as what 99% of its races did. With fewer than `ENOUGH` races neither drift nor scatter is
known, and only the samples speak: their interval is widened by the medians of the halves of every
series (drift within a run). Baselines inform; only candidates are a regression.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fp4bench.evidence import Evidence
from fp4bench.matching import Incomparable, Match, match
from fp4bench.summary import Line
from fp4bench.trials import REFERENCE, Measurement

ENOUGH = 6  # races, for a median and a scatter of what torch_bf16 did
FEW = 4  # samples, for an interval
CONFIDENCE = 0.99
WIDE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
QUARTILE = NormalDist().inv_cdf(0.75)
CANDIDATES = ("default", "tuned")
Verdict = Literal["slower", "faster", "tie"]
Logs = NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """B's time over A's, as logarithms."""

    low: float
    middle: float
    high: float

    def at_least(self, half_width: float) -> Span:
        return Span(
            min(self.low, self.middle - half_width), self.middle,
            max(self.high, self.middle + half_width),
        )  # fmt: skip

    def less(self, drift: float) -> Span:
        return Span(self.low - drift, self.middle - drift, self.high - drift)


@dataclass(frozen=True)
class Noise:
    """What nobody changed between the runs, as logarithms: half-widths of 99% intervals."""

    races: int
    drift: float = 0.0  # of torch_bf16 over all races
    reference: float = 0.0  # torch_bf16 around it
    steady: float = 0.0  # the candidates' two estimates
    beside: float = 0.0


@dataclass(frozen=True)
class Pair:
    """One role of one race in both runs. `low` to `high` is the 99% interval of `ratio`."""

    a: Line
    b: Line
    role: str
    a_ns: float
    b_ns: float
    ratio: float
    low: float
    high: float
    threshold: float

    @property
    def verdict(self) -> Verdict:
        if self.low > 1 and self.ratio > 1 + self.threshold:
            return "slower"
        return "faster" if self.high < 1 and self.ratio < 1 / (1 + self.threshold) else "tie"

    @property
    def regression(self) -> bool:
        return self.role in CANDIDATES and self.verdict == "slower"

    def to_json(self) -> dict[str, Any]:
        race = self.a.race
        return {
            "workload": race.workload.key, "recipe": race.recipe, "weights": race.weights,
            "device": race.device.slug, "policy": race.policy.model_dump(), "role": self.role,
            "a_candidate": _candidate(self.a, self.role),
            "b_candidate": _candidate(self.b, self.role),
            "a_us": self.a_ns / 1e3, "b_us": self.b_ns / 1e3, "raw_ratio": self.b_ns / self.a_ns,
            "ratio": self.ratio, "low": self.low, "high": self.high, "verdict": self.verdict,
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """All pairs, what had no partner, and how far the runs can be told apart."""

    pairs: tuple[Pair, ...]
    incomparable: tuple[Incomparable, ...]
    noise: Noise
    kernels: tuple[tuple[str, ...], tuple[str, ...]]  # digests of A and of B
    threshold: float

    @cached_property
    def regressions(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.regression)

    def count(self, verdict: Verdict) -> int:
        return sum(pair.verdict == verdict for pair in self.pairs)

    def to_json(self) -> dict[str, Any]:
        a, b = self.kernels
        return {
            "threshold": self.threshold,
            "regression": bool(self.regressions),
            "kernels": {"a": list(a), "b": list(b)},
            "drift": math.exp(self.noise.drift),
            "scatter": {"steady": self.noise.steady, "beside": self.noise.beside},
            "pairs": [pair.to_json() for pair in self.pairs],
            "not_comparable": [one.to_json() for one in self.incomparable],
        }


def compare(a: Evidence, b: Evidence, threshold: float) -> Comparison:
    """B against A; `threshold` is the share (0.05) that is still called a tie."""
    matches, incomparable = match(a, b)
    noise = _noise(matches)
    pairs: list[Pair] = []
    for one in matches:
        pairs += [_pair(one, role, noise, threshold) for role in _shared(one)]
        incomparable += _lone(one)
    rank = {"slower": 0, "faster": 1, "tie": 2}
    pairs.sort(key=lambda pair: (rank[pair.verdict], -pair.ratio))
    kernels = tuple(tuple(sorted({race.kernels for race in found.races})) for found in (a, b))
    return Comparison(tuple(pairs), tuple(incomparable), noise, (kernels[0], kernels[1]), threshold)


def _entries(line: Line) -> dict[str, Measurement]:
    return {"default": line.race.default, "tuned": line.measurement, **line.race.baselines}


def _candidate(line: Line, role: str) -> str | None:
    if role not in CANDIDATES:
        return None
    return (line.chosen if role == "tuned" else line.race.default_candidate).key


def _shared(one: Match) -> list[str]:
    ours, theirs = _entries(one.a), _entries(one.b)
    return [
        role
        for role in ours
        if role in theirs and min(len(x[role].samples_ns) for x in (ours, theirs)) >= FEW
    ]


def _lone(one: Match) -> Iterator[Incomparable]:
    """Roles that only one of the two races has, or has too few samples of."""
    ours, theirs = _entries(one.a), _entries(one.b)
    for role in sorted(ours.keys() ^ theirs.keys()):
        side, other, line = ("A", "B", one.b) if role in ours else ("B", "A", one.a)
        why = line.race.absent.get(role, "it was not raced")
        yield Incomparable(one.a, side, f"{role}: not in {other}: {why}")
    for role in ours.keys() & theirs.keys():
        counts = len(ours[role].samples_ns), len(theirs[role].samples_ns)
        if min(counts) < FEW:
            text = f"{role}: needs {FEW} samples of each, but there are {counts[0]} and {counts[1]}"
            yield Incomparable(one.a, "A", text)


def _pair(one: Match, role: str, noise: Noise, threshold: float) -> Pair:
    a, b = _entries(one.a)[role], _entries(one.b)[role]
    alone = noise.races < ENOUGH
    steady = _span(_logs(a), _logs(b), alone).less(noise.drift)
    if role == REFERENCE:
        spans = [steady.at_least(noise.reference)]
    else:
        beside = _span(_beside(one, one.a, a), _beside(one, one.b, b), alone)
        spans = [steady.at_least(noise.steady), beside.at_least(noise.beside)]
    middle = float(np.mean([span.middle for span in spans]))
    low, high = min(span.low for span in spans), max(span.high for span in spans)
    return Pair(
        one.a, one.b, role, a.median_ns, b.median_ns,
        math.exp(middle), math.exp(low), math.exp(high), threshold,
    )  # fmt: skip


def _noise(matches: Sequence[Match]) -> Noise:
    if len(matches) < ENOUGH:
        return Noise(len(matches))
    moved = np.array([_moved(_logs(x.a.race.baseline), _logs(x.b.race.baseline)) for x in matches])
    drift = float(np.median(moved))
    most = 2 * WIDE * float(np.median(abs(moved - drift))) / QUARTILE
    steady, beside = [], []
    for one in matches:
        for role in _distinct(one):
            a, b = _entries(one.a)[role], _entries(one.b)[role]
            steady.append(_moved(_logs(a), _logs(b)))
            beside.append(_moved(_beside(one, one.a, a), _beside(one, one.b, b)))
    return Noise(
        len(matches), drift, float(np.quantile(abs(moved - drift), CONFIDENCE)),
        min(_scatter(steady), most), min(_scatter(beside), most),
    )  # fmt: skip


def _distinct(one: Match) -> Sequence[str]:
    """Candidate roles, without the chosen one where it is the default in both runs."""
    return CANDIDATES if one.a.won or one.b.won else CANDIDATES[:1]


def _scatter(values: Sequence[float]) -> float:
    """Half-width of a normal 99%, from the shortest interval that holds half of the values."""
    ordered, half = np.sort(values), len(values) // 2 + 1
    shortest = float(np.min(ordered[half - 1 :] - ordered[: len(ordered) - half + 1]))
    return shortest / 2 * WIDE / QUARTILE


def _moved(a: Logs, b: Logs) -> float:
    return float(np.median(b) - np.median(a))


def _logs(measured: Measurement) -> Logs:
    logs: Logs = np.log(np.array(measured.samples_ns, dtype=np.float64))
    return logs


def _beside(one: Match, line: Line, measured: Measurement) -> Logs:
    shared = one.a.race.baselines.keys() & one.b.race.baselines.keys()
    others = [_logs(line.race.baselines[name]) for name in sorted(shared)]
    return _logs(measured) - np.median(others, axis=0)


def _span(a: Logs, b: Logs, alone: bool) -> Span:
    """Of the difference of medians: bootstrap, and halves where nothing else tells of drift."""
    from scipy import stats  # slow to import, and every command would wait for it

    middle = _moved(a, b)
    interval = stats.bootstrap(
        (b, a), _difference, vectorized=True, paired=False, n_resamples=2000,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    low, high = float(interval.low), float(interval.high)
    if alone:
        halves_a, halves_b = ([np.median(h) for h in np.array_split(x, 2)] for x in (a, b))
        low = min(low, float(min(halves_b) - max(halves_a)))
        high = max(high, float(max(halves_b) - min(halves_a)))
    return Span(low, middle, high)


def _difference(b: Logs, a: Logs, axis: int = -1) -> Any:
    return np.median(b, axis=axis) - np.median(a, axis=axis)
