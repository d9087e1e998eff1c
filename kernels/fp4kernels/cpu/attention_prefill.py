"""FP4 attention of whole sequences on CPUs: the C++ kernel and its call."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from fp4kernels.attention.operands import Operands
from fp4kernels.attention.problem import Mask
from fp4kernels.attention.recipes import AttentionRecipe, check_four_bit, check_head_dim
from fp4kernels.cpu.build import compile_object, load
from fp4kernels.cpu.launch import start_pool
from fp4kernels.devices import Device, Toolchain, surroundings
from fp4kernels.scales import ScaleFormat


class _Args(ctypes.Structure):
    """PrefillArgs of src/attention_prefill.cpp."""

    _fields_ = [
        (name, c_void_p)
        for name in ("q_codes", "q_scales", "q_scale", "k_codes", "k_scales", "k_scale",
                     "v_codes", "v_scales", "v_scale", "bias", "shift", "table", "out", "lse")
    ] + [
        (name, c_int64)
        for name in ("sequences", "heads", "kv_heads", "tokens", "q_places", "k_places",
                     "longest_k", "causal", "window", "reverse", "round_scale")
    ] + [("scale", c_double), ("p_scale", c_double)]  # fmt: skip


class PrefillKernel:
    """Compiled for a head dim, and for NVFP4 or MXFP4 throughout."""

    def __init__(self, nvfp4: bool, head_dim: int, device: Device, toolchain: Toolchain) -> None:
        """FormatError for another head dim, BuildError without a compiler."""
        check_head_dim(head_dim)
        defines = {"NVFP4": int(nvfp4), "HEAD_DIM": head_dim}
        library = load(compile_object("attention_prefill.cpp", defines, device, toolchain))
        pool = start_pool(device, toolchain)
        self._head_dim = head_dim
        self._function = library.attention_prefill
        self._function.restype = None
        self._function.argtypes = [c_void_p, c_void_p]
        self._run = ctypes.cast(pool.fp4_parallel_for, c_void_p)

    def __call__(
        self, operands: Operands, recipe: AttentionRecipe, mask: Mask, scale: float
    ) -> tuple[Tensor, Tensor]:
        """As simulate(): float32 O [T, heads, D] and LSE [heads, T] of quantized operands."""
        q, k, v, places = operands.q, operands.k, operands.v, operands.places
        (heads, q_places, _), (kv_heads, k_places, _) = q.codes.shape, k.codes.shape
        table, tokens = places.table(q.codes.device), places.segments.q[-1]
        out = torch.zeros(tokens, heads, self._head_dim)
        lse = torch.full((heads, tokens), -torch.inf)
        held = [x.contiguous() for x in (*q, *k, *v)]
        extra = [None if x is None else x.contiguous() for x in (operands.bias, operands.shift)]
        args = _Args(
            *(x.data_ptr() for x in held),
            *(None if x is None else x.data_ptr() for x in extra),
            table.data_ptr(), out.data_ptr(), lse.data_ptr(),
            len(table), heads, kv_heads, tokens, q_places, k_places, places.longest_k,
            mask.causal, mask.window, recipe.reverse, recipe.round_scale, scale, recipe.p_scale,
        )  # fmt: skip
        self._function(ctypes.byref(args), self._run)
        return out, lse


@functools.cache
def _kernel(nvfp4: bool, head_dim: int) -> PrefillKernel:
    return PrefillKernel(nvfp4, head_dim, *surroundings("cpu"))


def prefill(
    operands: Operands, recipe: AttentionRecipe, mask: Mask, scale: float, head_dim: int
) -> tuple[Tensor, Tensor]:
    """By the kernel for the recipe, compiled at the first call.

    FormatError for a recipe that is not FP4 throughout, BuildError without a compiler.
    """
    check_four_bit(recipe)
    nvfp4 = recipe.k.format.scale is ScaleFormat.E4M3
    return _kernel(nvfp4, head_dim)(operands, recipe, mask, scale)
