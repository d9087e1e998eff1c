"""Decode attention on CPUs, over a paged KV cache: configuration, legality and build."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_double, c_int64, c_void_p
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fp4kernels.attention.recipes import HEAD_DIMS, AttentionRecipe
from fp4kernels.attention.storing import Held, Order
from fp4kernels.cpu.build import COMPILE_SECONDS, compile_object, load
from fp4kernels.cpu.launch import start_pool
from fp4kernels.devices import Device, Toolchain, surroundings
from fp4kernels.errors import BuildError, FormatError
from fp4kernels.formats import MXFP4, MXINT8, NVFP4, NVFP4_SINGLE, BlockFormat
from fp4kernels.transforms import transformed
from fp4kernels.variants import Config

STEP = 16  # tokens whose scores fill a vector; page sizes are multiples
TILES, MOST_SPLIT, MOST_ROWS, MOST_AHEAD = (16, 32, 64, 128), 1 << 16, 16, 8
BF16 = 3  # the number of a cache in bfloat16, which has no Format: what FP4 is compared with
_NUMBERS = {
    (fmt.element, fmt.scale, fmt.block_shape): number
    for fmt, number in ((NVFP4, 0), (NVFP4_SINGLE, 0), (MXFP4, 1), (MXINT8, 2))
}


@dataclass(frozen=True)
class DecodeConfig(Config):
    """Sizes compiled in as constants. The bytes are those of the integers over FP4 on AVX-512: 3 are
    float32's precision, 2 are 2^-16 of a row's largest query or weight, 1 is 2^-8."""

    rows: int = 4  # query rows that share one pass over decoded keys
    tile: int = 64  # keys whose softmax is taken at once
    split: int = 2048  # keys of one task
    ahead: int = 1  # tiles that memory is fetched ahead
    q_bytes: int = 3
    p_bytes: int = 3


def default_config(group: int, dtype: torch.dtype) -> DecodeConfig:
    """For so many query heads a kv head, and queries and outputs of `dtype`: two bytes round far less
    than a bf16 output does."""
    rows = next((rows for rows in (1, 2, 4) if group <= rows), 8)
    count = 2 if dtype is torch.bfloat16 else 3
    return DecodeConfig(rows=rows, q_bytes=count, p_bytes=count)


def malformed(config: DecodeConfig) -> str | None:
    """Why no kernel has such sizes."""
    if not 1 <= config.rows <= MOST_ROWS:
        return f"between 1 and {MOST_ROWS} rows share a pass, but got {config.rows}"
    if config.tile not in TILES:
        return f"a tile has {', '.join(map(str, TILES))} keys, but got {config.tile}"
    if not config.tile <= config.split <= MOST_SPLIT or config.split % config.tile:
        return (
            f"a split is whole tiles, up to {MOST_SPLIT} keys, but got {config.split} "
            f"with tiles of {config.tile}"
        )
    if not 0 <= config.ahead <= MOST_AHEAD:
        return f"memory is fetched 0 to {MOST_AHEAD} tiles ahead, but got {config.ahead}"
    if not {config.q_bytes, config.p_bytes} <= {1, 2, 3}:
        return (
            f"queries and weights have 1 to 3 bytes, but got {config.q_bytes} and {config.p_bytes}"
        )
    return None


class _Args(ctypes.Structure):
    """AttentionArgs of src/attention.h."""

    _fields_ = [
        (name, c_void_p)
        for name in ("q", "k_codes", "k_scales", "k_scale", "v_codes", "v_scales", "v_scale",
                     "page_table", "lengths", "out", "lse")
    ] + [
        (name, c_int64)
        for name in ("sequences", "queries", "heads", "kv_heads", "page_size", "table_pages",
                     "token_rows", "head_rows", "window")
    ] + [("scale", c_double)]  # fmt: skip


def decode_object(
    formats: tuple[int, int],
    head_dim: int,
    config: DecodeConfig,
    device: Device,
    toolchain: Toolchain,
    seconds: float = COMPILE_SECONDS,
) -> Path:
    """The kernel's shared object, compiled unless it lies in the cache."""
    defines = {name.upper(): value for name, value in asdict(config).items()}
    defines |= {"KEYS": formats[0], "VALUES": formats[1], "HEAD_DIM": head_dim}
    return compile_object("attention_decode.cpp", defines, device, toolchain, seconds)


class DecodeKernel:
    """Compiled for formats of K and V, a head dim and a configuration."""

    def __init__(
        self,
        formats: tuple[int, int],
        head_dim: int,
        config: DecodeConfig,
        device: Device,
        toolchain: Toolchain,
    ) -> None:
        why = malformed(config)
        if why is not None or head_dim not in HEAD_DIMS:
            raise BuildError(why or f"the head dim must be one of {HEAD_DIMS}, but got {head_dim}")
        library = load(decode_object(formats, head_dim, config, device, toolchain))
        pool = start_pool(device, toolchain)
        self._function = library.attention_decode
        self._function.restype = None
        self._function.argtypes = [c_void_p, c_void_p, c_int64]
        self._run = ctypes.cast(pool.fp4_parallel_for, c_void_p)
        self._threads = device.cores

    def __call__(
        self,
        q: Tensor,
        keys: Held,
        values: Held,
        page_table: Tensor,
        lengths: Tensor,
        order: Order,
        *,
        window: int,
        scale: float,
        into: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """float32 O [S, Sq, heads, D] and LSE [S, heads, Sq] of q, which is turned as K is held;
        written `into` what is given."""
        sequences, queries, heads, _ = q.shape
        q = q.float().contiguous()
        by_token, by_head = keys.codes.shape[1:3]
        if order is Order.HND:
            by_token, by_head = by_head, by_token
        out, lse = into or (torch.empty_like(q), q.new_empty((sequences, heads, queries)))
        tensors = (q, *keys, *values, page_table, lengths, out, lse)
        args = _Args(
            *(tensor.data_ptr() for tensor in tensors),
            sequences, queries, heads, by_head, by_token, page_table.shape[1],
            by_head if order is Order.NHD else 1, 1 if order is Order.NHD else by_token,
            window, scale,
        )  # fmt: skip
        self._function(ctypes.byref(args), self._run, self._threads)
        return out, lse


def format_number(fmt: BlockFormat) -> int:
    """Its place in FORMATS of src/attention.h. FormatError where it has none."""
    number = _NUMBERS.get((fmt.element, fmt.scale, fmt.block_shape))
    if number is None:
        raise FormatError(
            f"the C++ kernel reads K and V in nvfp4, mxfp4 and mxint8, but got {fmt.name}"
        )
    return number


def formats_of(how: AttentionRecipe) -> tuple[int, int]:
    """Of K and V."""
    return format_number(how.k.format), format_number(how.v.format)


@functools.cache
def kernel_for(how: AttentionRecipe, head_dim: int, group: int, dtype: torch.dtype) -> DecodeKernel:
    """The default kernel, compiled at the first call. BuildError without a compiler."""
    config = default_config(group, dtype)
    return DecodeKernel(formats_of(how), head_dim, config, *surroundings("cpu"))


def decode(
    q: Tensor,
    keys: Held,
    values: Held,
    page_table: Tensor,
    lengths: Tensor,
    how: AttentionRecipe,
    order: Order,
    *,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """As the op fp4kernels::attention_decode: O in q's type and LSE in float32."""
    head_dim = q.shape[-1]
    by_head = keys.codes.shape[2 if order is Order.NHD else 1]
    run = kernel_for(how, head_dim, q.shape[2] // by_head, q.dtype)
    turned, _ = transformed(q, how.rotation(head_dim))
    out, lse = run(turned, keys, values, page_table, lengths, order, window=window, scale=scale)
    return out.to(q.dtype), lse
