"""What the monitors of all GPUs share: a thread that samples while the host is timing.

The queries release Python's lock and take no time of the GPU; the host gives them some tens of
microseconds every PERIOD, which launches in eager mode can feel and graphs cannot.
"""

from __future__ import annotations

import functools
import operator
import threading
from abc import abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from fp4bench.telemetry.base import Monitor, Watch, known_mean
from fp4bench.telemetry.cpu import CpuMonitor
from fp4bench.trials import Telemetry

PERIOD = 0.02  # seconds; NVML's own averages are not much finer


@dataclass(frozen=True)
class Identity:
    """Which GPU torch uses, by names that CUDA_VISIBLE_DEVICES does not renumber."""

    uuid: str | None = None  # without the prefix GPU-
    pci_address: str | None = None  # domain:bus:device.function, in hexadecimal


@dataclass(frozen=True)
class Sample:
    """All sensors at one moment."""

    mhz: float | None = None
    memory_mhz: float | None = None
    watts: float | None = None
    celsius: float | None = None
    event_reasons: int | None = None


class GpuMonitor(Monitor):
    """A GPU whose sensors a thread reads; the host's own figures are recorded beside them."""

    held_down: int = 0  # the bits of `event_reasons` that mean clocks were held down

    def __init__(self) -> None:
        self._host = CpuMonitor()

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether there are sensors to ask."""

    @abstractmethod
    def sample(self) -> Sample:
        """All sensors, now."""

    def watch(self) -> GpuWatch:
        return GpuWatch(self, self._host.watch())


class GpuWatch(Watch):
    """Samples from the first moment of the block to the last; no thread where nobody answers."""

    def __init__(self, monitor: GpuMonitor, host: Watch) -> None:
        self._monitor, self._host = monitor, host
        self._samples: list[Sample] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fp4bench-telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._host.__enter__()
        if self._monitor.connected:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._monitor.connected:
            self._thread.join()
        self._host.__exit__(kind, error, trace)

    def read(self) -> Telemetry:
        host, seen = self._host.read(), [*self._samples]
        bits = [s.event_reasons for s in seen if s.event_reasons is not None]
        reasons = functools.reduce(operator.or_, bits) if bits else None
        return Telemetry(
            load_average=host.load_average,
            steal=host.steal,
            mhz=known_mean([s.mhz for s in seen]),
            memory_mhz=known_mean([s.memory_mhz for s in seen]),
            watts=known_mean([s.watts for s in seen]),
            celsius=max((s.celsius for s in seen if s.celsius is not None), default=None),
            event_reasons=reasons,
            throttled=None if reasons is None else bool(reasons & self._monitor.held_down),
        )

    def _run(self) -> None:
        while True:
            self._samples.append(self._monitor.sample())
            if self._done.wait(PERIOD):
                return


def torch_identity() -> Identity:
    """The GPU that torch calls cuda:0. Older torch versions name it only in part, or not."""
    properties = torch.cuda.get_device_properties(0)
    uuid = getattr(properties, "uuid", None)
    parts = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    domain, bus, slot = parts
    address = None
    if domain is not None and bus is not None and slot is not None:
        address = f"{domain:04x}:{bus:02x}:{slot:02x}.0"
    return Identity(uuid=None if uuid is None else str(uuid), pci_address=address)
