"""As much of ggml's C interface as one matrix product on a CPU needs."""

from __future__ import annotations

import ctypes
import functools
import sys
import weakref
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

F32, MXFP4 = 0, 39  # of enum ggml_type
_TENSORS = 4  # room in a context; more than any here holds

_BASE: dict[str, tuple[Any, ...]] = {  # name: result, arguments
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, c_void_p, c_void_p),
    "ggml_backend_buffer_free": (None, c_void_p),
    "ggml_backend_cpu_buffer_from_ptr": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_cpu_buffer_type": (c_void_p,),
    "ggml_backend_get_device": (c_void_p, c_void_p),
    "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
    "ggml_backend_reg_get_proc_address": (c_void_p, c_void_p, c_char_p),
    "ggml_backend_supports_op": (c_bool, c_void_p, c_void_p),
    "ggml_backend_tensor_alloc": (c_int, c_void_p, c_void_p, c_void_p),
    "ggml_backend_tensor_set": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_free": (None, c_void_p),
    "ggml_graph_overhead": (c_size_t,),
    "ggml_init": (c_void_p,),  # its argument, a struct, is given below
    "ggml_log_set": (None, c_void_p, c_void_p),
    "ggml_mul_mat": (c_void_p, c_void_p, c_void_p, c_void_p),
    "ggml_new_graph": (c_void_p, c_void_p),
    "ggml_new_tensor_2d": (c_void_p, c_void_p, c_int, c_int64, c_int64),
    "ggml_quantize_chunk": (
        c_size_t, c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p,
    ),
    "ggml_row_size": (c_size_t, c_int, c_int64),
    "ggml_tensor_overhead": (c_size_t,),
    "ggml_type_name": (c_char_p, c_int),
}  # fmt: skip
_CPU: dict[str, tuple[Any, ...]] = {
    "ggml_backend_cpu_init": (c_void_p,),
    "ggml_backend_cpu_reg": (c_void_p,),
    "ggml_backend_cpu_set_n_threads": (None, c_void_p, c_int),
}


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class Ggml:
    """The loaded libraries, and one CPU back end of them."""

    def __init__(self, folder: Path) -> None:
        suffix = "dylib" if sys.platform == "darwin" else "so"
        base = ctypes.CDLL(str(folder / f"libggml-base.{suffix}"), mode=ctypes.RTLD_GLOBAL)
        cpu = ctypes.CDLL(str(folder / f"libggml-cpu.{suffix}"))
        self._functions = {
            name: _declared(library, name, signature)
            for library, names in ((base, _BASE), (cpu, _CPU))
            for name, signature in names.items()
        }
        self._functions["ggml_init"].argtypes = (_InitParams,)
        # it tells of every repacked tensor on stderr
        self._mute = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda *_: None)
        self("ggml_log_set", self._mute, None)
        self._backend = self("ggml_backend_cpu_init")

    def __call__(self, name: str, *arguments: Any) -> Any:
        return self._functions[name](*arguments)

    @staticmethod
    @functools.cache
    def load(folder: Path) -> Ggml:
        """Once per process. Raises OSError or AttributeError where the library does not fit."""
        return Ggml(folder)

    def knows_mxfp4(self) -> bool:
        return bool(self("ggml_type_name", MXFP4) == b"mxfp4")

    def quantize(self, w: Tensor) -> Tensor:
        """MXFP4 bytes of contiguous float32 `w` [N, K], in ggml's canonical layout."""
        n, k = w.shape
        codes = torch.empty(n * self("ggml_row_size", MXFP4, k), dtype=torch.uint8)
        self("ggml_quantize_chunk", MXFP4, w.data_ptr(), codes.data_ptr(), 0, n, k, None)
        return codes

    def weight_homes(self) -> list[int]:
        """Kinds of buffers for a weight, those that repack it first, as llama.cpp tries them."""
        registry = self("ggml_backend_cpu_reg")
        address = self(
            "ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts"
        )
        homes: list[int] = []
        if address:
            device = self("ggml_backend_get_device", self._backend)
            extra = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device)
            while (home := extra[len(homes)]) is not None:  # the list ends with a null
                homes.append(home)
        return [*homes, self("ggml_backend_cpu_buffer_type")]

    def supports(self, node: int) -> bool:
        return bool(self("ggml_backend_supports_op", self._backend, node))

    def compute(self, graph: int) -> None:
        status = self("ggml_backend_graph_compute", self._backend, graph)
        if status != 0:
            raise RuntimeError(f"ggml's graph ended with status {status}")

    def use_threads(self, count: int) -> None:
        self("ggml_backend_cpu_set_n_threads", self._backend, count)


class Product:
    """Float32 x [M, K] times a weight of its own memory, made of `codes`; freed with itself."""

    def __init__(self, ggml: Ggml, x: Tensor, codes: Tensor, n: int) -> None:
        self._ggml, self._x = ggml, x
        self._out = x.new_empty(x.shape[0], n)
        ggml.use_threads(torch.get_num_threads())
        for home in ggml.weight_homes():
            if self._build(home, n):
                break
        ggml("ggml_backend_tensor_set", self._weight, codes.data_ptr(), 0, codes.numel())

    def __call__(self) -> Tensor:
        self._ggml.compute(self._graph)
        return self._out

    def _build(self, home: int, n: int) -> bool:
        """Lay everything out with the weight in `home`; False where the product cannot read it."""
        ggml, (m, k) = self._ggml, self._x.shape
        size = _TENSORS * ggml("ggml_tensor_overhead") + ggml("ggml_graph_overhead")
        # the weight has a context of its own: a buffer is made for all of a context's tensors
        held, context = (ggml("ggml_init", _InitParams(size, None, True)) for _ in range(2))
        self._weight = ggml("ggml_new_tensor_2d", held, MXFP4, k, n)
        buffers = [ggml("ggml_backend_alloc_ctx_tensors_from_buft", held, home)]
        x = ggml("ggml_new_tensor_2d", context, F32, k, m)
        out = ggml("ggml_mul_mat", context, self._weight, x)
        for tensor, memory in ((x, self._x), (out, self._out)):
            bytes_ = memory.numel() * memory.element_size()
            buffers.append(ggml("ggml_backend_cpu_buffer_from_ptr", memory.data_ptr(), bytes_))
            ggml("ggml_backend_tensor_alloc", buffers[-1], tensor, memory.data_ptr())
        self._graph = ggml("ggml_new_graph", context)
        ggml("ggml_build_forward_expand", self._graph, out)
        free = weakref.finalize(self, _free, ggml, buffers, (held, context))
        if not ggml.supports(out):
            free()
            return False
        return True


def _free(ggml: Ggml, buffers: list[int], contexts: tuple[int, ...]) -> None:
    for buffer in buffers:
        ggml("ggml_backend_buffer_free", buffer)
    for context in contexts:
        ggml("ggml_free", context)


def _declared(library: ctypes.CDLL, name: str, signature: tuple[Any, ...]) -> Any:
    function = getattr(library, name)
    function.restype, *function.argtypes = signature
    return function
