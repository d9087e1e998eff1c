"""Calls into the shared objects: argument structs of src/abi.h, and the thread pool."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from fp4kernels.cpu.build import compile_object, load
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import DeviceError, FormatError
from fp4kernels.formats import MXFP4, MXINT8, NVFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe, Rounding, ScaleRule
from fp4kernels.variants import Launcher


class _GemmArgs(ctypes.Structure):
    _fields_ = [
        (name, c_void_p)
        for name in ("x_codes", "x_scales", "x_tensor_scale",
                     "w_codes", "w_scales", "w_tensor_scale", "out")
    ] + [(name, c_int64) for name in ("m", "n", "k", "out_is_bf16", "kc", "mc")]  # fmt: skip


class _QuantizeArgs(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("x", "codes", "scales", "tensor_scale", "amax")] + [
        (name, c_int64) for name in ("rows", "k", "x_is_bf16")
    ]


def gemm_launcher(path: str, pool: ctypes.CDLL, threads: int, kc: int, mc: int) -> Launcher:
    """A callable (x, w, out) over canonical or plain `x` and panel16 `w`; `out` is bf16 or float32.

    `kc` K values, of which 0 means all, and `mc` rows are a cache block.
    """
    function = ctypes.CDLL(path).gemm
    function.restype = None
    function.argtypes = [c_void_p, c_void_p, c_int64]
    run = ctypes.cast(pool.fp4_parallel_for, c_void_p)

    def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        m, n = out.shape
        if isinstance(x, Packed):
            left: list[int | None] = [t.data_ptr() for t in x]
        else:
            x = x.contiguous()  # its own name keeps a copy alive
            left = [x.data_ptr(), None, None]
        args = _GemmArgs(
            *left, *(t.data_ptr() for t in w), out.data_ptr(),
            m, n, w.codes.shape[1] * 8, out.dtype is torch.bfloat16, kc, mc,
        )  # fmt: skip
        function(ctypes.byref(args), run, threads)

    return launch


@functools.cache
def start_pool(device: Device, toolchain: Toolchain) -> ctypes.CDLL:
    """The process's thread pool, one thread for each usable core.

    DeviceError where the level is "amx" and the system lets no process use its tiles.
    """
    pool = load(compile_object("pool.cpp", {}, device, toolchain))
    if device.isa == "amx":
        refusal = pool.fp4_pool_permit_tiles()
        if refusal:
            raise DeviceError(
                "level amx needs a CPU and a Linux (5.16 or later) that let a process use tiles, but "
                f"arch_prctl refused: {os.strerror(refusal)}; use --device cpu"
            )
    pool.fp4_pool_start(c_int64(device.cores))
    return pool


def pin_pool(device: Device, toolchain: Toolchain, cpus: Sequence[int]) -> None:
    """Bind the calling thread and the pool's to one CPU each: for a process that only measures."""
    numbers = (c_int64 * len(cpus))(*cpus)
    start_pool(device, toolchain).fp4_pool_pin(numbers, c_int64(len(cpus)))


# RULE of quantize.cpp
_MX_RULES = (
    ScaleRule.FLOOR,
    ScaleRule.CEIL,
    ScaleRule.RCEIL,
    ScaleRule.EVEN,
    ScaleRule.FLOOR_3_4,
)


def quantizes(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Whether `quantize` takes the recipe, and values of `dtype`."""
    rules = {MXFP4: _MX_RULES, MXINT8: _MX_RULES, NVFP4: (ScaleRule.NV,)}.get(recipe.format, ())
    nearest = recipe.rounding is Rounding.NEAREST_EVEN
    floats = dtype in (torch.bfloat16, torch.float32)
    return recipe.scale_rule in rules and nearest and recipe.plain and floats


def quantize(
    x: Tensor, recipe: Recipe, device: Device, toolchain: Toolchain, amax: Tensor | None = None
) -> Packed:
    """As reference.quantize for contiguous `x`, bit for bit.

    NVFP4 with an `amax`, a float32 scalar, reads `x` once and clips what is larger; a block that
    holds NaN or Inf then dequantizes to NaN, alone unless `amax` is not finite. FormatError unless
    `quantizes`, and for an `amax` that is something else or that the format has no use for.
    """
    return quantizer(recipe, x.dtype, device, toolchain)(x, amax)


def quantizer(
    recipe: Recipe, dtype: torch.dtype, device: Device, toolchain: Toolchain
) -> Callable[[Tensor, Tensor | None], Packed]:
    """`quantize`, resolved once for tensors of `dtype`."""
    if not quantizes(recipe, dtype):
        raise FormatError(
            "the C++ quantizer takes mxfp4 and mxint8 with floor, ceil, rceil, even or floor-3/4 and "
            "nvfp4 with nv, to nearest even, untransformed, of bfloat16 or float32, but got "
            f"{recipe.format.name} with {recipe.scale_rule}, {recipe.rounding}, of {dtype}; "
            "use fp4kernels.reference.quantize"
        )
    fmt, is_bf16 = recipe.format, dtype is torch.bfloat16
    nvfp4 = fmt == NVFP4
    rule = 0 if nvfp4 else _MX_RULES.index(recipe.scale_rule)
    function, run = _quantizer(nvfp4, fmt.element.bits, rule, device, toolchain)
    per_byte, block = fmt.codes_per_byte, fmt.block_size

    def launch(x: Tensor, amax: Tensor | None = None) -> Packed:
        if amax is not None and (
            not nvfp4 or (amax.dtype, amax.numel(), amax.device) != (torch.float32, 1, x.device)
        ):
            raise FormatError(
                f"an amax is a float32 scalar on {x.device} and for nvfp4 alone, but got "
                f"{amax.dtype} of {tuple(amax.shape)} on {amax.device} for {recipe.format.name}"
            )
        *rows, k = x.shape
        codes = x.new_empty((*rows, k // per_byte), dtype=torch.uint8)
        scales = x.new_empty((*rows, k // block), dtype=torch.uint8)
        tensor_scale = x.new_empty((), dtype=torch.float32)
        args = _QuantizeArgs(
            x.data_ptr(), codes.data_ptr(), scales.data_ptr(), tensor_scale.data_ptr(),
            None if amax is None else amax.data_ptr(), x.numel() // k, k, is_bf16,
        )  # fmt: skip
        function(ctypes.byref(args), run)
        return Packed(codes, scales, tensor_scale)

    return launch


@functools.cache
def _quantizer(
    nvfp4: bool, bits: int, rule: int, device: Device, toolchain: Toolchain
) -> tuple[Any, c_void_p]:
    """The C function and the pool's parallel_for, found once: looking them up takes longer."""
    defines = {"NVFP4": int(nvfp4), "BITS": bits, "RULE": rule}
    library = load(compile_object("quantize.cpp", defines, device, toolchain))
    pool = start_pool(device, toolchain)
    return library.quantize, ctypes.cast(pool.fp4_parallel_for, c_void_p)
