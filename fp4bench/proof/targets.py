"""GPUs to compile for that need not be here: one board for each architecture."""

from __future__ import annotations

from collections.abc import Mapping

from fp4bench.boards import BOARDS
from fp4kernels.devices import Device
from fp4kernels.formats import named

# no data sheet yet: the sizes of gfx950 but for the shared memory, which LLVM states
_GFX1250 = Device("cuda", "gfx1250", "gfx1250", 256, 32 << 20, 320 << 10, 288 << 30)

ARCHES: Mapping[str, Device] = {
    # of boards of one architecture the first by name: H100 before H200
    arch: next(board.device for board in BOARDS.values() if board.arch == arch)
    for arch in dict.fromkeys(board.arch for board in BOARDS.values())
} | {_GFX1250.arch: _GFX1250}


def target(arch: str) -> Device:
    """The board of `arch`; FormatError with the nearest name where there is none."""
    return named("GPU architecture", arch, ARCHES)
