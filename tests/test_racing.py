"""Verdicts: wins are beyond the noise, equal things tie."""

from __future__ import annotations

import numpy as np
import pytest

from fp4bench.racing import paired_ratio
from samples import measurement


def samples(mean: float, noise: float, seed: int) -> list[float]:
    generator = np.random.default_rng(seed)
    return [float(v) for v in mean * np.exp(noise * generator.standard_normal(25))]


@pytest.mark.parametrize("seed", range(20))
def test_a_clear_win_and_its_mirror(seed: int) -> None:
    slow, fast = measurement(samples(1.2, 0.05, seed)), measurement(samples(1.0, 0.05, seed + 100))
    assert paired_ratio(slow, fast).verdict == "win"
    assert paired_ratio(fast, slow).verdict == "loss"


def test_equal_things_are_hardly_ever_told_apart() -> None:
    wins = [
        paired_ratio(
            measurement(samples(1, 0.1, s)), measurement(samples(1, 0.1, s + 1000))
        ).verdict
        for s in range(100)
    ]
    assert wins.count("tie") >= 92


def test_a_difference_within_the_tie_band_is_a_tie_however_certain() -> None:
    exact = paired_ratio(measurement([1.015] * 10), measurement([1.0] * 10))
    assert exact.verdict == "tie"
    assert exact.low == exact.middle == exact.high


def test_pairing_removes_what_both_share() -> None:
    drift = np.linspace(1, 3, 25)
    slow, fast = measurement([*(1.1 * drift)]), measurement([*drift])
    ratio = paired_ratio(slow, fast)
    assert ratio.verdict == "win"
    assert ratio.middle == pytest.approx(1.1)
