"""Memory layouts of a quantized weight, and the lossless way from one to another.

CANONICAL, what checkpoints hold:

    codes  [N, K/2]       byte j of a row = code(k=2j) | code(k=2j+1) << 4
    scales [N, K/block]   a byte each, or bfloat16, or float32

SWIZZLED, what tensor cores of Blackwell read (see `fp4kernels.swizzle`):

    codes  as canonical
    scales one line of tiles of 128 x 4, zeros at the edges

PANEL16, what the CPU kernels read (N is padded with zeros to a multiple of 16):

    codes  [N/16, K/8, 16, 4]
           one 64-byte line per 8 values of k; 32-bit lane = column, and in a lane
           byte j = code(k=j) | code(k=4+j) << 4
    scales [64 + N/16 * K/block * 16]
           a 64-byte header, then [N/16][K/block][16] scale bytes, column innermost
           header: 0 smallest byte, 1 largest byte (of blocks that hold a nonzero code),
                   2 whether any scale is NaN

FOLDED, what an FP8 GEMM reads: see `fp4kernels.folding`

INTERLEAVED, what the GPU kernels for few rows read (see `fp4kernels.interleaved`):

    codes  [K/128, N, 64], K padded with zeros to a multiple of 128
    scales [K/128, N, 128/block]
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

from fp4kernels.errors import LayoutError
from fp4kernels.folding import folded, folded_bytes, unfolded
from fp4kernels.formats import MXFP4, NVFP4, WHOLE, BlockFormat
from fp4kernels.interleaved import CHUNK, from_interleaved, to_interleaved
from fp4kernels.packing import Packed, pack_nibbles, unpack_nibbles
from fp4kernels.pages import in_large_pages
from fp4kernels.scales import ScaleFormat
from fp4kernels.swizzle import swizzled, swizzled_size, unswizzled

PANEL_COLUMNS = 16
PANEL_HEADER = 64


class Layout(StrEnum):
    CANONICAL = "canonical"
    SWIZZLED = "swizzled"
    PANEL16 = "panel16"
    FOLDED = "folded"
    INTERLEAVED = "interleaved"


def convert(
    packed: Packed,
    n: int,
    fmt: BlockFormat,
    source: Layout,
    target: Layout,
    k: int | None = None,
) -> Packed:
    """`packed` (a weight of `n` rows) rearranged from `source` to `target`, and every bit kept.

    `k` is needed where `source` pads K; without it the padding stays. LayoutError where a layout
    has no place for what the format holds.
    """
    if source is target:
        return packed
    for layout in (source, target):
        _check(fmt, layout)
    if source is Layout.PANEL16:
        packed = _from_panel(packed, n)
    elif source is Layout.FOLDED:
        packed = unfolded(packed, fmt)
    elif source is Layout.INTERLEAVED:
        packed = from_interleaved(packed, k or packed.codes.shape[0] * CHUNK, fmt)
    elif source is Layout.SWIZZLED:
        k = packed.codes.shape[1] * fmt.codes_per_byte
        rows, columns = fmt.scales_shape((n, k))
        packed = packed._replace(scales=unswizzled(packed.scales, rows, columns))
    if target is Layout.PANEL16:
        return Packed(*map(in_large_pages, _to_panel(packed, fmt)))
    if target is Layout.SWIZZLED:
        return packed._replace(scales=swizzled(packed.scales))
    if target is Layout.FOLDED:
        return folded(packed, fmt)
    if target is Layout.INTERLEAVED:
        return to_interleaved(packed, fmt)
    return packed


def held_bytes(n: int, k: int, fmt: BlockFormat, layout: Layout) -> int:
    """Bytes of the codes and block scales of an N x K weight in `layout`."""
    if layout is Layout.FOLDED:
        return folded_bytes(n, k, fmt)
    rows = -(-n // PANEL_COLUMNS) * PANEL_COLUMNS if layout is Layout.PANEL16 else n
    k = -(-k // CHUNK) * CHUNK if layout is Layout.INTERLEAVED else k
    scales = fmt.scales_shape((rows, k))
    count = swizzled_size(*scales) if layout is Layout.SWIZZLED else math.prod(scales)
    header = PANEL_HEADER if layout is Layout.PANEL16 else 0
    return math.prod(fmt.codes_shape((rows, k))) + count * fmt.scale.dtype.itemsize + header


def reciprocal(tensor_scale: Tensor) -> Tensor:
    """The other convention of a tensor scale: of amax/2688 it is 2688/amax, and the way back.

    float32 becomes float64, and float64 float32, so that a float32 scale returns bit for bit. No
    float32 reciprocal can do that: of a sixth of all numbers it returns as a neighbour. Files that
    hold the reciprocal in float32 (compressed-tensors' `weight_global_scale`) hold `.float()` of it,
    whose reciprocal is within one ulp of the scale.
    """
    wide = tensor_scale.dtype is torch.float32
    return tensor_scale.double().reciprocal().to(torch.float64 if wide else torch.float32)


def _check(fmt: BlockFormat, layout: Layout) -> None:
    if layout in (Layout.PANEL16, Layout.INTERLEAVED) and fmt not in (MXFP4, NVFP4):
        raise LayoutError(f"{layout} holds mxfp4 and nvfp4, but got {fmt.name}; keep it canonical")
    if layout is Layout.FOLDED and fmt != MXFP4:
        raise LayoutError(f"folded holds mxfp4, but got {fmt.name}; keep it canonical")
    one_row = fmt.block_shape[0] == 1 and fmt.block_size != WHOLE
    if layout is Layout.SWIZZLED and not (one_row and fmt.scale.dtype is torch.uint8):
        raise LayoutError(
            "swizzled scales are one byte for each block of one row, but "
            f"{fmt.name} has {fmt.scale.value} scales of {fmt.block_shape} blocks; keep it canonical"
        )


def _to_panel(packed: Packed, fmt: BlockFormat) -> Packed:
    n, half_k = packed.codes.shape
    padding = (0, 0, 0, -n % PANEL_COLUMNS)
    codes = unpack_nibbles(torch.nn.functional.pad(packed.codes, padding))
    scales = torch.nn.functional.pad(packed.scales, padding)
    # [panel, column, line, half, j] → [panel, line, column, j], the halves sharing a byte
    lines = codes.view(-1, PANEL_COLUMNS, half_k // 4, 2, 4).permute(0, 2, 1, 4, 3)
    panels = pack_nibbles(lines.flatten(-2)).contiguous()
    by_block = scales.view(-1, PANEL_COLUMNS, scales.shape[-1]).transpose(1, 2)
    header = _header(codes, scales, fmt)
    return Packed(panels, torch.cat((header, by_block.flatten())), packed.tensor_scale)


def _from_panel(packed: Packed, n: int) -> Packed:
    panels, lines, columns, _ = packed.codes.shape
    codes = unpack_nibbles(packed.codes).view(panels, lines, columns, 4, 2)
    rows = codes.permute(0, 2, 1, 4, 3).reshape(panels * columns, lines * 8)
    by_block = packed.scales[PANEL_HEADER:].view(panels, -1, columns)
    scales = by_block.transpose(1, 2).reshape(panels * columns, -1)
    return Packed(pack_nibbles(rows[:n]).contiguous(), scales[:n].contiguous(), packed.tensor_scale)


def _header(codes: Tensor, scales: Tensor, fmt: BlockFormat) -> Tensor:
    """The range of the scale bytes that matter: a block of zeros is zero under any finite scale."""
    magnitude = fmt.element.sign_bit - 1
    nonzero = (codes.view(*scales.shape, fmt.block_size) & magnitude).amax(-1) > 0
    used = scales.masked_fill(~nonzero, 127)
    header = torch.zeros(PANEL_HEADER, dtype=torch.uint8, device=codes.device)
    header[0], header[1] = used.min(), used.max()
    nan = scales == 255 if fmt.scale is ScaleFormat.E8M0 else (scales & 0x7F) == 0x7F
    header[2] = nan.any()
    return header
