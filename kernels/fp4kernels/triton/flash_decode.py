"""Flash-decoding in Triton as a variant: configuration and legality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.storing import Order
from fp4kernels.attention.variant import AttentionLauncher, Launched, Paged, Rounding
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.devices import Device, Toolchain
from fp4kernels.triton.attention_variant import TritonAttention
from fp4kernels.variants import Config

if TYPE_CHECKING:
    from fp4kernels.triton.offline import KernelSource  # imports triton

HALF_UNIT = 2.0**-8  # of bf16: half of what lies between two of its numbers, relatively
MOST_TILE, MOST_WAVES = 256, 16


@dataclass(frozen=True)
class FlashDecodeConfig(Config):
    """Keys of a tile, how many programs an SM should have, warps and pipeline stages of each."""

    block_n: int = 128
    waves: int = 2
    warps: int = 4
    stages: int = 2


def untuned(head_dim: int) -> FlashDecodeConfig:
    """A head of 256, or the masks of one of 96, leave fewer registers."""
    return FlashDecodeConfig(block_n={96: 64, 256: 32}.get(head_dim, 128))


class FlashDecode(TritonAttention):
    """Shares of the keys side by side, joined in order; codes become bf16 in registers."""

    name = "flash_decode"
    config_type = FlashDecodeConfig
    phase = Phase.DECODE

    def rounding(self, config: Config, recipe: AttentionRecipe, device: Device) -> Rounding:
        """Queries are bf16 already, unless they are rotated; P becomes bf16."""
        return Rounding(product=HALF_UNIT if recipe.rotate else 0.0, weight=HALF_UNIT)

    def default(
        self, workload: AttentionWorkload, recipe: AttentionRecipe, device: Device
    ) -> FlashDecodeConfig:
        return untuned(workload.head_dim)

    def malformed(self, config: Config, recipe: AttentionRecipe) -> str | None:
        assert isinstance(config, FlashDecodeConfig)
        if config.block_n > MOST_TILE or not 1 <= config.waves <= MOST_WAVES:
            return (
                f"a tile has at most {MOST_TILE} keys and an SM 1 to {MOST_WAVES} programs, but got "
                f"{config.block_n} and {config.waves}"
            )
        return super().malformed(config, recipe)

    def unsuited(
        self, config: Config, recipe: AttentionRecipe, workload: AttentionWorkload, device: Device
    ) -> str | None:
        assert isinstance(config, FlashDecodeConfig)
        default = self.default(workload, recipe, device)
        if config.block_n > default.block_n and config.block_n >= 2 * workload.keys:
            return f"block_n={config.block_n} would be half empty with {workload.keys} keys"
        return None

    def sources(
        self,
        config: Config,
        recipe: AttentionRecipe,
        workload: AttentionWorkload,
        device: Device,
    ) -> list[KernelSource]:
        from fp4kernels.triton.attention_decode import DecodeShape, decode_sources  # imports triton

        assert isinstance(config, FlashDecodeConfig)
        shape = DecodeShape(
            workload.batch, workload.queries, workload.heads, workload.kv_heads, workload.head_dim,
            workload.page_size, -(-workload.keys // workload.page_size), workload.keys,
            workload.window > 0,
        )  # fmt: skip
        dtype = getattr(torch, workload.dtype)
        return decode_sources(shape, recipe, Order.NHD, device, config, dtype)

    def build(
        self, config: Config, recipe: AttentionRecipe, device: Device, toolchain: Toolchain
    ) -> AttentionLauncher:
        from fp4kernels.triton.attention_decode import DecodeShape, flash_decode  # imports triton

        assert isinstance(config, FlashDecodeConfig)
        chosen: FlashDecodeConfig = config

        def launch(on: Launched, out: Tensor, lse: Tensor) -> None:
            assert isinstance(on, Paged)
            sequences, queries, heads, head_dim = on.q.shape
            shape = DecodeShape(
                sequences, queries, heads, on.kv_heads, head_dim, on.page_size,
                on.page_table.shape[1], on.longest, on.window > 0,
            )  # fmt: skip
            flash_decode(
                on.q, on.keys, on.values, on.page_table, on.lengths, shape, recipe, on.order,
                window=on.window, scale=on.scale, cores=device.cores, config=chosen,
                into=(out, lse),
            )  # fmt: skip

        return launch
