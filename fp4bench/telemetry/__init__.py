"""The device's own account of a measurement: clocks, power, heat, and who held them down.

    watched = monitor(device)
    with watched.watch() as watch:
        ...timing...
    row = watch.read()

Nothing is ever set, and nothing raises: what the device does not say is None.
"""

from __future__ import annotations

import torch

from fp4bench.telemetry.amd import AmdMonitor
from fp4bench.telemetry.base import Monitor, Watch
from fp4bench.telemetry.cpu import CpuMonitor
from fp4bench.telemetry.gpu import torch_identity
from fp4bench.telemetry.nvidia import ClockEvent, NvidiaMonitor
from fp4kernels.devices import Device

__all__ = ["ClockEvent", "Monitor", "Watch", "monitor"]


def monitor(device: Device) -> Monitor:
    """What watches `device`. Opened once per process, before anything is timed."""
    if device.kind != "cuda":
        return CpuMonitor()
    if torch.version.hip is not None:
        return AmdMonitor(torch_identity())
    return NvidiaMonitor(torch_identity())
