"""What comes before quantizing in a layer, and may be done on the way: RMSNorm, SwiGLU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fp4kernels.errors import FormatError


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """x [..., K] over its root mean square, times the `weight` [K]: torch's rms_norm.

    In float32, rounded once to the type of x: x * r * weight, where r = 1 / sqrt(mean(x^2) + eps). A
    fused kernel sums squares in another order: its r is within (log2(K) / 2 + 4 + K / 16384) float32
    units (2^-24) of the exact one, where squares neither overflow nor vanish. All else is bit for bit.
    """

    weight: Tensor
    eps: float = 1e-6

    def applied(self, x: Tensor) -> Tensor:
        """In plain torch. FormatError as `operands`."""
        x, weight = self.operands(x)
        wide = x.float()
        factor = (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (wide * factor * weight.float()).to(x.dtype)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` and the weight. FormatError unless that is for such an x."""
        weight = self.weight
        if weight.shape != x.shape[-1:] or weight.device != x.device:
            raise FormatError(
                f"the weight of rms_norm must be {tuple(x.shape[-1:])} on {x.device}, but got "
                f"{tuple(weight.shape)} on {weight.device}"
            )
        if weight.dtype not in (x.dtype, torch.float32):
            raise FormatError(
                f"the weight of rms_norm must be {x.dtype} or float32, but got {weight.dtype}"
            )
        return x, weight


@dataclass(frozen=True, eq=False)
class SwiGlu:
    """silu(x) * up, both [..., K]; without `up`, x [..., 2K] is the gate and then up.

    silu(x) = x / (1 + exp(-x)) in float32, rounded to the type of x, as is the product. A fused kernel
    takes the device's fast exp2: its silu is within 2^-17 of itself before it is rounded, or 2^-126.
    All else is bit for bit.
    """

    up: Tensor | None = None

    def applied(self, x: Tensor) -> Tensor:
        """In plain torch. FormatError as `operands`."""
        gate, up = self.operands(x)
        return functional.silu(gate) * up

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and up. FormatError unless `up` goes with such an x, or x is two halves."""
        if self.up is None:
            if x.dim() == 0 or x.shape[-1] % 2:
                raise FormatError(
                    f"swiglu without up halves K, but got shape {tuple(x.shape)}; give up, too"
                )
            gate, up = x.chunk(2, -1)
            return gate, up
        up = self.up
        if (up.shape, up.dtype, up.device) != (x.shape, x.dtype, x.device):
            raise FormatError(
                f"up must be {tuple(x.shape)} of {x.dtype} on {x.device}, as the gate, but got "
                f"{tuple(up.shape)} of {up.dtype} on {up.device}"
            )
        return x, up


Prologue = RmsNorm | SwiGlu
