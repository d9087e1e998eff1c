"""vLLM's Marlin kernel for FP4 weights."""

from __future__ import annotations

import functools
from typing import Any

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
from fp4kernels import reference
from fp4kernels.devices import Device
from fp4kernels.formats import MXFP4
from fp4kernels.recipes import recipe
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import GemmWorkload

MODULE = "vllm.model_executor.layers.quantization.utils.marlin_utils_fp4"


class VllmMarlin(Baseline):
    """MXFP4 weights repacked for Marlin, bf16 activations. Not run by this project yet; written
    from vLLM's marlin_utils_fp4.py."""

    name = "vllm_marlin"
    arithmetic = Arithmetic.BF16
    plausible_error = 0.2

    def weight_bytes(self, n: int, k: int) -> float:
        return n * k * MXFP4.bits_per_value / 8

    def absent(self, workload: GemmWorkload, device: Device) -> str | None:
        return first(
            needs_nvidia(device, 80),
            needs_module("vllm", "vllm") or needs_module(MODULE, "vllm"),
            needs_multiples(workload, 64, 128),  # Marlin's smallest tile
        )

    def prepare(self, x: Tensor, w: Tensor, copies: int) -> list[Call]:
        from vllm.model_executor.layers.quantization.utils.marlin_utils_fp4 import (
            apply_fp4_marlin_linear,
            prepare_fp4_layer_for_marlin,
        )

        n, k = w.shape
        packed = reference.quantize(w.float(), recipe("mxfp4"))
        layer: Any = torch.nn.Module()  # of the attributes that vLLM reads
        layer.output_size_per_partition, layer.input_size_per_partition = n, k
        layer.params_dtype = x.dtype
        layer.weight = torch.nn.Parameter(packed.codes, requires_grad=False)
        layer.weight_scale = torch.nn.Parameter(packed.scales, requires_grad=False)
        prepare_fp4_layer_for_marlin(layer)
        return [
            functools.partial(
                apply_fp4_marlin_linear,
                x,
                layer.weight.clone(),
                layer.weight_scale.clone(),
                None,  # MXFP4 has no tensor scale
                layer.workspace,
                n,
                k,
            )
            for _ in range(copies)
        ]
