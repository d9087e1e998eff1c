"""Cases of the gate with every scale code, of the formats that the CPU's kernels multiply.

A quantizer writes few of them. FAST holds those with which the fast path of every kernel does, FINITE all
that are numbers, and ALL those that there are. What float32 has no number for is of a class of its own:

- a row or a column under a scale that is NaN is NaN;
- a sum beyond float32 is infinity of its sign. So that no order of summing could make NaN of it, all
  products of one sum have one sign there; W4A16 has weights beyond float32, too;
- below 2^-126, where the steps between numbers no longer shrink, every product may be off by one.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from fp4kernels import gate, reference
from fp4kernels.formats import MXINT8, BlockFormat
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.scales import ScaleFormat
from fp4kernels.variants import Launcher

FAST, FINITE, ALL = "fast", "finite", "all"
LARGEST = 254  # of E8M0, 2^127
BYTES = {FAST: (80, 174), FINITE: (0, LARGEST), ALL: (0, LARGEST)}  # of E8M0, around that of 1
ONE = {ScaleFormat.E8M0: 127, ScaleFormat.E4M3: 0x38}
NANS = {ScaleFormat.E8M0: (255,), ScaleFormat.E4M3: (0x7F, 0xFF)}
X_BLOCK = 32  # values of x under one power of two
MOST, STEP = torch.finfo(torch.float32).max, 2.0**-149  # of float32's numbers; between the smallest


def case(which: str, recipe: Recipe, shape: tuple[int, int, int], seed: int) -> gate.Case:
    """A case of shape (M, N, K), M at least 5, whose scale codes are FAST, FINITE or ALL."""
    (m, n, k), fmt = shape, recipe.format
    generator = torch.Generator().manual_seed(seed)
    w_blocks = fmt.scale is ScaleFormat.E8M0
    x_bytes = _exponents(m, k // X_BLOCK, BYTES[which], steps=w_blocks)
    if w_blocks:  # the powers of two of both operands make up for one another
        w_bytes = 2 * ONE[fmt.scale] - _exponents(n, k // X_BLOCK, BYTES[which], steps=True)
    else:
        w_bytes = _e4m3(n, k // fmt.block_size, generator)
    w = _packed(fmt, w_bytes.byte(), which, generator)
    x: Packed | Tensor
    if recipe.weight_only:
        x = _plain(x_bytes, which, generator)
    elif recipe.activation is None and not w_blocks:
        x = _packed(fmt, _e4m3(m, k // fmt.block_size, generator).byte(), which, generator)
    else:
        x = _packed(recipe.activations.format, x_bytes.byte(), which, generator)
    left = values(x, recipe.activations.format) if isinstance(x, Packed) else x.double()
    right = values(w, fmt)
    if recipe.weight_only:
        right = right.float().double()  # where decoding leaves float32 it gives infinity
    lost = k * STEP / (4 * (1 + math.log2(k)) * gate.OUTPUT_UNIT[torch.float32])
    magnitude = (left.abs() @ right.abs().T).clamp(max=MOST) + lost
    expected = (left @ right.T).clamp(-MOST, MOST)
    return gate.Case(which, recipe, x, w, torch.arange(m), expected, magnitude)


def values(packed: Packed, fmt: BlockFormat) -> Tensor:
    """float64 values [rows, K], where float32 would overflow."""
    plain = packed._replace(scales=torch.full_like(packed.scales, ONE[fmt.scale]))
    factors = fmt.scale.decode(packed.scales).double()
    return reference.dequantize(plain, fmt).double() * factors.repeat_interleave(fmt.block_size, 1)


def held(launch: Launcher) -> Launcher:
    """With the largest number in place of infinity, as `expected` of a case has it."""

    def run(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        launch(x, w, out)
        out.clamp_(-MOST, MOST)

    return run


def _exponents(rows: int, blocks: int, within: tuple[int, int], steps: bool) -> Tensor:
    """E8M0 bytes [rows, blocks], all that lie `within`: with `steps` they rise along K, and rows differ
    by no more than blocks do; else along the rows alone."""
    low, high = within
    half = (high - low) / 2 / (blocks if steps else 1) + 1
    along = _spaced(blocks, low, high) if steps else torch.full((blocks,), (low + high) / 2)
    return (_spaced(rows, -half, half)[:, None] + along).round().clamp(low, high)


def _spaced(count: int, low: float, high: float) -> Tensor:
    """`count` numbers, each in the middle of its share."""
    return low + (torch.arange(count) + 0.5) * ((high - low) / count)


def _e4m3(rows: int, blocks: int, generator: Generator) -> Tensor:
    """All codes but NaN, in an order of chance."""
    numbers = torch.tensor([code for code in range(256) if code not in NANS[ScaleFormat.E4M3]])
    order = torch.randperm(rows * blocks, generator=generator)
    return numbers[order % len(numbers)].view(rows, blocks)


def _packed(fmt: BlockFormat, scales: Tensor, which: str, generator: Generator) -> Packed:
    """Codes of chance under `scales`. Of FAST, a block of zeros has the largest power of two, which is no
    quantizer's choice; else those of a row have one sign. Of ALL, some scales are NaN."""
    rows, blocks = scales.shape
    shape = fmt.codes_shape((rows, blocks * fmt.block_size))
    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if which == FAST:
        if fmt.scale is ScaleFormat.E8M0:
            codes[2, -(shape[1] // blocks) :], scales[2, -1] = 0, LARGEST
    else:
        negative = _negative(rows)[:, None].expand(rows, blocks)
        if fmt.scale is ScaleFormat.E4M3:
            negative = negative ^ (scales > 127)  # it has a sign of its own
        negative = negative.repeat_interleave(shape[1] // blocks, 1)
        if fmt == MXINT8:
            codes &= 0x7F
            codes = torch.where(negative, -codes.char(), codes.char()).view(torch.uint8)
        else:
            codes = torch.where(negative, codes | 0x88, codes & 0x77)
    if which == ALL:
        for i, nan in enumerate(NANS[fmt.scale]):
            scales[1 + 2 * i, -1] = nan
    return Packed(codes, scales, torch.tensor(1.0))


def _plain(exponents: Tensor, which: str, generator: Generator) -> Tensor:
    """bf16 [rows, K] without zeros: infinite weights would make NaN of them."""
    powers = torch.exp2(exponents.double() - 127).repeat_interleave(X_BLOCK, 1)
    mantissas = 1 + torch.rand(powers.shape, generator=generator).double() * 0.99
    if which == FAST:
        signs = torch.randint(0, 2, powers.shape, generator=generator) * 2.0 - 1.0
    else:
        signs = 1.0 - 2.0 * _negative(len(powers))[:, None]
    return (powers * mantissas * signs).bfloat16()


def _negative(rows: int) -> Tensor:
    return torch.arange(rows) % 3 == 0
