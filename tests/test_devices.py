"""What the system says of a CPU: caches, and the share of it that a process may use; of a GPU: who
made it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fp4kernels.devices import (
    cpu_quota,
    default_level,
    isa_levels,
    last_level_caches,
    own_levels,
    probe_device,
    usable_cpus,
)
from fp4kernels.errors import DeviceError

AVX512 = "avx2 fma f16c avx512f avx512bw avx512vl avx512vbmi avx512_vnni"
AMX = "amx_bf16 amx_tile amx_int8"


def cache(system: Path, cpu: int, level: int, size: str, sharers: str) -> None:
    folder = system / f"cpu{cpu}" / "cache" / f"index{level}"
    folder.mkdir(parents=True)
    for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", sharers)):
        (folder / name).write_text(text + "\n")


def test_all_last_level_caches_in_use_count(tmp_path: Path) -> None:
    for cpu in range(6):
        cache(tmp_path, cpu, 2, "1024K", str(cpu))
        cache(tmp_path, cpu, 3, "32M", ["0-1", "2-3", "4-5"][cpu // 2])
    assert last_level_caches([0, 1], tmp_path) == 32 << 20
    assert last_level_caches([0, 2, 3], tmp_path) == 64 << 20
    assert last_level_caches(range(6), tmp_path) == 96 << 20
    assert last_level_caches([0], tmp_path / "none") == 32 << 20


@pytest.mark.parametrize(
    ("own", "outer", "expected"),
    [
        ("max 100000", "max 100000", None),
        ("150000 100000", "max 100000", 1.5),
        ("max 100000", "50000 100000", 0.5),
        ("400000 100000", "200000 100000", 2.0),
        ("rubbish", "max 100000", None),
    ],
)
def test_a_quota_of_any_group_above_counts(
    tmp_path: Path, own: str, outer: str, expected: float | None
) -> None:
    inner = tmp_path / "groups" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text(own)
    (inner.parent / "cpu.max").write_text(outer)
    membership = tmp_path / "cgroup"
    membership.write_text("1:name=systemd:/\n0::/outer/inner\n")
    assert cpu_quota(tmp_path / "groups", membership) == expected


@pytest.mark.parametrize(
    ("cpuinfo", "levels"),
    [
        ("flags\t\t: fpu avx2 fma f16c avx_vnni\n", ("avxvnni", "avx2", "portable")),
        ("flags\t\t: fpu avx2 fma\n", ("portable",)),  # no conversion of half precision
        (f"flags\t\t: {AVX512}\n", ("avx512vnni", "avx2", "portable")),
        (f"flags\t\t: {AVX512} avx512_bf16 {AMX}\n", ("amx", "avx512vnni", "avx2", "portable")),
        (f"flags\t\t: {AVX512} {AMX}\n", ("avx512vnni", "avx2", "portable")),
        ("Features\t: fp asimd asimddp\n", ("neon", "portable")),
        ("", ("portable",)),
    ],
)
def test_levels_are_what_the_cpu_reports(cpuinfo: str, levels: tuple[str, ...]) -> None:
    assert isa_levels(cpuinfo) == levels


def test_an_unmeasured_level_is_for_those_who_ask() -> None:
    assert default_level(("amx", "avx512vnni", "avx2", "portable")) == "avx512vnni"
    assert default_level(("portable",)) == "portable"
    assert probe_device("cpu").isa == default_level(own_levels())


def test_a_cpu_is_held_to_a_level_that_it_reports() -> None:
    for level in own_levels():
        held = probe_device(f"cpu:{level}")
        assert held.isa == level
        assert held.arch.partition("-")[0] == probe_device("cpu").arch.partition("-")[0]
    lacking = "neon" if "amx" in own_levels() else "amx"
    with pytest.raises(DeviceError, match=f"a level that it reports, but got '{lacking}' on"):
        probe_device(f"cpu:{lacking}")
    with pytest.raises(DeviceError, match="must be 'cpu' or 'cuda', or a CPU .* but got 'cuda:0'"):
        probe_device("cuda:0")


def test_another_system_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "none") is None


def test_cores_are_those_that_may_be_used() -> None:
    assert probe_device("cpu").cores == len(usable_cpus()) >= 1


@pytest.mark.parametrize(
    ("hip", "arch", "shared"), [(None, "sm_94", 227 << 10), ("6.4", "gfx942", 64 << 10)]
)
def test_an_amd_gpu_has_its_own_name(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, arch: str, shared: int
) -> None:
    properties = SimpleNamespace(
        name="GPU", major=9, minor=4, gcnArchName="gfx942:sramecc+:xnack-",
        multi_processor_count=304, L2_cache_size=4 << 20, total_memory=1 << 30,
        shared_memory_per_block=64 << 10, shared_memory_per_block_optin=227 << 10,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    found = probe_device("cuda")
    assert (found.arch, found.shared_memory) == (arch, shared)
    assert found.compute_capability == (0 if hip else 94)
