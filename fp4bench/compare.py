"""Two recorded runs: what became slower, what faster, and what cannot be said.

Pairs are made by device, policy, workload, recipe and role: `default`, `tuned` (the candidate that
the race chose) and each baseline. Both sides must have the toolchain in common; the kernels' digest
may differ, since that is what is compared. Of several races of one thing by the last candidates (as
`bench` records them, in passes), the samples are pooled.

The rule. A verdict other than tie needs a ratio beyond the threshold and an interval without 1; how
both are found is in `fp4bench.estimates`. Baselines inform; only candidates are a regression.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from fp4bench.estimates import CANDIDATES, Estimates, Noise, entry, shared_roles
from fp4bench.evidence import Evidence
from fp4bench.matching import Incomparable, Match, match
from fp4bench.racing import TIE
from fp4bench.summary import Line

FEW = 4  # samples, for an interval
Verdict = Literal["slower", "faster", "tie"]


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
        """No tie where the middle lies beyond the threshold, and all of the interval beyond what a
        race calls equal, or as much of that as the threshold is."""
        most, least = 1 + self.threshold, 1 + min(self.threshold, TIE / 2)
        if self.ratio > most and self.low > least:
            return "slower"
        return "faster" if self.ratio < 1 / most and self.high < 1 / least else "tie"

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
            "noise": math.expm1(self.noise.candidates),
            "pairs": [pair.to_json() for pair in self.pairs],
            "not_comparable": [one.to_json() for one in self.incomparable],
        }


def compare(a: Evidence, b: Evidence, threshold: float) -> Comparison:
    """B against A; `threshold` is the share (0.05) that is still called a tie."""
    matches, incomparable = match(a, b)
    estimates = Estimates(matches)
    pairs: list[Pair] = []
    for one in matches:
        for role in shared_roles(one):
            ours, theirs = entry(one.a, role), entry(one.b, role)
            counts = len(ours.samples_ns), len(theirs.samples_ns)
            if min(counts) < FEW:
                text = f"needs {FEW} samples of each, but there are {counts[0]} and {counts[1]}"
                incomparable.append(Incomparable(one.a, "A", f"{role}: {text}"))
                continue
            span = estimates.span(one, role)
            middle, low, high = (math.exp(x) for x in (span.middle, span.low, span.high))
            times = ours.median_ns, theirs.median_ns
            pairs.append(Pair(one.a, one.b, role, *times, middle, low, high, threshold))
        incomparable += _lone(one)
    rank = {"slower": 0, "faster": 1, "tie": 2}
    pairs.sort(key=lambda pair: (rank[pair.verdict], -pair.ratio))
    kernels = tuple(tuple(sorted({race.kernels for race in found.races})) for found in (a, b))
    return Comparison(
        tuple(pairs), tuple(incomparable), estimates.noise, (kernels[0], kernels[1]), threshold
    )


def _candidate(line: Line, role: str) -> str | None:
    if role not in CANDIDATES:
        return None
    return (line.chosen if role == "tuned" else line.race.default_candidate).key


def _lone(one: Match) -> Iterator[Incomparable]:
    """Baselines that only one of the two races has."""
    for role in sorted(one.a.race.baselines.keys() ^ one.b.race.baselines.keys()):
        here = role in one.a.race.baselines
        side, other, line = ("A", "B", one.b) if here else ("B", "A", one.a)
        why = line.race.absent.get(role, "it was not raced")
        yield Incomparable(one.a, side, f"{role}: not in {other}: {why}")
