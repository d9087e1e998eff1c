"""Guarded outputs and poisoned scratch: what they catch, and that they leave no trace."""

from __future__ import annotations

import ctypes
import math
import signal
import subprocess
import sys

import pytest
import torch

from faulty_variants import Yesterday, overrun, scratch, underrun
from fp4kernels import gate, guard
from fp4kernels.layouts import Layout
from fp4kernels.recipes import RECIPES
from fp4kernels.variants import Launcher

CPU = torch.device("cpu")
SHAPES = [(1, 1), (3, 33), (64, 64), (512, 100)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_guarded_output_is_an_ordinary_tensor(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for guarded in (
        guard.canaried(shape, dtype, CPU),
        guard.fenced(shape, dtype, at_end=True),
        guard.fenced(shape, dtype, at_end=False),
    ):
        out = guarded.out.fill_(1.5)
        assert out.shape == shape
        assert out.dtype == dtype
        assert out.is_contiguous()
        assert out.data_ptr() % guard.ALIGNMENT == 0
        assert guarded.intact
        assert (out == 1.5).all()


@pytest.mark.parametrize("offset", [-1, 0])
def test_a_canary_sees_one_byte_on_either_side(offset: int) -> None:
    guarded = guard.canaried((3, 5), torch.float32, CPU)
    at = guarded.out.data_ptr() + (offset if offset < 0 else 60)
    ctypes.memset(at, 0, 1)
    assert not guarded.intact


@pytest.mark.parametrize(("at_end", "offset"), [(True, 64), (False, -1)])
def test_a_write_beyond_a_fence_kills_the_process(at_end: bool, offset: int) -> None:
    code = (
        "import ctypes, torch; from fp4kernels import guard;"
        f"g = guard.fenced((2, 16), torch.bfloat16, {at_end});"
        f"ctypes.memset(g.out.data_ptr() + {offset}, 0, 1)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert ran.returncode == -signal.SIGSEGV


def test_scratch_is_poisoned_only_inside() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    with guard.poisoned_scratch():
        assert torch.empty(1000).isnan().all()
        block = libc.malloc(ctypes.c_size_t(4096))
        assert set(ctypes.string_at(block, 4096)) == {guard.CANARY ^ 0xFF}
        libc.free(ctypes.c_void_p(block))
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.parametrize(
    ("launch", "reason"),
    [
        (overrun, "wrote outside its output"),
        (underrun, "wrote outside its output"),
        (scratch, "elements outside the gate"),
    ],
)
def test_the_gate_rejects_what_plain_buffers_hide(launch: Launcher, reason: str) -> None:
    case = gate.synthetic_case("gaussian", RECIPES["mxfp4"], (5, 32, 64), 1, CPU)
    outcome = gate.check(launch, Layout.CANONICAL, 2.0**-24, case, torch.float32)
    assert outcome.used == math.inf
    assert reason in str(outcome.why)


def test_the_gate_rejects_yesterdays_output() -> None:
    launch = Yesterday()
    cases = [
        gate.synthetic_case("gaussian", RECIPES["mxfp4"], (5, 32, 64), seed, CPU) for seed in (1, 2)
    ]
    first, second = (
        gate.check(launch, Layout.CANONICAL, 2.0**-24, case, torch.float32).why for case in cases
    )
    assert first is None
    assert "elements outside the gate" in str(second)
