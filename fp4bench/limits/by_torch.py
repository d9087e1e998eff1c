"""Limits as torch reaches them: of a GPU, and of a CPU without a compiler."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fp4bench.clocks import Call
from fp4bench.limits.fastest import fastest
from fp4bench.trials import Policy
from fp4kernels.devices import Device

CACHES = 8  # memory is a buffer so many times the last-level cache
LARGEST = 8  # but no more than this part of memory
WINDOWS = 64  # readings of one cached buffer in one launch
SHIFT = 1024  # elements between two windows
COLUMNS = 4096  # of the matrix whose product with a vector reads memory
SIDE = {"cuda": 8192, "cpu": 2048}  # of the square matrices
SECONDS = 0.5  # for each rate
EAGER, GRAPH = (Policy(launch=launch, cache="cold") for launch in ("eager", "graph"))
# how torch and cuBLAS say that a product does not exist here; any other error is one
_UNSUPPORTED = re.compile(
    r"support|not implemented|not compiled|STATUS_ARCH_MISMATCH", re.IGNORECASE
)

Maker = Callable[[int, torch.device], Call]


def rates(device: Device) -> dict[str, float | None]:
    """Fields of Limits, each the fastest of short repeats.

    Bytes read: the faster of torch.sum and torch.mv over float32, in cache row sums over 64
    windows of one buffer, so that one launch reads it 64 times. Bytes copied: the faster of
    Tensor.copy_ and torch.neg, read and written. Memory is a buffer of 8 last-level caches, at most
    an eighth of memory; cached buffers hold a quarter of the cache each. Products are of random
    square matrices: torch.mm in float32 (without TF32) and bf16, torch._scaled_mm in E4M3 with
    fast accumulation, torch._int_mm in int8.
    """
    with _all_cores(device), _without_tf32():
        products = {name: _product_rate(make, device) for name, make in PRODUCTS.items()}
        return _memory(device) | _cache(device) | products


def _memory(device: Device) -> dict[str, float | None]:
    size = min(CACHES * device.cache_bytes, device.memory_bytes // LARGEST)
    data = _random(size // 4 // (2 * COLUMNS) * 2 * COLUMNS, device.torch_device)
    matrix, vector = data.view(-1, COLUMNS), _random(COLUMNS, device.torch_device)
    reads: list[Call] = [data.sum, lambda: torch.mv(matrix, vector)]
    copies = _copies(*data.chunk(2))
    return {
        "memory_read": data.nbytes / fastest(reads, device.kind, EAGER, SECONDS),
        "memory_copy": data.nbytes / fastest(copies, device.kind, EAGER, SECONDS),
    }


def _cache(device: Device) -> dict[str, float | None]:
    """By CUDA graphs, since a launch takes longer than a copy within L2."""
    count = device.cache_bytes // 4 // 4
    data = _random(count + WINDOWS * SHIFT, device.torch_device)
    windows = data.as_strided((WINDOWS, count), (SHIFT, 1))
    source, target = data[:count], torch.zeros(count, device=device.torch_device)
    read = fastest([lambda: windows.sum(dim=1)], device.kind, GRAPH, SECONDS)
    copy = fastest(_copies(source, target), device.kind, GRAPH, SECONDS)
    return {
        "cache_read": windows.numel() * 4 / read,
        "cache_copy": 2 * source.nbytes / copy,
    }


def _copies(source: Tensor, target: Tensor) -> list[Call]:
    return [lambda: target.copy_(source), lambda: torch.neg(source, out=target)]


def _product_rate(make: Maker, device: Device) -> float | None:
    """GFLOP/s; None where torch says that there is no such product."""
    side = SIDE[device.kind]
    try:
        product = make(side, device.torch_device)
        return 2 * side**3 / fastest([product], device.kind, EAGER, SECONDS)
    except RuntimeError as error:
        if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(str(error)):
            return None
        raise


def _mm(dtype: torch.dtype) -> Maker:
    def make(side: int, where: torch.device) -> Call:
        a, b = (_random(side * side, where).view(side, side).to(dtype) for _ in range(2))
        return lambda: torch.mm(a, b.t())

    return make


def _fp8(side: int, where: torch.device) -> Call:
    a, b = (_random(side * side, where).view(side, side).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=where)
    return lambda: torch._scaled_mm(
        a, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=where.type == "cuda"
    )


def _int8(side: int, where: torch.device) -> Call:
    a, b = (
        torch.randint(-128, 128, (side, side), dtype=torch.int8, device=where) for _ in range(2)
    )
    return lambda: torch._int_mm(a, b.t())


PRODUCTS: dict[str, Maker] = {
    "fp32": _mm(torch.float32), "bf16": _mm(torch.bfloat16), "fp8": _fp8, "int8": _int8,
}  # fmt: skip


def _random(count: int, where: torch.device) -> Tensor:
    """Uniform rather than zeros, which would save a GPU power and so raise its clock."""
    return torch.rand(count, device=where) - 0.5


@contextmanager
def _all_cores(device: Device) -> Iterator[None]:
    before = torch.get_num_threads()
    if device.kind == "cpu":
        torch.set_num_threads(device.cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_tf32() -> Iterator[None]:
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before
