"""From tensors to launches of the expansion and the vendor's GEMM, and to offline builds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, cdiv
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.errors import BuildError, FormatError
from fp4kernels.formats import NVFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.triton.decode_kernel import reduce_kernel
from fp4kernels.triton.expand_dense import ExpandConfig, step_values
from fp4kernels.triton.expand_kernel import expand_kernel
from fp4kernels.triton.offline import KernelSource
from fp4kernels.variants import Launcher
from fp4kernels.workloads import GemmWorkload

SCALED = 1024  # products that one program multiplies by the tensor scales
INTERPRETED = not isinstance(expand_kernel, JITFunction)  # decided when the kernels were imported
_EXACT: dict[str, Any] = {"enable_fp_fusion": False}


def expand_launcher(config: ExpandConfig, recipe: Recipe) -> Launcher:
    """A callable (x, w, out) over canonical operands, on the device that holds them.

    Its workspaces come from torch's allocator at every call, so a captured graph owns them.
    """

    def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        try:
            with torch.cuda.device(out.get_device()):
                weights, left = _expand(w, config, recipe), _left(x, config, recipe)
                if not recipe.tensor_scaled:
                    _multiply(left, weights, out)
                    return
                product = out.new_empty(out.shape, dtype=torch.float32)
                _multiply(left, weights, product)
                x_scale = x.tensor_scale if isinstance(x, Packed) else None
                reduce_kernel[(cdiv(out.numel(), SCALED),)](
                    product, x_scale, w.tensor_scale, out, out.numel(),
                    **_scale_constants(recipe), **_EXACT,
                )  # fmt: skip
        except (CompilationError, OutOfResources, PTXASError) as error:
            # Triton compiles at the first launch of each kind of shape
            raise BuildError(f"expand_dense {config.label} did not build: {error}") from error

    return launch


def expand_sources(
    config: ExpandConfig, recipe: Recipe, workload: GemmWorkload
) -> list[KernelSource]:
    """All kernels of Triton that a launch of `config` on `workload` compiles."""
    constants, options = _constants(config, recipe), _options(config)
    rows = [workload.n] if recipe.weight_only else [workload.n, workload.m]
    sources = []
    for count in rows:
        total = count * workload.k // recipe.format.block_size
        arguments: dict[str, str | int | None] = {
            "codes": "*u8",
            "scales": "*u8",
            "tensor_scale": "*fp32",
            "out": "*bf16",
            "total": total,
        }
        sources.append(KernelSource(expand_kernel, arguments, constants, options))
    if recipe.tensor_scaled:
        arguments = {
            "partial": "*fp32",
            "x_tensor_scale": None if recipe.weight_only else "*fp32",
            "w_tensor_scale": "*fp32",
            "out": {"bfloat16": "*bf16", "float32": "*fp32"}[workload.output_dtype],
            "size": workload.m * workload.n,
        }
        sources.append(KernelSource(reduce_kernel, arguments, _scale_constants(recipe), _EXACT))
    return sources


def _expand(packed: Packed, config: ExpandConfig, recipe: Recipe) -> Tensor:
    """bf16 [rows, K], without the tensor scale."""
    rows, columns = packed.codes.shape
    out = packed.codes.new_empty((rows, columns * 2), dtype=torch.bfloat16)
    constants = _constants(config, recipe)
    total = out.numel() // recipe.format.block_size
    expand_kernel[(cdiv(total, constants["blocks"] * config.steps),)](
        *packed, out, total, **constants, **_options(config)
    )
    return out


def _left(x: Packed | Tensor, config: ExpandConfig, recipe: Recipe) -> Tensor:
    if isinstance(x, Packed):
        return _expand(x, config, recipe)
    if x.dtype is not torch.bfloat16:
        raise FormatError(f"{recipe.name} takes bfloat16 activations only, but got {x.dtype}")
    return x


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right transposed, summed in float32 and rounded once."""
    if not left.is_cuda:  # under the interpreter: torch has no bf16 product in float32 on a CPU
        out.copy_(left.float() @ right.float().T)
        return
    with _float32_sums():
        if out.dtype is torch.float32:
            torch.mm(left, right.T, out_dtype=torch.float32, out=out)
        else:
            torch.mm(left, right.T, out=out)


@contextlib.contextmanager
def _float32_sums() -> Iterator[None]:
    """cuBLAS may by default add up shares of K in bf16, which no accumulator bound would cover."""
    matmul = torch.backends.cuda.matmul
    before = (
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction_split_k,
    )
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def _constants(config: ExpandConfig, recipe: Recipe) -> dict[str, Any]:
    block = recipe.format.block_size
    return {
        "block": block,
        "nvfp4": recipe.format == NVFP4,
        "scaled": recipe.tensor_scaled,
        "blocks": step_values(config) // block,
        "steps": config.steps,
        "interpreted": INTERPRETED,
    }


def _scale_constants(recipe: Recipe) -> dict[str, Any]:
    return {
        "split_k": 1,
        "weight_only": recipe.weight_only,
        "elements": SCALED,
        "interpreted": INTERPRETED,
    }


def _options(config: ExpandConfig) -> dict[str, Any]:
    return {**_EXACT, "num_warps": config.warps}
