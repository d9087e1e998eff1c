"""What launches and offline builds of kernels with an epilogue share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, cdiv

from fp4kernels.epilogues import Added, Epilogue
from fp4kernels.packing import Packed
from fp4kernels.triton.finish_kernel import gemm_finish_kernel, reduce_finish_kernel
from fp4kernels.triton.offline import KernelSource
from fp4kernels.workloads import GemmWorkload

REDUCE_COLUMNS = 1024  # sums of one program of the reduction: whole blocks of both formats
INTERPRETED = not isinstance(
    gemm_finish_kernel, JITFunction
)  # decided when the kernels were imported
EXACT: dict[str, Any] = {"enable_fp_fusion": False}  # the reference has no fused multiply-add

Pointers = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Finish:
    """An epilogue as a kernel's arguments."""

    epilogue: Epilogue

    @property
    def constants(self) -> dict[str, Any]:
        how = self.epilogue.next_recipe
        return {
            "activation": self.epilogue.activation.value,
            "rule": "" if how is None else how.scale_rule.value,
            "next_block": 1 if how is None else how.format.block_size,
        }

    def pointers(self, added: Added, out: Tensor | Packed) -> Pointers:
        """bias, residual, amax, out, out_scales, out_tensor_scale."""
        tensors = [None if t is None else t.contiguous() for t in added]
        if isinstance(out, Packed):  # eight codes at a time
            return (*tensors, out.codes.view(torch.int32), out.scales, out.tensor_scale)
        return (*tensors, out, None, None)

    def types(self, workload: GemmWorkload) -> dict[str, str | int | None]:
        """Of those pointers, with a bias and a residual of bfloat16."""
        how = self.epilogue.next_recipe
        packed = None if how is None else "*u8"
        out = {"bfloat16": "*bf16", "float32": "*fp32"}[workload.output_dtype]
        return {
            "bias": "*bf16",
            "residual": "*bf16",
            "amax": "*fp32" if how is not None and how.format.tensor_scale else None,
            "out": out if how is None else "*i32",
            "out_scales": packed,
            "out_tensor_scale": packed and "*fp32",
        }

    def source(self, kernel: Any, gemm: KernelSource, workload: GemmWorkload) -> KernelSource:
        """`kernel`, which is that of `gemm` with an epilogue."""
        arguments = {**gemm.arguments, **self.types(workload)}
        return KernelSource(kernel, arguments, {**gemm.constants, **self.constants}, gemm.options)

    def reduce(
        self, partial: Tensor, tensor_scales: Pointers, added: Added, out: Tensor | Packed
    ) -> None:
        """Shares of K [split_k, M, N], summed in order and finished into `out`."""
        split_k, m, n = partial.shape
        reduce_finish_kernel[(m, cdiv(n, REDUCE_COLUMNS))](
            partial, *tensor_scales, *self.pointers(added, out), m, n, m * n,
            **self._reduce_constants(split_k), **EXACT,
        )  # fmt: skip

    def reduce_source(
        self, split_k: int, weight_only: bool, workload: GemmWorkload
    ) -> KernelSource:
        arguments: dict[str, str | int | None] = {
            "partial": "*fp32",
            "x_tensor_scale": None if weight_only else "*fp32",
            "w_tensor_scale": "*fp32",
            **self.types(workload),
            "m": workload.m,
            "n": workload.n,
            "size": workload.m * workload.n,
        }
        constants = self._reduce_constants(split_k)
        return KernelSource(reduce_finish_kernel, arguments, constants, EXACT)

    def _reduce_constants(self, split_k: int) -> dict[str, Any]:
        return {
            "split_k": split_k,
            "elements": REDUCE_COLUMNS,
            **self.constants,
            "interpreted": INTERPRETED,
        }
