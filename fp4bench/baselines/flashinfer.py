"""FlashInfer's FP4 product for Blackwell."""

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
from fp4kernels.elements import E4M3
from fp4kernels.formats import NVFP4
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import GemmWorkload


class Flashinfer(Baseline):
    """mm_fp4 on NVFP4 operands, with the back end that it picks by itself.

    Activations are quantized beforehand, like those of the FP4 kernels it is compared with. Not
    run by this project yet; written from flashinfer-python 0.7.2.
    """

    name = "flashinfer"
    arithmetic = Arithmetic.FP8  # the nearest peak that is measured; FP4 may run at twice it
    plausible_error = 0.2

    def weight_bytes(self, n: int, k: int) -> float:
        return n * k * NVFP4.bits_per_value / 8

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        return first(
            needs_nvidia(device, 100),
            needs_module("flashinfer", "flashinfer-python"),
            needs_multiples(workload, 32, 32),
        )

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        from flashinfer import SfLayout, mm_fp4, nvfp4_quantize

        def quantized(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            encode = NVFP4.element.max * E4M3.max / values.float().abs().amax()
            codes, scales = nvfp4_quantize(
                values, encode, sfLayout=SfLayout.layout_128x4, do_shuffle=False
            )
            return codes, scales, encode

        x_codes, x_scales, x_encode = quantized(x)
        w_codes, w_scales, w_encode = quantized(w.bfloat16())
        alpha = 1 / (x_encode * w_encode)
        return [
            functools.partial(
                mm_fp4,
                x_codes,
                w_codes.clone().T,
                x_scales,
                w_scales.clone().T,
                alpha,
                torch.bfloat16,
                backend="auto",
            )
            for _ in range(copies)
        ]
