"""Block formats: elements that share scales. A format is one constant; the rest is derived."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeVar

from fp4kernels.elements import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    ELEMENTS,
    INT4,
    INT8,
    NF4,
    ElementFormat,
)
from fp4kernels.errors import FormatError
from fp4kernels.scales import ScaleFormat

T = TypeVar("T")

WHOLE = 0  # of a block shape: all rows, or all columns
TENSOR, ROW = (WHOLE, WHOLE), (1, WHOLE)


@dataclass(frozen=True)
class BlockFormat:
    """Elements that share one scale per block, and perhaps one float32 scale per tensor.

    `block_shape` is rows x columns of a matrix [N, K]; WHOLE stands for all of them. Formats that
    differ in nothing but their name are equal.
    """

    name: str = field(compare=False)
    element: ElementFormat
    block_shape: tuple[int, int]
    scale: ScaleFormat
    tensor_scale: bool = False

    def __post_init__(self) -> None:
        if self.tensor_scale and self.scale is not ScaleFormat.E4M3:
            raise FormatError(
                f"a tensor scale goes with e4m3 scales of blocks, but got {self.scale}; leave it out"
            )

    @property
    def block_size(self) -> int:
        """Values along K that share a scale; WHOLE if all do."""
        return self.block_shape[1]

    @property
    def multiples(self) -> tuple[int, int]:
        """What the rows and the columns of a matrix must be multiples of."""
        high, wide = self.block_shape
        return high or 1, wide or self.codes_per_byte

    @property
    def bits_per_value(self) -> float:
        """Storage with the block scales counted; a scale of a whole row or tensor costs nothing in
        the limit, nor does the tensor scale: `bits` counts those."""
        values = math.prod(self.block_shape)
        return self.element.bits + (self.scale.bits / values if values else 0.0)

    def bits(self, rows: int, columns: int) -> int:
        """Of a whole matrix, every scale counted."""
        blocks = math.prod(self.grid(rows, columns))
        return (
            rows * columns * self.element.bits
            + blocks * self.scale.bits
            + 32 * self.tensor_scale
        )  # fmt: skip

    def tile(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of one block of such a matrix."""
        high, wide = self.block_shape
        return high or max(rows, 1), wide or max(columns, 1)

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """How many blocks lie one below the other, and side by side."""
        high, wide = self.tile(rows, columns)
        return rows // high, columns // wide

    def scales_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the scales of a tensor [..., K]."""
        down, across = self.grid(math.prod(shape[:-1]), shape[-1])
        return (*shape[:-1], across) if self.block_shape[0] == 1 else (down, across)

    def codes_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the bytes that hold the codes of a tensor [..., K]."""
        return (*shape[:-1], shape[-1] // self.codes_per_byte)

    @property
    def codes_per_byte(self) -> int:
        """Codes of up to four bits share a byte in twos, others have one of their own."""
        return 2 if self.element.bits <= 4 else 1


MXFP4 = BlockFormat("mxfp4", E2M1, (1, 32), ScaleFormat.E8M0)
NVFP4 = BlockFormat("nvfp4", E2M1, (1, 16), ScaleFormat.E4M3, tensor_scale=True)
NVFP4_2D = BlockFormat("nvfp4-2d", E2M1, (16, 16), ScaleFormat.E4M3, tensor_scale=True)
NVFP4_SINGLE = BlockFormat("nvfp4-single", E2M1, (1, 16), ScaleFormat.E4M3)
MXFP4_2D = BlockFormat("mxfp4-2d", E2M1, (32, 32), ScaleFormat.E8M0)
MXFP6_E2M3 = BlockFormat("mxfp6-e2m3", E2M3, (1, 32), ScaleFormat.E8M0)
MXFP6_E3M2 = BlockFormat("mxfp6-e3m2", E3M2, (1, 32), ScaleFormat.E8M0)
MXFP8_E4M3 = BlockFormat("mxfp8-e4m3", E4M3, (1, 32), ScaleFormat.E8M0)
MXFP8_E5M2 = BlockFormat("mxfp8-e5m2", E5M2, (1, 32), ScaleFormat.E8M0)
MXINT8 = BlockFormat("mxint8", INT8, (1, 32), ScaleFormat.E8M0)
FP8_TENSOR = BlockFormat("fp8-tensor", E4M3, TENSOR, ScaleFormat.FP32)
FP8_ROW = BlockFormat("fp8-row", E4M3, ROW, ScaleFormat.FP32)
FP8_BIAS = BlockFormat("fp8-bias", E4M3, TENSOR, ScaleFormat.E8M0)
FP4_E4M3 = tuple(
    BlockFormat(f"fp4-e4m3-g{size}", E2M1, (1, size), ScaleFormat.E4M3, tensor_scale=True)
    for size in (32, 64, 128)
)
FP4_GROUPS = tuple(
    BlockFormat(f"{name}-g{size}", E2M1, (1, size), scale)
    for name, scale in (("mxfp4", ScaleFormat.E8M0), ("fp4-fp32", ScaleFormat.FP32))
    for size in (64, 128)
)
INT4_GROUPS = (
    BlockFormat("int4-g16", INT4, (1, 16), ScaleFormat.E4M3, tensor_scale=True),
    *(BlockFormat(f"int4-g{size}", INT4, (1, size), ScaleFormat.FP32) for size in (32, 128)),
)
NF4_G64 = BlockFormat("nf4-g64", NF4, (1, 64), ScaleFormat.FP32)

FORMATS: Mapping[str, BlockFormat] = {
    f.name: f
    for f in (
        MXFP4, NVFP4, NVFP4_2D, NVFP4_SINGLE, MXFP4_2D, *FP4_E4M3, *FP4_GROUPS, *INT4_GROUPS, NF4_G64,
        MXFP6_E2M3, MXFP6_E3M2, MXFP8_E4M3, MXFP8_E5M2, MXINT8, FP8_TENSOR, FP8_ROW, FP8_BIAS,
    )
}  # fmt: skip


_GRANULARITIES = {
    "tensor": TENSOR,
    "row": ROW,
    **{f"{n}x{k}": (n, k) for n, k in ((1, 16), (1, 32), (1, 64), (1, 128), (16, 16), (32, 32))},
}


def format_named(text: str) -> BlockFormat:
    """The format called `text`, or composed as element-scale-granularity, like "int3-fp32-1x32".

    Granularity is tensor, row, or the rows x columns of a block. A fourth part, "fp32" as in
    "e2m1-e4m3-1x16-fp32", is the scale of the whole tensor. Raises FormatError with the nearest
    name where a part is unknown, or where a tensor scale does not go with the scales of blocks.
    """
    if text in FORMATS or text.count("-") not in (2, 3):
        return named("format", text, FORMATS)
    element, scale, granularity, *tensor = text.split("-")
    shape = _GRANULARITIES.get(granularity)
    if sides := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", granularity):
        shape = (int(sides[1]), int(sides[2]))
    if element in ELEMENTS and scale in list(ScaleFormat) and shape and tensor in ([], ["fp32"]):
        return BlockFormat(text, ELEMENTS[element], shape, ScaleFormat(scale), bool(tensor))
    repaired = [
        _nearest(element, ELEMENTS),
        _nearest(scale, ScaleFormat),
        granularity if shape else _nearest(granularity, _GRANULARITIES),
        *(["fp32"] if tensor else []),
    ]
    raise _unknown("format", text, [*FORMATS, "-".join(repaired)])


def named(kind: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or a FormatError that suggests the nearest name."""
    if name in known:
        return known[name]
    raise _unknown(kind, name, list(known))


def _unknown(kind: str, name: str, known: list[str]) -> FormatError:
    nearest = get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(known)}"
    return FormatError(f"a {kind} must be a known name, but got {name!r}; {hint}")


def _nearest(part: str, known: Iterable[str]) -> str:
    return get_close_matches(part.lower(), list(known), n=1, cutoff=0)[0]
