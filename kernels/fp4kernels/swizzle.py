"""The 128 x 4 layout of block scales, as the tensor cores of Blackwell and cuBLASLt read it.

Rows are padded to 128 and columns to 4. Tiles of 512 scales, those of a band of 128 rows side by
side, are 32 lanes of 16; lane l of a tile:

    | row l: 4 scales | row l+32: 4 | row l+64: 4 | row l+96: 4 |

https://docs.nvidia.com/cuda/cublas/index.html#d-block-scaling-factors-layout
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE_ROWS, TILE_COLUMNS, LANES = 128, 4, 32


def swizzled(scales: Tensor) -> Tensor:
    """`scales` [rows, columns] as one line, of `swizzled_size` scales; the padding is zeros."""
    rows, columns = scales.shape
    down, across = _tiles(rows, columns)
    padding = (0, across * TILE_COLUMNS - columns, 0, down * TILE_ROWS - rows)
    padded = torch.nn.functional.pad(scales, padding)
    tiles = padded.view(down, TILE_ROWS // LANES, LANES, across, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).flatten()


def unswizzled(line: Tensor, rows: int, columns: int) -> Tensor:
    """The scales [rows, columns] that `line` holds, without the padding."""
    down, across = _tiles(rows, columns)
    tiles = line.view(down, across, LANES, TILE_ROWS // LANES, TILE_COLUMNS)
    padded = tiles.permute(0, 3, 2, 1, 4).reshape(down * TILE_ROWS, across * TILE_COLUMNS)
    return padded[:rows, :columns].contiguous()


def swizzled_size(rows: int, columns: int) -> int:
    """How many scales a swizzled matrix holds, padding and all."""
    down, across = _tiles(rows, columns)
    return down * across * TILE_ROWS * TILE_COLUMNS


def _tiles(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)
