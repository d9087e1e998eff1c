"""Compile C++ sources to shared objects, once: the cache key is source, compiler and flags."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fp4kernels.cpu import cache
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError, BuildTimeoutError

SOURCES = Path(__file__).parent / "src"
COMPILE_SECONDS = 120.0
# -O3 takes a tenth longer, and its kernels are no faster but for portable W4A16; contraction would round
# products of quantize and of the gate's bound differently
_FLAGS = ("-O2", "-fvect-cost-model=dynamic", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=off",
          "-fno-math-errno")  # fmt: skip
# named one by one: -march=native can misname the CPU of a virtual machine
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vbmi", "-mavx512vnni",
           "-mprefer-vector-width=512")  # fmt: skip
_ISA_FLAGS = {
    "amx": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    "avx512vnni": _AVX512,
    "avxvnni": (*_AVX2, "-mavxvnni"),
    "avx2": _AVX2,
    "neon": ("-march=armv8.2-a+dotprod",),
    "portable": (),
}  # fmt: skip


def flags(isa: str) -> tuple[str, ...]:
    """The compiler's, for a shared object that runs on CPUs of the level `isa`."""
    return (*_FLAGS, *_ISA_FLAGS[isa])


def unavailable(device: Device, toolchain: Toolchain) -> str | None:
    """Why no C++ kernel runs here, or None."""
    if device.kind != "cpu":
        return f"runs on a CPU, but the device is {device.name}"
    if toolchain.compiler is None:
        return "needs a C++ compiler, but none of c++, g++, clang++ is on PATH"
    return None


def cache_dir() -> Path:
    """Where shared objects are kept: the XDG cache folder of the user."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fp4kernels"


def compile_object(
    source: str | Path,
    defines: Mapping[str, int],
    device: Device,
    toolchain: Toolchain,
    seconds: float = COMPILE_SECONDS,
    many: bool = False,
) -> Path:
    """The shared object of `source` with `defines`; cached on disk.

    Where `many` are to come, a precompiled header saves a third of each: it takes as long as three
    objects, and 50 MB.

    `source` is a file of src/, or a path elsewhere; that one may include the headers of src/. Where
    another process compiles the same, its object is waited for. Raises BuildError without a
    compiler, with the compiler's last lines, or after `seconds`.
    """
    if toolchain.compiler is None:
        raise BuildError(
            "CPU kernels need a C++ compiler, but none of c++, g++, clang++ is on PATH; "
            "install one (Debian: apt-get install g++)"
        )
    path = SOURCES / source
    options = [*flags(device.isa), *(f"-D{k}={v}" for k, v in defines.items())]
    sources = [_folder_hash(folder) for folder in sorted({SOURCES, path.parent})]
    version = str(toolchain.compiler_version)
    target = cache_dir() / f"{path.stem}-{_key(*sources, path.name, version, *options)}.so"
    command = [toolchain.compiler, *options, f"-I{SOURCES}", str(path)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with cache.held(target, seconds):
            if cache.used(target):
                return target
            if many:
                prelude = _prelude([toolchain.compiler, *flags(device.isa)], version, seconds)
                command += ["-include", str(prelude)]
            _compile(command, target, seconds)
        cache.trim(target.parent)
    except (subprocess.TimeoutExpired, TimeoutError):
        raise BuildTimeoutError(f"{command[0]} did not finish within {seconds:g} s") from None
    except OSError as error:
        if target.exists():  # in a folder that may only be read
            return target
        raise BuildError(f"cannot build into {target.parent}: {error}") from error
    return target


def _compile(command: list[str], target: Path, seconds: float) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        output = Path(scratch) / target.name
        code, said = _run([*command, "-o", str(output)], seconds)
        if code:
            tail = " | ".join(said.strip().splitlines()[-3:])
            raise BuildError(f"{command[0]} exited with {code}: {tail}")
        output.replace(target)  # atomic: a reader sees all of it or nothing


def _prelude(command: list[str], version: str, seconds: float) -> Path:
    """A header, and beside it what `command` made of it; without that, the header is read."""
    folder = cache_dir() / f"prelude-{_key(_folder_hash(SOURCES), version, *command)}"
    header, compiled = folder / "prelude.h", folder / "prelude.h.gch"
    with cache.held(folder, seconds):
        folder.mkdir(exist_ok=True)
        if not compiled.exists():
            half = folder / "half"
            shutil.copy(SOURCES / header.name, header)
            code, _ = _run([*command, "-x", "c++-header", str(header), "-o", str(half)], seconds)
            if code == 0:
                half.replace(compiled)
        cache.used(folder)
    return header


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _run(command: list[str], seconds: float) -> tuple[int, str]:
    """Exit status and standard error. Whatever ends the wait early ends the whole group."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _, said = process.communicate(timeout=seconds)
        except BaseException:  # the driver alone would leave cc1plus running
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, said


@functools.cache
def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))
