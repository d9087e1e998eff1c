"""Kernel variants that do to their process what real ones do on bad days; run as a worker too."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import torch
from torch import Tensor

from fp4bench import worker
from fp4kernels import registry
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.torch_gemm import TorchGemm
from fp4kernels.variants import Config, Launcher


def segfault(*_: object) -> None:
    ctypes.string_at(0)


def hang(*_: object) -> None:
    time.sleep(3600)


def leave(*_: object) -> None:
    os._exit(7)


def throw(*_: object) -> None:
    raise RuntimeError("an illegal memory access was encountered")


def lie(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    out.fill_(1.0)


def exhaust(*_: object) -> None:
    torch.empty(1 << 60)


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


FAULTY = {
    f"faulty_{name}": Faulty(f"faulty_{name}", launch)
    for name, launch in {
        "segfault": segfault, "hang": hang, "leave": leave, "throw": throw, "lie": lie,
        "exhaust": exhaust, "compile": None,
    }.items()
}  # fmt: skip

if __name__ == "__main__":
    registry.VARIANTS.update(FAULTY)  # type: ignore[attr-defined]
    worker.main()
