"""Calls into the shared objects: argument structs of src/abi.h, and the thread pool."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from fp4kernels.cpu.build import compile_object, load
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.formats import MXFP4, NVFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe, Rounding, ScaleRule
from fp4kernels.variants import Launcher


class _GemmArgs(ctypes.Structure):
    _fields_ = [
        (name, c_void_p)
        for name in ("x_codes", "x_scales", "x_tensor_scale",
                     "w_codes", "w_scales", "w_tensor_scale", "out")
    ] + [(name, c_int64) for name in ("m", "n", "k", "out_is_bf16")]  # fmt: skip


class _QuantizeArgs(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("x", "codes", "scales", "tensor_scale")] + [
        (name, c_int64) for name in ("rows", "k", "x_is_bf16")
    ]


def gemm_launcher(path: str, pool: ctypes.CDLL, threads: int) -> Launcher:
    """A callable (x, w, out) over canonical `x` and panel16 `w`; `out` is bf16 or float32."""
    function = ctypes.CDLL(path).gemm
    function.restype = None
    function.argtypes = [c_void_p, c_void_p, c_int64]
    run = ctypes.cast(pool.fp4_parallel_for, c_void_p)

    def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        assert isinstance(x, Packed)
        m, n = out.shape
        args = _GemmArgs(
            x.codes.data_ptr(), x.scales.data_ptr(), x.tensor_scale.data_ptr(),
            w.codes.data_ptr(), w.scales.data_ptr(), w.tensor_scale.data_ptr(), out.data_ptr(),
            m, n, x.codes.shape[1] * 2, out.dtype is torch.bfloat16,
        )  # fmt: skip
        function(ctypes.byref(args), run, threads)

    return launch


@functools.cache
def start_pool(device: Device, toolchain: Toolchain) -> ctypes.CDLL:
    """The process's thread pool, one thread for each usable core."""
    pool = load(compile_object("pool.cpp", {}, device, toolchain))
    pool.fp4_pool_start(c_int64(device.cores))
    return pool


def pin_pool(device: Device, toolchain: Toolchain, cpus: Sequence[int]) -> None:
    """Bind the calling thread and the pool's to one CPU each: for a process that only measures."""
    numbers = (c_int64 * len(cpus))(*cpus)
    start_pool(device, toolchain).fp4_pool_pin(numbers, c_int64(len(cpus)))


def quantizes(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Whether `quantize` takes the recipe, and values of `dtype`."""
    known = (recipe.format, recipe.scale_rule) in (
        (MXFP4, ScaleRule.FLOOR),
        (NVFP4, ScaleRule.NV),
    )
    nearest = recipe.rounding is Rounding.NEAREST_EVEN
    return known and nearest and dtype in (torch.bfloat16, torch.float32)


def quantize(x: Tensor, recipe: Recipe, device: Device, toolchain: Toolchain) -> Packed:
    """As reference.quantize for contiguous `x`, bit for bit. FormatError unless `quantizes`."""
    if not quantizes(recipe, x.dtype):
        raise FormatError(
            "the C++ quantizer takes mxfp4 with floor and nvfp4 with nv, to nearest even, of "
            f"bfloat16 or float32, but got {recipe.format.name} with {recipe.scale_rule}, "
            f"{recipe.rounding}, of {x.dtype}; use fp4kernels.reference.quantize"
        )
    fmt, k = recipe.format, x.shape[-1]
    packed = Packed(
        x.new_empty(fmt.codes_shape(x.shape), dtype=torch.uint8),
        x.new_empty(fmt.scales_shape(x.shape), dtype=torch.uint8),
        torch.ones((), dtype=torch.float32),
    )
    args = _QuantizeArgs(
        x.data_ptr(), *(t.data_ptr() for t in packed),
        x.numel() // k, k, x.dtype is torch.bfloat16,
    )  # fmt: skip
    function, run = _quantizer(fmt == NVFP4, device, toolchain)
    function(ctypes.byref(args), run)
    return packed


@functools.cache
def _quantizer(nvfp4: bool, device: Device, toolchain: Toolchain) -> tuple[Any, c_void_p]:
    """The C function and the pool's parallel_for, found once: looking them up takes longer."""
    library = load(compile_object("quantize.cpp", {"NVFP4": int(nvfp4)}, device, toolchain))
    pool = start_pool(device, toolchain)
    return library.quantize, ctypes.cast(pool.fp4_parallel_for, c_void_p)
