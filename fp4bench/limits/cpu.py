"""Limits of a CPU, by a C++ probe on the kernels' own thread pool."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_double, c_int64, c_void_p
from pathlib import Path

import torch

from fp4bench.clocks import Call
from fp4bench.limits.fastest import fastest
from fp4bench.timing import default_policy
from fp4kernels.cpu.build import compile_object, load
from fp4kernels.cpu.launch import start_pool
from fp4kernels.devices import Device, Toolchain

PROBE = Path(__file__).parent / "src" / "probe.cpp"
UNITS = ("fp32", "int8", "bf16")  # enum Unit of probe.cpp
STEPS = 1 << 21  # of a unit: some 5 ms, long enough to be sustained
CACHES = 8  # memory is a buffer so many times all last-level caches in use
LARGEST = 8  # but no more than this part of memory
CHUNKS = 16  # tasks a thread in memory, as the kernels split their work
AHEAD = (0, 1024, 4096)  # bytes that reads are fetched ahead; the best depends on the machine
CACHE_TRAFFIC = 512 << 20  # bytes a thread moves within the cache in one call
ALIGNMENT = 4096  # of what one task reads or writes: a page
WARM, COLD = default_policy("cpu", "warm"), default_policy("cpu", "cold")
UNIT_SECONDS, CACHE_SECONDS, MEMORY_SECONDS = 0.2, 0.25, 0.5


class Probe:
    """The compiled probe, and one buffer that all its tasks share out."""

    def __init__(self, device: Device, toolchain: Toolchain) -> None:
        self._library = load(compile_object(PROBE, {}, device, toolchain))
        self._library.probe_unit.restype = c_double
        self._pool = ctypes.cast(start_pool(device, toolchain).fp4_parallel_for, c_void_p)
        self.cores = device.cores
        size = _pages(min(CACHES * device.cache_bytes, device.memory_bytes // LARGEST))
        # written by torch's threads: pages that no one wrote are all one page of zeros
        self._buffer = torch.full((size + ALIGNMENT,), 1, dtype=torch.uint8)
        start = -(-self._buffer.data_ptr() // ALIGNMENT) * ALIGNMENT
        self._start, self._half, self.size = start, start + size // 2, size

    def read(self, tasks: int, size: int, rounds: int, ahead: int) -> Call:
        """Each task reads `size` bytes of its own so often."""
        return functools.partial(
            self._library.probe_read, self._pool, c_int64(tasks), c_void_p(self._start),
            c_int64(size), c_int64(rounds), c_int64(ahead),
        )  # fmt: skip

    def copy(self, tasks: int, size: int, rounds: int, passing: bool) -> Call:
        """Each task copies `size` bytes of its own so often; `passing` writes past the caches."""
        return functools.partial(
            self._library.probe_copy, self._pool, c_int64(tasks), c_void_p(self._half),
            c_void_p(self._start), c_int64(size), c_int64(rounds), c_int64(passing),
        )  # fmt: skip

    def unit_rate(self, name: str) -> float | None:
        """GFLOP/s of all cores; None where there is no such unit."""
        unit = c_int64(UNITS.index(name))
        run = functools.partial(self._library.probe_unit, self._pool, c_int64(self.cores), unit)
        operations = run(c_int64(STEPS))
        if not operations:
            return None
        work = functools.partial(run, c_int64(STEPS))
        return float(operations) / fastest([work], "cpu", WARM, UNIT_SECONDS)


def rates(device: Device, toolchain: Toolchain) -> dict[str, float | None]:
    """Fields of Limits, each the fastest of short repeats on all `device.cores` threads.

    Memory: a buffer of 8 times the last-level caches, at most an eighth of memory. Reads are tried
    plain and fetched ahead by the hint that spares the caches, copies with plain and with
    non-temporal stores (STREAM's way: no line is read only to be overwritten); the fastest counts.
    Cache: each thread goes over a share of its own, again and again, that its private cache cannot
    hold; plain stores. fp32: fused multiply-adds; without AVX2 a multiply and an add, since the
    kernels' flags forbid contraction. int8: vpdpbusd, vpmaddubsw and vpmaddwd, or plain C++ over
    int16, as the level has it. bf16: vdpbf16ps, where the CPU has it. Of level amx both are products
    of full tiles. fp8: no CPU multiplies it.
    """
    probe = Probe(device, toolchain)
    tasks = device.cores * CHUNKS

    piece = _pages(probe.size // tasks)
    reads = [probe.read(tasks, piece, 1, ahead) for ahead in AHEAD]
    memory_read = tasks * piece / fastest(reads, "cpu", COLD, MEMORY_SECONDS)

    piece = _pages(probe.size // 2 // tasks)
    copies = [probe.copy(tasks, piece, 1, passing) for passing in (False, True)]
    memory_copy = 2 * tasks * piece / fastest(copies, "cpu", COLD, MEMORY_SECONDS)

    share = _pages(min(cache_share(device), probe.size // device.cores))
    rounds = max(1, CACHE_TRAFFIC // share)
    moved = device.cores * share * rounds
    cached = probe.read(device.cores, share, rounds, 0)
    cache_read = moved / fastest([cached], "cpu", WARM, CACHE_SECONDS)
    within = probe.copy(device.cores, share // 2, rounds, False)
    cache_copy = moved / fastest([within], "cpu", WARM, CACHE_SECONDS)

    return {
        "memory_read": memory_read, "memory_copy": memory_copy,
        "cache_read": cache_read, "cache_copy": cache_copy,
        **{name: probe.unit_rate(name) for name in UNITS},
    }  # fmt: skip


def cache_share(device: Device) -> int:
    """Bytes one thread goes over so that they come from the last-level cache.

    All threads together take a quarter of it, but each at least twice its private cache: of a
    cyclic walk, an LRU cache of half the length holds nothing.
    """
    return max(device.cache_bytes // 4 // device.cores, 2 * _private_cache())


def _private_cache() -> int:
    """Of CPU 0: bytes of the cache below the last level; 1 MiB where the system does not say."""
    folders = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
    levels = sorted(
        (int((folder / "level").read_text()), folder)
        for folder in folders
        if (folder / "type").read_text().strip() != "Instruction"
    )
    if len(levels) < 2:
        return 1 << 20
    return int((levels[-2][1] / "size").read_text().strip().removesuffix("K")) << 10


def _pages(size: int) -> int:
    """`size` cut to whole pages, and to halves that are whole pages."""
    return max(size // (2 * ALIGNMENT), 1) * 2 * ALIGNMENT
