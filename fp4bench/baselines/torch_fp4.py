"""cuBLASLt's FP4 product, as torch reaches it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fp4bench.baselines.base import Baseline, Call, first, needs_multiples, needs_nvidia
from fp4kernels import reference
from fp4kernels.devices import Device
from fp4kernels.formats import NVFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import recipe
from fp4kernels.swizzle import swizzled
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import GemmWorkload


class TorchFp4(Baseline):
    """torch.nn.functional.scaled_mm on NVFP4 operands: block scales, and one scale per tensor.

    Activations are quantized beforehand, like those of the FP4 kernels it is compared with. Not
    run by this project yet.
    """

    name = "torch_fp4"
    arithmetic = Arithmetic.FP8  # the nearest peak that is measured; FP4 may run at twice it
    plausible_error = 0.2

    def weight_bytes(self, n: int, k: int) -> float:
        return n * k * NVFP4.bits_per_value / 8

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        missing = f"torch {torch.__version__} has no torch.nn.functional.scaled_mm"
        return first(
            needs_nvidia(device, 100),
            None if hasattr(torch.nn.functional, "scaled_mm") else missing,
            needs_multiples(workload, 16, 32),
        )

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        from torch.nn.functional import ScalingType, SwizzleType, scaled_mm

        recipes = [ScalingType.BlockWise1x16, ScalingType.TensorWise]
        layouts = [SwizzleType.SWIZZLE_32_4_4, SwizzleType.NO_SWIZZLE]
        left, *rights = (_for_cublas(operand) for operand in (x, *[w] * copies))
        return [
            functools.partial(
                scaled_mm,
                left.codes,
                right.codes.T,
                scale_a=[left.scales, left.tensor_scale],
                scale_recipe_a=recipes,
                swizzle_a=layouts,
                scale_b=[right.scales, right.tensor_scale],
                scale_recipe_b=recipes,
                swizzle_b=layouts,
                output_dtype=torch.bfloat16,
            )
            for right in rights
        ]


def _for_cublas(values: Tensor) -> Packed:
    """NVFP4 in the types and the layout of scales that cuBLASLt reads."""
    packed = reference.quantize(values.float(), recipe("nvfp4"))
    return Packed(
        packed.codes.view(torch.float4_e2m1fn_x2),
        swizzled(packed.scales).view(torch.float8_e4m3fn),
        packed.tensor_scale,
    )
