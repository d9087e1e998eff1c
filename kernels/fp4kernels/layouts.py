"""Memory layouts of a quantized weight, and the lossless way from one to another.

CANONICAL, what checkpoints hold:

    codes  [N, K/2]       byte j of a row = code(k=2j) | code(k=2j+1) << 4
    scales [N, K/block]   one byte each

PANEL16, what the CPU kernels read (N is padded with zeros to a multiple of 16):

    codes  [N/16, K/8, 16, 4]
           one 64-byte line per 8 values of k; 32-bit lane = column, and in a lane
           byte j = code(k=j) | code(k=4+j) << 4
    scales [64 + N/16 * K/block * 16]
           a 64-byte header, then [N/16][K/block][16] scale bytes, column innermost
           header: 0 smallest byte, 1 largest byte (of blocks that hold a nonzero code),
                   2 whether any scale is NaN
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from fp4kernels.formats import BlockFormat, ScaleFormat
from fp4kernels.packing import Packed, pack_nibbles, unpack_nibbles

PANEL_COLUMNS = 16
PANEL_HEADER = 64


class Layout(StrEnum):
    CANONICAL = "canonical"
    PANEL16 = "panel16"


def convert(packed: Packed, n: int, fmt: BlockFormat, source: Layout, target: Layout) -> Packed:
    """`packed` (a weight of `n` rows) rearranged from `source` to `target`; values are unchanged."""
    if source is target:
        return packed
    return _to_panel(packed, fmt) if target is Layout.PANEL16 else _from_panel(packed, n)


def held_bytes(n: int, k: int, fmt: BlockFormat, layout: Layout) -> int:
    """Bytes that an N x K weight occupies in `layout`."""
    rows = n if layout is Layout.CANONICAL else -(-n // PANEL_COLUMNS) * PANEL_COLUMNS
    header = 0 if layout is Layout.CANONICAL else PANEL_HEADER
    return rows * k // 2 + rows * k // fmt.block_size + header


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
