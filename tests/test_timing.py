"""Clocks: operands rotate on, samples pair, measuring stops when it should."""

from __future__ import annotations

import time

import pytest

from fp4bench import timing
from fp4bench.timing import Rotation, WallClock
from fp4bench.trials import Policy

POLICY = Policy(launch="eager", cache="cold")


class GraphLike(WallClock):
    whole_rotations = True


def test_a_rotation_goes_on_where_it_stopped() -> None:
    seen: list[int] = []
    rotation = Rotation([lambda i=i: seen.append(i) for i in range(5)])
    for count in (3, 3, 4):
        WallClock().time(rotation, count)
    assert seen == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]


def test_a_sample_lasts_long_enough_and_holds_whole_rotations_where_it_must() -> None:
    rotation = Rotation([lambda: time.sleep(2e-4)] * 3)
    calls = timing.calls_per_sample(WallClock(), rotation)
    assert calls * 2e-4 >= 0.8 * timing.SAMPLE_SECONDS
    assert calls <= 10
    assert timing.calls_per_sample(GraphLike(), rotation) % 3 == 0
    assert timing.calls_per_sample(WallClock(), Rotation([lambda: None])) <= timing.MOST_CALLS


def test_measure_stops_at_a_hopeless_candidate() -> None:
    slow = Rotation([lambda: time.sleep(2e-3)])
    hopeless = timing.measure(WallClock(), slow, POLICY, best_ns=1e5)
    assert len(hopeless.samples_ns) == timing.LOOK_SAMPLES
    fair = timing.measure(WallClock(), slow, POLICY, best_ns=2e6)
    assert len(fair.samples_ns) > timing.LOOK_SAMPLES
    assert fair.median_ns == pytest.approx(2e6, rel=0.5)
    assert fair.telemetry.load_average is not None


def test_interleaved_samples_belong_to_rounds() -> None:
    order: list[str] = []
    operations = [Rotation([lambda n=n: (order.append(n), time.sleep(1e-3))]) for n in "ab"]
    first, second = timing.interleaved(WallClock(), operations, POLICY, 0.05, rounds=7)
    assert len(first.samples_ns) == len(second.samples_ns) == 7
    # each sample is preceded by a call that wakes its threads; both are taken once a round
    assert {"".join(order[-8:-4]), "".join(order[-4:])} <= {"aabb", "bbaa"}


def test_a_race_ends_with_its_time() -> None:
    slow = Rotation([lambda: time.sleep(5e-3)])
    start = time.monotonic()
    (measured,) = timing.interleaved(WallClock(), [slow], POLICY, 0.05, rounds=1000)
    assert len(measured.samples_ns) >= 6
    assert time.monotonic() - start < 2
