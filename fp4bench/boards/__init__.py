"""Descriptions of GPUs, which need not be here: one TOML each, every figure with its source.

They say what makers state and others measured on such a board; nothing of the board at hand.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import pydantic
from pydantic import ConfigDict, Field

from fp4kernels.devices import Device
from fp4kernels.formats import named

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


class _Table(pydantic.BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Core(_Table):
    """One SM or compute unit: what its resident programs share, and warp instructions a cycle."""

    shared_kib: Count
    shared_kib_per_program: Count  # what one may opt in to
    registers: Count  # of 32 bits
    threads: Count  # resident at once, as are programs
    programs: Count
    warp: Count  # threads of a warp
    issue_per_cycle: Rate
    integer_per_cycle: Rate
    float_per_cycle: Rate

    @property
    def warps(self) -> int:
        """Resident at once."""
        return self.threads // self.warp


class Board(_Table):
    """A GPU as its TOML describes it. Bandwidths are in GB/s (10^9 bytes), peaks in TFLOP/s (10^12
    operations, a multiply-add is two) of dense operands."""

    name: str = Field(min_length=1)
    arch: str = Field(pattern=r"^(sm_\d+|gfx\w+)$")
    cores: Count
    clock_mhz: Rate
    memory_gbps: Rate
    memory_gib: Count
    memory_latency_cycles: Rate  # of one load that no cache holds
    l2_mib: Count
    l2_gbps: Rate | None = None
    core: Core
    peaks: Mapping[str, Rate]  # fp32, bf16, fp8, fp4, int8: values of Arithmetic

    @property
    def device(self) -> Device:
        """The board as kernels see it. torch calls AMD's GPUs "cuda", too."""
        return Device(
            kind="cuda", name=self.name, arch=self.arch, cores=self.cores,
            cache_bytes=self.l2_mib << 20, shared_memory=self.core.shared_kib_per_program << 10,
            memory_bytes=self.memory_gib << 30,
        )  # fmt: skip

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.clock_mhz * 1e6


def _read(file: Path) -> Board:
    return Board.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))


def _order(board: Board) -> tuple[bool, int, str]:
    return board.arch.startswith("gfx"), len(board.arch), board.arch


def _all() -> dict[str, Board]:
    files = sorted(Path(__file__).parent.glob("*.toml"))
    return dict(sorted(((file.stem, _read(file)) for file in files), key=lambda x: _order(x[1])))


BOARDS: Mapping[str, Board] = MappingProxyType(_all())  # by the name of the file; older ones first


def board(name: str) -> Board:
    """The board called `name`, such as "b200"; FormatError with the nearest name if there is none."""
    return named("GPU", name.lower().replace(" ", "-"), BOARDS)


def board_of(device: Device) -> Board | None:
    """What describes a device that is present: the board of its name, or else of its architecture,
    with the device's own sizes. None for a CPU, and for a GPU that nothing describes."""
    if device.kind == "cpu":
        return None
    kin = [one for one in BOARDS.values() if one.arch == device.arch]
    if not kin:
        return None
    words = f" {device.name.lower().replace('-', ' ')} "
    closest = next((one for one in kin if f" {one.name.lower()} " in words), kin[0])
    return _scaled(closest, device)


def _scaled(like: Board, device: Device) -> Board:
    """`like` with the cores of `device`, and peaks in proportion: boards of a chip differ in them."""
    share = device.cores / like.cores
    return like.model_copy(update={
        "name": device.name,
        "cores": device.cores,
        "l2_mib": max(1, device.cache_bytes >> 20),
        "memory_gib": max(1, device.memory_bytes >> 30),
        "peaks": {kind: peak * share for kind, peak in like.peaks.items()},
    })  # fmt: skip
