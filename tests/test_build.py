"""Building shared objects: sources elsewhere, and compilers that do not come back."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import time
from pathlib import Path

import pytest

from fp4kernels.cpu import build
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError

# like a driver, it leaves the work to a child; both hold the pipe open
STUCK = """#!/bin/sh
sleep 300 &
echo $! > '{pid}'
wait
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def runs(pid: int) -> bool:
    """A zombie, which only waits for its parent to ask, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states in /proc")
def test_a_compiler_past_its_limit_dies_with_its_children(
    cpu: Device, toolchain: Toolchain, tmp_path: Path
) -> None:
    noted, compiler = tmp_path / "pid", tmp_path / "c++"
    compiler.write_text(STUCK.format(pid=noted))
    compiler.chmod(0o755)
    stuck = dataclasses.replace(toolchain, compiler=str(compiler))
    start = time.monotonic()
    with pytest.raises(BuildError, match=r"/c\+\+ did not finish within 0.5 s$"):
        build.compile_object("pool.cpp", {}, cpu, stuck, seconds=0.5)
    assert time.monotonic() - start < 5
    child = int(noted.read_text())
    while runs(child) and time.monotonic() - start < 10:
        time.sleep(0.02)
    assert not runs(child)
    assert [*build.cache_dir().iterdir()] == []


def test_what_ends_the_wait_early_ends_the_compiler(
    cpu: Device, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C does not reach a compiler that has a session of its own."""
    killed: list[int] = []

    def interrupted(process: object, timeout: float) -> None:
        raise KeyboardInterrupt

    def kill(group: int, signal: int) -> None:
        killed.append(group)
        real_kill(group, signal)

    real_kill = os.killpg
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexec sleep 300\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build.subprocess.Popen, "communicate", interrupted)  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "killpg", kill)
    with pytest.raises(KeyboardInterrupt):
        build.compile_object(
            "pool.cpp", {}, cpu, dataclasses.replace(toolchain, compiler=str(compiler))
        )
    assert len(killed) == 1
    assert not runs(killed[0])


def test_a_source_elsewhere_includes_the_kernels_headers_and_has_its_own_key(
    cpu: Device, toolchain: Toolchain, tmp_path: Path
) -> None:
    objects = []
    for answer in (41, 42):
        folder = tmp_path / str(answer)
        folder.mkdir()
        (folder / "answer.h").write_text(f"constexpr int ANSWER = {answer};\n")
        source = folder / "answer.cpp"
        source.write_text(
            '#include "abi.h"\n#include "answer.h"\n'
            'extern "C" int answer() { return sizeof(GemmArgs) ? ANSWER : 0; }\n'
        )
        objects.append(build.compile_object(source, {}, cpu, toolchain))
        assert objects[-1] == build.compile_object(source, {}, cpu, toolchain)
    assert [ctypes.CDLL(str(path)).answer() for path in objects] == [41, 42]


def test_a_name_and_the_path_of_a_kernel_source_are_one_object(
    cpu: Device, toolchain: Toolchain
) -> None:
    by_name = build.compile_object("pool.cpp", {}, cpu, toolchain)
    assert build.compile_object(build.SOURCES / "pool.cpp", {}, cpu, toolchain) == by_name
