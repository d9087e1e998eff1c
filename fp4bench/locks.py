"""One measuring process per device: two at a time would time each other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from fp4bench.errors import BenchError
from fp4kernels.devices import Device


@contextmanager
def exclusive(device: Device) -> Iterator[None]:
    """Hold the device against all other fp4bench processes of this machine, whoever's they are."""
    path = Path(tempfile.gettempdir()) / f"fp4bench-{_identity(device)}.lock"
    lock = FileLock(path, timeout=0, mode=0o666)
    try:
        lock.acquire()
    except Timeout:
        raise BenchError(
            f"one process at a time may measure on a device, but another fp4bench holds "
            f"{device.name} ({path}); wait for it to end"
        ) from None
    except OSError as error:
        raise BenchError(f"cannot lock {device.name} by {path}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _identity(device: Device) -> str:
    """The same for every process that sees this device, whatever number it has there."""
    if device.kind == "cpu":
        return "cpu"
    return str(getattr(torch.cuda.get_device_properties(0), "uuid", device.slug))
