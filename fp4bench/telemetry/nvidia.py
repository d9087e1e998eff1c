"""NVIDIA GPUs through NVML, which the driver brings; nvidia-ml-py is its thin binding."""

from __future__ import annotations

from enum import IntFlag
from typing import Any

from fp4bench.telemetry.gpu import GpuMonitor, Identity, Sample

try:
    import pynvml
except ImportError:  # pragma: no cover - a dependency, but telemetry must never stop a run
    pynvml = None


class ClockEvent(IntFlag):
    """Why clocks are not higher: NVML's bits that mean something held them down."""

    SW_POWER_CAP = 4
    HW_SLOWDOWN = 8
    SW_THERMAL = 32
    HW_THERMAL = 64
    POWER_BRAKE = 128


class NvidiaMonitor(GpuMonitor):
    """The GPU of `identity`; index 0 where NVML knows neither of its names.

    The power cap counts as throttling: under it clocks follow the data and the board's mood. A
    large GEMM can sit at the cap from start to end, so measuring again may not get rid of it;
    `event_reasons` tells it from heat.
    """

    held_down = sum(ClockEvent)

    def __init__(self, identity: Identity) -> None:
        super().__init__()
        self._handle = _connect(identity)

    @property
    def connected(self) -> bool:
        return self._handle is not None

    def sample(self) -> Sample:
        clock, gpu = "nvmlDeviceGetClockInfo", 0  # the sensor NVML_TEMPERATURE_GPU
        return Sample(
            mhz=self._ask((clock,), pynvml.NVML_CLOCK_SM),
            memory_mhz=self._ask((clock,), pynvml.NVML_CLOCK_MEM),
            watts=_thousandth(self._ask(("nvmlDeviceGetPowerUsage",))),
            celsius=self._ask(("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"), gpu),
            event_reasons=self._ask(
                (
                    "nvmlDeviceGetCurrentClocksEventReasons",
                    "nvmlDeviceGetCurrentClocksThrottleReasons",
                )
            ),
        )

    def energy_joules(self) -> float | None:
        if not self.connected:
            return None
        return _thousandth(self._ask(("nvmlDeviceGetTotalEnergyConsumption",)))

    def _ask(self, names: tuple[str, ...], *arguments: int) -> int | None:
        """What the first of these queries says that this driver and GPU support."""
        for name in names:
            try:
                return int(getattr(pynvml, name)(self._handle, *arguments))
            except (pynvml.NVMLError, AttributeError):  # the binding may lack a name too
                continue
        return None


def _connect(identity: Identity) -> Any:
    """NVML's handle, or None where there is no binding, library, permission or GPU."""
    if pynvml is None:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    # the PCI address also finds the board of a MIG slice, whose sensors are the board's
    attempts = (
        (pynvml.nvmlDeviceGetHandleByUUID, identity.uuid and f"GPU-{identity.uuid}"),
        (pynvml.nvmlDeviceGetHandleByPciBusId, identity.pci_address),
        (pynvml.nvmlDeviceGetHandleByIndex, 0),
    )
    for look_up, key in attempts:
        if key is not None:
            try:
                return look_up(key)
            except pynvml.NVMLError:
                continue
    return None


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1e3
