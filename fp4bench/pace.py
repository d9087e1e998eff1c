"""Time limits that follow what the work has taken so far."""

from __future__ import annotations

FACTOR = 10.0  # over the slowest that came through: only what hangs takes this long


class Pace:
    """A limit in seconds between `least` and `most`; `most` until something came through."""

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most
        self._slowest: float | None = None

    def add(self, seconds: float) -> None:
        self._slowest = max(seconds, self._slowest or 0.0)

    @property
    def limit(self) -> float:
        if self._slowest is None:
            return self._most
        return min(self._most, max(self._least, FACTOR * self._slowest))
