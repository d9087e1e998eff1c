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

    Hadamard transforms rotate blocks of K by an orthogonal matrix: a GEMM of two operands that were
    both rotated is the GEMM of the originals. FormatError if K is no multiple of their size.
    """
    x = x.float()
    if transform is Transform.NONE:
        return x, lambda y: y
    if transform is Transform.CENTER:
        mean = x.reshape(-1, x.shape[-1]).mean(0)
        return x - mean, lambda y: y + mean
    size = _SIZES[transform]
    if x.shape[-1] == 0 or x.shape[-1] % size:
        raise FormatError(
            f"{transform} needs K to be a positive multiple of {size}, "
            f"but got shape {tuple(x.shape)}; pad K with zeros"
        )
    matrix = rotation(size).to(x.device)
    return _rotate(x, matrix), lambda y: _rotate(y, matrix.T)


@functools.cache
def rotation(size: int) -> Tensor:
    """diag(signs) @ H / sqrt(size), float32 [size, size]: orthogonal. `size` is a power of two."""
    hadamard = torch.ones(1, 1)
    while len(hadamard) < size:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    if size == len(SIGNS_16):
        signs = torch.tensor(SIGNS_16, dtype=torch.float32)
    else:
        generator = torch.Generator().manual_seed(SIGNS_SEED)
        signs = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1
    matrix: Tensor = signs[:, None] * hadamard / size**0.5
    return matrix


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


def _rotate(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.mm(x.reshape(-1, len(matrix)), matrix).view(x.shape)


_SIZES = {
    Transform.HADAMARD_16: 16,
    Transform.HADAMARD_32: 32,
    Transform.HADAMARD_64: 64,
    Transform.HADAMARD_128: 128,
}
