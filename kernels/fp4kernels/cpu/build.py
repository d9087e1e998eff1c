"""Compile C++ sources to shared objects, once: the cache key is source, compiler and flags."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError

SOURCES = Path(__file__).parent / "src"
COMPILE_SECONDS = 120
# contraction would round products of quantize and of the gate's bound differently
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=off",
          "-fno-math-errno")  # fmt: skip
# named one by one: -march=native can misname the CPU of a virtual machine
_ISA_FLAGS = {
    "avx512vnni": ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl",
                   "-mavx512vbmi", "-mavx512vnni", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "portable": (),
}  # fmt: skip


def cache_dir() -> Path:
    """Where shared objects are kept: the XDG cache folder of the user."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fp4kernels"


def compile_object(
    source: str, defines: Mapping[str, int], device: Device, toolchain: Toolchain
) -> Path:
    """The shared object of `source` (a file of src/) with `defines`; cached on disk.

    Raises BuildError without a compiler, or with the compiler's last lines.
    """
    if toolchain.compiler is None:
        raise BuildError(
            "CPU kernels need a C++ compiler, but none of c++, g++, clang++ is on PATH; "
            "install one (Debian: apt-get install g++)"
        )
    flags = [*_FLAGS, *_ISA_FLAGS[device.isa], *(f"-D{k}={v}" for k, v in defines.items())]
    identity = "\0".join((_source_hash(), source, str(toolchain.compiler_version), *flags))
    target = (
        cache_dir() / f"{Path(source).stem}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
    )
    if not target.exists():
        _compile([toolchain.compiler, *flags, str(SOURCES / source)], target)
    return target


def _compile(command: list[str], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            output = Path(scratch) / target.name
            result = subprocess.run(
                [*command, "-o", str(output)],
                capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS,
            )  # fmt: skip
            if result.returncode:
                tail = " | ".join(result.stderr.strip().splitlines()[-3:])
                raise BuildError(f"{command[0]} exited with {result.returncode}: {tail}")
            output.replace(target)  # atomic: a reader sees all of it or nothing
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} did not finish within {COMPILE_SECONDS} s") from None
    except OSError as error:
        raise BuildError(f"cannot build into {target.parent}: {error}") from error


@functools.cache
def _source_hash() -> str:
    digest = hashlib.sha256()
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))
