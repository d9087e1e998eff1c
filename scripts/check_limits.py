"""This CPU's limits beside tools that share no code with the probe, in turns, in one run.

    python scripts/check_limits.py --rounds 5

Bandwidths and fp32 are compared with likwid-bench (Debian: apt-get install likwid). No tool reads
memory past the caches, or multiplies int8 or bf16: these are compared with loops in inline
assembly, compiled here alone, one pinned pthread a core; for reads the faster of both counts. Of
all rounds the best counts, on both sides: memory bandwidth of a virtual machine drifts by a factor
of two. What other processes disturbed is measured again. Exit 1 if any differs by more than 10%.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import typer  # noqa: E402

from fp4bench import limits  # noqa: E402
from fp4bench.limits.cpu import cache_share  # noqa: E402
from fp4kernels.devices import (  # noqa: E402
    Device,
    probe_device,
    probe_toolchain,
    usable_cpus,
)

T = TypeVar("T")

TOLERANCE = 0.10
OTHERS = 0.03  # of the machine's time that other processes may take while something is measured
TRIES, PAUSE_SECONDS = 6, 3
MEMORY_BYTES = 512 << 20
SUFFIX = {"avx512vnni": "_avx512", "avx2": "_avx"}
LOOP = r"""
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
static pthread_barrier_t together;
static double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}
#ifdef BYTES  // touches every line once, and fetches ahead by the hint that spares the caches
static const double DONE = BYTES;
static char* prepare() { return (char*)memset(aligned_alloc(4096, BYTES + 4096), 1, BYTES + 4096); }
static void loop(const char* from) {
    const char* end = from + BYTES;
    asm volatile("1:\nprefetchnta 2048(%0)\nmov (%0),%%rax\nadd $64,%0\ncmp %1,%0\njb 1b\n"
                 : "+r"(from) : "r"(end) : "cc", "rax", "memory");
}
#else  // chains of one instruction, none of which waits for another
#define ONE(n) INSTRUCTION " %%zmm14,%%zmm15,%%zmm" #n "\n"
#define CLEAR(n) "vpxord %%zmm" #n ",%%zmm" #n ",%%zmm" #n "\n"
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13)
static const long TURNS = 500000;
static const double DONE = TURNS * 14.0 * OPERATIONS;
static char* prepare() { return nullptr; }
static void loop(const char*) {
    long n = TURNS;
    asm volatile(ALL(CLEAR) CLEAR(14) CLEAR(15) "1:\n" ALL(ONE) "dec %0\njnz 1b\n"
                 : "+r"(n) : : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                 "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}
#endif
static void* worker(void* cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((long)cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    const char* data = prepare();
    double best = 1e9;
    for (int turn = 0; turn < 100; ++turn) {
        pthread_barrier_wait(&together);
        const double start = now();
        loop(data);
        pthread_barrier_wait(&together);
        best = std::min(best, now() - start);
    }
    return new double(best);
}
int main(int count, char** cpus) {
    std::vector<pthread_t> threads(count - 1);
    pthread_barrier_init(&together, nullptr, count - 1);
    for (int i = 1; i < count; ++i)
        pthread_create(&threads[i - 1], nullptr, worker, (void*)atol(cpus[i]));
    double slowest = 0;
    for (pthread_t thread : threads) {
        void* best;
        pthread_join(thread, &best);
        slowest = std::max(slowest, *(double*)best);
    }
    printf("%f\n", 1e-9 * DONE * (count - 1) / slowest);
}
"""
# 16 lanes of 4 int8 or 2 bf16 multiply-adds
LOOPS = {
    "int8": ('-DINSTRUCTION="vpdpbusd"', "-DOPERATIONS=128"),
    "bf16": ('-DINSTRUCTION="vdpbf16ps"', "-DOPERATIONS=64"),
}


def main(rounds: int = 5) -> None:
    """Race the probe with the independent tools."""
    device, toolchain = probe_device("cpu"), probe_toolchain("cpu")
    if shutil.which("likwid-bench") is None:
        raise SystemExit("needs likwid-bench; install it (Debian: apt-get install likwid)")
    if device.isa not in SUFFIX or toolchain.compiler is None:
        raise SystemExit(f"needs AVX2 or better and a C++ compiler, but this is {device.arch}")
    ours: defaultdict[str, float] = defaultdict(float)
    theirs: defaultdict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            found = undisturbed(lambda: limits.measure(device, toolchain))
            for name in ("memory_read", "memory_copy", "cache_read", "cache_copy", "fp32",
                         "bf16", "int8"):  # fmt: skip
                rate = getattr(found, name)
                tool = functools.partial(
                    independent, name, device, toolchain.compiler, Path(folder)
                )
                other = undisturbed(tool)
                if rate is not None and other is not None:
                    ours[name] = max(ours[name], rate)
                    theirs[name] = max(theirs[name], other)
    print(f"{'':12} {'probe':>9} {'other':>9}  ratio")
    for name, rate in ours.items():
        ratio = rate / theirs[name]
        verdict = "" if abs(ratio - 1) <= TOLERANCE else f"  off by more than {TOLERANCE:.0%}"
        print(f"{name:12} {rate:9.1f} {theirs[name]:9.1f}  {ratio:.3f}{verdict}")
    raise SystemExit(any(abs(ours[name] / theirs[name] - 1) > TOLERANCE for name in ours))


def undisturbed(measured: Callable[[], T]) -> T:
    """Measured again while other processes run; after TRIES whatever came."""
    for _ in range(TRIES):
        start, others = time.monotonic(), _others()
        result = measured()
        passed = (time.monotonic() - start) * (os.cpu_count() or 1)
        if _others() - others < OTHERS * passed:
            break
        time.sleep(PAUSE_SECONDS)
    return result


def _others() -> float:
    """Seconds that the CPUs have worked for other processes, by Linux's /proc/stat."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    own = sum(os.times()[:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - own


def independent(name: str, device: Device, compiler: str, folder: Path) -> float | None:
    """GB/s or GFLOP/s; None where no other tool measures it on this device."""
    wide, cached = SUFFIX[device.isa], device.cores * cache_share(device)
    if name == "memory_read":
        own = _loop(name, (f"-DBYTES={MEMORY_BYTES // device.cores}",), device, compiler, folder)
        return max(own, _likwid(f"load{wide}", device, MEMORY_BYTES, 50))
    if name == "memory_copy":
        return _likwid(f"copy_mem{wide}", device, MEMORY_BYTES, 50)
    if name == "cache_read":
        return _likwid(f"load{wide}", device, cached, 2000)
    if name == "cache_copy":
        return _likwid(f"copy{wide}", device, cached, 2000)
    if name == "fp32":
        return _likwid(f"peakflops_sp{wide}_fma", device, device.cores * (16 << 10), 200_000)
    if device.isa != "avx512vnni":
        return None
    return _loop(name, LOOPS[name], device, compiler, folder)


def _likwid(kernel: str, device: Device, size: int, turns: int) -> float:
    """`kernel` over `size` bytes shared out to all cores, in 10^9 a second."""
    group = f"N:{size // 1000}kB:{device.cores}"
    command = ["likwid-bench", "-t", kernel, "-w", group, "-i", str(turns)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    unit = "MFlops" if kernel.startswith("peakflops") else "MByte"
    rate = re.search(rf"^{unit}/s:\s+([\d.]+)", said, re.MULTILINE)
    if rate is None:
        raise SystemExit(f"{' '.join(command)} printed no {unit}/s: {said}")
    return float(rate[1]) / 1000


def _loop(
    name: str, defines: tuple[str, ...], device: Device, compiler: str, folder: Path
) -> float:
    program = folder / name
    if not program.exists():
        source = folder / f"{name}.cpp"
        source.write_text(LOOP)
        subprocess.run(
            [compiler, "-O2", "-pthread", *defines, str(source), "-o", str(program)], check=True
        )
    cpus = [str(cpu) for cpu in usable_cpus()]
    return float(subprocess.run([program, *cpus], capture_output=True, check=True).stdout)


if __name__ == "__main__":
    typer.run(main)
