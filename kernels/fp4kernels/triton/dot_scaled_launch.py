"""From tensors to launches of the dot_scaled kernel, and from a configuration to offline builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, cdiv
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.epilogues import Added, Epilogue, FinishedLauncher
from fp4kernels.errors import BuildError, FormatError
from fp4kernels.formats import NVFP4
from fp4kernels.layouts import Layout
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.swizzle import TILE_ROWS, swizzled_size
from fp4kernels.triton.dot_scaled import DotScaledConfig
from fp4kernels.triton.dot_scaled_kernel import scaled_gemm_kernel, swizzle_kernel
from fp4kernels.triton.finish_kernel import scaled_finish_kernel
from fp4kernels.triton.finish_launch import Finish, Pointers
from fp4kernels.triton.offline import KernelSource
from fp4kernels.triton.variant import limited
from fp4kernels.variants import Launcher
from fp4kernels.workloads import GemmWorkload

SWIZZLE_ELEMENTS = 2048  # scales of one program of swizzle_kernel
INTERPRETED = not isinstance(scaled_gemm_kernel, JITFunction)  # decided when they were imported

# the reference has no fused multiply-add, and Triton's default differs between versions
_UNFUSED: dict[str, Any] = {"enable_fp_fusion": False}


def scaled_launcher(config: DotScaledConfig, recipe: Recipe, layout: Layout) -> Launcher:
    """A callable (x, w, out) over canonical x, and w in `layout`, on the device that holds them."""
    start = _starter(scaled_gemm_kernel, config, recipe, layout)

    def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        start(x, w, (out,), {})

    return launch


def scaled_finished_launcher(
    config: DotScaledConfig, recipe: Recipe, layout: Layout, epilogue: Epilogue
) -> FinishedLauncher:
    """As scaled_launcher, with an epilogue in the GEMM's kernel."""
    finish = Finish(epilogue)
    start = _starter(scaled_finish_kernel, config, recipe, layout)

    def launch(x: Packed | Tensor, w: Packed, added: Added, out: Tensor | Packed) -> None:
        start(x, w, finish.pointers(added, out), finish.constants)

    return launch


def _starter(
    kernel: Any, config: DotScaledConfig, recipe: Recipe, layout: Layout
) -> Callable[[Packed | Tensor, Packed, Pointers, dict[str, Any]], None]:
    """A callable (x, w, what stands between operands and sizes, further constants)."""

    def start(x: Packed | Tensor, w: Packed, pointers: Pointers, further: dict[str, Any]) -> None:
        x_values, x_scales, x_tensor_scale = _activations(x, recipe)
        m, n, k = x_values.shape[0], w.codes.shape[0], w.codes.shape[1] * 2
        constants = _constants(config, recipe, layout, k) | further
        try:
            with torch.cuda.device(w.codes.get_device()):
                if constants["x_swizzled"]:
                    assert x_scales is not None
                    x_scales = swizzled(x_scales)
                tiles = cdiv(m, config.block_m) * cdiv(n, config.block_n)
                kernel[(tiles,)](
                    x_values, x_scales, x_tensor_scale, *w, *pointers, m, n, k,
                    **constants, **_options(config),
                )  # fmt: skip
        except (CompilationError, OutOfResources, PTXASError) as error:
            # Triton compiles at the first launch of each kind of shape
            raise BuildError(
                f"dot_scaled of {layout} scales, {config.label}, did not build: {error}"
            ) from error

    return start


def swizzled(scales: Tensor) -> Tensor:
    """uint8 scales [rows, columns] as fp4kernels.swizzle lays them out, by one launch."""
    line = scales.new_empty(swizzled_size(*scales.shape))
    programs = cdiv(line.numel(), SWIZZLE_ELEMENTS)
    swizzle_kernel[(programs,)](scales, line, *scales.shape, elements=SWIZZLE_ELEMENTS, **_UNFUSED)
    return line


def scaled_sources(
    config: DotScaledConfig, recipe: Recipe, workload: GemmWorkload, layout: Layout
) -> list[KernelSource]:
    """All kernels that a launch of `config` on `workload` compiles, the GEMM first."""
    x_type = None if recipe.weight_only else "*u8"
    arguments: dict[str, str | int | None] = {
        "x": "*bf16" if recipe.weight_only else "*u8",
        "x_scales": x_type,
        "x_tensor_scale": x_type and "*fp32",
        "w": "*u8",
        "w_scales": "*u8",
        "w_tensor_scale": "*fp32",
        "out": {"bfloat16": "*bf16", "float32": "*fp32"}[workload.output_dtype],
        "m": workload.m,
        "n": workload.n,
        "k": workload.k,
    }
    constants = _constants(config, recipe, layout, workload.k)
    sources = [KernelSource(scaled_gemm_kernel, arguments, constants, _options(config))]
    if constants["x_swizzled"]:
        columns = workload.k // recipe.format.block_size
        arguments = {"scales": "*u8", "line": "*u8", "rows": workload.m, "columns": columns}
        constants = {"elements": SWIZZLE_ELEMENTS}
        sources.append(KernelSource(swizzle_kernel, arguments, constants, _UNFUSED))
    return sources


def scaled_finished_sources(
    config: DotScaledConfig,
    recipe: Recipe,
    workload: GemmWorkload,
    layout: Layout,
    epilogue: Epilogue,
) -> list[KernelSource]:
    """As scaled_sources, with an epilogue, and bias and residual of bfloat16."""
    gemm, *rest = scaled_sources(config, recipe, workload, layout)
    return [Finish(epilogue).source(scaled_finish_kernel, gemm, workload), *rest]


def _activations(x: Packed | Tensor, recipe: Recipe) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if not recipe.weight_only:
        assert isinstance(x, Packed)
        return x
    assert isinstance(x, Tensor)
    if x.dtype is not torch.bfloat16:
        raise FormatError(f"{recipe.name} takes bfloat16 activations only, but got {x.dtype}")
    return x.contiguous(), None, None


def _constants(config: DotScaledConfig, recipe: Recipe, layout: Layout, k: int) -> dict[str, Any]:
    in_lines = layout is Layout.SWIZZLED
    return {
        "block": recipe.format.block_size,
        "nvfp4": recipe.format == NVFP4,
        "weight_only": recipe.weight_only,
        "x_swizzled": in_lines and config.block_m % TILE_ROWS == 0,
        "w_swizzled": in_lines,
        "swapped": config.swapped,
        "block_m": config.block_m,
        "block_n": config.block_n,
        "block_k": config.block_k,
        "group_m": config.group_m,
        "even_k": k % config.block_k == 0,
        "interpreted": INTERPRETED,
    }


def _options(config: DotScaledConfig) -> dict[str, Any]:
    stages = {"num_warps": config.warps, "num_stages": config.stages}
    return {**_UNFUSED, **stages, **limited(config.maxnreg)}
