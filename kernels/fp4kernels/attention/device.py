"""The GPU that an op finds itself on: it has no other way to learn how many SMs there are."""

from __future__ import annotations

import functools

from fp4kernels.devices import Device, surroundings
from fp4kernels.errors import DeviceError
from fp4kernels.triton.gemm import MIN_CAPABILITY


@functools.cache
def gpu() -> Device:
    """Probed at the first call. DeviceError where there is no Triton, or the GPU is too old."""
    device, toolchain = surroundings("cuda")
    nvidia = device.arch.startswith("sm_")
    if toolchain.triton is None or (nvidia and device.compute_capability < MIN_CAPABILITY):
        raise DeviceError(
            f"attention on a GPU needs Triton and sm_{MIN_CAPABILITY} or later, but got "
            f"{device.arch} with Triton {toolchain.triton}; move q, k and v to the CPU"
        )
    return device
