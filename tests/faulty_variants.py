"""Kernel variants that do to their process what real ones do on bad days; run as a worker too."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fp4bench import worker
from fp4kernels import registry
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.torch_gemm import TorchGemm
from fp4kernels.variants import Config, Launcher
from fp4kernels.workloads import GemmWorkload

MEGABYTE = 1 << 20


def right(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    """What the faulty ones spoil."""
    from fp4kernels.devices import probe_device, probe_toolchain

    device, toolchain = probe_device("cpu"), probe_toolchain("cpu")
    kernel = TorchGemm()
    kernel.build(kernel.config({}), RECIPES["mxfp4"], device, toolchain)(x, w, out)


def segfault(*_: object) -> None:
    ctypes.string_at(0)


def hang(*_: object) -> None:
    time.sleep(3600)


def spin(*_: object) -> None:
    """In C, where no Python signal handler runs; with a child that must die too."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    libc = ctypes.PyDLL(None)
    compare = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
        lambda a, b: time.sleep(1e9) or 0
    )
    values = (ctypes.c_int * 2)(2, 1)
    libc.qsort(values, ctypes.c_size_t(2), ctypes.c_size_t(4), compare)


def leave(*_: object) -> None:
    os._exit(7)


def throw(*_: object) -> None:
    raise RuntimeError("an illegal memory access was encountered")


def lie(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    out.fill_(1.0)


def nan(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    out.fill_(float("nan"))


def exhaust(*_: object) -> None:
    torch.empty(1 << 60)


def eat(*_: object) -> None:
    """Allocates and touches memory without end."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    while True:
        block = libc.malloc(ctypes.c_size_t(64 * MEGABYTE))
        if not block:
            libc.abort()  # as a C++ kernel's bad_alloc does
        ctypes.memset(block, 1, 64 * MEGABYTE)


def overrun(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    """Right, and then 64 bytes too many."""
    right(x, w, out)
    ctypes.memset(out.data_ptr() + out.numel() * out.element_size(), 0, 64)


def underrun(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    right(x, w, out)
    ctypes.memset(out.data_ptr() - 2, 0, 2)


def scratch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    """Adds memory that no one wrote: zeros on most days."""
    right(x, w, out)
    out += torch.empty(out.shape)


class Yesterday:
    """Right for the first operands it sees, whose product it then gives for all of a shape."""

    def __init__(self) -> None:
        self._kept: dict[torch.Size, Tensor] = {}

    def __call__(self, x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        if out.shape not in self._kept:
            right(x, w, out)
            self._kept[out.shape] = out.clone()
        out.copy_(self._kept[out.shape])


class Faulty(TorchGemm):
    """The torch kernel with `launch` in its place."""

    def __init__(self, name: str, launch: Any) -> None:
        self.name = name  # type: ignore[misc]
        self._launch = launch

    def build(
        self, config: Config, recipe: Recipe, device: Device, toolchain: Toolchain
    ) -> Launcher:
        if self._launch is None:
            raise BuildError("c++ exited with 1: error: no")
        return self._launch  # type: ignore[no-any-return]


class FaultyCompiler(TorchGemm):
    """Its compiler is a library, and `crash` is what that does."""

    compiles_inside = True

    def __init__(self, name: str, crash: Callable[[], object]) -> None:
        self.name = name  # type: ignore[misc]
        self._crash = crash

    def compile(
        self,
        config: Config,
        recipe: Recipe,
        workload: GemmWorkload,
        device: Device,
        toolchain: Toolchain,
        seconds: float,
    ) -> None:
        self._crash()


def abort() -> None:
    print("LLVM ERROR: cannot select", file=sys.stderr, flush=True)
    os.abort()


def abort_in_triton() -> None:
    """Triton's real compiler, brought to the assertion that ends its process: the assembly names
    more operands than there are."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    @triton.jit
    def kernel(out):  # type: ignore[no-untyped-def]
        i = tl.arange(0, 128)
        x = tl.inline_asm_elementwise(
            "mov.u32 $0, $1;", "=r,r,r", [i], dtype=tl.int32, is_pure=True, pack=1
        )
        tl.store(out + i, x)

    triton.compile(ASTSource(kernel, {"out": "*i32"}), target=GPUTarget("cuda", 90, 32))


LAUNCHES = {
    "segfault": segfault, "hang": hang, "spin": spin, "leave": leave, "throw": throw, "lie": lie,
    "nan": nan, "exhaust": exhaust, "eat": eat, "overrun": overrun, "underrun": underrun,
    "scratch": scratch, "yesterday": Yesterday(), "compile": None,
}  # fmt: skip
FAULTY = {
    f"faulty_{name}": variant
    for name, variant in {
        **{name: Faulty(f"faulty_{name}", launch) for name, launch in LAUNCHES.items()},
        "abort": FaultyCompiler("faulty_abort", abort),
        "triton": FaultyCompiler("faulty_triton", abort_in_triton),
        "endless": FaultyCompiler("faulty_endless", lambda: time.sleep(3600)),
    }.items()
}

if __name__ == "__main__":
    registry.VARIANTS.update(FAULTY)  # type: ignore[attr-defined]
    worker.main()
