"""From a query and a cache to launches of flash-decoding, and from a shape to offline builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, cdiv, next_power_of_2
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.storing import Held, Order
from fp4kernels.devices import Device
from fp4kernels.errors import BuildError
from fp4kernels.formats import BlockFormat
from fp4kernels.transforms import transformed
from fp4kernels.triton.attention_decode_kernel import combine_kernel, flash_decode_kernel
from fp4kernels.triton.flash_decode import FlashDecodeConfig, untuned
from fp4kernels.triton.offline import KernelSource

LEAST_ROWS, MOST_ROWS = 16, 64  # of a matrix instruction, and of a tile
MOST_SPLITS = 128
COMBINING_WARPS = 4
_FUSED: dict[str, Any] = {"enable_fp_fusion": True}  # the default differs between versions
INTERPRETED = not isinstance(flash_decode_kernel, JITFunction)  # decided when it was imported
_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class DecodeShape:
    """What the kernels are compiled for, and how many rows and keys there are at most."""

    sequences: int
    queries: int
    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    pages: int  # of a row of the page table
    longest: int
    windowed: bool = False

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def block_m(self) -> int:
        rows = next_power_of_2(self.queries * self.group)
        return int(min(max(rows, LEAST_ROWS), MOST_ROWS))

    @property
    def programs(self) -> int:
        """Without a split."""
        return int(self.sequences * self.kv_heads * cdiv(self.queries * self.group, self.block_m))


def default(shape: DecodeShape) -> FlashDecodeConfig:
    """The untuned choice."""
    return untuned(shape.head_dim)


def split_count(shape: DecodeShape, cores: int, config: FlashDecodeConfig) -> int:
    """Shares of the keys: as many as `cores` SMs have room for beside the other programs."""
    tiles = cdiv(shape.longest, config.block_n)
    return int(max(1, min(cores * config.waves // shape.programs, tiles, MOST_SPLITS)))


def flash_decode(
    q: Tensor,
    keys: Held,
    values: Held,
    page_table: Tensor,
    lengths: Tensor,
    shape: DecodeShape,
    how: AttentionRecipe,
    order: Order,
    *,
    window: int,
    scale: float,
    cores: int,
    config: FlashDecodeConfig | None = None,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """O [S, queries, heads, D] as q, and float32 LSE [S, heads, queries], written `into` what is
    given. BuildError from Triton."""
    config = config or default(shape)
    left = transformed(q, how.rotation(shape.head_dim))[0] if how.rotate else q
    left = left.bfloat16().contiguous()
    out, lse = into or (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        q.new_empty((shape.sequences, shape.heads, shape.queries), dtype=torch.float32),
    )
    splits = split_count(shape, cores, config)
    target, target_lse = out, lse
    if splits > 1:
        target = q.new_empty((splits, *q.shape), dtype=torch.float32)
        target_lse = lse.new_empty((splits, *lse.shape))
    grid = (
        shape.sequences * shape.kv_heads, cdiv(shape.queries * shape.group, shape.block_m), splits
    )  # fmt: skip
    constants = _constants(shape, how, order, config, splits > 1, _runs_ptx(q))
    try:
        with torch.cuda.device(q.get_device()):
            flash_decode_kernel[grid](
                left, *keys, *values, page_table, lengths, target, target_lse,
                shape.queries, shape.heads, shape.kv_heads, shape.pages, window, scale, splits,
                **constants, **_options(config),
            )  # fmt: skip
            if splits > 1:
                combine_kernel[(shape.sequences * shape.queries * shape.heads,)](
                    target, target_lse, out, lse, shape.queries, shape.heads, splits,
                    **_combining(shape, splits), num_warps=COMBINING_WARPS, **_FUSED,
                )  # fmt: skip
    except (CompilationError, OutOfResources, PTXASError) as error:
        raise BuildError(f"flash decoding of {how.name}, {config.label}: {error}") from error
    return out, lse


def decode_sources(
    shape: DecodeShape,
    how: AttentionRecipe,
    order: Order,
    device: Device,
    config: FlashDecodeConfig | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> list[KernelSource]:
    """All kernels that `flash_decode` compiles, the attention first."""
    config = config or default(shape)
    splits = split_count(shape, device.cores, config)
    sizes: dict[str, str | int | None] = {"queries": shape.queries, "heads": shape.heads}
    out: dict[str, str | int | None] = {"out": _POINTERS[dtype], "lse": "*fp32"}
    arguments: dict[str, str | int | None] = {
        "q": "*bf16",
        **{f"{x}_{part}": "*u8" for x in "kv" for part in ("codes", "scales")},
        "k_scale": "*fp32", "v_scale": "*fp32", "table": "*i32", "lengths": "*i32",
        **({"out": "*fp32", "lse": "*fp32"} if splits > 1 else out),
        **sizes, "kv_heads": shape.kv_heads, "pages": shape.pages, "window": 3, "scale": "fp32",
        "splits": splits,
    }  # fmt: skip
    ptx = device.compute_capability > 0
    constants = _constants(shape, how, order, config, splits > 1, ptx)
    sources = [KernelSource(flash_decode_kernel, arguments, constants, _options(config))]
    if splits > 1:
        arguments = {"partial": "*fp32", "partial_lse": "*fp32", **out, **sizes, "splits": splits}
        options = {"num_warps": COMBINING_WARPS, **_FUSED}
        sources.append(KernelSource(combine_kernel, arguments, _combining(shape, splits), options))
    return sources


def _constants(
    shape: DecodeShape,
    how: AttentionRecipe,
    order: Order,
    config: FlashDecodeConfig,
    split: bool,
    ptx: bool,
) -> dict[str, Any]:
    k: BlockFormat = how.k.format
    return {
        "d": shape.head_dim,
        "dims": next_power_of_2(shape.head_dim),
        "group": shape.group,
        "k_block": k.block_size,
        "v_block": how.v.format.block_size,
        "k_eight_bit": k.element.bits == 8,
        "page_size": shape.page_size,
        "tokens_first": order is Order.NHD,
        "windowed": shape.windowed,
        "block_m": shape.block_m,
        "block_n": config.block_n,
        "split": split,
        "ptx": ptx,
        "interpreted": INTERPRETED,
    }


def _runs_ptx(x: Tensor) -> bool:
    """Whether inline PTX can run where `x` is; the interpreter and AMD have plain twins of it."""
    return x.device.type == "cuda" and torch.version.hip is None


def _combining(shape: DecodeShape, splits: int) -> dict[str, Any]:
    return {
        "d": shape.head_dim,
        "dims": next_power_of_2(shape.head_dim),
        "most": next_power_of_2(splits),
        "interpreted": INTERPRETED,
    }


def _options(config: FlashDecodeConfig) -> dict[str, Any]:
    return {"num_warps": config.warps, "num_stages": config.stages, **_FUSED}
