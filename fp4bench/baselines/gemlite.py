"""gemlite: Triton kernels for low-bit weights."""

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


class Gemlite(Baseline):
    """A16W4_MXFP: MXFP4 weights, bf16 activations. Its kernels tune themselves at their first
    call. Not run by this project yet; written from gemlite 0.6.0."""

    name = "gemlite"
    arithmetic = Arithmetic.BF16
    plausible_error = 0.2

    def weight_bytes(self, n: int, k: int) -> float:
        return n * k * MXFP4.bits_per_value / 8

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        return first(
            needs_nvidia(device, 80),
            needs_module("gemlite.helper", "gemlite 0.6 or later"),
            needs_multiples(workload, 32, 32),
        )

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        from gemlite.helper import A16W4_MXFP

        processor = A16W4_MXFP(device=str(x.device), dtype=torch.bfloat16)
        n, k = w.shape
        calls: list[Call] = []
        for _ in range(copies):
            layer = torch.nn.Linear(k, n, bias=False, device="meta")
            layer.weight = torch.nn.Parameter(w.bfloat16(), requires_grad=False)
            calls.append(functools.partial(processor.from_linear(layer, del_orig=False), x))
        return calls
