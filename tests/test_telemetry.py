"""Telemetry: the CPU's files here, NVML through a shared library built for the test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fp4bench.telemetry import ClockEvent, monitor
from fp4bench.telemetry.cpu import CpuMonitor
from fp4bench.telemetry.gpu import torch_identity
from fp4bench.telemetry.nvidia import NvidiaMonitor
from fp4bench.trials import Telemetry
from fp4kernels.devices import Device

# runs each (identity, answers) of argv in turn; prints what was seen
CHILD = """
import json, os, sys, threading, time
from fp4bench.telemetry.gpu import Identity
from fp4bench.telemetry.nvidia import NvidiaMonitor

def watch(identity, answers):
    os.environ.update(answers)
    monitor = NvidiaMonitor(Identity(*identity))
    with monitor.watch() as watch:
        sampling = threading.active_count() > 1
        time.sleep(0.15)
    left = threading.active_count() - 1
    joules = [monitor.energy_joules() for _ in range(2)]
    for name in answers:
        del os.environ[name]
    return {**watch.read().model_dump(), "sampling": sampling, "left": left, "joules": joules}

print(json.dumps([watch(*scenario) for scenario in json.loads(sys.argv[1])]))
"""
Scenario = tuple[tuple[str | None, str | None], dict[str, str]]
NAMELESS = (None, None)


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that hold libnvidia-ml.so.1, with the newer and the older name of the reasons."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("building a stand-in for NVML needs Linux and a C compiler")
    folders = {}
    for age in ("NEW_NAME", "OLD_NAME"):
        folders[age] = tmp_path_factory.mktemp(age)
        source = Path(__file__).with_name("fake_nvml.c")
        library = folders[age] / "libnvidia-ml.so.1"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-D{age}", "-o", library, source], check=True
        )
    return folders


def in_child(code: str, scenarios: list[Scenario], **environment: str) -> list[dict[str, Any]]:
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, json.dumps(scenarios)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    seen: list[dict[str, Any]] = json.loads(child.stdout)
    return seen


def watched(library: Path, *scenarios: Scenario) -> list[dict[str, Any]]:
    """What a child process reads through `library`, which gives each scenario's answers."""
    return in_child(CHILD, [*scenarios], LD_LIBRARY_PATH=str(library))


def answers(**values: str) -> dict[str, str]:
    return {f"FAKE_{name}": value for name, value in values.items()}


@pytest.mark.parametrize("age", ["NEW_NAME", "OLD_NAME"])
def test_nvml_is_sampled_and_reduced(nvml: dict[str, Path], age: str) -> None:
    said = answers(
        SM="1200 1400", MEMORY="2619", POWER="350500", HEAT="61 70 64",
        REASONS="1 4 32", ENERGY="5000 7500",
    )  # fmt: skip
    (seen,) = watched(nvml[age], (NAMELESS, said))
    assert seen["sampling"]
    assert seen["left"] == 0  # the thread ends with the block
    assert 1200 < seen["mhz"] < 1400
    assert seen["memory_mhz"] == 2619
    assert seen["watts"] == 350.5
    assert seen["celsius"] == 70
    assert seen["event_reasons"] == 1 | 4 | 32
    assert seen["throttled"] is True
    assert seen["joules"] == [5.0, 7.5]
    assert seen["joules_per_call"] is None
    assert seen["load_average"] is not None  # of the host, beside the GPU's own


def test_each_bit_that_holds_clocks_down_counts_and_no_other(nvml: dict[str, Path]) -> None:
    reasons = [1 << bit for bit in range(9)]
    scenarios = [(NAMELESS, answers(REASONS=str(bits))) for bits in reasons]
    seen = watched(nvml["NEW_NAME"], *scenarios)
    assert [row["event_reasons"] for row in seen] == reasons
    held = [bits for bits, row in zip(reasons, seen, strict=True) if row["throttled"]]
    assert held == [4, 8, 32, 64, 128] == [*map(int, ClockEvent)]


def test_what_a_gpu_does_not_say_is_none_and_the_rest_is_read(nvml: dict[str, Path]) -> None:
    partly, no_driver = watched(
        nvml["NEW_NAME"],
        (NAMELESS, answers(SM="1980", POWER="denied")),
        (NAMELESS, answers(SM="1980", NO_DRIVER="1")),
    )
    assert partly["mhz"] == 1980
    assert partly["sampling"]
    silent = ("memory_mhz", "watts", "celsius", "event_reasons", "throttled")
    assert {partly[name] for name in silent} == {None}
    assert partly["joules"] == [None, None]
    assert no_driver["mhz"] is None
    assert not no_driver["sampling"]


def test_the_gpu_is_torchs_and_not_number_0(nvml: dict[str, Path]) -> None:
    said = answers(SM="1980", SM_OTHER="700")
    names: dict[tuple[str | None, str | None], int] = {
        ("0123-abcd", None): 700,
        (None, "0000:3b:00.0"): 700,
        ("of-a-slice", "0000:3b:00.0"): 700,
        ("unknown", "0000:ff:00.0"): 1980,
    }
    seen = watched(nvml["NEW_NAME"], *((name, said) for name in names))
    assert [row["mhz"] for row in seen] == [*names.values()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has NVML")
@pytest.mark.parametrize("absent", ["library", "binding"])
def test_without_nvml_all_is_none(absent: str) -> None:
    hide = "import sys; sys.modules['pynvml'] = None" if absent == "binding" else ""
    (seen,) = in_child(hide + CHILD, [(NAMELESS, {})], LD_LIBRARY_PATH="")
    gpu = ("mhz", "memory_mhz", "watts", "celsius", "event_reasons", "throttled")
    assert {seen[name] for name in gpu} == {None}
    assert seen["joules"] == [None, None]
    assert not seen["sampling"]


def test_amd_is_read_where_amdsmi_answers(tmp_path: Path) -> None:
    stand_in = """
        from enum import Enum
        class AmdSmiException(Exception): ...
        AmdSmiClkType = Enum("AmdSmiClkType", "GFX MEM")
        AmdSmiTemperatureType = Enum("AmdSmiTemperatureType", "HOTSPOT")
        AmdSmiTemperatureMetric = Enum("AmdSmiTemperatureMetric", "CURRENT")
        def amdsmi_init(): ...
        def amdsmi_get_processor_handle_from_bdf(bdf): return bdf
        def amdsmi_get_clock_info(gpu, kind): return {"clk": 2100 if kind.name == "GFX" else "N/A"}
        def amdsmi_get_power_info(gpu):
            return {"current_socket_power": "N/A", "average_socket_power": 410}
        def amdsmi_get_temp_metric(gpu, kind, metric): raise AmdSmiException("not supported")
        def amdsmi_get_energy_count(gpu):
            return {"energy_accumulator": 2_000_000, "counter_resolution": 15.3}
    """
    (tmp_path / "amdsmi.py").write_text(textwrap.dedent(stand_in))
    code = CHILD.replace("nvidia", "amd").replace("NvidiaMonitor", "AmdMonitor")
    (seen,) = in_child(code, [((None, "0000:3b:00.0"), {})], PYTHONPATH=str(tmp_path))
    assert (seen["mhz"], seen["memory_mhz"], seen["watts"]) == (2100, None, 410)
    assert seen["celsius"] is None
    assert seen["event_reasons"] is seen["throttled"] is None
    assert seen["joules"][0] == pytest.approx(30.6)


def test_the_cpu_at_hand_is_watched_without_a_thread(cpu: Device) -> None:
    opened, threads = monitor(cpu), threading.active_count()
    with opened.watch() as watch:
        assert threading.active_count() == threads
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            pass
    seen = watch.read()
    assert seen.load_average is not None
    if sys.platform == "linux":
        assert seen.steal is not None
        assert 0 <= seen.steal <= 1
    assert seen.mhz is None or 100 < seen.mhz < 10_000
    assert seen.throttled is None
    joules = opened.energy_joules()
    assert (seen.watts is None) == (joules is None)


def test_a_cpu_whose_system_has_no_such_files_says_only_its_load(tmp_path: Path) -> None:
    with CpuMonitor(tmp_path).watch() as watch:
        pass
    assert watch.read() == Telemetry(load_average=watch.read().load_average)


def a_linux_machine(root: Path) -> tuple[Path, Path]:
    """Files of all the sensors; returns those of the ticks and of the energy."""
    usable, other = sorted(os.sched_getaffinity(0))[0], 4096
    stat, energy = root / "proc/stat", root / "sys/class/powercap/intel-rapl:0/energy_uj"
    files = {
        stat: f"cpu 9 9 9 9 9 9 9 9 9 9\ncpu{usable} 10 0 0 90 0 0 0 5 3 0\n"
        f"cpu{other} 0 0 0 0 0 0 0 0 0 0\n",
        root / f"sys/devices/system/cpu/cpu{usable}/cpufreq/scaling_cur_freq": "3100000\n",
        root / f"sys/devices/system/cpu/cpu{other}/cpufreq/scaling_cur_freq": "800000\n",
        root / "sys/class/hwmon/hwmon0/name": "nvme\n",
        root / "sys/class/hwmon/hwmon0/temp1_input": "99000\n",
        root / "sys/class/hwmon/hwmon1/name": "k10temp\n",
        root / "sys/class/hwmon/hwmon1/temp1_input": "56500\n",
        energy.parent / "name": "package-0\n",
        energy.parent / "max_energy_range_uj": "10000000\n",
        energy: "9000000\n",
        root / "sys/class/powercap/intel-rapl:0:0/name": "core\n",
        root / "sys/class/powercap/intel-rapl:0:0/energy_uj": "1\n",
    }
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return stat, energy


@pytest.mark.skipif(sys.platform != "linux", reason="these are files of Linux")
def test_linux_files_are_read_for_the_usable_cores(tmp_path: Path) -> None:
    stat, energy = a_linux_machine(tmp_path)
    opened = CpuMonitor(tmp_path)
    start = opened.energy_joules()
    assert start is not None
    with opened.watch() as watch:
        stat.write_text(
            stat.read_text().replace(" 10 0 0 90 0 0 0 5 3 0", " 50 0 0 100 0 0 0 15 9 0")
        )
        energy.write_text("2000000\n")  # over its range: 3 J, not -7
        time.sleep(0.05)
    seen = watch.read()
    assert seen.steal == pytest.approx(10 / (40 + 10 + 10))
    assert seen.mhz == 3100
    assert seen.celsius == 56.5
    assert seen.watts is not None
    assert 0 < seen.watts <= 3 / 0.05
    assert opened.energy_joules() == pytest.approx(start + 3)
    energy.unlink()
    assert opened.energy_joules() is None


@pytest.mark.skipif(sys.platform != "linux", reason="these are files of Linux")
def test_clocks_come_from_cpuinfo_where_there_is_no_cpufreq(tmp_path: Path) -> None:
    core = sorted(os.sched_getaffinity(0))[0]
    info = tmp_path / "proc/cpuinfo"
    info.parent.mkdir()
    info.write_text(
        f"processor\t: {core}\ncpu MHz\t\t: 2596.124\n\nprocessor\t: 4096\ncpu MHz\t\t: 800.0\n"
    )
    assert CpuMonitor(tmp_path).mhz() == 2596.124


@pytest.mark.gpu
def test_the_gpu_at_hand_is_watched() -> None:
    identity = torch_identity()
    assert identity.uuid is not None
    opened = NvidiaMonitor(identity)
    assert opened.connected
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    before = opened.energy_joules()
    with opened.watch() as watch:
        for _ in range(200):
            x @ x
        torch.cuda.synchronize()
    seen, after = watch.read(), opened.energy_joules()
    assert seen.mhz is None or seen.mhz > 100
    assert before is None or after is None or after > before
