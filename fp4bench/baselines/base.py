"""The contract of a baseline: another way that a user could compute the same linear layer.

Every run of this project compares with what is installed; a baseline whose docstring says "not
run by this project yet" was written from its library's source and tests alone.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from fp4kernels.devices import Device
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import GemmWorkload

Call = Callable[[], Tensor]


class Baseline(ABC):
    """x [M, K] @ w [N, K] transposed, done by someone else. Stateless.

    A call gives [M, N] in bf16, or in float32 where the library writes nothing else. Calls of one
    `prepare` may share x and the output, never the weight.
    """

    name: ClassVar[str]
    arithmetic: ClassVar[Arithmetic]
    quantizes_activations: ClassVar[bool] = False  # whether the time of a call holds it
    plausible_error: ClassVar[float]  # of a sound result on ordinary data, against float32

    @abstractmethod
    def weight_bytes(self, n: int, k: int) -> float:
        """Of one held weight, with its scales."""

    @abstractmethod
    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        """What is missing to run the workload here, or None."""

    @abstractmethod
    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        """Quantize and arrange, untimed; one call per copy, each with a weight of its own memory.

        `x` is bf16, `w` is float32 or bf16, both on the device. Raises whatever the library raises.
        """

    def implausible(self, output: Tensor, expected: Tensor) -> str | None:
        """Why `output` cannot be the product `expected`, or None: a wrong baseline proves nothing."""
        if output.shape != expected.shape:
            return f"{self.name} gave {tuple(output.shape)} instead of {tuple(expected.shape)}"
        error = float((output.float() - expected.float()).norm() / expected.float().norm())
        if error <= self.plausible_error:
            return None
        return f"{self.name} is off by {error:.3g} of the norm, over {self.plausible_error:g}"


def first(*reasons: str | None) -> str | None:
    """The first reason there is."""
    return next((reason for reason in reasons if reason is not None), None)


def needs_nvidia(device: Device, capability: int) -> str | None:
    """Unless `device` is an NVIDIA GPU of at least that compute capability, as 89 for sm_89."""
    if device.compute_capability >= capability:
        return None
    return f"needs an NVIDIA GPU of sm_{capability} or later, but this is {device.arch}"


def needs_module(module: str, package: str) -> str | None:
    """Unless `module` can be found; a submodule tells a package from its namesakes."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the parent
        found = False
    return None if found else f"{module} is not installed; it comes with {package}"


def needs_multiples(workload: GemmWorkload, n: int, k: int) -> str | None:
    """Unless N and K are multiples of these."""
    if workload.n % n == 0 and workload.k % k == 0:
        return None
    return f"needs N % {n} == 0 and K % {k} == 0, but got N={workload.n} and K={workload.k}"
