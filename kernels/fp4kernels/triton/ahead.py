"""Fill Triton's disk cache with what a launch will need, in a process that needs no GPU."""

from __future__ import annotations

import math
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import MockTensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fp4kernels.errors import BuildError
from fp4kernels.triton.offline import Argument, Box, KernelSource, target_of

_TYPES = {
    "*u8": torch.uint8, "*i32": torch.int32, "*i64": torch.int64, "*bf16": torch.bfloat16,
    "*fp16": torch.float16, "*fp32": torch.float32, "*fp8e4nv": torch.float8_e4m3fn,
    "*fp8e5": torch.float8_e5m2,
}  # fmt: skip


class _TargetOnly:
    """As much of a driver as compiling asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_ahead(sources: list[KernelSource], arch: str) -> None:
    """Compile for `arch` (sm_90, gfx950) as a launch would, without one. BuildError if Triton fails.

    Only for a process that never launches: Triton's driver is replaced in it for good.
    """
    driver.set_active(_TargetOnly(target_of(arch)))
    for source in sources:
        arguments = {name: _stand_in(value) for name, value in source.arguments.items()}
        try:
            source.kernel.warmup(**arguments, **source.constants, **source.options, grid=(1,))
        except Exception as error:  # the compiler raises RuntimeError and its own kinds alike
            name = source.kernel.__name__
            raise BuildError(f"{name} for {arch} did not build: {error}") from error


def _stand_in(value: Argument) -> Any:
    """What Triton compiles for as for the argument of a launch."""
    if isinstance(value, Box):
        sides = list(value.sides)
        strides = [math.prod(sides[at + 1 :]) for at in range(len(sides))]
        return TensorDescriptor(MockTensor(_TYPES["*" + value.element]), sides, strides, sides)
    return MockTensor(_TYPES[value]) if isinstance(value, str) else value
