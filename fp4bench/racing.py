"""Verdicts from paired samples: only a win beyond the noise is called one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fp4bench.trials import Measurement

TIE = 0.02  # half-width of what counts as equal
CONFIDENCE = 0.95
KNOWN = 0.005  # half-width of a ratio's interval that is good enough


@dataclass(frozen=True)
class Ratio:
    """`base` time over `contender` time with its confidence interval: above 1 is faster."""

    low: float
    middle: float
    high: float

    @property
    def verdict(self) -> Literal["win", "tie", "loss"]:
        if self.low > 1 and self.middle > 1 + TIE:
            return "win"
        if self.high < 1 and self.middle < 1 - TIE:
            return "loss"
        return "tie"


def paired_ratio(base: Measurement, contender: Measurement) -> Ratio:
    """Median of the paired ratios and its bootstrap interval; the samples must be paired."""
    logs = np.log(np.array(base.samples_ns) / np.array(contender.samples_ns))
    middle = float(np.median(logs))
    if np.ptp(logs) == 0:  # the same samples: nothing to resample
        return Ratio(*([float(np.exp(middle))] * 3))
    from scipy import stats  # slow to import, and a measuring process has no use for it

    interval = stats.bootstrap(
        (logs,), np.median, confidence_level=CONFIDENCE, method="percentile",
        n_resamples=2000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    # samples that drift are no independent draws: the medians of both halves widen the interval
    halves = [float(np.median(half)) for half in np.array_split(logs, 2)]
    low, high = min(interval.low, *halves), max(interval.high, *halves)
    return Ratio(float(np.exp(low)), float(np.exp(middle)), float(np.exp(high)))


def settled(samples: Sequence[Sequence[float]]) -> bool:
    """Whether the ratios of the series to the first one, or a lone series, are known well."""
    first = samples[0]
    ratios = [[a / b for a, b in zip(first, other, strict=True)] for other in samples[1:]]
    intervals = [Measurement.interval_of(series) for series in ratios or [list(first)]]
    return all(high - low <= 2 * KNOWN * low for low, high in intervals)
