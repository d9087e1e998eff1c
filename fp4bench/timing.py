"""How long a call takes: by the wall on a CPU, by events on a GPU; alone, or interleaved."""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Sequence

from fp4bench.clocks import Call, Clock, clock_for
from fp4bench.racing import location, settled
from fp4bench.telemetry import Monitor
from fp4bench.trials import Measurement, Policy, Telemetry

SAMPLE_SECONDS = 1e-3  # long enough that the clock and one interruption do not matter
LOOK_SAMPLES, LEAST_SAMPLES, MOST_SAMPLES = 3, 6, 11
MOST_CALLS = 4096
RETAKES = 2  # on a loaded machine every sample is disturbed
GOOD_INTERVAL = 0.02  # of the ratio: no more samples are needed
CAP_SECONDS = 0.35  # for one trial's samples
HOPELESS = 2.0  # times the best so far: not worth more than a first look
LIKE = 8  # times as many calls fit: still sampled alike
LEAST_ROUNDS, MOST_ROUNDS = 11, 201  # of a race
THROTTLE_RETRIES = 1
ENERGY_SECONDS = 1.0  # long against the 20 to 100 ms at which energy counters move


class Operation:
    """One operation on rotated operands, timed under one policy.

    It goes on where it stopped, so that no operand comes back before all others were touched:
    that is what keeps a cache cold.
    """

    def __init__(self, calls: Sequence[Call], kind: str, policy: Policy) -> None:
        self.calls, self.policy = calls, policy
        self.clock: Clock = clock_for(kind, policy)
        self.taken = 0  # calls so far

    def time(self, count: int) -> float:
        """Nanoseconds that `count` calls in a row took."""
        start, self.taken = self.taken, self.taken + count
        row = [self.calls[i % len(self.calls)] for i in range(start, start + count)]
        return max(self.clock.time(row), 1.0)

    def sample(self, count: int) -> float:
        """Nanoseconds a call, over `count` in a row; taken again where others disturbed it."""
        for _ in range(1 + RETAKES):
            elapsed = self.time(count)
            if not self.clock.disturbed:
                break
        return elapsed / count

    @functools.cached_property
    def calls_per_sample(self) -> int:
        """How many calls fill SAMPLE_SECONDS; warms the operation up on the way.

        A graph replays the same calls, so it must hold whole rotations.
        """
        step, target = len(self.calls) if self.clock.replays else 1, SAMPLE_SECONDS * 1e9
        count = step
        while True:
            # the faster of two: a thread that slept, a page first touched must not set the number
            elapsed = min(self.time(count) for _ in range(2))
            if elapsed >= target or count >= MOST_CALLS:
                return count
            wanted = max(2 * count, int(count * target / elapsed) + 1)
            count = math.ceil(min(MOST_CALLS, wanted) / step) * step


def default_policy(kind: str, cache: str) -> Policy:
    """Graphs on a GPU, where launching costs more than small kernels; plain calls on a CPU."""
    return Policy.model_validate({"launch": "graph" if kind == "cuda" else "eager", "cache": cache})


def bench_policies(kind: str) -> tuple[Policy, ...]:
    """What is compared side by side: cold and warm, and on a GPU eager launches, too."""
    cold, warm = (default_policy(kind, cache) for cache in ("cold", "warm"))
    return (cold, warm, Policy(launch="eager", cache="cold")) if kind == "cuda" else (cold, warm)


def eager_policies() -> tuple[Policy, ...]:
    """What attention is compared under: prefill makes tables on the host, which no graph takes."""
    return tuple(Policy.model_validate({"launch": "eager", "cache": c}) for c in ("cold", "warm"))


def measure(
    operation: Operation, default: Operation, monitor: Monitor, best: float = math.inf
) -> tuple[Measurement, float]:
    """Its samples and its time over the default's, sampled in turn: machines change their speed.

    Ends when the ratio is known to GOOD_INTERVAL, or to be above the `best` so far, when the cap is
    reached, or at once where it is hopeless. Samples of a throttled device are taken again, once; if it is throttled
    still, they say so.
    """
    both = (operation, default)
    calls = _alike([each.calls_per_sample for each in both])
    warmed = operation.taken
    for _ in range(1 + THROTTLE_RETRIES):
        with monitor.watch() as watch:
            samples, ratio = _in_turn(both, calls, best)
        found = _measurement(samples, (calls[0], warmed), operation, watch.read())
        if not found.telemetry.throttled:
            break
    return found, ratio


def interleaved(
    operations: Sequence[Operation], monitor: Monitor, seconds: float, contenders: int
) -> list[Measurement]:
    """Sample each operation once a round, in random order, until the ratios of the first
    `contenders` to the very first are known well, or for `seconds`.

    Sample i of every operation was taken in round i, so the results can be paired.
    """
    calls = [operation.calls_per_sample for operation in operations]
    calls[:contenders] = _alike(calls[:contenders])
    warmed = [operation.taken for operation in operations]
    for _ in range(1 + THROTTLE_RETRIES):
        with monitor.watch() as watch:
            samples = _rounds(operations, calls, seconds, contenders)
        telemetry = watch.read()
        if not telemetry.throttled:
            break
    return [
        _measurement(taken, counts, operation, telemetry)
        for taken, counts, operation in zip(
            samples, zip(calls, warmed, strict=True), operations, strict=True
        )
    ]


def with_energy(measured: Measurement, operation: Operation, monitor: Monitor) -> Measurement:
    """The same with the joules of a call, from a long loop; unchanged where nothing counts them."""
    before, calls, end = monitor.energy_joules(), 0, time.perf_counter() + ENERGY_SECONDS
    if before is None:
        return measured
    while time.perf_counter() < end:
        operation.time(measured.calls)
        calls += measured.calls
    after = monitor.energy_joules()
    if after is None or after <= before:
        return measured
    telemetry = measured.telemetry.model_copy(update={"joules_per_call": (after - before) / calls})
    return measured.model_copy(update={"telemetry": telemetry})


def _in_turn(
    both: tuple[Operation, Operation], calls: Sequence[int], best: float
) -> tuple[list[float], float]:
    """Samples of the first operation, and the ratio of its time to the second one's."""
    samples: list[float] = []
    ratios: list[float] = []
    end = time.perf_counter() + CAP_SECONDS
    while True:
        first, second = _round(both, calls, [0, 1] if len(samples) % 2 else [1, 0])
        samples.append(first)
        ratios.append(first / second)
        if len(samples) < LOOK_SAMPLES:
            continue
        low, middle, high = location(ratios)
        known = high - low <= GOOD_INTERVAL * middle or low > best
        if (
            (known and len(samples) >= LEAST_SAMPLES)
            or middle > HOPELESS * best
            or len(samples) >= MOST_SAMPLES
            or time.perf_counter() > end
        ):
            return samples, middle


def _rounds(
    operations: Sequence[Operation], calls: Sequence[int], seconds: float, contenders: int
) -> list[list[float]]:
    shuffle = random.Random(len(operations)).shuffle
    samples: list[list[float]] = [[] for _ in operations]
    end = time.perf_counter() + seconds
    for turn in range(1, MOST_ROUNDS + 1):
        order = [*range(len(operations))]
        shuffle(order)  # whoever comes first meets the threads of whoever came last
        for taken, sample in zip(samples, _round(operations, calls, order), strict=True):
            taken.append(sample)
        if turn >= LEAST_ROUNDS and (time.perf_counter() > end or settled(samples[:contenders])):
            break
    return samples


def _round(
    operations: Sequence[Operation], calls: Sequence[int], order: Sequence[int]
) -> list[float]:
    """One sample of each, taken in `order`."""
    samples = {}
    for i in order:
        operations[i].time(_few(operations[i], calls[i]))  # wakes the threads it will use
        samples[i] = operations[i].sample(calls[i])
    return [samples[i] for i in range(len(operations))]


def _alike(counts: Sequence[int]) -> list[int]:
    """One number of calls for all but the much slower ones: a longer row reads otherwise."""
    return [max(other for other in counts if other <= LIKE * count) for count in counts]


def _few(operation: Operation, count: int) -> int:
    return count if operation.clock.replays else 1 + count // 5


def _measurement(
    samples: Sequence[float], counts: tuple[int, int], operation: Operation, telemetry: Telemetry
) -> Measurement:
    calls, warmed = counts
    return Measurement(
        samples_ns=tuple(samples),
        calls=calls,
        warmup_calls=warmed,
        timer=operation.clock.name,
        policy=operation.policy,
        telemetry=telemetry,
    )
