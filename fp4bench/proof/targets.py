"""GPUs that need not be here: one board for each architecture, from its maker's data sheet."""

from __future__ import annotations

from collections.abc import Mapping

from fp4kernels.devices import Device
from fp4kernels.formats import named

ARCHES: Mapping[str, Device] = {
    d.arch: d
    for d in (
        Device("cuda", "A100", "sm_80", 108, 40 << 20, 163 << 10, 80 << 30),
        Device("cuda", "RTX 4090", "sm_89", 128, 72 << 20, 99 << 10, 24 << 30),
        Device("cuda", "H100", "sm_90", 132, 50 << 20, 227 << 10, 80 << 30),
        Device("cuda", "B200", "sm_100", 148, 126 << 20, 227 << 10, 180 << 30),
        Device("cuda", "RTX 5090", "sm_120", 170, 96 << 20, 99 << 10, 32 << 30),
        # torch calls AMD's GPUs "cuda", too
        Device("cuda", "MI300X", "gfx942", 304, 32 << 20, 64 << 10, 192 << 30),
        Device("cuda", "MI355X", "gfx950", 256, 32 << 20, 160 << 10, 288 << 30),
        # no data sheet yet: the sizes of gfx950 but for the shared memory, which LLVM states
        Device("cuda", "gfx1250", "gfx1250", 256, 32 << 20, 320 << 10, 288 << 30),
    )
}


def target(arch: str) -> Device:
    """The board of `arch`; FormatError with the nearest name where there is none."""
    return named("GPU architecture", arch, ARCHES)
