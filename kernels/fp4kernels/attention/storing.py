"""New keys and values into the pages of a cache: quantized under a scale that was given before."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.attention.device import gpu
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.errors import FormatError
from fp4kernels.formats import NVFP4_SINGLE
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.scaling import FLOAT32_MAX
from fp4kernels.transforms import transformed

LEAST_SCALE, MOST_SCALE = 2.0**-64, 2.0**64


class Order(StrEnum):
    """Of a page: tokens by heads, or heads by tokens."""

    NHD = "nhd"
    HND = "hnd"


class Held(NamedTuple):
    """The tensors of one operand in pages, and the scale of all of it."""

    codes: Tensor
    scales: Tensor
    scale: Tensor


def check_scale(how: Recipe, scale: float) -> None:
    """FormatError unless `scale` can stand for the tensor scale of such a format."""
    if not how.format.tensor_scale and scale != 1:
        raise FormatError(f"{how.name} has no tensor scale, so its scale is 1, but got {scale}")
    if not LEAST_SCALE <= scale <= MOST_SCALE:
        raise FormatError(f"a scale lies between 2^-64 and 2^64, but got {scale}; take amax / 2688")


def quantize_under(x: Tensor, how: Recipe, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and block scales of `x` [..., D] under the tensor scale `scale`, a float32 scalar.

    Each block's scale is E4M3 of amax / 6, to nearest, of the values over `scale`: what another
    block holds changes nothing. Formats without a tensor scale are as reference.quantize has them.
    """
    if how.format.tensor_scale:
        assert how.format.block_shape == NVFP4_SINGLE.block_shape
        scaled = x.float() * (scale.new_ones(()) / scale)
        # a block with Inf is NaN; one that overflows here is not
        x = torch.where(x.isfinite(), scaled.clamp(-FLOAT32_MAX, FLOAT32_MAX), scaled)
        how = RECIPES[NVFP4_SINGLE.name]
    codes, scales, _ = reference.quantize(x, how)
    return codes, scales


def gathered(held: Held, how: Recipe, pages: Tensor, length: int, order: Order) -> Tensor:
    """float32 [length, kv_heads, D] of the first tokens on `pages`, as they are stored."""
    tokens_first = [t if order is Order.NHD else t.transpose(1, 2) for t in held[:2]]
    count = -(-length // tokens_first[0].shape[1])
    codes, scales = (t[pages[:count].long()].flatten(0, 1)[:length] for t in tokens_first)
    return reference.dequantize(Packed(codes, scales, held.scale), how.format)


@torch.library.custom_op(
    "fp4kernels::cache_append", mutates_args=("k_codes", "k_scales", "v_codes", "v_scales")
)
def append_op(
    k: Tensor,
    v: Tensor,
    k_codes: Tensor,
    k_scales: Tensor,
    k_scale: Tensor,
    v_codes: Tensor,
    v_scales: Tensor,
    v_scale: Tensor,
    slots: Tensor,
    recipe: str,
    order: str,
) -> None:
    """k, v [T, kv_heads, D] quantized as the attention recipe says, into the slots (int64 [T]:
    page * page_size + place) of what `fp4kernels.attention.cache` describes."""
    how = attention_recipe(recipe)
    if k.device.type == "cuda":
        from fp4kernels.triton.attention_append import append  # imports triton

        gpu()
        keys, values = Held(k_codes, k_scales, k_scale), Held(v_codes, v_scales, v_scale)
        append(k, v, keys, values, slots, how, Order(order))
        return
    size = k_codes.shape[1 if order == Order.NHD else 2]
    page, place = slots // size, slots % size
    turned, _ = transformed(k, how.rotation(k.shape[-1]))
    for x, of_x, codes, scales, scale in (
        (turned, how.k, k_codes, k_scales, k_scale),
        (v, how.v, v_codes, v_scales, v_scale),
    ):
        new = quantize_under(x, of_x, scale)
        for held, rows in zip((codes, scales), new, strict=True):
            tokens_first = held if order == Order.NHD else held.transpose(1, 2)
            tokens_first[page, place] = rows


@append_op.register_fake
def _append_fake(*arguments: object) -> None:
    return None
