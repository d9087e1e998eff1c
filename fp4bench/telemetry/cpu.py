"""A CPU's sensors, read at the two ends of a span: a sampling thread would disturb the timed cores.

Everything is a file of Linux; elsewhere only the load average is known.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from fp4bench.telemetry.base import Monitor, Watch, known_mean
from fp4bench.trials import Telemetry

_PACKAGE_SENSORS = {"coretemp", "k10temp", "zenpower", "cpu_thermal"}
_STEAL, _COUNTED = 7, 8  # columns of /proc/stat; guest time, after them, is part of user time


class _Ticks(NamedTuple):
    """CPU time of the cores this process may use, in the kernel's ticks."""

    steal: int
    total: int


class _EnergyCounter:
    """One RAPL package domain, with the turns that its counter made since it was first read."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._turn = _number(folder / "max_energy_range_uj")
        self._last: float | None = None
        self._microjoules = 0.0

    def joules(self) -> float | None:
        now = _number(self._file)
        if now is None:
            return None
        if self._last is not None:
            step = now - self._last
            self._microjoules += step + (self._turn or 0.0) if step < 0 else step
        self._last = now
        return self._microjoules / 1e6


class CpuMonitor(Monitor):
    """The files under `root` that this process may read."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat, self._info = root / "proc/stat", root / "proc/cpuinfo"
        self._cores = _affinity()
        self._clocks = [
            root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"
            for core in self._cores
        ]
        self._heat = [
            folder / "temp1_input"
            for folder in sorted((root / "sys/class/hwmon").glob("hwmon*"))
            if _text(folder / "name").strip() in _PACKAGE_SENSORS
        ]
        self._energy = [
            _EnergyCounter(folder)
            for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
            if _text(folder / "name").startswith("package")
        ]

    def watch(self) -> CpuWatch:
        return CpuWatch(self)

    def energy_joules(self) -> float | None:
        """Of all packages together. None where RAPL is absent, or for root alone to read."""
        readings = [counter.joules() for counter in self._energy]
        known = [joules for joules in readings if joules is not None]
        return sum(known) if known and len(known) == len(readings) else None

    def mhz(self) -> float | None:
        """Mean clock of the usable cores, now."""
        kilohertz = known_mean(map(_number, self._clocks))
        if kilohertz is not None:
            return kilohertz / 1e3
        clocks = _per_core(_text(self._info))
        return known_mean(clocks.get(core) for core in self._cores)

    def celsius(self) -> float | None:
        """The hottest package, now."""
        readings = [_number(file) for file in self._heat]
        return max((value / 1e3 for value in readings if value is not None), default=None)

    def ticks(self) -> _Ticks | None:
        lines = (line.split() for line in _text(self._stat).splitlines())
        wanted = {f"cpu{core}" for core in self._cores}
        rows = [[*map(int, fields[1:])] for fields in lines if fields and fields[0] in wanted]
        if not rows or min(map(len, rows)) < _COUNTED:
            return None
        return _Ticks(sum(row[_STEAL] for row in rows), sum(sum(row[:_COUNTED]) for row in rows))


class CpuWatch(Watch):
    """Reads the counters at both ends, and the clock at the end, while it still is the load's."""

    def __init__(self, monitor: CpuMonitor) -> None:
        self._monitor = monitor
        self._seen = Telemetry()

    def __enter__(self) -> Self:
        self._load = load_average()  # before the timing adds to it
        self._ticks = self._monitor.ticks()
        self._joules = self._monitor.energy_joules()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = time.perf_counter() - self._start
        mhz = self._monitor.mhz()
        joules = self._monitor.energy_joules()
        watts = None
        if joules is not None and self._joules is not None and seconds > 0:
            watts = (joules - self._joules) / seconds
        self._seen = Telemetry(
            load_average=self._load,
            steal=_share(self._ticks, self._monitor.ticks()),
            mhz=mhz,
            watts=watts,
            celsius=self._monitor.celsius(),
        )

    def read(self) -> Telemetry:
        return self._seen


def load_average() -> float | None:
    """Of the last minute; None where the system keeps none."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _share(start: _Ticks | None, end: _Ticks | None) -> float | None:
    if start is None or end is None or end.total <= start.total:
        return None
    return max(0.0, (end.steal - start.steal) / (end.total - start.total))


def _affinity() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return [*range(os.cpu_count() or 1)]


def _per_core(info: str) -> dict[int, float]:
    """MHz by core, from /proc/cpuinfo; empty where it has none, as on most ARM machines."""
    fields = re.findall(r"^(processor|cpu MHz)\s*:\s*([\d.]+)$", info, re.MULTILINE)
    clocks, core = {}, -1
    for name, value in fields:
        if name == "processor":
            core = int(value)
        else:
            clocks[core] = float(value)
    return clocks


def _number(file: Path) -> float | None:
    try:
        return float(_text(file))
    except ValueError:
        return None


def _text(file: Path) -> str:
    """What a file holds; nothing where it is absent, for root alone, or fails to be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
