"""The contract of telemetry: a monitor of a device opens watches over spans of time."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from fp4bench.trials import Telemetry


class Watch(ABC):
    """Observes the device inside a `with` block; `read` says what was seen, after it."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    @abstractmethod
    def read(self) -> Telemetry:
        """What the device said during the block. `joules_per_call` is for the caller, who counts
        the calls, to fill in."""


class Monitor(ABC):
    """One device's sensors."""

    @abstractmethod
    def watch(self) -> Watch: ...

    @abstractmethod
    def energy_joules(self) -> float | None:
        """The energy counter, from an arbitrary start: difference it over a long loop."""


def known_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
