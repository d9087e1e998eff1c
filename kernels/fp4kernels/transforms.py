"""What is done to a tensor before it is quantized, and undone after."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fp4kernels.errors import FormatError
from fp4kernels.recipes import Outliers, Transform

Undo = Callable[[Tensor], Tensor]

# arXiv 2509.25149: fixed signs of the random Hadamard transform of 16 values
SIGNS_16 = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
SIGNS_SEED = 0  # of the longer transforms


def transformed(x: Tensor, transform: Transform) -> tuple[Tensor, Undo]:
    """`x` [..., K] in float32 as it is to be quantized, and the way back.

    Hadamard transforms rotate blocks of K by the orthogonal matrix diag(signs) @ H / sqrt(size): a
    GEMM of two operands that were both rotated is the GEMM of the originals. FormatError if K is no
    multiple of their size.
    """
    x = x.float()
    if transform is Transform.NONE:
        return x, lambda y: y
    if transform is Transform.CENTER:
        mean = x.reshape(-1, x.shape[-1]).mean(0)
        return x - mean, lambda y: y + mean
    check_whole(x, transform)
    size = HADAMARD_SIZES[transform]
    turned = torch.tensor(signs(size), dtype=torch.float32, device=x.device)

    def undo(y: Tensor) -> Tensor:
        return (_hadamard(y.reshape(-1, size)) * turned).view(y.shape)

    return _hadamard(x.reshape(-1, size) * turned).view(x.shape), undo


def check_whole(x: Tensor, transform: Transform) -> None:
    """FormatError unless the K of `x` [..., K] is whole blocks of a Hadamard transform."""
    size = HADAMARD_SIZES.get(transform, 1)
    if x.shape[-1] == 0 or x.shape[-1] % size:
        raise FormatError(
            f"{transform} needs K to be a positive multiple of {size}, "
            f"but got shape {tuple(x.shape)}; pad K with zeros"
        )


@functools.cache
def signs(size: int) -> tuple[int, ...]:
    """1 or -1 for each value of a block of `size`."""
    if size == len(SIGNS_16):
        return SIGNS_16
    generator = torch.Generator().manual_seed(SIGNS_SEED)
    return tuple((torch.randint(0, 2, (size,), generator=generator) * 2 - 1).tolist())


def clamped(x: Tensor, outliers: Outliers) -> tuple[Tensor, Tensor]:
    """`x` without what lies beyond the quantiles, and the residual that was cut off (sparse in
    meaning, dense in memory; zero where the recipe does not compensate). NaN stays in the first."""
    if not x.numel():
        return x, x
    flat, rank = x.flatten(), round(outliers.quantile * (x.numel() - 1))
    high = flat.kthvalue(rank + 1).values
    low = flat.kthvalue(x.numel() - rank).values
    core = x.clamp(low, high)
    return core, x - core if outliers.compensate else torch.zeros_like(x)


def _hadamard(x: Tensor) -> Tensor:
    """`x` [blocks, size] times H / sqrt(size), in float32 and in this order, which kernels keep:

    sums and differences of neighbours first, then of those that are 2, 4, ... apart; at last the
    product with 1 / sqrt(size).
    """
    blocks, size = x.shape
    step = 1
    while step < size:
        one, other = x.view(blocks, size // (2 * step), 2, step).unbind(2)
        x = torch.stack((one + other, one - other), 2).view(blocks, size)
        step *= 2
    share: float = size**-0.5
    return x * share


HADAMARD_SIZES = {
    Transform.HADAMARD_16: 16,
    Transform.HADAMARD_32: 32,
    Transform.HADAMARD_64: 64,
    Transform.HADAMARD_128: 128,
}
