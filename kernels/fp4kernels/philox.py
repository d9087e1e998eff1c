"""Chance by counting: Philox4x32-10, of which each draw depends on a seed and an index alone.

Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fp4kernels.errors import FormatError

ROUNDS = 10
_WORD = 0xFFFFFFFF
_FACTORS = (0xD2511F53, 0xCD9E8D57)
_STEPS = (0x9E3779B9, 0xBB67AE85)  # of the key, from round to round


@dataclass(frozen=True)
class Philox:
    """Draws for the values of a tensor: the same on every device, whatever is done in which order.

    Value i takes word i % 4 of the block whose counter is i // 4 and whose key is the `seed`, of 64
    bits. Tensors that must not share their chance take different seeds. FormatError for a seed that
    does not fit.
    """

    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise FormatError(f"a seed must be at least 0 and below 2^64, but got {self.seed}")

    @property
    def key(self) -> tuple[int, int]:
        """The seed's low word and its high one."""
        return self.seed & _WORD, self.seed >> 32

    def uniform(self, shape: Sequence[int], device: torch.device | None = None) -> Tensor:
        """float32 from [0, 1), multiples of 2^-24, for a tensor of that shape in row-major order."""
        size = torch.Size(shape).numel()
        index = torch.arange(-(-size // 4), device=device)
        zero = torch.zeros_like(index)
        words = philox(torch.stack((index & _WORD, index >> 32, zero, zero)), self.key)
        return ((words >> 8).float() * 2.0**-24).T.flatten()[:size].view(torch.Size(shape))


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Counters int64 [4, count] of 32-bit words, lowest first → as many random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # products are taken modulo 2^64: int64 has all of their bits
        one, other = c0 * _FACTORS[0], c2 * _FACTORS[1]
        c0, c1 = (other >> 32 & _WORD) ^ c1 ^ k0, other & _WORD
        c2, c3 = (one >> 32 & _WORD) ^ c3 ^ k1, one & _WORD
        k0, k1 = (k0 + _STEPS[0]) & _WORD, (k1 + _STEPS[1]) & _WORD
    return torch.stack((c0, c1, c2, c3))
