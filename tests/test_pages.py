"""Large pages: the same bytes, in memory for which the system was asked for them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fp4kernels.formats import MXFP4
from fp4kernels.layouts import Layout, convert
from fp4kernels.packing import Packed
from fp4kernels.pages import LARGE_PAGE, LEAST, in_large_pages


def asked_for(x: Tensor) -> bool:
    """Whether the mapping that x lies in carries Linux's flag "hg"."""
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        start, end = (int(word, 16) for word in entry.split()[0].split("-"))
        if start <= x.data_ptr() < end:
            return "hg" in entry.partition("VmFlags:")[2].split()
    raise AssertionError("the tensor is in no mapping")


linux = pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked for on Linux")


@linux
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_large_tensor_moves_with_every_byte(dtype: torch.dtype) -> None:
    x = torch.arange(LEAST + 4096, dtype=torch.int64).to(dtype).view(-1, 64)
    moved = in_large_pages(x)
    assert torch.equal(moved, x)
    assert moved.dtype is dtype
    assert moved.data_ptr() % LARGE_PAGE == 0
    assert moved.untyped_storage().nbytes() == x.nbytes  # what saving it writes
    assert asked_for(moved)
    assert not asked_for(x)


@linux
def test_the_memory_lives_as_long_as_a_part_of_it_is_held() -> None:
    x = torch.arange(LEAST // 8 + 1)
    tail = in_large_pages(x)[-1:]
    others = [in_large_pages(x + i) for i in range(4)]  # would take its place
    assert int(tail) == LEAST // 8
    assert [int(one[-1]) for one in others] == [LEAST // 8 + i for i in range(4)]


def test_what_is_small_or_strided_stays() -> None:
    small = torch.zeros(LEAST - 1, dtype=torch.uint8)
    assert in_large_pages(small) is small
    strided = torch.zeros(LEAST, 2, dtype=torch.uint8)[:, 0]
    assert in_large_pages(strided) is strided
    elsewhere = torch.zeros(LEAST, dtype=torch.uint8, device="meta")
    assert in_large_pages(elsewhere) is elsewhere


@linux
def test_packed_weights_of_the_cpu_kernels_lie_in_them() -> None:
    n, k = 2048, 2 * LEAST // 2048
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    scales = torch.randint(120, 130, (n, k // 32), dtype=torch.uint8)
    packed = Packed(codes, scales, torch.ones(()))
    panels = convert(packed, n, MXFP4, Layout.CANONICAL, Layout.PANEL16)
    assert asked_for(panels.codes)
    back = convert(panels, n, MXFP4, Layout.PANEL16, Layout.CANONICAL)
    assert torch.equal(back.codes, codes)
    assert torch.equal(back.scales, scales)
