"""Limits: measured on this machine, plausible, quick; the roofline by hand numbers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest
import torch

from fp4bench import limits
from fp4bench.evidence import Evidence
from fp4bench.limits import Bound, by_torch
from fp4bench.limits import cpu as by_probe
from fp4bench.trials import Limits, Policy
from fp4kernels.devices import Device, Toolchain, probe_device, probe_toolchain
from fp4kernels.recipes import RECIPES
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import GemmWorkload
from samples import DEVICE, TOOLCHAIN, passed_trial

LEVELS = ["portable", "avx2", "avx512vnni"]
RATES = {"memory_read", "memory_copy", "cache_read", "cache_copy", "fp32", "bf16", "fp8", "int8"}
COLD, WARM = (Policy(launch="eager", cache=cache) for cache in ("cold", "warm"))
KNOWN = Limits(device=DEVICE, toolchain=TOOLCHAIN, memory_read=100, cache_read=400, int8=1000)


def rates_of(found: Limits) -> dict[str, float | None]:
    return {name: getattr(found, name) for name in RATES}


@pytest.fixture(scope="module")
def best(cpu: Device, toolchain: Toolchain) -> dict[str, float | None]:
    """Of two measurements: other processes may take the cores for a while."""
    pair = [rates_of(limits.measure(cpu, toolchain)) for _ in range(2)]
    return {name: max(row[name] or 0 for row in pair) or None for name in RATES}


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only whether it runs is asked."""
    for name in ("UNIT_SECONDS", "CACHE_SECONDS", "MEMORY_SECONDS"):
        monkeypatch.setattr(by_probe, name, 0.01)
    monkeypatch.setattr(by_torch, "SECONDS", 0.01)
    monkeypatch.setattr(by_torch, "SIDE", {"cpu": 128})


@pytest.fixture
def _torch_as_it_was() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.backends.cuda.matmul.fp32_precision
    yield
    assert torch.get_num_threads() == threads
    assert torch.backends.cuda.matmul.fp32_precision == precision


def test_the_rates_of_this_machine_are_plausible(
    cpu: Device, best: dict[str, float | None]
) -> None:
    known = {name: rate for name, rate in best.items() if rate is not None}
    assert RATES - known.keys() <= {"bf16", "fp8"}
    assert known["cache_read"] > known["memory_read"] > 1
    assert known["cache_copy"] > known["memory_copy"] > 1
    assert known["fp32"] > cpu.cores
    if cpu.isa != "portable":
        assert known["int8"] > known["fp32"]
    if "bf16" in known:
        assert known["int8"] > known["bf16"] >= known["fp32"]


def test_measuring_is_quick(cpu: Device, toolchain: Toolchain, best: object) -> None:
    """`best` has compiled the probe. About 3 s alone; the margin is for other processes."""
    start = time.perf_counter()
    limits.measure(cpu, toolchain)
    assert time.perf_counter() - start < 9


@pytest.mark.usefixtures("_hasty", "_torch_as_it_was")
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_a_probe(level: str, cpu: Device, toolchain: Toolchain) -> None:
    if LEVELS.index(level) > LEVELS.index(cpu.isa):
        pytest.skip(f"the CPU is {cpu.arch}")
    machine = cpu.arch.partition("-")[0]
    device = dataclasses.replace(cpu, arch=f"{machine}-{level}")
    found = rates_of(limits.measure(device, toolchain))
    missing = {name for name, rate in found.items() if rate is None}
    assert "fp8" in missing
    assert missing <= {"fp8", "bf16"}
    assert "bf16" in missing or level == "avx512vnni"


@pytest.mark.usefixtures("_hasty", "_torch_as_it_was")
def test_without_a_compiler_torch_is_measured(cpu: Device, toolchain: Toolchain) -> None:
    found = rates_of(limits.measure(cpu, dataclasses.replace(toolchain, compiler=None)))
    assert all(found[name] for name in RATES - {"fp8", "int8"})


@pytest.mark.usefixtures("_hasty", "_torch_as_it_was")
def test_a_product_that_torch_lacks_is_none_and_another_error_is_not_hidden(
    cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(error: Exception) -> by_torch.Maker:
        def product() -> None:
            raise error

        return lambda side, where: product

    lacks = "torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0"
    monkeypatch.setitem(by_torch.PRODUCTS, "fp8", raises(RuntimeError(lacks)))
    monkeypatch.setitem(by_torch.PRODUCTS, "int8", raises(NotImplementedError("_int_mm")))
    found = by_torch.rates(cpu)
    assert found["fp8"] is found["int8"] is None
    assert found["bf16"]
    broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setitem(by_torch.PRODUCTS, "fp8", raises(broken))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        by_torch.rates(cpu)


@pytest.mark.gpu
def test_the_rates_of_this_gpu_are_plausible() -> None:
    torch.use_deterministic_algorithms(False)  # which would refuse cuBLAS
    device = probe_device("cuda")
    start = time.perf_counter()
    found = limits.measure(device, probe_toolchain("cuda"))
    assert time.perf_counter() - start < 30
    assert found.memory_read is not None
    assert found.cache_read is not None
    assert found.cache_read > found.memory_read
    assert found.fp32 is not None
    if device.compute_capability >= 80:
        assert found.bf16 is not None
        assert found.bf16 > found.fp32
    assert (found.fp8 is not None) == (device.compute_capability >= 89)


def test_a_share_of_the_cache_is_no_private_cache(
    cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_probe, "_private_cache", lambda: 1 << 20)
    pair = dataclasses.replace(cpu, cores=2, cache_bytes=32 << 20)
    assert by_probe.cache_share(pair) == 4 << 20  # a quarter, for the two that share it
    many = dataclasses.replace(cpu, cores=64, cache_bytes=256 << 20)
    assert by_probe.cache_share(many) == 2 << 20  # a quarter would fit in each core's own cache


@pytest.mark.parametrize(
    ("fewest_bytes", "policy", "expected"),
    [
        (32_000, COLD, Bound(640, "int8")),  # 640000 operations at 1000 a ns; bytes 320 ns
        (128_000, COLD, Bound(1280, "memory")),  # at 100 bytes a ns
        (128_000, WARM, Bound(640, "int8")),  # at 400 bytes a ns: 320 ns
        (512_000, WARM, Bound(1280, "cache")),
    ],
)
def test_the_larger_of_computing_and_moving_binds(
    fewest_bytes: float, policy: Policy, expected: Bound
) -> None:
    work = GemmWorkload(10, 100, 320)
    assert limits.roofline(KNOWN, work, fewest_bytes, Arithmetic.INT8, policy) == expected


def test_a_recipe_and_a_baseline_are_bound_by_the_bytes_they_move() -> None:
    work = GemmWorkload(1, 4096, 4096)
    known = KNOWN.model_copy(update={"bf16": 500.0})
    fp4 = limits.roofline(known, work, work.fewest_bytes(RECIPES["mxfp4"]), Arithmetic.INT8, COLD)
    # 4.25 bits for each of 4096 activations and 4096 * 4096 weights, 2 bytes an output
    assert fp4 == Bound(((4096 + 4096 * 4096) * 4.25 / 8 + 2 * 4096) / 100, "memory")
    dense = 2 * (4096 + 4096 * 4096 + 4096)
    baseline = limits.roofline(known, work, dense, Arithmetic.BF16, COLD)
    assert baseline == Bound(dense / 100, "memory")


def test_no_bound_without_its_limits() -> None:
    work = GemmWorkload(10, 100, 320)
    assert limits.roofline(KNOWN, work, 1000, Arithmetic.FP8, COLD) is None
    unread = KNOWN.model_copy(update={"cache_read": None})
    assert limits.roofline(unread, work, 1000, Arithmetic.INT8, WARM) is None
    assert limits.roofline(unread, work, 1000, Arithmetic.INT8, COLD) is not None


def test_the_latest_limits_of_this_very_device_count() -> None:
    older, newer = (KNOWN.model_copy(update={"fp32": fp32}) for fp32 in (1.0, 2.0))
    other = KNOWN.model_copy(update={"device": dataclasses.replace(DEVICE, cores=4)})
    found = Evidence((older, passed_trial(), newer, other), ())
    assert limits.latest(found, DEVICE) is newer
    assert limits.latest(found, other.device) is other
    assert limits.latest(Evidence((other,), ()), DEVICE) is None
