"""From tensors to launches of the interleaved kernels, and from a configuration to offline builds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import cdiv
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.epilogues import Added, Epilogue, FinishedLauncher, output_shape
from fp4kernels.errors import BuildError, LayoutError
from fp4kernels.formats import NVFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.triton.decode_kernel import reduce_kernel
from fp4kernels.triton.decode_launch import (
    EXACT,
    INTERPRETED,
    REDUCE_ELEMENTS,
    Arguments,
    activations,
    options,
    reduce_constants,
    reduce_source,
)
from fp4kernels.triton.finish_kernel import interleaved_finish_kernel
from fp4kernels.triton.finish_launch import Finish
from fp4kernels.triton.gemm import DecodeConfig
from fp4kernels.triton.interleaved_gemm import weights_first
from fp4kernels.triton.interleaved_kernel import expand_kernel, interleaved_kernel
from fp4kernels.triton.offline import KernelSource
from fp4kernels.variants import Launcher
from fp4kernels.workloads import GemmWorkload

EXPAND_BLOCKS = 64  # of one program that decodes activations


def interleaved_launcher(config: DecodeConfig, recipe: Recipe) -> Launcher:
    """A callable (x, w, out): x canonical or bf16, w interleaved, on the device that holds them."""

    def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        m, n = out.shape
        try:
            with torch.cuda.device(out.get_device()):
                operands, constants = _prepared(x, w, recipe, config)
                target = out
                if config.split_k > 1:
                    target = out.new_empty((config.split_k, m, n), dtype=torch.float32)
                tiles = cdiv(m, config.block_m) * cdiv(n, config.block_n)
                k = operands[0].shape[1]
                interleaved_kernel[tiles, config.split_k](
                    *operands, target, m, n, k, **constants, **options(config)
                )
                if config.split_k > 1:
                    partial: Arguments = (target, *operands[3:], out, m * n)
                    reduce_kernel[(cdiv(m * n, REDUCE_ELEMENTS),)](
                        *partial, **reduce_constants(config, recipe), **EXACT
                    )
        except (CompilationError, OutOfResources, PTXASError) as error:
            # Triton compiles at the first launch of each kind of shape
            raise BuildError(f"decode_bf16 {config.label} did not build: {error}") from error

    return launch


def interleaved_finished_launcher(
    config: DecodeConfig, recipe: Recipe, epilogue: Epilogue
) -> FinishedLauncher:
    """As interleaved_launcher, with an epilogue in the GEMM's kernel or the reduction's."""
    finish = Finish(epilogue)

    def launch(x: Packed | Tensor, w: Packed, added: Added, out: Tensor | Packed) -> None:
        try:
            with torch.cuda.device(w.codes.get_device()):
                operands, constants = _prepared(x, w, recipe, config)
                constants |= options(config)
                m, n, k = output_shape(out)[0], w.codes.shape[1], operands[0].shape[1]
                tiles = cdiv(m, config.block_m) * cdiv(n, config.block_n)
                if config.split_k == 1:
                    interleaved_finish_kernel[(tiles,)](
                        *operands, *finish.pointers(added, out), m, n, k,
                        **constants, **finish.constants,
                    )  # fmt: skip
                    return
                partial = w.codes.new_empty((config.split_k, m, n), dtype=torch.float32)
                interleaved_kernel[tiles, config.split_k](*operands, partial, m, n, k, **constants)
                finish.reduce(partial, operands[3:], added, out)
        except (CompilationError, OutOfResources, PTXASError) as error:
            raise BuildError(f"decode_bf16 {config.label} did not build: {error}") from error

    return launch


def _prepared(
    x: Packed | Tensor, w: Packed, recipe: Recipe, config: DecodeConfig
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """x, w, w_scales and the tensor scales as the kernels take them, and what these are compiled
    for."""
    values, x_scales, x_tensor_scale = activations(x, recipe)
    if w.codes.dim() != 3 or w.scales.dim() not in (3, 4):
        raise LayoutError(
            "decode_bf16 reads interleaved weights, codes [K/128, N, 64], but got codes of "
            f"shape {tuple(w.codes.shape)}; convert them with to_layout"
        )
    if x_scales is not None:
        values = _expanded(values, x_scales, recipe)
    words, scales = w.codes.view(torch.int64), w.scales.view(torch.int32)
    constants = gemm_constants(config, recipe, values.shape[1], direct=w.scales.dim() == 3)
    return (values, words, scales, x_tensor_scale, w.tensor_scale), constants


def _expanded(codes: Tensor, scales: Tensor, recipe: Recipe) -> Tensor:
    """Activations as bf16 [M, K], decoded once and not by every program that reads them."""
    values = codes.new_empty((codes.shape[0], codes.shape[1] * 2), dtype=torch.bfloat16)
    blocks = scales.numel()
    expand_kernel[(cdiv(blocks, EXPAND_BLOCKS),)](
        codes, scales, values, blocks, **_expand_constants(recipe), **EXACT
    )
    return values


def interleaved_sources(
    config: DecodeConfig, recipe: Recipe, workload: GemmWorkload, direct: bool
) -> list[KernelSource]:
    """All kernels that a launch of `config` on `workload` compiles; `direct` as gemm_constants."""
    out = {"bfloat16": "*bf16", "float32": "*fp32"}[workload.output_dtype]
    arguments: dict[str, str | int | None] = {
        "x": "*bf16",
        "w": "*i64",
        "w_scales": "*i32",
        "x_tensor_scale": None if recipe.weight_only else "*fp32",
        "w_tensor_scale": "*fp32",
        "out": "*fp32" if config.split_k > 1 else out,
        "m": workload.m,
        "n": workload.n,
        "k": workload.k,
    }
    constants = gemm_constants(config, recipe, workload.k, direct)
    sources = [KernelSource(interleaved_kernel, arguments, constants, options(config))]
    if config.split_k > 1:
        sources.append(reduce_source(config, recipe, workload))
    if not recipe.weight_only:
        blocks = workload.m * workload.k // recipe.format.block_size
        arguments = {"codes": "*u8", "scales": "*u8", "out": "*bf16", "blocks": blocks}
        sources.append(KernelSource(expand_kernel, arguments, _expand_constants(recipe), EXACT))
    return sources


def interleaved_finished_sources(
    config: DecodeConfig, recipe: Recipe, workload: GemmWorkload, epilogue: Epilogue, direct: bool
) -> list[KernelSource]:
    """As interleaved_sources, with an epilogue, and bias and residual of bfloat16."""
    finish = Finish(epilogue)
    gemm, *rest = interleaved_sources(config, recipe, workload, direct)
    if config.split_k > 1:
        reduction = finish.reduce_source(config.split_k, recipe.weight_only, workload)
        return [gemm, reduction, *rest[1:]]
    return [finish.source(interleaved_finish_kernel, gemm, workload), *rest]


def gemm_constants(config: DecodeConfig, recipe: Recipe, k: int, direct: bool) -> dict[str, Any]:
    """What the kernel is compiled for; `direct` as fp4kernels.interleaved says."""
    return {
        "block": recipe.format.block_size,
        "nvfp4": recipe.format == NVFP4,
        "direct": direct,
        "weight_only": recipe.weight_only,
        "block_m": config.block_m,
        "block_n": config.block_n,
        "block_k": config.block_k,
        "group_m": config.group_m,
        "split_k": config.split_k,
        "weights_first": weights_first(config),
        "even_k": k % config.block_k == 0,
        "interpreted": INTERPRETED,
    }


def _expand_constants(recipe: Recipe) -> dict[str, Any]:
    return {
        "block": recipe.format.block_size,
        "nvfp4": recipe.format == NVFP4,
        "tile": EXPAND_BLOCKS,
        "interpreted": INTERPRETED,
    }
