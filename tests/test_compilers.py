"""Compilers that fail, abort or never end: each a status with a reason, and the next one compiles."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from faulty_variants import FAULTY
from fp4bench import compilers
from fp4bench.compilers import Compilers
from fp4bench.pace import Pace
from fp4bench.trials import Status
from fp4kernels import registry
from fp4kernels.cpu.gemm import CppConfig
from fp4kernels.devices import Device, Toolchain
from fp4kernels.layouts import Layout
from fp4kernels.torch_gemm import TorchConfig
from fp4kernels.triton.gemm import DecodeConfig
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload

WORK = GemmWorkload(4, 48, 64)
H100 = Device("cuda", "H100", "sm_90", 132, 50 << 20, 227 << 10, 80 << 30)


# binds real tensors, as the launch itself does, and stops before it needs a GPU
LAUNCH_LIKE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from fp4kernels.recipes import RECIPES
from fp4kernels.triton import ahead, decode_launch
from fp4kernels.triton.gemm import DecodeConfig

driver.set_active(ahead._TargetOnly(GPUTarget("cuda", 90, 32)))
config, recipe, (m, n, k) = DecodeConfig(16, 64, 128, 4, 4, 1, 2), RECIPES["nvfp4"], (1, 4096, 4096)
one, byte = torch.ones(()), torch.zeros(64, dtype=torch.uint8)
partial, out = torch.empty(2, m, n), torch.empty(m, n, dtype=torch.bfloat16)
decode_launch.gemm_kernel.warmup(
    byte, byte, one, byte, byte, one, partial, m, n, k, grid=(1,),
    **decode_launch._gemm_constants(config, recipe, k), **decode_launch.options(config))
decode_launch.reduce_kernel.warmup(
    partial, one, one, out, m * n, grid=(1,),
    **decode_launch.reduce_constants(config, recipe), **decode_launch.EXACT)
"""


def faulty(name: str) -> Candidate:
    return Candidate("mxfp4", f"faulty_{name}", Layout.CANONICAL, TorchConfig())


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Faulty variants are known here and in compiling processes; caches are empty."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, variant in FAULTY.items():
        monkeypatch.setitem(registry.VARIANTS, name, variant)  # type: ignore[arg-type]
    return


@pytest.mark.usefixtures("children")
def test_a_compiler_that_aborts_or_never_ends_is_a_status(
    cpu: Device, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "LEAST_SECONDS", 12.0)
    monkeypatch.setattr(compilers, "MOST_SECONDS", 12.0)
    with Compilers(cpu, toolchain, module="faulty_compilers") as pool:
        asked = [faulty(name) for name in ("abort", "triton", "endless")]
        aborted, in_triton, endless = pool.compile_all(WORK, asked)
        good = Candidate("mxfp4", "cpp_w4a4", Layout.PANEL16, CppConfig(1, 1, 0, 128, 1, 0))
        assert pool.compile_all(WORK, [good, good]) == [None, None]
    for failure, words in ((aborted, "cannot select"), (in_triton, "number of input constraints")):
        assert failure is not None
        assert failure.status is Status.COMPILE_ERROR
        assert failure.killed
        assert "the compiler: the process died with signal SIGABRT" in failure.reason
        assert words in failure.reason
    assert endless is not None
    assert endless.status is Status.TIMEOUT
    assert "no answer within 12 s" in endless.reason


@pytest.mark.usefixtures("children")
def test_triton_compiles_beside_what_a_launch_would_compile(
    toolchain: Toolchain, tmp_path: Path
) -> None:
    """The processes fill the disk cache; compiling as a launch does then adds nothing to it."""
    config = DecodeConfig(16, 64, 128, 4, 4, 1, 2)
    work = GemmWorkload(1, 4096, 4096)
    asked = [Candidate("nvfp4", "decode_canonical", Layout.CANONICAL, config)] * 2
    with Compilers(H100, replace(toolchain, triton="3"), module="fp4bench.compilers") as pool:
        assert pool.compile_all(work, asked) == [None, None]
    made = {path.name for path in (tmp_path / "triton").iterdir()}
    assert len(made) == 2
    subprocess.run([sys.executable, "-c", LAUNCH_LIKE], check=True)
    assert {path.name for path in (tmp_path / "triton").iterdir()} == made


def test_a_host_compiler_that_never_ends_is_not_tried_again(
    cpu: Device, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compilers, "MOST_SECONDS", 0.5)
    endless = tmp_path / "c++"
    endless.write_text("#!/bin/sh\nsleep 3600\n")
    endless.chmod(0o755)
    candidate = Candidate("mxfp4", "cpp_w4a4", Layout.PANEL16, CppConfig(1, 1, 0, 128, 1, 0))
    with Compilers(cpu, replace(toolchain, compiler=str(endless))) as pool:
        (failure,) = pool.compile_all(WORK, [candidate])
    assert failure is not None
    assert failure.status is Status.TIMEOUT
    assert failure.killed
    assert "did not finish within 0.5 s" in failure.reason


@pytest.mark.usefixtures("children")
def test_closing_ends_what_still_compiles(cpu: Device, toolchain: Toolchain) -> None:
    pool = Compilers(cpu, toolchain, module="faulty_compilers")
    pending = pool._threads.submit(pool._compile, WORK, faulty("endless"))
    while not pool._children:
        time.sleep(0.01)
    start = time.monotonic()
    pool.close()
    assert pending.result() is not None
    assert time.monotonic() - start < 10


def test_a_limit_follows_what_the_work_took() -> None:
    pace = Pace(10, 60)
    assert pace.limit == 60
    pace.add(0.5)
    assert pace.limit == 10
    pace.add(3)
    pace.add(1)
    assert pace.limit == 30
    pace.add(100)
    assert pace.limit == 60
