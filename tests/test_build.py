"""Building shared objects: sources elsewhere, and compilers that do not come back."""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from fp4kernels.cpu import build, cache
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError, BuildTimeoutError

FORK = multiprocessing.get_context("fork")
# this process has threads, of which the others use none
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
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


def other_process(cpu: Device, toolchain: Toolchain, compiler: Path) -> ForkProcess:
    """Compiles pool.cpp by `compiler` into the same cache."""
    slow = dataclasses.replace(toolchain, compiler=str(compiler))
    process = FORK.Process(target=build.compile_object, args=("pool.cpp", {}, cpu, slow))
    process.start()
    return process


def counting(folder: Path, toolchain: Toolchain, wait: float) -> Path:
    """The compiler, but slow; it notes each of its calls."""
    compiler = folder / "slow-c++"
    compiler.write_text(
        f"#!/bin/sh\necho call >> '{folder}/calls'\nsleep {wait}\nexec {toolchain.compiler} \"$@\"\n"
    )
    compiler.chmod(0o755)
    return compiler


@forks
def test_processes_that_want_the_same_object_compile_it_once(
    cpu: Device, toolchain: Toolchain, tmp_path: Path
) -> None:
    compiler = counting(tmp_path, toolchain, 0.5)
    processes = [other_process(cpu, toolchain, compiler) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "calls").read_text() == "call\n"
    (found,) = build.cache_dir().iterdir()
    assert ctypes.CDLL(str(found)).fp4_pool_start is not None


@forks
def test_a_process_killed_while_it_compiles_leaves_nothing_that_others_trip_over(
    cpu: Device, toolchain: Toolchain, tmp_path: Path
) -> None:
    compiler = counting(tmp_path, toolchain, 0.5)
    first = other_process(cpu, toolchain, compiler)
    while not (tmp_path / "calls").exists():
        time.sleep(0.01)
    second = other_process(cpu, toolchain, compiler)
    time.sleep(0.1)  # it waits for the first by now
    first.kill()
    second.join(60)
    first.join(60)
    assert second.exitcode == 0
    assert (tmp_path / "calls").read_text() == "call\n" * 2
    left = [path for path in build.cache_dir().iterdir() if path.suffix != ".so"]
    assert len(left) <= 1  # what the dead one wrote into
    cache.trim(build.cache_dir(), spared=-1)
    (found,) = build.cache_dir().iterdir()
    assert ctypes.CDLL(str(found)).fp4_pool_start is not None


@forks
def test_who_waits_for_another_gives_up_in_time(
    cpu: Device, toolchain: Toolchain, tmp_path: Path
) -> None:
    compiler = counting(tmp_path, toolchain, 30)
    process = other_process(cpu, toolchain, compiler)
    while not (tmp_path / "calls").exists():
        time.sleep(0.01)
    here = dataclasses.replace(toolchain, compiler=str(compiler))
    with pytest.raises(BuildTimeoutError, match=r"did not finish within 0.2 s"):
        build.compile_object("pool.cpp", {}, cpu, here, seconds=0.2)
    process.kill()
    process.join()


def test_threads_share_one_compile(cpu: Device, toolchain: Toolchain, tmp_path: Path) -> None:
    compiler = counting(tmp_path, toolchain, 0.2)
    here = dataclasses.replace(toolchain, compiler=str(compiler))
    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(build.compile_object, "pool.cpp", {}, cpu, here) for _ in range(4)]
    assert len({job.result() for job in jobs}) == 1
    assert (tmp_path / "calls").read_text() == "call\n"


def test_many_objects_share_a_precompiled_header(
    cpu: Device, toolchain: Toolchain, tmp_path: Path
) -> None:
    source = tmp_path / "answer.cpp"
    source.write_text(
        '#include <vector>\nextern "C" int answer() { return std::vector<int>(ANSWER).size(); }\n'
    )
    compiler = counting(tmp_path, toolchain, 0)
    here = dataclasses.replace(toolchain, compiler=str(compiler))
    found = [build.compile_object(source, {"ANSWER": i}, cpu, here, many=True) for i in (3, 4, 3)]
    assert [ctypes.CDLL(str(path)).answer() for path in found] == [3, 4, 3]
    assert (tmp_path / "calls").read_text() == "call\n" * 3  # one for the header
    (folder,) = (path for path in build.cache_dir().iterdir() if path.is_dir())
    assert sorted(path.name for path in folder.iterdir()) == ["prelude.h", "prelude.h.gch"]
    (folder / "prelude.h.gch").write_bytes(b"of another compiler")
    again = build.compile_object(source, {"ANSWER": 5}, cpu, here, many=True)
    assert ctypes.CDLL(str(again)).answer() == 5
    os.utime(folder, (0, 0))
    cache.trim(build.cache_dir())
    assert not folder.exists()


def entry(name: str, size: int, age: float) -> Path:
    """An object of the cache that was used `age` seconds ago."""
    path = build.cache_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_full_cache_loses_what_was_not_used_for_longest() -> None:
    entries = [entry(f"{i}.so", 1000, age=10000 - i) for i in range(10)]
    cache.trim(build.cache_dir(), most=5500, spared=60)
    assert [path.exists() for path in entries] == [False] * 5 + [True] * 5
    cache.trim(build.cache_dir(), most=5500, spared=60)
    assert sum(path.exists() for path in entries) == 5


def test_a_full_cache_keeps_what_is_held_and_what_was_just_used() -> None:
    entries = [entry(f"{i}.so", 1000, age=10000 - i) for i in range(6)]
    with cache.held(entries[0], 1):
        assert cache.used(entries[1])
    with cache.held(entries[0], 1), ThreadPoolExecutor(1) as thread:
        thread.submit(cache.trim, build.cache_dir(), 1000, 60).result()
    assert [path.exists() for path in entries] == [True, True, False, False, False, False]


def test_a_compile_trims_the_cache_and_what_is_loaded_runs_on(
    cpu: Device, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build.compile_object("pool.cpp", {}, cpu, toolchain)
    loaded = ctypes.CDLL(str(first))
    os.utime(first, (0, 0))
    big = entry("big.so", cache.MOST_BYTES, age=5000)
    second = build.compile_object("pool.cpp", {"X": 1}, cpu, toolchain)
    assert [path.exists() for path in (first, big, second)] == [False, False, True]
    loaded.fp4_pool_start(ctypes.c_int64(1))
    assert build.compile_object("pool.cpp", {}, cpu, toolchain) == first
    assert first.exists()


def test_what_killed_processes_left_goes_with_time() -> None:
    old, new = build.cache_dir() / "tmpold", build.cache_dir() / "tmpnew"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "half.so").write_bytes(b"half")
    os.utime(old, (0, 0))
    stale = entry("gone.so.lock", 0, age=90000)
    cache.trim(build.cache_dir())
    assert (old.exists(), new.exists(), stale.exists()) == (False, True, False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_may_only_be_read_still_serves(cpu: Device, toolchain: Toolchain) -> None:
    found = build.compile_object("pool.cpp", {}, cpu, toolchain)
    build.cache_dir().chmod(0o500)
    try:
        assert build.compile_object("pool.cpp", {}, cpu, toolchain) == found
        with pytest.raises(BuildError, match="cannot build into"):
            build.compile_object("pool.cpp", {"X": 1}, cpu, toolchain)
    finally:
        build.cache_dir().chmod(0o700)
