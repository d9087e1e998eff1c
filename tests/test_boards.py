"""Descriptions of GPUs: every TOML is whole, and says what its maker's figures imply."""

from __future__ import annotations

import dataclasses
import math

import pydantic
import pytest

from fp4bench.boards import BOARDS, Board, board, board_of
from fp4bench.proof.targets import ARCHES, target
from fp4kernels.devices import Device
from fp4kernels.errors import FormatError
from fp4kernels.variants import Arithmetic

NAMES = {"a100", "rtx-4090", "h100", "h200", "b200", "rtx-5090", "mi300x", "mi355x"}
KIB, MIB, GIB = 10, 20, 30


def test_all_boards_are_described() -> None:
    assert set(BOARDS) == NAMES
    assert [*ARCHES] == [
        "sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950", "gfx1250",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(NAMES))
def test_figures_agree_with_each_other(name: str) -> None:
    one = BOARDS[name]
    assert set(one.peaks) <= {kind.value for kind in Arithmetic}
    assert {"fp32", "bf16"} <= set(one.peaks)
    # matrix units do a power of two of operations a cycle, and each narrower type no fewer
    rate = one.peaks["bf16"] * 1e12 / one.cores / one.clock
    assert abs(math.log2(rate) - round(math.log2(rate))) < 0.03
    order = [one.peaks[kind] for kind in ("fp32", "bf16", "fp8", "fp4") if kind in one.peaks]
    assert order == sorted(order)
    assert one.core.shared_kib_per_program <= one.core.shared_kib
    assert one.core.warps * one.core.warp == one.core.threads
    assert 100 < one.peaks["bf16"] * 1e3 / one.memory_gbps < 400  # operations a byte


@pytest.mark.parametrize("name", sorted(NAMES - {"h200"}))
def test_what_is_compiled_for_is_the_described_board(name: str) -> None:
    assert target(BOARDS[name].arch) == BOARDS[name].device


def test_sizes_are_what_legality_always_counted_on() -> None:
    assert ARCHES["sm_80"] == Device("cuda", "A100", "sm_80", 108, 40 << MIB, 163 << KIB, 80 << GIB)
    assert ARCHES["sm_90"] == Device("cuda", "H100", "sm_90", 132, 50 << MIB, 227 << KIB, 80 << GIB)
    assert ARCHES["sm_120"].shared_memory == 99 << KIB
    assert ARCHES["gfx1250"].shared_memory == 320 << KIB


def test_an_unknown_board_names_the_nearest() -> None:
    assert board("RTX 5090") is BOARDS["rtx-5090"]
    with pytest.raises(FormatError, match="a GPU must be a known name.*did you mean 'b200'"):
        board("b20")


def test_a_description_with_a_slip_is_refused() -> None:
    values = BOARDS["h100"].model_dump()
    for wrong in ({"memory_gbps": -1.0}, {"memry": 1}, {"arch": "hopper"}, {"cores": 1.5}):
        with pytest.raises(pydantic.ValidationError):
            Board.model_validate({**values, **wrong})


def test_a_present_gpu_is_found_by_its_name_or_else_its_architecture(cpu: Device) -> None:
    h100 = ARCHES["sm_90"]
    h200 = board_of(dataclasses.replace(h100, name="NVIDIA H200"))
    assert h200 is not None
    assert h200.memory_gbps == BOARDS["h200"].memory_gbps
    # the PCIe board of the same chip: fewer cores, and so less of each peak
    pcie = board_of(dataclasses.replace(h100, name="NVIDIA H100 PCIe", cores=114))
    assert pcie is not None
    assert pcie.cores == 114
    assert pcie.peaks["bf16"] == pytest.approx(BOARDS["h100"].peaks["bf16"] * 114 / 132)
    unnamed = board_of(dataclasses.replace(h100, name="NVIDIA GH200 480GB"))
    assert unnamed is not None
    assert unnamed.memory_gbps == BOARDS["h100"].memory_gbps
    assert board_of(dataclasses.replace(h100, arch="sm_75")) is None
    assert board_of(cpu) is None
