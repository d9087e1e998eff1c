"""From tensors to launches of the folding and the FP8 GEMM, and to offline builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, cdiv, next_power_of_2
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.epilogues import Added, Epilogue, FinishedLauncher
from fp4kernels.errors import BuildError, LayoutError
from fp4kernels.folding import FOLDS, Fold, fold_for, fold_of
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.triton.finish_kernel import fp8_finish_kernel
from fp4kernels.triton.finish_launch import Finish, Pointers
from fp4kernels.triton.fold_fp8 import FoldConfig
from fp4kernels.triton.fold_kernel import fold_kernel, fp8_gemm_kernel
from fp4kernels.triton.offline import KernelSource
from fp4kernels.triton.variant import limited
from fp4kernels.variants import Launcher
from fp4kernels.workloads import GemmWorkload

PIECE_BLOCKS = 128  # of one program that folds: 32 values a thread
INTERPRETED = not isinstance(fold_kernel, JITFunction)  # decided when the kernels were imported
_EXACT: dict[str, Any] = {"enable_fp_fusion": False}
_POINTERS = {torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e5m2: "*fp8e5"}


def fold_launcher(config: FoldConfig, recipe: Recipe) -> Launcher:
    """A callable (x, w, out) over canonical x and folded w, on the device that holds them.

    Its workspace comes from torch's allocator at every call, so a captured graph owns it.
    """

    start = _starter(fp8_gemm_kernel, config, recipe)

    def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        start(x, w, (out,), {})

    return launch


def fold_finished_launcher(
    config: FoldConfig, recipe: Recipe, epilogue: Epilogue
) -> FinishedLauncher:
    """As fold_launcher, with an epilogue in the GEMM's kernel."""
    finish, start = Finish(epilogue), _starter(fp8_finish_kernel, config, recipe)

    def launch(x: Packed | Tensor, w: Packed, added: Added, out: Tensor | Packed) -> None:
        start(x, w, finish.pointers(added, out), finish.constants)

    return launch


def _starter(
    kernel: Any, config: FoldConfig, recipe: Recipe
) -> Callable[[Packed | Tensor, Packed, Pointers, dict[str, Any]], None]:
    """A callable (x, w, what stands between operands and sizes, further constants)."""

    def start(x: Packed | Tensor, w: Packed, pointers: Pointers, further: dict[str, Any]) -> None:
        assert isinstance(x, Packed)
        if w.codes.dtype not in _POINTERS:
            raise LayoutError(f"w must be folded, but its codes are {w.codes.dtype}; convert it")
        m, (n, k) = x.codes.shape[0], w.codes.shape
        fold = _activation_fold(recipe)
        constants = _gemm_constants(config, fold, fold_of(w.codes.dtype), k) | further
        try:
            with torch.cuda.device(w.codes.get_device()):
                values, tops = fold_rows(x, recipe)
                tiles = cdiv(m, config.block_m) * cdiv(n, config.block_n)
                kernel[(tiles,)](
                    values, tops, x.tensor_scale, w.codes, w.scales, w.tensor_scale, *pointers,
                    m, n, k, w.scales.shape[1], **constants, **_options(config),
                )  # fmt: skip
        except (CompilationError, OutOfResources, PTXASError) as error:
            # Triton compiles at the first launch of each kind of shape
            raise BuildError(f"fold_fp8 {config.label} did not build: {error}") from error

    return start


def fold_rows(x: Packed, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """FP8 [M, K] and the top byte of each row, of canonical x within the recipe's window."""
    fold = _activation_fold(recipe)
    rows, across = x.scales.shape
    values = x.codes.new_empty((rows, x.codes.shape[1] * 2), dtype=torch.uint8)
    tops = x.codes.new_empty(rows)
    constants = _fold_constants(fold, recipe, across)
    fold_kernel[rows, cdiv(across, PIECE_BLOCKS)](
        x.codes, x.scales, values, tops, across, **constants, **_EXACT
    )
    return values.view(fold.dtype), tops


def fold_sources(config: FoldConfig, recipe: Recipe, workload: GemmWorkload) -> list[KernelSource]:
    """All kernels that a launch of `config` on `workload` compiles, for either type of weights."""
    fold, k = _activation_fold(recipe), workload.k
    across = k // recipe.format.block_size
    sources = []
    for other in (fold, *(kind for kind in FOLDS if kind.window < fold.window)):
        arguments: dict[str, str | int | None] = {
            "x": _POINTERS[fold.dtype],
            "x_tops": "*u8",
            "x_tensor_scale": "*fp32",
            "w": _POINTERS[other.dtype],
            "w_tops": "*u8",
            "w_tensor_scale": "*fp32",
            "out": {"bfloat16": "*bf16", "float32": "*fp32"}[workload.output_dtype],
            "m": workload.m,
            "n": workload.n,
            "k": k,
            "w_stride": across + 1,
        }
        constants = _gemm_constants(config, fold, other, k)
        sources.append(KernelSource(fp8_gemm_kernel, arguments, constants, _options(config)))
    arguments = {
        "codes": "*u8", "scales": "*u8", "out": "*u8", "tops": "*u8", "blocks_in_row": across,
    }  # fmt: skip
    sources.append(
        KernelSource(fold_kernel, arguments, _fold_constants(fold, recipe, across), _EXACT)
    )
    return sources


def fold_finished_sources(
    config: FoldConfig, recipe: Recipe, workload: GemmWorkload, epilogue: Epilogue
) -> list[KernelSource]:
    """As fold_sources, with an epilogue, and bias and residual of bfloat16."""
    *gemms, fold = fold_sources(config, recipe, workload)
    finish = Finish(epilogue)
    return [*(finish.source(fp8_finish_kernel, gemm, workload) for gemm in gemms), fold]


def _activation_fold(recipe: Recipe) -> Fold:
    fold = None if recipe.window is None else fold_for(recipe.window)
    assert fold is not None, recipe.name  # FoldFp8.takes no other
    return fold


def _gemm_constants(config: FoldConfig, x: Fold, w: Fold, k: int) -> dict[str, Any]:
    return {
        "x_peak": x.peak,
        "w_peak": w.peak,
        "block_m": config.block_m,
        "block_n": config.block_n,
        "block_k": config.block_k,
        "group_m": config.group_m,
        "promote": config.promote,
        "even_k": k % config.block_k == 0,
        "interpreted": INTERPRETED,
    }


def _fold_constants(fold: Fold, recipe: Recipe, across: int) -> dict[str, Any]:
    return {
        "peak": fold.peak,
        "window": fold.window,
        "block": recipe.format.block_size,
        "across": next_power_of_2(across),
        "blocks": PIECE_BLOCKS,
    }


def _options(config: FoldConfig) -> dict[str, Any]:
    stages = {"num_warps": config.warps, "num_stages": config.stages}
    return {**_EXACT, **stages, **limited(config.maxnreg)}
