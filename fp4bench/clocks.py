"""Clocks: what a row of calls takes, in nanoseconds."""

from __future__ import annotations

import resource
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch

from fp4bench.trials import Policy

GRAPHS_KEPT = 2  # of one operation: the number of calls is sought, and then stays

Call = Callable[[], object]
Timer = Literal["perf_counter", "cuda_event"]


class Clock(Protocol):
    """Times calls in a row."""

    name: Timer
    replays: bool  # whether it runs a recording of the calls
    disturbed: bool  # whether others took a core away while it timed last

    def time(self, calls: Sequence[Call]) -> float: ...


class WallClock:
    """For synchronous code: time.perf_counter_ns, which no change of the date moves."""

    name: Timer = "perf_counter"
    replays = False
    disturbed = False

    def time(self, calls: Sequence[Call]) -> float:
        switches = _involuntary_switches()
        start = time.perf_counter_ns()
        for call in calls:
            call()
        elapsed = time.perf_counter_ns() - start
        self.disturbed = _involuntary_switches() > switches
        return elapsed


class EventClock:
    """CUDA events around the calls, or around one CUDA graph that holds them all."""

    name: Timer = "cuda_event"
    disturbed = False  # a GPU does not tell

    def __init__(self, graph: bool) -> None:
        self.replays = graph
        self._graphs: OrderedDict[int, torch.cuda.CUDAGraph] = OrderedDict()

    def time(self, calls: Sequence[Call]) -> float:
        many = [self._graph(calls).replay] if self.replays else calls
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

    def _graph(self, calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
        """One a number of calls: a clock serves one operation, whose rotations are all alike."""
        count = len(calls)
        if count not in self._graphs:
            calls[0]()  # compiles and allocates outside the capture
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
            self._graphs[count] = graph
            if len(self._graphs) > GRAPHS_KEPT:  # each holds device memory
                self._graphs.popitem(last=False)
            graph.replay()
        return self._graphs[count]


def _involuntary_switches() -> int:
    """How often the system took a core from any thread of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def clock_for(kind: str, policy: Policy) -> Clock:
    return EventClock(policy.launch == "graph") if kind == "cuda" else WallClock()
