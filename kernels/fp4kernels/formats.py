"""Element, scale and block formats. A format is one constant; everything else is derived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from fp4kernels.errors import FormatError

T = TypeVar("T")


@dataclass(frozen=True)
class ElementFormat:
    """A signed mini-float without infinities: 1 sign, `exponent_bits`, `mantissa_bits`.

    Codes are sign-magnitude, so the low bits of a code index `magnitudes`. The topmost
    `nan_magnitudes` codes of each sign are NaN (E4M3 has one, E2M1 none).
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    nan_magnitudes: int = 0

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def sign_bit(self) -> int:
        return 1 << (self.bits - 1)

    @cached_property
    def magnitudes(self) -> tuple[float, ...]:
        """The finite values >= 0 in code order, which is also ascending order."""
        steps = 1 << self.mantissa_bits
        values = []
        for code in range(self.sign_bit - self.nan_magnitudes):
            exponent, mantissa = divmod(code, steps)
            implicit = 1.0 if exponent else 0.0  # exponent field 0 holds the subnormals
            values.append((implicit + mantissa / steps) * 2.0 ** (max(exponent, 1) - self.bias))
        return tuple(values)

    @property
    def max(self) -> float:
        return self.magnitudes[-1]

    @property
    def emax(self) -> int:
        """Exponent of the largest binade: floor(log2(max))."""
        return (1 << self.exponent_bits) - 1 - self.bias

    def encode(self, x: Tensor) -> Tensor:
        """Codes (uint8) of float32 `x`, rounded to nearest even and saturated; the sign of 0 is kept.

        A midpoint belongs to both neighbours; they differ by one, so exactly one is even.
        NaN takes the largest magnitude in formats that have no NaN code.
        """
        table = torch.tensor(self.magnitudes, device=x.device)
        midpoints = (table[:-1] + table[1:]) / 2
        magnitude = x.abs()
        below = torch.bucketize(magnitude, midpoints, out_int32=True)
        above = torch.bucketize(magnitude, midpoints, out_int32=True, right=True)
        code = torch.where(below % 2 == 0, below, above)
        if self.nan_magnitudes:
            code = torch.where(x.isnan(), self.sign_bit - 1, code)
        return (code + torch.signbit(x) * self.sign_bit).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """float32 values of uint8 `codes`."""
        values = [*self.magnitudes, *([float("nan")] * self.nan_magnitudes)]
        table = torch.tensor([*values, *(-v for v in values)], device=codes.device)
        return table[codes.int()]


class ScaleFormat(StrEnum):
    """How a block scale is stored, one byte each."""

    E8M0 = "e8m0"  # 2^(byte-127); 255 is NaN; there is no zero
    E4M3 = "e4m3"

    @property
    def bits(self) -> int:
        return 8

    def decode(self, scales: Tensor) -> Tensor:
        """float32 values of uint8 `scales`."""
        if self is ScaleFormat.E4M3:
            return E4M3.decode(scales)
        byte = scales.int()
        bits = byte << 23
        bits = torch.where(byte == 0, 0x00400000, bits)  # 2^-127 is subnormal in float32
        bits = torch.where(byte == 255, 0x7FC00000, bits)
        return bits.view(torch.float32)


@dataclass(frozen=True)
class BlockFormat:
    """Elements that share one scale per block, and perhaps one float32 scale per tensor."""

    name: str
    element: ElementFormat
    block_shape: tuple[int, int]
    scale: ScaleFormat
    tensor_scale: bool

    @property
    def block_size(self) -> int:
        """Values along K that share a scale."""
        return self.block_shape[1]

    @property
    def bits_per_value(self) -> float:
        """Storage with the block scales counted; the tensor scale is one float a tensor."""
        rows, columns = self.block_shape
        return self.element.bits + self.scale.bits / (rows * columns)


E2M1 = ElementFormat("e2m1", exponent_bits=2, mantissa_bits=1, bias=1)
E4M3 = ElementFormat("e4m3", exponent_bits=4, mantissa_bits=3, bias=7, nan_magnitudes=1)

MXFP4 = BlockFormat("mxfp4", E2M1, (1, 32), ScaleFormat.E8M0, tensor_scale=False)
NVFP4 = BlockFormat("nvfp4", E2M1, (1, 16), ScaleFormat.E4M3, tensor_scale=True)

FORMATS: Mapping[str, BlockFormat] = {f.name: f for f in (MXFP4, NVFP4)}


def named(kind: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or a FormatError that suggests the nearest name."""
    if name in known:
        return known[name]
    nearest = get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(known)}"
    raise FormatError(f"a {kind} must be a known name, but got {name!r}; {hint}")
