"""Verdicts from paired samples: only a win beyond the noise is called one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fp4bench.trials import Measurement

TIE = 0.02  # half-width of what counts as equal
CONFIDENCE = 0.95
QUARTERS = 4  # a machine is slow for seconds: for all of a pass, and seldom for more than one
KNOWN = 0.005  # half-width of a ratio's interval that is good enough


@dataclass(frozen=True)
class Ratio:
    """`base` time over `contender` time with its confidence interval: above 1 is faster."""

    low: float
    middle: float
    high: float

    @property
    def verdict(self) -> Literal["win", "tie", "loss"]:
        """Not a tie where the middle lies beyond TIE, and all of the interval beyond half of it."""
        if self.low > 1 + TIE / 2 and self.middle > 1 + TIE:
            return "win"
        return "loss" if self.high < 1 - TIE / 2 and self.middle < 1 - TIE else "tie"


def paired_ratio(base: Measurement, contender: Measurement) -> Ratio:
    """How many times faster the contender is; the samples must be paired."""
    ratios = np.array(base.samples_ns) / np.array(contender.samples_ns)
    low, middle, high = location(ratios)
    if len(ratios) >= QUARTERS:
        # samples that drift are no independent draws: a quarter may say anything, the others count
        quarters = sorted(location(part)[1] for part in np.array_split(ratios, QUARTERS))
        low, high = min(low, quarters[1]), max(high, quarters[-2])
    return Ratio(low, middle, high)


def location(ratios: Sequence[float] | NDArray[np.float64]) -> tuple[float, float, float]:
    """The median of the means of all pairs (of logarithms), within the signed-rank test's interval.

    Hodges and Lehmann 1963, doi 10.1214/aoms/1177704172; the normal approximation of the interval
    as in Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3.3. Of normal noise it
    makes 95% of what the mean would, the median 64%; up to 29% of the samples may be anything.
    """
    values = np.log(ratios)
    n = len(values)
    left, right = np.triu_indices(n)
    means = np.sort((values[left] + values[right]) / 2)
    width = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    outside = max(0, int(n * (n + 1) / 4 - width))
    low, middle, high = means[outside], np.median(means), means[-1 - outside]
    return math.exp(low), math.exp(middle), math.exp(high)


def settled(samples: Sequence[Sequence[float]]) -> bool:
    """Whether the ratios of the series to the first one, or a lone series, are known well."""
    first = samples[0]
    ratios = [[a / b for a, b in zip(first, other, strict=True)] for other in samples[1:]]
    intervals = [Measurement.interval_of(series) for series in ratios or [list(first)]]
    return all(high - low <= 2 * KNOWN * low for low, high in intervals)
