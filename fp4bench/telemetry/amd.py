"""AMD GPUs through amdsmi, which ROCm brings. Not run on a device by this project yet."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from fp4bench.telemetry.gpu import GpuMonitor, Identity, Sample


class AmdMonitor(GpuMonitor):
    """The GPU of `identity`, or the first. Its reasons for low clocks are not NVML's bits, so
    `event_reasons` and `throttled` stay None."""

    def __init__(self, identity: Identity) -> None:
        super().__init__()
        self._smi = _import()
        self._handle = None if self._smi is None else self._connect(identity)

    @property
    def connected(self) -> bool:
        return self._handle is not None

    def sample(self) -> Sample:
        smi = self._smi
        return Sample(
            mhz=self._clock("GFX"),
            memory_mhz=self._clock("MEM"),
            watts=self._watts(),
            celsius=self._ask(
                lambda: smi.amdsmi_get_temp_metric(
                    self._handle,
                    smi.AmdSmiTemperatureType.HOTSPOT,  # Instinct cards have no EDGE
                    smi.AmdSmiTemperatureMetric.CURRENT,
                )
            ),
        )

    def energy_joules(self) -> float | None:
        if not self.connected:
            return None

        def microjoules() -> float:
            count = self._smi.amdsmi_get_energy_count(self._handle)
            return float(count["energy_accumulator"] * count["counter_resolution"])

        counted = self._ask(microjoules)
        return None if counted is None else counted / 1e6

    def _clock(self, domain: str) -> float | None:
        def mhz() -> object:
            kind = getattr(self._smi.AmdSmiClkType, domain)
            return self._smi.amdsmi_get_clock_info(self._handle, kind)["clk"]

        return self._ask(mhz)

    def _watts(self) -> float | None:
        """MI300 knows its power now, older cards an average of it."""
        info = self._ask_any(lambda: self._smi.amdsmi_get_power_info(self._handle)) or {}
        names = ("current_socket_power", "average_socket_power")
        return next(filter(None, (_number(info.get(name)) for name in names)), None)

    def _ask(self, query: Callable[[], object]) -> float | None:
        return _number(self._ask_any(query))

    def _ask_any(self, query: Callable[[], Any]) -> Any:
        try:
            return query()
        except (self._smi.AmdSmiException, AttributeError, KeyError):  # names differ by version
            return None

    def _connect(self, identity: Identity) -> Any:
        smi = self._smi
        try:
            smi.amdsmi_init()
            if identity.pci_address is not None:
                return smi.amdsmi_get_processor_handle_from_bdf(identity.pci_address)
            return next(iter(smi.amdsmi_get_processor_handles()), None)
        except smi.AmdSmiException:
            return None


def _import() -> Any:
    """amdsmi, or None; without ROCm's library its import prints, and ends in a KeyError."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            import amdsmi
    except (ImportError, KeyError, OSError):
        return None
    return amdsmi


def _number(value: object) -> float | None:
    """amdsmi says "N/A" where a card does not."""
    return float(value) if isinstance(value, int | float) else None
