"""From tensors to the launch of the grouped kernel, and from a configuration to offline builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, cdiv, next_power_of_2
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.errors import BuildError, FormatError
from fp4kernels.formats import NVFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.triton.grouped import GroupedConfig, illegal
from fp4kernels.triton.grouped_kernel import grouped_kernel
from fp4kernels.triton.offline import KernelSource
from fp4kernels.workloads import GroupedWorkload

INTERPRETED = not isinstance(grouped_kernel, JITFunction)  # decided when it was imported

# launch(x, w, offsets, out): as fp4kernels.grouped; out [T, N], bf16 or float32, is overwritten
GroupedLauncher = Callable[[Packed | Tensor, Packed, Tensor, Tensor], None]


def grouped_launcher(config: GroupedConfig, recipe: Recipe) -> GroupedLauncher:
    """A callable over x sorted by expert, on the device that holds all of it.

    It raises FormatError for activations or a number of experts that the kernel does not take, and
    BuildError where Triton fails.
    """

    def launch(x: Packed | Tensor, w: Packed, offsets: Tensor, out: Tensor) -> None:
        left = x if isinstance(x, Packed) else (_plain(x, recipe), None, None)
        experts, n, bytes_of_row = w.codes.shape
        workload = GroupedWorkload(out.shape[0], experts, n, bytes_of_row * 2)
        if (why := illegal(workload)) is not None:
            raise FormatError(f"a grouped GEMM {why}")
        grid = (most_tiles(workload, config.block_m), cdiv(n, config.block_n))
        sizes = (workload.tokens, experts, n, workload.k)
        try:
            with torch.cuda.device(out.get_device()):
                grouped_kernel[grid](
                    *left, *w, offsets, out, *sizes,
                    **_constants(config, recipe, workload), **_options(config),
                )  # fmt: skip
        except (CompilationError, OutOfResources, PTXASError) as error:
            # Triton compiles at the first launch of each kind of shape
            raise BuildError(f"grouped {config.label} did not build: {error}") from error

    return launch


def most_tiles(workload: GroupedWorkload, block_m: int) -> int:
    """Tiles of rows that any offsets could need: every expert with tokens may waste one in part."""
    return (workload.tokens + min(workload.experts, workload.tokens) * (block_m - 1)) // block_m


def grouped_sources(
    config: GroupedConfig, recipe: Recipe, workload: GroupedWorkload
) -> list[KernelSource]:
    """The kernel that a launch of `config` on `workload` compiles."""
    x_type = None if recipe.weight_only else "*u8"
    arguments: dict[str, str | int | None] = {
        "x": "*bf16" if recipe.weight_only else "*u8",
        "x_scales": x_type,
        "x_tensor_scale": x_type and "*fp32",
        "w": "*u8",
        "w_scales": "*u8",
        "w_tensor_scales": "*fp32",
        "offsets": "*i32",
        "out": "*bf16",
        "tokens": workload.tokens,
        "experts": workload.experts,
        "n": workload.n,
        "k": workload.k,
    }
    constants = _constants(config, recipe, workload)
    return [KernelSource(grouped_kernel, arguments, constants, _options(config))]


def _plain(x: Tensor, recipe: Recipe) -> Tensor:
    if x.dtype is not torch.bfloat16:
        raise FormatError(f"{recipe.name} takes bfloat16 activations only, but got {x.dtype}")
    return x.contiguous()


def _constants(config: GroupedConfig, recipe: Recipe, workload: GroupedWorkload) -> dict[str, Any]:
    return {
        "block": recipe.format.block_size,
        "nvfp4": recipe.format == NVFP4,
        "weight_only": recipe.weight_only,
        "scaled": bool(config.scaled),
        "swapped": config.swapped,
        "block_m": config.block_m,
        "block_n": config.block_n,
        "block_k": config.block_k,
        "most_experts": next_power_of_2(workload.experts),
        "even_k": workload.k % config.block_k == 0,
        "interpreted": INTERPRETED,
    }


def _options(config: GroupedConfig) -> dict[str, Any]:
    # the reference has no fused multiply-add, and Triton's default differs between versions
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": False}
