"""What torch itself offers for wider types: float32, bf16, int8, FP8."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import linear

from fp4bench.baselines.base import Baseline, Call, first, needs_multiples, needs_nvidia
from fp4kernels.devices import Device
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import GemmWorkload


class TorchFp32(Baseline):
    """torch's linear on float32 operands; the output stays float32."""

    name = "torch_fp32"
    arithmetic = Arithmetic.FP32
    plausible_error = 0.01

    def weight_bytes(self, n: int, k: int) -> float:
        return 4.0 * n * k

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        return None

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        wide = x.float()
        return [functools.partial(linear, wide, w.float().clone()) for _ in range(copies)]


class TorchBf16(Baseline):
    """torch's linear on bf16 operands: what a user has before quantizing."""

    name = "torch_bf16"
    arithmetic = Arithmetic.BF16
    plausible_error = 0.01

    def weight_bytes(self, n: int, k: int) -> float:
        return 2.0 * n * k

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        return None

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        half = w.bfloat16()
        return [functools.partial(linear, x, half.clone()) for _ in range(copies)]


class TorchInt8(Baseline):
    """torch._int_mm: a scale per output channel, one for the activations, as static W8A8 has it.

    Activations are quantized beforehand, like those of the FP4 kernels it is compared with.
    """

    name = "torch_int8"
    arithmetic = Arithmetic.INT8
    plausible_error = 0.02

    def weight_bytes(self, n: int, k: int) -> float:
        return 1.0 * n * k + 4 * n

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        if device.kind == "cpu":
            return None
        few = f"torch._int_mm needs M > 16 on a GPU, but got M={workload.m}"
        return first(
            needs_nvidia(device, 75),
            needs_multiples(workload, 8, 8),
            few if workload.m <= 16 else None,
        )

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        x_scale = _scale(x.float().abs().amax(), 127)
        w_scale = _scale(w.float().abs().amax(dim=1), 127)
        codes = (w.float() / w_scale[:, None]).round().to(torch.int8).T
        if not x.is_cuda:  # cuBLASLt multiplies rows with columns, oneDNN would copy them first
            codes = codes.contiguous()
        operand = (x.float() / x_scale).round().to(torch.int8)
        out = x.new_empty(x.shape[0], w.shape[0])
        return [
            functools.partial(_int8_linear, operand, codes.clone(), x_scale * w_scale, out)
            for _ in range(copies)
        ]


def _int8_linear(x: Tensor, w: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    return torch.mul(torch._int_mm(x, w), scale, out=out)


class TorchFp8(Baseline):
    """torch._scaled_mm on E4M3 with one scale per tensor.

    Activations are quantized beforehand, like those of the FP4 kernels it is compared with. On a
    GPU not run by this project yet.
    """

    name = "torch_fp8"
    arithmetic = Arithmetic.FP8
    plausible_error = 0.05  # three mantissa bits: 2.6% of each operand

    def weight_bytes(self, n: int, k: int) -> float:
        return 1.0 * n * k + 4

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        if device.kind == "cpu":
            # elsewhere torch expands both operands to float32 at every call
            amx = torch.cpu._is_amx_tile_supported()
            return None if amx else "torch multiplies FP8 only on a CPU with AMX"
        return first(needs_nvidia(device, 89), needs_multiples(workload, 16, 16))

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        x_codes, x_scale = _e4m3(x)
        codes, w_scale = _e4m3(w)
        return [
            functools.partial(
                torch._scaled_mm,
                x_codes,
                codes.clone().T,
                scale_a=x_scale,
                scale_b=w_scale,
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )
            for _ in range(copies)
        ]


def _e4m3(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and the float32 scale that brings them back."""
    scale = _scale(values.float().abs().amax(), torch.finfo(torch.float8_e4m3fn).max)
    return (values.float() / scale).to(torch.float8_e4m3fn), scale


def _scale(amax: Tensor, largest: float) -> Tensor:
    """What brings `amax` to the largest code; 1 where there is nothing but zeros."""
    return torch.where(amax > 0, amax / largest, 1.0)
