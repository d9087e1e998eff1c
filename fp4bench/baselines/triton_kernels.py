"""triton_kernels: the MXFP4 matrix product that Triton's own repository brings."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fp4bench.baselines.base import (
    Baseline,
    Call,
    first,
    needs_module,
    needs_multiples,
    needs_nvidia,
)
from fp4kernels.devices import Device
from fp4kernels.formats import MXFP4
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import GemmWorkload


class TritonKernels(Baseline):
    """MXFP4 weights in the layout it swizzles for the GPU, bf16 activations. Not run by this
    project yet; written from the tests of Triton's main branch, older versions differ."""

    name = "triton_kernels"
    arithmetic = Arithmetic.BF16
    plausible_error = 0.2

    def weight_bytes(self, n: int, k: int) -> float:
        return n * k * MXFP4.bits_per_value / 8

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        source = "python/triton_kernels of the Triton repository, not with PyPI's triton-kernels"
        return first(
            needs_nvidia(device, 90),
            needs_module("triton_kernels.matmul", source),
            needs_multiples(workload, 16, 32),
        )

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        from triton_kernels.matmul import PrecisionConfig, matmul
        from triton_kernels.numerics_details.mxfp import MXFP_BLOCK_SIZE, downcast_to_mxfp
        from triton_kernels.tensor import FP4, UINT8, convert_layout, wrap_torch_tensor
        from triton_kernels.tensor_details import layout

        codes, scales = downcast_to_mxfp(w.bfloat16().T, torch.uint8, axis=-2)
        for_codes = layout.make_default_matmul_mxfp4_w_layout(mx_axis=-2)
        for_scales = layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=-2, num_warps=8)
        calls: list[Call] = []
        for _ in range(copies):  # a layout that changes nothing would share memory without clone
            weight = convert_layout(wrap_torch_tensor(codes.clone(), dtype=FP4), for_codes)
            scale = convert_layout(wrap_torch_tensor(scales.clone(), dtype=UINT8), for_scales)
            config = PrecisionConfig(
                b_mx_scale=scale, b_microblock_size=MXFP_BLOCK_SIZE.value, out_dtype=x.dtype
            )
            calls.append(functools.partial(matmul, x, weight, None, precision_config=config))
        return calls
