"""Clocks: how long a call takes, by the wall on a CPU and by events on a GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fp4bench.trials import Measurement, Policy

SAMPLE_SECONDS = 1e-3  # long enough that the clock and one interruption do not matter
LOOK_SAMPLES, MOST_SAMPLES = 3, 15
MOST_CALLS = 4096
GOOD_INTERVAL = 0.02  # of the median: no more samples are needed
CAP_SECONDS = 0.35  # for one trial's samples
HOPELESS = 2.0  # times the best so far: not worth more than a first look

Call = Callable[[], object]
Calls = Sequence[Call]  # one operation on rotated operands: call i uses set i


class Clock(Protocol):
    """Times `calls` calls in a row; returns nanoseconds in all."""

    def time(self, operation: Calls, calls: int) -> float: ...


@dataclass(frozen=True)
class WallClock:
    """For synchronous code: time.perf_counter_ns around a loop."""

    def time(self, operation: Calls, calls: int) -> float:
        many = [operation[i % len(operation)] for i in range(calls)]
        start = time.perf_counter_ns()
        for call in many:
            call()
        return time.perf_counter_ns() - start


class EventClock:
    """CUDA events around a loop, or around one CUDA graph that holds the loop's calls."""

    def __init__(self, graph: bool) -> None:
        self._use_graph = graph
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Calls]] = {}

    def time(self, operation: Calls, calls: int) -> float:
        run = self._replay(operation, calls) if self._use_graph else None
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        torch.cuda.synchronize()
        start.record()
        if run is not None:
            run()
        else:
            for i in range(calls):
                operation[i % len(operation)]()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e6

    def _replay(self, operation: Calls, calls: int) -> Callable[[], None]:
        key = (id(operation), calls)
        if key not in self._graphs:
            operation[0]()  # compiles and allocates outside the capture
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(calls):
                    operation[i % len(operation)]()
            # the operation is kept too: while it lives, no other can have its id
            self._graphs[key] = (graph, operation)
            graph.replay()
        return self._graphs[key][0].replay


def clock_for(kind: str, policy: Policy) -> Clock:
    return EventClock(policy.launch == "graph") if kind == "cuda" else WallClock()


def default_policy(kind: str, cache: str) -> Policy:
    """Graphs on a GPU, where launching costs more than small kernels; plain calls on a CPU."""
    return Policy.model_validate({"launch": "graph" if kind == "cuda" else "eager", "cache": cache})


def calls_per_sample(clock: Clock, operation: Calls) -> int:
    """How many calls fill SAMPLE_SECONDS; warms the operation up on the way."""
    calls, target = 1, SAMPLE_SECONDS * 1e9
    while True:
        # the faster of two: a thread that slept, or a page first touched, must not set the number
        elapsed = min(clock.time(operation, calls) for _ in range(2))
        if elapsed >= target or calls >= MOST_CALLS:
            return calls
        calls = min(MOST_CALLS, max(2 * calls, int(calls * target / max(elapsed, 1)) + 1))


def measure(
    clock: Clock, operation: Calls, policy: Policy, best_ns: float | None = None
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
    clock: Clock, operations: Sequence[Calls], policy: Policy, seconds: float, rounds: int
) -> list[Measurement]:
    """Sample each operation once a round, in alternating order, for up to `rounds` rounds.

    Sample i of every operation was taken in round i, so the results can be paired.
    """
    load = os.getloadavg()[0]
    calls = [calls_per_sample(clock, operation) for operation in operations]
    samples: list[list[float]] = [[] for _ in operations]
    end = time.perf_counter() + seconds
    for turn in range(rounds):
        order = range(len(operations))
        for i in order if turn % 2 == 0 else reversed(order):
            clock.time(operations[i], 1 + calls[i] // 5)  # wakes the threads it will use
            samples[i].append(max(clock.time(operations[i], calls[i]), 1.0) / calls[i])
        if turn >= 5 and time.perf_counter() > end:
            break
    return [
        measurement(taken, count, policy, clock, load)
        for taken, count in zip(samples, calls, strict=True)
    ]


def measurement(
    samples: Sequence[float], calls: int, policy: Policy, clock: Clock, load: float
) -> Measurement:
    return Measurement(
        samples_ns=tuple(samples),
        calls=calls,
        warmup_calls=calls,
        timer="perf_counter" if isinstance(clock, WallClock) else "cuda_event",
        policy=policy,
        telemetry={"load_average": load},
    )
