"""One call of the quantizer: what its kernels read, write and are compiled with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, cdiv

from fp4kernels.errors import FormatError
from fp4kernels.packing import Packed
from fp4kernels.prologues import Prologue
from fp4kernels.recipes import Recipe, ScaleRule
from fp4kernels.reference import check_blocks
from fp4kernels.swizzle import swizzled_size
from fp4kernels.transforms import check_whole
from fp4kernels.triton.quantize_config import (
    Cut,
    QuantizeConfig,
    code_constants,
    cut,
    needs_rows,
    value_constants,
)
from fp4kernels.triton.quantize_kernel import amax_kernel, quantize_kernel
from fp4kernels.triton.quantize_rows import amax_rows_kernel, quantize_rows_kernel

MOST_BLOCKS = (1 << 30) - 1  # the kernel counts them, and some beyond the last, in 32 bits
INTERPRETED = not isinstance(quantize_kernel, JITFunction)  # decided when triton was imported


@dataclass(frozen=True)
class Launch:
    """A kernel and all that it takes, by name."""

    kernel: Any  # a triton.JITFunction
    programs: int
    arguments: Mapping[str, Tensor | float | None]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Work:
    """`x` and, where the prologue has one, its `other` operand, both contiguous within rows that are
    `stride` values apart; `shape` is that of what is quantized."""

    x: Tensor
    other: Tensor | None
    stride: int
    shape: torch.Size
    recipe: Recipe
    prologue: Prologue | None
    swizzle: bool
    config: QuantizeConfig

    @property
    def across(self) -> int:
        """Blocks of a row."""
        return self.shape[-1] // self.recipe.format.block_size

    @cached_property
    def cut(self) -> Cut:
        rows, k = self.shape[:-1].numel(), self.shape[-1]
        return cut(rows, k, self.recipe, self.prologue, self.config)

    def empty(self) -> Packed:
        """What the kernels write, on the device of x; the padding of swizzled scales is zeros."""
        fmt, x = self.recipe.format, self.x
        codes = x.new_empty(fmt.codes_shape(self.shape), dtype=torch.uint8)
        if self.swizzle:
            size = swizzled_size(self.shape[:-1].numel(), self.across)
            scales = x.new_zeros(size, dtype=torch.uint8)
        else:
            scales = x.new_empty(fmt.scales_shape(self.shape), dtype=torch.uint8)
        tensor_scale = x.new_ones((), dtype=torch.float32)
        if self.recipe.scale_rule is ScaleRule.FLOOR_3_4:
            tensor_scale = tensor_scale * 4 / 3
        return Packed(codes, scales, tensor_scale)

    def launches(
        self,
        out: Packed,
        amax: Tensor | None,
        raised: Tensor | None,
        seed: tuple[int, int],
        converts: bool,
    ) -> Iterator[Launch]:
        """In their order: first one for the tensor's amax, if it is needed and not given."""
        rows = needs_rows(self.recipe, self.prologue)
        values = value_constants(self.recipe, self.prologue, INTERPRETED) | self.cut.constants
        read: dict[str, Tensor | int | None] = {
            "x": self.x, "other": self.other, "total": self.cut.total, "across": self.across,
            "stride": self.stride,
        }  # fmt: skip
        if self.recipe.format.tensor_scale and amax is None:
            bits = self.x.new_zeros((), dtype=torch.int32)
            kernel, steps = (amax_rows_kernel, 1) if rows else (amax_kernel, self.cut.steps)
            constants = values if rows else values | {"steps": steps}
            programs = cdiv(self.cut.programs, steps)
            yield Launch(kernel, programs, read | {"amax": bits}, constants, self.cut.options)
            amax = bits.view(torch.float32)
        written: dict[str, Tensor | int | None] = {
            "amax": amax, "codes": out.codes.view(torch.int32), "scales": out.scales,
            "tensor_scale": out.tensor_scale, "seed_low": seed[0], "seed_high": seed[1],
        }  # fmt: skip
        constants = values | code_constants(self.recipe, self.swizzle, converts)
        if rows:
            written["raised"], constants["window"] = raised, self.recipe.window or 0
        kernel = quantize_rows_kernel if rows else quantize_kernel
        yield Launch(kernel, self.cut.programs, read | written, constants, self.cut.options)


def work(
    x: Tensor, recipe: Recipe, prologue: Prologue | None, swizzle: bool, config: QuantizeConfig
) -> Work:
    """FormatError for shapes as `quantize` says."""
    values, other = _operands(x, prologue)
    check_blocks(values, recipe.format)
    check_whole(values, recipe.transform)
    blocks = values.numel() // recipe.format.block_size
    if blocks > MOST_BLOCKS:
        raise FormatError(f"at most {MOST_BLOCKS} blocks can be quantized, but got {blocks}")
    values, other = _operands(x.contiguous(), prologue)
    stride = x.shape[-1]
    if other is not None and stride == values.shape[-1]:  # else both are halves of x
        other = other.contiguous()
    return Work(values, other, stride, values.shape, recipe, prologue, swizzle, config)


def _operands(x: Tensor, prologue: Prologue | None) -> tuple[Tensor, Tensor | None]:
    return (x, None) if prologue is None else prologue.operands(x)
