"""From tensors to launches of the persistent kernel, and from a configuration to offline builds.

Descriptors are made on the host: all Tritons from 3.6 to 3.9 take them, as constants of the launch that
a CUDA graph captures by value. Made in the kernel they would lie in memory that Triton asks of a global
allocator, which the process would have to set.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import cdiv
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError
from triton.tools.tensor_descriptor import TensorDescriptor

from fp4kernels.devices import Device
from fp4kernels.errors import BuildError, FormatError
from fp4kernels.formats import NVFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.swizzle import TILE_COLUMNS, TILE_ROWS
from fp4kernels.triton.dot_scaled_kernel import swizzle_kernel
from fp4kernels.triton.dot_scaled_launch import INTERPRETED, SWIZZLE_ELEMENTS, swizzled
from fp4kernels.triton.offline import Box, KernelSource
from fp4kernels.triton.persistent import PersistentConfig, misaligned
from fp4kernels.triton.persistent_kernel import persistent_kernel
from fp4kernels.variants import Launcher
from fp4kernels.workloads import GemmWorkload

LINE = (2, 256)  # the bytes of a tile of scales, as a box may hold at most 256 a side

# the reference has no fused multiply-add, and Triton's default differs between versions
_UNFUSED: dict[str, Any] = {"enable_fp_fusion": False}


def persistent_launcher(config: PersistentConfig, recipe: Recipe, device: Device) -> Launcher:
    """A callable (x, w, out) over canonical x, and w with swizzled scales, on `device`."""

    def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        assert isinstance(x, Packed)
        (m, n), k = out.shape, w.codes.shape[1] * 2
        why = misaligned(n, k, out.dtype.itemsize)
        if why is not None:
            raise FormatError(why)
        boxes = _boxes(config, recipe, _NAMES[out.dtype])
        programs = min(device.cores, cdiv(m, config.block_m) * cdiv(n, config.block_n))
        try:
            with torch.cuda.device(out.get_device()):
                lines = swizzled(x.scales)
                operands = (
                    _described(x.codes, boxes["x"]),
                    _described(_tiled(lines, m, boxes["x_scales"]), boxes["x_scales"]),
                    x.tensor_scale,
                    _described(w.codes, boxes["w"]),
                    _described(_tiled(w.scales, n, boxes["w_scales"]), boxes["w_scales"]),
                    w.tensor_scale,
                    _described(out, boxes["out"]),
                )
                persistent_kernel[(programs,)](
                    *operands, m, n, k, **_constants(config, recipe), **_options(config)
                )
        except (CompilationError, OutOfResources, PTXASError) as error:
            # Triton compiles at the first launch of each kind of shape
            raise BuildError(f"persistent, {config.label}, did not build: {error}") from error

    return launch


def persistent_sources(
    config: PersistentConfig, recipe: Recipe, workload: GemmWorkload
) -> list[KernelSource]:
    """All kernels that a launch of `config` on `workload` compiles, the GEMM first."""
    out = {"bfloat16": "bf16", "float32": "fp32"}[workload.output_dtype]
    boxes = _boxes(config, recipe, out)
    arguments: dict[str, str | int | Box | None] = {
        "x": boxes["x"],
        "x_scales": boxes["x_scales"],
        "x_tensor_scale": "*fp32",
        "w": boxes["w"],
        "w_scales": boxes["w_scales"],
        "w_tensor_scale": "*fp32",
        "out": boxes["out"],
        "m": workload.m,
        "n": workload.n,
        "k": workload.k,
    }
    gemm = KernelSource(persistent_kernel, arguments, _constants(config, recipe), _options(config))
    columns = workload.k // recipe.format.block_size
    arguments = {"scales": "*u8", "line": "*u8", "rows": workload.m, "columns": columns}
    constants = {"elements": SWIZZLE_ELEMENTS}
    return [gemm, KernelSource(swizzle_kernel, arguments, constants, _UNFUSED)]


_NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def _boxes(config: PersistentConfig, recipe: Recipe, out: str) -> dict[str, Box]:
    """What the kernel takes at once of each matrix, by the name of the argument."""
    codes, across = config.block_k // 2, config.block_k // recipe.format.block_size // TILE_COLUMNS
    # the multiplier is told the format of scales by their type; the interpreter knows bytes alone
    byte = "fp8e4nv" if recipe.format == NVFP4 and not INTERPRETED else "u8"
    return {
        "x": Box("u8", (config.block_m, codes)),
        "x_scales": Box(byte, (config.block_m // TILE_ROWS, across, *LINE)),
        "w": Box("u8", (config.block_n, codes)),
        "w_scales": Box(byte, (config.block_n // TILE_ROWS, across, *LINE)),
        "out": Box(out, (config.block_m, config.block_n // config.parts)),
    }


def _described(tensor: Tensor, box: Box) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(tensor, list(box.sides))


def _tiled(line: Tensor, rows: int, box: Box) -> Tensor:
    """The swizzled scales of so many rows: [bands, columns / 4, 2, 256]."""
    shaped = line.view(cdiv(rows, TILE_ROWS), -1, *LINE)
    return shaped.view(torch.float8_e4m3fn) if box.element == "fp8e4nv" else shaped


def _constants(config: PersistentConfig, recipe: Recipe) -> dict[str, Any]:
    return {
        "block": recipe.format.block_size,
        "nvfp4": recipe.format == NVFP4,
        "block_m": config.block_m,
        "block_n": config.block_n,
        "block_k": config.block_k,
        "group_m": config.group_m,
        "parts": config.parts,
        "flatten": bool(config.flatten),
        "warp_specialize": bool(config.warp_specialize),
        "interpreted": INTERPRETED,
    }


def _options(config: PersistentConfig) -> dict[str, Any]:
    options = {"num_warps": config.warps, "num_stages": config.stages, "num_ctas": config.ctas}
    return {**_UNFUSED, **options}
