"""Baselines: sound numbers where they are present, a reason where they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fp4bench.baselines import BASELINES, Baseline
from fp4bench.trials import REFERENCE
from fp4kernels import reference
from fp4kernels.devices import Device, probe_device
from fp4kernels.workloads import GemmWorkload

SHAPES = [(1, 64, 64), (7, 192, 320), (64, 256, 128)]
SLOW_HERE = {"torch_fp8"}  # absent on most CPUs for its speed alone: its numbers hold anywhere


@pytest.fixture(scope="module")
def device() -> Device:
    return probe_device()


def operands(m: int, n: int, k: int, device: Device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m + n + k)
    x = torch.randn(m, k, generator=generator).bfloat16()
    w = torch.randn(n, k, generator=generator)
    return x.to(device.torch_device), w.to(device.torch_device)


def skip_if_absent(baseline: Baseline, workload: GemmWorkload, device: Device) -> None:
    why = baseline.absent(workload, device)
    if why is not None and not (device.kind == "cpu" and baseline.name in SLOW_HERE):
        pytest.skip(why)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_multiplies(name: str, shape: tuple[int, int, int], device: Device) -> None:
    baseline = BASELINES[name]
    skip_if_absent(baseline, GemmWorkload(*shape), device)
    x, w = operands(*shape, device)
    expected = reference.gemm(x, w)
    calls = baseline.prepare(x, w, 3)
    assert len(calls) == 3
    for call in [*calls, calls[0]]:
        output = call()
        assert output.dtype in (torch.bfloat16, torch.float32)
        assert baseline.implausible(output, expected) is None


@pytest.mark.parametrize("name", ["torch_int8", "torch_fp8", "llama_cpp", "torchao"])
def test_zeros_stay_zero(name: str, device: Device) -> None:
    baseline = BASELINES[name]
    skip_if_absent(baseline, GemmWorkload(32, 64, 64), device)
    x, w = operands(32, 64, 64, device)
    w[5] = 0
    (call,) = baseline.prepare(x, w, 1)
    assert torch.all(call()[:, 5] == 0)


def test_each_format_is_held_to_an_error_of_its_own() -> None:
    limits = {name: BASELINES[name].plausible_error for name in BASELINES}
    assert limits["torch_bf16"] <= 0.01
    assert limits["torch_int8"] <= 0.02
    assert max(limits.values()) <= 0.2


def test_a_wrong_product_is_implausible(device: Device) -> None:
    x, w = operands(7, 64, 64, device)
    expected = reference.gemm(x, w)
    baseline = BASELINES["torch_bf16"]
    assert baseline.implausible(expected.float(), expected) is None
    swapped = expected.clone()
    swapped[:, [0, 1]] = expected[:, [1, 0]]
    assert "is off by" in str(baseline.implausible(swapped, expected))
    assert "(6, 64) instead of (7, 64)" in str(baseline.implausible(expected[:6], expected))
    assert baseline.implausible(torch.full_like(expected, torch.nan), expected) is not None


# prints, by name, the growth of resident memory: by each copy, and by preparing again and again
GROWTH = """
import gc, json
from pathlib import Path
import torch
from fp4bench.baselines import BASELINES
from fp4kernels.devices import probe_device
from fp4kernels.workloads import GemmWorkload

N, K, COPIES = 1024, 2048, 12

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def grown(baseline):
    x, w = torch.randn(1, K).bfloat16(), torch.randn(N, K)
    baseline.prepare(x, w, 1)[0]()  # pages that first use brings in are not the copies'
    before = resident()
    calls = baseline.prepare(x, w, COPIES)
    calls[0]()
    held = resident() - before
    del calls
    left = resident() - before
    size = COPIES * baseline.weight_bytes(N, K)
    return held / size, left / size

work, cpu = GemmWorkload(1, N, K), probe_device("cpu")
present = {name: b for name, b in BASELINES.items() if b.absent(work, cpu) is None}
print(json.dumps({name: grown(baseline) for name, baseline in present.items()}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is Linux's")
def test_each_copy_has_memory_of_its_own_and_gives_it_back() -> None:
    # every large block is then a mapping of its own, which free() returns at once
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    child = subprocess.run(
        [sys.executable, "-c", GROWTH],
        env=environment, capture_output=True, text=True, timeout=250, check=True,
    )  # fmt: skip
    growth = json.loads(child.stdout)
    assert {"torch_bf16", "torch_fp32", "torch_int8"} <= set(growth)
    for name, (held, left) in growth.items():
        assert 0.9 <= held <= 1.2, (name, held)
        assert left <= 0.1, (name, left)


GPU = Device("cuda", "a GPU", "sm_80", 108, 40 << 20, 164 << 10, 40 << 30)


@pytest.mark.parametrize(
    ("name", "arch", "shape", "missing"),
    [
        ("torch_int8", "sm_80", (16, 64, 64), "M > 16"),
        ("torch_int8", "sm_80", (17, 64, 68), "K % 8"),
        ("torch_fp8", "sm_80", (1, 64, 64), "sm_89"),
        ("torch_fp8", "sm_90", (1, 72, 64), "N % 16"),
        ("torch_fp4", "sm_90", (1, 64, 64), "sm_100"),
        ("torch_fp4", "sm_100", (1, 64, 48), "K % 32"),
        ("flashinfer", "sm_90", (1, 64, 64), "sm_100"),
        ("triton_kernels", "sm_80", (1, 64, 64), "sm_90"),
        ("gemlite", "sm_75", (1, 64, 64), "sm_80"),
        ("vllm_marlin", "sm_75", (1, 64, 128), "sm_80"),
        ("llama_cpp", "sm_90", (1, 64, 64), "CPU"),
    ],
)
def test_what_is_missing_is_named(
    name: str, arch: str, shape: tuple[int, int, int], missing: str
) -> None:
    reason = BASELINES[name].absent(GemmWorkload(*shape), replace(GPU, arch=arch))
    assert missing in str(reason)


@pytest.mark.parametrize("name", ["gemlite", "triton_kernels", "vllm_marlin", "flashinfer"])
def test_a_library_that_is_not_installed_is_named(name: str) -> None:
    gpu = replace(GPU, arch="sm_100")
    reason = BASELINES[name].absent(GemmWorkload(1, 128, 128), gpu)
    assert reason is None or name.partition("_")[0] in reason


@pytest.mark.parametrize("name", ["torch_fp4", "gemlite", "triton_kernels", "flashinfer"])
def test_baselines_of_a_gpu_are_absent_on_a_cpu(name: str, cpu: Device) -> None:
    assert "needs an NVIDIA GPU" in str(BASELINES[name].absent(GemmWorkload(1, 64, 64), cpu))


def test_torchs_own_are_present_on_a_cpu(cpu: Device) -> None:
    work = GemmWorkload(3, 5, 7)
    assert next(iter(BASELINES)) == REFERENCE
    for name in ("torch_bf16", "torch_fp32", "torch_int8"):
        assert BASELINES[name].absent(work, cpu) is None


def test_no_library_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, fp4bench.baselines; print(*{'torchao', 'llama_cpp', 'vllm'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.strip() == ""
