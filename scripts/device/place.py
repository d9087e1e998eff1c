"""Where a part runs, and what all parts share: rows that survive an error, times taken in turn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fp4bench import telemetry
from fp4bench.clocks import Call
from fp4bench.timing import Operation, default_policy, interleaved
from fp4bench.trials import Policy
from fp4kernels.devices import Device, Toolchain
from fp4kernels.packing import Packed

Row = dict[str, Any]
MOST_COPIES = 32


@dataclass(frozen=True)
class Place:
    """`seconds` are those that all of a part's samples may take; `small` is for a machine whose times
    mean nothing."""

    device: Device
    toolchain: Toolchain
    seconds: float
    small: bool

    @property
    def torch_device(self) -> torch.device:
        return self.device.torch_device

    def race(
        self, contenders: Mapping[str, list[Call]], share: float, eager: bool = False
    ) -> dict[str, float]:
        """Median nanoseconds of each, sampled in turn for a `share` of the seconds. Calls of one
        contender rotate: with enough copies of their operands each finds a cold cache."""
        kind = self.device.kind
        policy = Policy(launch="eager", cache="cold") if eager else default_policy(kind, "cold")
        operations = [Operation(calls, kind, policy) for calls in contenders.values()]
        found = interleaved(
            operations, telemetry.monitor(self.device), share * self.seconds, len(operations)
        )
        return {name: one.median_ns for name, one in zip(contenders, found, strict=True)}

    def copies(self, size: float) -> int:
        """Of operands of so many bytes, for none to be in a cache when its turn comes."""
        enough = -(-2 * self.device.cache_bytes // max(int(size), 1))
        return 2 if self.small else min(max(enough, 2), MOST_COPIES)

    def copy_calls(self, size: int) -> list[Call]:
        """Copies of `size` bytes: what a kernel that moves as much is measured by."""
        line = torch.empty(max(size // 2, 16), dtype=torch.uint8, device=self.torch_device)
        sources = [line.clone() for _ in range(self.copies(size))]
        return [functools.partial(line.copy_, source) for source in sources]


def collect(cases: Iterable[tuple[str, Callable[[], Row]]]) -> list[Row]:
    """A row for each case: what it returns, or its error, and the others go on."""
    rows = []
    for label, measure in cases:
        try:
            rows.append({"case": label, **measure()})
        except Exception as error:  # of the device, the compiler or the kernel: all are results
            rows.append({"case": label, "error": f"{type(error).__name__}: {error}"[:2000]})
    return rows


def cloned(packed: Packed, count: int) -> list[Packed]:
    """`packed` and copies of it, so many in all."""
    return [packed, *(Packed(*(part.clone() for part in packed)) for _ in range(count - 1))]
