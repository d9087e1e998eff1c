"""The plain tensors that hold a quantized matrix, and how two codes share a byte."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """What kernels take: bytes and scales, without a logical dtype or shape."""

    codes: Tensor  # uint8, of one code or two; FP8 where a layout says so
    scales: Tensor  # uint8, bfloat16 or float32, as the scale format says
    tensor_scale: Tensor  # float32 scalar; 1 where the format has none


def pack_nibbles(codes: Tensor) -> Tensor:
    """uint8 codes [..., K] → bytes [..., K/2]; element 0 sits in the low nibble."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Bytes [..., K/2] → uint8 codes [..., K]."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)
