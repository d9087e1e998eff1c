"""Is a ranking any good? Predicted times against measured ones of a whole space.

Three figures, each with a 95% bootstrap interval over the space's candidates:

    top      measured time of the best of the TOP that are predicted fastest, over the space's best
    chance   the same of TOP candidates drawn at random, in the mean over all draws
    spearman rank correlation of predicted and measured times, 0 where either does not vary
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fp4bench.errors import BenchError

TOP = 8
LOSS = 1.05  # of the best of the top
CORRELATION = 0.6
RESAMPLES = 2000
LEAST = 3 * TOP  # candidates, for the figures to say anything

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Verdict:
    """What a ranking is worth on one space."""

    candidates: int
    top: Figure
    chance: Figure
    spearman: Figure

    @property
    def problems(self) -> list[str]:
        """What does not hold; the intervals of top and chance must not touch."""
        rules = {
            f"the best of the top {TOP} takes {self.top.value:.3f} of the optimum's time, more "
            f"than {LOSS}": self.top.value <= LOSS,
            f"the rank correlation is {self.spearman.value:.2f}, under {CORRELATION}": (
                self.spearman.value >= CORRELATION
            ),
            f"{TOP} at random are as good: {self.chance} against {self.top}": (
                self.top.high < self.chance.low
            ),
        }
        return [rule for rule, holds in rules.items() if not holds]


def judge(predicted: Times, measured: Times, seed: int = 0) -> Verdict:
    """Of two times of each candidate, in the same order. BenchError for too few candidates."""
    count = len(measured)
    if count < LEAST:
        raise BenchError(
            f"a space must have at least {LEAST} candidates that were measured and predicted, but "
            f"has {count}"
        )
    random = np.random.default_rng(seed)
    samples = random.integers(0, count, (RESAMPLES, count))
    figures = np.array([_figures(predicted[index], measured[index]) for index in samples])
    low, high = np.percentile(figures, (2.5, 97.5), axis=0)
    values = _figures(predicted, measured)
    top, chance, spearman = (Figure(*one) for one in zip(values, low, high, strict=True))
    return Verdict(count, top, chance, spearman)


def _figures(predicted: Times, measured: Times) -> tuple[float, float, float]:
    best = measured.min()
    top = measured[np.argsort(predicted, kind="stable")[:TOP]].min() / best
    varied = np.ptp(predicted) > 0 and np.ptp(measured) > 0
    spearman = stats.spearmanr(predicted, measured).statistic if varied else 0.0
    return float(top), expected_best(measured, TOP) / float(best), float(spearman)


def expected_best(times: Times, drawn: int) -> float:
    """Mean of the least of `drawn` different ones: the i-th least of n is it in C(n - i, drawn - 1)
    of C(n, drawn) draws."""
    n = len(times)
    share, chance = drawn / n, np.empty(n - drawn + 1)
    for i in range(len(chance)):
        chance[i] = share
        share *= (n - drawn - i) / (n - 1 - i) if n - 1 - i else 0.0
    return float(chance @ np.sort(times)[: len(chance)])
