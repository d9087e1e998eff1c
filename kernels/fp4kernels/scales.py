"""Scale formats: how the scale of a block is stored."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from fp4kernels.elements import E4M3


class ScaleFormat(StrEnum):
    E8M0 = "e8m0"  # one byte b = 2^(b-127); 255 is NaN; there is no zero
    E4M3 = "e4m3"  # one byte
    BF16 = "bf16"
    FP32 = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """What a scale is held as."""
        return _DTYPES[self]

    @property
    def bits(self) -> int:
        return 8 * self.dtype.itemsize

    @property
    def unit(self) -> float:
        """Half of the relative step between neighbours: rounding moves a scale by this at most."""
        return {"e8m0": 0.5, "e4m3": 2.0**-4, "bf16": 2.0**-8, "fp32": 2.0**-24}[self]

    @property
    def max(self) -> float:
        return 2.0**127 if self is ScaleFormat.E8M0 else _LARGEST[self]

    def encode(self, scales: Tensor) -> Tensor:  # type: ignore[override]  # str has one of its own
        """float32 to nearest even, saturated. E8M0 has rules instead: see `fp4kernels.scaling`."""
        if self is ScaleFormat.E8M0:
            raise ValueError("E8M0 scales follow a rule; there is no nearest one")
        if self is ScaleFormat.E4M3:
            return E4M3.encode(scales.abs())  # the sign of a NaN differs between machines
        return scales.to(self.dtype)

    def decode(self, scales: Tensor) -> Tensor:
        """float32 values of what is held."""
        if self is ScaleFormat.E4M3:
            return E4M3.decode(scales)
        if self is ScaleFormat.E8M0:
            return decode_e8m0(scales)
        return scales.float()


_DTYPES = {
    ScaleFormat.E8M0: torch.uint8,
    ScaleFormat.E4M3: torch.uint8,
    ScaleFormat.BF16: torch.bfloat16,
    ScaleFormat.FP32: torch.float32,
}
_LARGEST = {
    ScaleFormat.E4M3: E4M3.max,
    ScaleFormat.BF16: torch.finfo(torch.bfloat16).max,
    ScaleFormat.FP32: torch.finfo(torch.float32).max,
}


def decode_e8m0(scales: Tensor) -> Tensor:
    byte = scales.int()
    bits = torch.where(byte == 0, 0x00400000, byte << 23)  # 2^-127 is subnormal in float32
    return torch.where(byte == 255, 0x7FC00000, bits).view(torch.float32)
