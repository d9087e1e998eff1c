"""The row of a device's limits: measured anew, or found among recorded ones."""

from __future__ import annotations

from fp4bench.evidence import Evidence
from fp4bench.limits import by_torch, cpu
from fp4bench.trials import Limits
from fp4kernels.devices import Device, Toolchain


def measure(device: Device, toolchain: Toolchain) -> Limits:
    """Every rate measured now, the best of short repeats; nothing is taken from a data sheet.

    A CPU is driven by a C++ probe, on the threads that run the kernels, or by torch where there is
    no compiler; a GPU by torch. Takes about 3 s by the probe, after compiling, and 10 s by torch, and
    wants the device idle: another's load lowers every number. Raises BuildError.
    """
    if device.kind == "cpu" and toolchain.compiler is not None:
        rates = cpu.rates(device, toolchain)
    else:
        rates = by_torch.rates(device)
    return Limits.model_validate({"device": device, "toolchain": toolchain, **rates})


def latest(evidence: Evidence, device: Device) -> Limits | None:
    """The last recorded limits of this very device."""
    return next((row for row in reversed([*evidence.limits]) if row.device == device), None)
