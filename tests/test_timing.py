"""Clocks: operands rotate on, samples pair, measuring stops when it should."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest

from fp4bench import timing
from fp4bench.clocks import Call, WallClock
from fp4bench.telemetry import Monitor, Watch, monitor
from fp4bench.timing import Operation
from fp4bench.trials import Policy, Telemetry
from fp4kernels.devices import Device

POLICY = Policy(launch="eager", cache="cold")


def operation(*calls: Call) -> Operation:
    return Operation(calls, "cpu", POLICY)


def sleeping(seconds: float) -> Operation:
    return operation(lambda: time.sleep(seconds))


@pytest.fixture
def here(cpu: Device) -> Monitor:
    return monitor(cpu)


class Steady(WallClock):
    """Whatever a busy machine does meanwhile, a call takes so many seconds."""

    def __init__(self, seconds: float, replays: bool = False) -> None:
        self._seconds, self.replays = seconds, replays

    def time(self, calls: Sequence[Call]) -> float:
        return len(calls) * self._seconds * 1e9


class Jumping(WallClock):
    """The clock of a machine that was stopped in between: now and then far too much, or nothing."""

    def __init__(self) -> None:
        self._turn = 0

    def time(self, calls: Sequence[Call]) -> float:
        self._turn += 1
        return {8: 3.6e12, 9: 3.6e12, 14: 0.0, 15: 0.0}.get(self._turn % 20, super().time(calls))


class Throttled(Monitor):
    """A device that is held down until its samples are taken the `clear`th time."""

    def __init__(self, clear: int) -> None:
        self.watched, self._clear = 0, clear

    def energy_joules(self) -> None:
        return None

    def watch(self) -> Watch:
        outer = self
        outer.watched += 1

        class Reading(Watch):
            def __enter__(self) -> Reading:
                return self

            def __exit__(self, *_: object) -> None: ...

            def read(self) -> Telemetry:
                return Telemetry(throttled=outer.watched < outer._clear)

        return Reading()


def test_a_rotation_goes_on_where_it_stopped() -> None:
    seen: list[int] = []
    rotating = operation(*(lambda i=i: seen.append(i) for i in range(5)))  # type: ignore[misc]
    for count in (3, 3, 4):
        rotating.time(count)
    assert seen == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert rotating.taken == 10


def test_a_sample_lasts_long_enough_and_holds_whole_rotations_where_it_must() -> None:
    calls = [lambda: None] * 3
    sampled, replayed = operation(*calls), operation(*calls)
    sampled.clock, replayed.clock = Steady(2e-4), Steady(2e-4, replays=True)
    for one in (sampled, replayed):
        assert timing.SAMPLE_SECONDS <= one.calls_per_sample * 2e-4 <= 2 * timing.SAMPLE_SECONDS
    assert replayed.calls_per_sample % 3 == 0
    assert operation(lambda: None).calls_per_sample <= timing.MOST_CALLS


def test_measure_stops_at_a_hopeless_candidate(here: Monitor) -> None:
    # far beyond twice the best: a busy machine sleeps a millisecond in half as much again
    hopeless, ratio = timing.measure(sleeping(3e-3), sleeping(1e-3), here, best=0.8)
    assert len(hopeless.samples_ns) == timing.LOOK_SAMPLES
    assert ratio == pytest.approx(3, rel=0.3)
    fair, _ = timing.measure(sleeping(2e-3), sleeping(1e-3), here, best=1.6)
    assert len(fair.samples_ns) > timing.LOOK_SAMPLES
    assert fair.median_ns == pytest.approx(2e6, rel=0.5)
    assert fair.warmup_calls >= fair.calls
    assert fair.telemetry.load_average is not None


def test_interleaved_samples_belong_to_rounds(here: Monitor) -> None:
    order: list[str] = []

    def call(name: str) -> Callable[[], object]:
        return lambda: (order.append(name), time.sleep(1e-3))

    first, second = timing.interleaved([operation(call("a")), operation(call("b"))], here, 0.05, 2)
    assert len(first.samples_ns) == len(second.samples_ns) >= timing.LEAST_ROUNDS
    # each sample is preceded by a call that wakes its threads; both are taken once a round
    assert {"".join(order[-8:-4]), "".join(order[-4:])} <= {"aabb", "bbaa"}


def test_a_race_ends_with_its_time(here: Monitor) -> None:
    start = time.monotonic()
    (measured,) = timing.interleaved([sleeping(5e-3)], here, 0.05, 1)
    assert len(measured.samples_ns) >= timing.LEAST_ROUNDS
    assert time.monotonic() - start < 2


def test_a_clock_that_jumps_moves_no_median(here: Monitor) -> None:
    steady, jumping = sleeping(1e-3), sleeping(1e-3)
    jumping.clock = Jumping()
    one, other = timing.interleaved([steady, jumping], here, 0.3, 2)
    assert max(other.samples_ns) > 1e12
    assert min(other.samples_ns) > 0
    assert other.median_ns == pytest.approx(one.median_ns, rel=0.2)


@pytest.mark.parametrize(
    ("clear", "watched", "marked"), [(1, 1, False), (2, 2, False), (9, 2, True)]
)
def test_throttled_samples_are_taken_again_and_marked(
    clear: int, watched: int, marked: bool
) -> None:
    for take in (
        lambda held: [timing.measure(sleeping(1e-4), sleeping(1e-4), held)[0]],
        lambda held: timing.interleaved([sleeping(1e-4)] * 2, held, 0.01, 2),
    ):
        held = Throttled(clear)
        found = take(held)
        assert held.watched == watched
        assert all(measured.telemetry.throttled is marked for measured in found)


def test_a_longer_row_reads_otherwise_so_like_speeds_get_like_rows() -> None:
    assert timing._alike([100, 60, 4]) == [100, 100, 4]
