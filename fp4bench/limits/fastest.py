"""A limit is a maximum: the shortest sample counts, not the median."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from fp4bench.clocks import Call
from fp4bench.timing import Operation
from fp4bench.trials import Policy


def fastest(ways: Sequence[Call], kind: str, policy: Policy, seconds: float) -> float:
    """Nanoseconds of one call: the shortest sample, for `seconds`, of all `ways` to do the same.

    They take turns, so that each meets the machine's good moments.
    """
    operations = [Operation([way], kind, policy) for way in ways]
    counts = [operation.calls_per_sample for operation in operations]
    best, end = math.inf, time.perf_counter() + seconds
    while True:
        for operation, count in zip(operations, counts, strict=True):
            best = min(best, operation.time(count) / count)
        if time.perf_counter() > end:
            return best
