"""Clocks: how long a call takes, by the wall on a CPU and by events on a GPU."""

from __future__ import annotations

import math
import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from fp4bench.trials import Measurement, Policy, Telemetry

SAMPLE_SECONDS = 1e-3  # long enough that the clock and one interruption do not matter
LOOK_SAMPLES, MOST_SAMPLES = 3, 15
MOST_CALLS = 4096
GRAPHS_KEPT = 8  # a race alternates between its operations, one graph each
GOOD_INTERVAL = 0.02  # of the median: no more samples are needed
CAP_SECONDS = 0.35  # for one trial's samples
HOPELESS = 2.0  # times the best so far: not worth more than a first look

Call = Callable[[], object]


class Rotation:
    """One operation on rotated operands. Goes on where it stopped, so that no operand comes back
    before all others were touched: that is what keeps a cache cold."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self._next = 0

    def take(self, count: int) -> list[Call]:
        start, self._next = self._next, self._next + count
        return [self.calls[i % len(self.calls)] for i in range(start, start + count)]


class Clock(Protocol):
    """Times `count` calls in a row; returns nanoseconds in all."""

    whole_rotations: bool  # whether `count` must be a multiple of the operands

    def time(self, operation: Rotation, count: int) -> float: ...


class WallClock:
    """For synchronous code: time.perf_counter_ns around a loop."""

    whole_rotations = False

    def time(self, operation: Rotation, count: int) -> float:
        many = operation.take(count)
        start = time.perf_counter_ns()
        for call in many:
            call()
        return time.perf_counter_ns() - start


class EventClock:
    """CUDA events around a loop, or around one CUDA graph that holds the loop's calls.

    A graph replays the same calls, so it must hold whole rotations.
    """

    def __init__(self, graph: bool) -> None:
        self.whole_rotations = graph
        # the operation is kept too: while it lives, no other can have its id
        self._graphs: OrderedDict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Rotation]]
        self._graphs = OrderedDict()

    def time(self, operation: Rotation, count: int) -> float:
        if self.whole_rotations:
            many: list[Call] = [self._graph(operation, count).replay]
        else:
            many = operation.take(count)
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        torch.cuda.synchronize()
        start.record()
        for call in many:
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e6

    def _graph(self, operation: Rotation, count: int) -> torch.cuda.CUDAGraph:
        key = (id(operation), count)
        if key not in self._graphs:
            operation.calls[0]()  # compiles and allocates outside the capture
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in operation.take(count):
                    call()
            self._graphs[key] = (graph, operation)
            if len(self._graphs) > GRAPHS_KEPT:  # each holds device memory
                self._graphs.popitem(last=False)
            graph.replay()
        return self._graphs[key][0]


def clock_for(kind: str, policy: Policy) -> Clock:
    return EventClock(policy.launch == "graph") if kind == "cuda" else WallClock()


def default_policy(kind: str, cache: str) -> Policy:
    """Graphs on a GPU, where launching costs more than small kernels; plain calls on a CPU."""
    return Policy.model_validate({"launch": "graph" if kind == "cuda" else "eager", "cache": cache})


def calls_per_sample(clock: Clock, operation: Rotation) -> int:
    """How many calls fill SAMPLE_SECONDS; warms the operation up on the way."""
    step = len(operation.calls) if clock.whole_rotations else 1
    count, target = step, SAMPLE_SECONDS * 1e9
    while True:
        # the faster of two: a thread that slept, or a page first touched, must not set the number
        elapsed = min(clock.time(operation, count) for _ in range(2))
        if elapsed >= target or count >= MOST_CALLS:
            return count
        wanted = max(2 * count, int(count * target / max(elapsed, 1)) + 1)
        count = math.ceil(min(MOST_CALLS, wanted) / step) * step


def measure(
    clock: Clock, operation: Rotation, policy: Policy, best_ns: float | None = None
) -> Measurement:
    """Sample until the median is known to GOOD_INTERVAL, the cap is reached, or it is hopeless."""
    load = os.getloadavg()[0]
    calls = calls_per_sample(clock, operation)
    samples: list[float] = []
    end = time.perf_counter() + CAP_SECONDS
    while True:
        samples.append(max(clock.time(operation, calls), 1.0) / calls)
        done = measurement(samples, calls, policy, clock, load)
        if len(samples) < LOOK_SAMPLES:
            continue
        if best_ns is not None and done.median_ns > HOPELESS * best_ns:
            return done
        low, high = done.interval_ns
        settled = len(samples) >= 6 and high - low <= GOOD_INTERVAL * done.median_ns
        if settled or len(samples) >= MOST_SAMPLES or time.perf_counter() > end:
            return done


def interleaved(
    clock: Clock, operations: Sequence[Rotation], policy: Policy, seconds: float, rounds: int
) -> list[Measurement]:
    """Sample each operation once a round, in random order, for up to `rounds` rounds.

    Sample i of every operation was taken in round i, so the results can be paired.
    """
    load = os.getloadavg()[0]
    calls = _alike([calls_per_sample(clock, operation) for operation in operations])
    shuffle = random.Random(len(operations)).shuffle
    samples: list[list[float]] = [[] for _ in operations]
    end = time.perf_counter() + seconds
    for turn in range(rounds):
        order = [*range(len(operations))]
        shuffle(order)  # whoever comes first meets the threads of whoever came last
        for i in order:
            clock.time(operations[i], _few(clock, calls[i]))  # wakes the threads it will use
            samples[i].append(max(clock.time(operations[i], calls[i]), 1.0) / calls[i])
        if turn >= 5 and time.perf_counter() > end:
            break
    return [
        measurement(taken, count, policy, clock, load)
        for taken, count in zip(samples, calls, strict=True)
    ]


def _alike(counts: Sequence[int]) -> list[int]:
    """One number of calls for operations of about one speed: a longer sample reads otherwise."""
    return [max(other for other in counts if other <= 2 * count) for count in counts]


def _few(clock: Clock, count: int) -> int:
    return count if clock.whole_rotations else 1 + count // 5


def measurement(
    samples: Sequence[float], calls: int, policy: Policy, clock: Clock, load: float
) -> Measurement:
    return Measurement(
        samples_ns=tuple(samples),
        calls=calls,
        warmup_calls=calls,
        timer="perf_counter" if isinstance(clock, WallClock) else "cuda_event",
        policy=policy,
        telemetry=Telemetry(load_average=load),
    )
