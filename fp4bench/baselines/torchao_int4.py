"""torchao's int4 weights with bf16 activations."""

from __future__ import annotations

import copy
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
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import GemmWorkload

GROUP = 32
CPU_MODULE = "torchao.prototype.quantization.int4"


class Torchao(Baseline):
    """quantize_ with int4 weight only, groups of 32, through the kernels that torch brings.

    Of torchao's FP4 paths the weight-only one expands the weight at every call, so its 4-bit path
    with a kernel of its own stands here. Activations stay bf16. On a GPU (the tile_packed_to_4d
    format) not run by this project yet.
    """

    name = "torchao"
    arithmetic = Arithmetic.BF16
    plausible_error = 0.2

    def weight_bytes(self, n: int, k: int) -> float:
        return n * k * (4 + 2 * 16 / GROUP) / 8  # a bf16 scale and zero point a group

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        if device.kind == "cpu":
            where = needs_module(CPU_MODULE, "torchao 0.17 or later")
        else:
            where = first(needs_module("torchao.quantization", "torchao"), needs_nvidia(device, 80))
        return first(where, needs_multiples(workload, 16, GROUP))

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        if x.is_cuda:
            config = Int4WeightOnlyConfig(
                group_size=GROUP,
                int4_packing_format="tile_packed_to_4d",
                set_inductor_config=False,  # it is the whole process's
            )
        else:
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

            config = PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
        n, k = w.shape
        layer = torch.nn.Linear(k, n, bias=False, device="meta")
        layer.weight = torch.nn.Parameter(w.bfloat16(), requires_grad=False)
        quantize_(layer, config)
        return [functools.partial(copy.deepcopy(layer), x) for _ in range(copies)]
