"""From tensors to launches of the decode kernels, and from a configuration to offline builds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, cdiv
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.epilogues import Added, Epilogue, FinishedLauncher, output_shape
from fp4kernels.errors import BuildError, FormatError
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.scales import ScaleFormat
from fp4kernels.triton.decode_kernel import gemm_kernel, reduce_kernel
from fp4kernels.triton.finish_kernel import gemm_finish_kernel
from fp4kernels.triton.finish_launch import Finish
from fp4kernels.triton.gemm import DecodeConfig
from fp4kernels.triton.offline import KernelSource
from fp4kernels.triton.variant import limited
from fp4kernels.variants import Launcher
from fp4kernels.workloads import GemmWorkload

REDUCE_ELEMENTS = 1024  # outputs of one program of the reduction
INTERPRETED = not isinstance(gemm_kernel, JITFunction)  # decided when the kernels were imported
# the reference has no fused multiply-add, and Triton's default differs between versions
EXACT: dict[str, Any] = {"enable_fp_fusion": False}

Arguments = tuple[Tensor | int | None, ...]


def decode_launcher(config: DecodeConfig, recipe: Recipe) -> Launcher:
    """A callable (x, w, out) over canonical operands, on the device that holds them."""

    def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        x_values, x_scales, x_tensor_scale = activations(x, recipe)
        m, n, k = *out.shape, w.codes.shape[1] * 2
        target = out
        if config.split_k > 1:
            target = out.new_empty((config.split_k, m, n), dtype=torch.float32)
        operands: Arguments = (x_values, x_scales, x_tensor_scale, *w, target, m, n, k)
        partial: Arguments = (target, x_tensor_scale, w.tensor_scale, out, m * n)
        tiles = cdiv(m, config.block_m) * cdiv(n, config.block_n)
        try:
            with torch.cuda.device(out.get_device()):
                gemm_kernel[tiles, config.split_k](
                    *operands, **_gemm_constants(config, recipe, k), **options(config)
                )
                if config.split_k > 1:
                    reduce_kernel[(cdiv(m * n, REDUCE_ELEMENTS),)](
                        *partial, **reduce_constants(config, recipe), **EXACT
                    )
        except (CompilationError, OutOfResources, PTXASError) as error:
            # Triton compiles at the first launch of each kind of shape
            raise BuildError(f"decode_canonical {config.label} did not build: {error}") from error

    return launch


def decode_finished_launcher(
    config: DecodeConfig, recipe: Recipe, epilogue: Epilogue
) -> FinishedLauncher:
    """As decode_launcher, with an epilogue in the GEMM's kernel or the reduction's."""
    finish = Finish(epilogue)

    def launch(x: Packed | Tensor, w: Packed, added: Added, out: Tensor | Packed) -> None:
        x_values, x_scales, x_tensor_scale = activations(x, recipe)
        m, n, k = output_shape(out)[0], w.codes.shape[0], w.codes.shape[1] * 2
        constants = _gemm_constants(config, recipe, k) | options(config)
        operands: Arguments = (x_values, x_scales, x_tensor_scale, *w)
        tiles = cdiv(m, config.block_m) * cdiv(n, config.block_n)
        try:
            with torch.cuda.device(w.codes.get_device()):
                if config.split_k == 1:
                    gemm_finish_kernel[(tiles,)](
                        *operands, *finish.pointers(added, out), m, n, k,
                        **constants, **finish.constants,
                    )  # fmt: skip
                    return
                partial = w.codes.new_empty((config.split_k, m, n), dtype=torch.float32)
                gemm_kernel[tiles, config.split_k](*operands, partial, m, n, k, **constants)
                finish.reduce(partial, (x_tensor_scale, w.tensor_scale), added, out)
        except (CompilationError, OutOfResources, PTXASError) as error:
            raise BuildError(f"decode_canonical {config.label} did not build: {error}") from error

    return launch


def decode_finished_sources(
    config: DecodeConfig, recipe: Recipe, workload: GemmWorkload, epilogue: Epilogue
) -> list[KernelSource]:
    """As decode_sources, with an epilogue, and bias and residual of bfloat16."""
    finish = Finish(epilogue)
    gemm, *_ = decode_sources(config, recipe, workload)
    if config.split_k > 1:
        return [gemm, finish.reduce_source(config.split_k, recipe.weight_only, workload)]
    return [finish.source(gemm_finish_kernel, gemm, workload)]


def decode_sources(
    config: DecodeConfig, recipe: Recipe, workload: GemmWorkload
) -> list[KernelSource]:
    """All kernels that a launch of `config` on `workload` compiles."""
    out = {"bfloat16": "*bf16", "float32": "*fp32"}[workload.output_dtype]
    x_tensor_scale = None if recipe.weight_only else "*fp32"
    scales = "*fp32" if recipe.format.scale is ScaleFormat.FP32 else "*u8"
    arguments: dict[str, str | int | None] = {
        "x": "*bf16" if recipe.weight_only else "*u8",
        "x_scales": None if recipe.weight_only else scales,
        "x_tensor_scale": x_tensor_scale,
        "w": "*u8",
        "w_scales": scales,
        "w_tensor_scale": "*fp32",
        "out": "*fp32" if config.split_k > 1 else out,
        "m": workload.m,
        "n": workload.n,
        "k": workload.k,
    }
    constants = _gemm_constants(config, recipe, workload.k)
    sources = [KernelSource(gemm_kernel, arguments, constants, options(config))]
    if config.split_k > 1:
        sources.append(reduce_source(config, recipe, workload))
    return sources


def reduce_source(config: DecodeConfig, recipe: Recipe, workload: GemmWorkload) -> KernelSource:
    """The kernel that sums the shares of K."""
    arguments: dict[str, str | int | None] = {
        "partial": "*fp32",
        "x_tensor_scale": None if recipe.weight_only else "*fp32",
        "w_tensor_scale": "*fp32",
        "out": {"bfloat16": "*bf16", "float32": "*fp32"}[workload.output_dtype],
        "size": workload.m * workload.n,
    }
    return KernelSource(reduce_kernel, arguments, reduce_constants(config, recipe), EXACT)


def activations(x: Packed | Tensor, recipe: Recipe) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Values or codes, scales and tensor scale; the last two None for plain activations."""
    if not recipe.weight_only:
        assert isinstance(x, Packed)
        return x
    assert isinstance(x, Tensor)
    if x.dtype is not torch.bfloat16:
        raise FormatError(f"{recipe.name} takes bfloat16 activations only, but got {x.dtype}")
    return x.contiguous(), None, None


def _gemm_constants(config: DecodeConfig, recipe: Recipe, k: int) -> dict[str, Any]:
    return {
        "block": recipe.format.block_size,
        "nvfp4": recipe.format.scale is ScaleFormat.E4M3,
        "fp32": recipe.format.scale is ScaleFormat.FP32,
        "weight_only": recipe.weight_only,
        "block_m": config.block_m,
        "block_n": config.block_n,
        "block_k": config.block_k,
        "group_m": config.group_m,
        "split_k": config.split_k,
        "even_k": k % config.block_k == 0,
        "interpreted": INTERPRETED,
    }


def reduce_constants(config: DecodeConfig, recipe: Recipe) -> dict[str, Any]:
    """What the reduction is compiled for."""
    return {
        "split_k": config.split_k,
        "weight_only": recipe.weight_only,
        "elements": REDUCE_ELEMENTS,
        "interpreted": INTERPRETED,
    }


def options(config: DecodeConfig) -> dict[str, Any]:
    """Launch options of the GEMM."""
    stages = {"num_warps": config.warps, "num_stages": config.stages}
    return {**EXACT, **stages, **limited(config.maxnreg)}
