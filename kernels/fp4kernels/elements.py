"""Element formats: what each code of a few bits means, and how numbers become codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class ElementFormat:
    """`values[code]` for every code; NaN and infinities are allowed, two zeros are -0 and 0.

    Everything else is derived. `minifloat` and `integer` make the common kinds.
    """

    name: str
    values: tuple[float, ...]

    @property
    def bits(self) -> int:
        return (len(self.values) - 1).bit_length()

    @property
    def sign_bit(self) -> int:
        return len(self.values) // 2

    @cached_property
    def signed_magnitude(self) -> bool:
        """Whether the top bit of a code is the sign of the rest, so that -0 has a code."""
        positive, negative = self.values[: self.sign_bit], self.values[self.sign_bit :]
        return math.copysign(1.0, negative[0]) < 0 and all(
            a == -b or (a != a and b != b) for a, b in zip(positive, negative, strict=True)
        )

    @cached_property
    def grid(self) -> tuple[float, ...]:
        """What numbers are rounded to, ascending; magnitudes alone where the sign is a bit."""
        codes = self.values[: self.sign_bit] if self.signed_magnitude else self.values
        return tuple(sorted(value for value in codes if abs(value) <= self.max))

    @cached_property
    def max(self) -> float:
        """The largest finite magnitude that both signs have."""
        finite = [value for value in self.values if math.isfinite(value)]
        return min(max(finite), -min(finite))

    @property
    def emax(self) -> int:
        """Exponent of the largest binade: floor(log2(max))."""
        return math.frexp(self.max)[1] - 1

    @cached_property
    def mantissa_bits(self) -> int:
        """Of the largest binade."""
        return (sum(2.0**self.emax <= value for value in self.grid) - 1).bit_length()

    def encode(self, x: Tensor, chance: Generator | Tensor | None = None) -> Tensor:
        """Codes (uint8) of float32 `x`: the nearest value, a tie to the even code, saturated.

        With `chance`, one of both neighbours, to 24 bits: the mean is x, where x does not saturate.
        It is a generator, or draws from [0, 1), one for each value. The sign of zero is kept where the format has one. Infinities saturate, too,
        even where a format could hold them. NaN takes a NaN code, or the largest value in formats
        that have none.
        """
        placed = self._place(x.abs() if self.signed_magnitude else x, chance)
        codes = placed.to(torch.uint8)
        if self._codes != tuple(range(len(self._codes))):
            codes = self._table("_codes", torch.uint8, x)[placed.int()]
        if self._nan_code is not None:
            codes = torch.where(x.isnan(), self._nan_code, codes)
        if self.signed_magnitude:
            codes = codes | (torch.signbit(x).to(torch.uint8) * self.sign_bit)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """float32 values of uint8 `codes`."""
        return self._table("values", torch.float32, codes)[codes.int()]

    def _place(self, x: Tensor, chance: Generator | Tensor | None) -> Tensor:
        """Positions in `grid`; NaN goes to the last."""
        if chance is None:
            return _reached(x, self._thresholds)
        grid = self._table("grid", torch.float32, x)
        below = (_reached(x, self.grid).int() - 1).clamp(0, len(grid) - 2)
        share = (x - grid[below]) / (grid[below + 1] - grid[below])
        if isinstance(chance, Generator):
            chance = torch.rand(x.shape, generator=chance, device=x.device)
        return below + ~(chance >= share)

    @cached_property
    def _codes(self) -> tuple[int, ...]:
        """The code of every value in `grid`."""
        return tuple(self.values.index(value) for value in self.grid)

    @cached_property
    def _thresholds(self) -> tuple[float, ...]:
        """The smallest float32 that goes to each value of `grid` but the first."""
        grid = torch.tensor(self.grid, dtype=torch.float64)
        middles = (grid[:-1] + grid[1:]) / 2
        nearest = middles.float()
        tie_goes_down = torch.tensor(self._codes[:-1]) % 2 == 0
        short = (nearest < middles) | ((nearest == middles) & tie_goes_down)
        after = torch.nextafter(nearest, torch.tensor(math.inf))
        return tuple(torch.where(short, after, nearest).tolist())

    @cached_property
    def _nan_code(self) -> int | None:
        codes = [code for code, value in enumerate(self.values) if math.isnan(value)]
        return codes[(len(codes) - 1) // 2] if codes else None  # the last one without a sign

    def _table(self, name: str, dtype: torch.dtype, like: Tensor) -> Tensor:
        return torch.tensor(getattr(self, name), dtype=dtype, device=like.device)


FEW = 32  # thresholds: counting one after the other is faster than a search in so many


def _reached(x: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    """How many of the ascending `thresholds` are at most x; all of them for NaN."""
    if len(thresholds) > FEW:
        table = torch.tensor(thresholds, dtype=torch.float32, device=x.device)
        return torch.bucketize(x.contiguous(), table, out_int32=True, right=True)
    count = torch.full(x.shape, len(thresholds), dtype=torch.uint8, device=x.device)
    for threshold in thresholds:
        count -= (x < threshold).to(torch.uint8)
    return count


def minifloat(
    name: str,
    exponent_bits: int,
    mantissa_bits: int,
    bias: int,
    *,
    nans: int = 0,
    inf: bool = False,
) -> ElementFormat:
    """Sign, exponent, mantissa; exponent field 0 holds the subnormals.

    The topmost `nans` codes of each sign are NaN; with `inf`, the one below them is infinity.
    """
    steps = 1 << mantissa_bits
    magnitudes = []
    for code in range(1 << (exponent_bits + mantissa_bits)):
        exponent, mantissa = divmod(code, steps)
        implicit = 1.0 if exponent else 0.0
        magnitudes.append((implicit + mantissa / steps) * 2.0 ** (max(exponent, 1) - bias))
    special = [math.inf] * inf + [math.nan] * nans
    magnitudes[len(magnitudes) - len(special) :] = special
    return ElementFormat(name, (*magnitudes, *(-value for value in magnitudes)))


def integer(name: str, bits: int, fraction: int = 0) -> ElementFormat:
    """Two's complement, `fraction` of the bits behind the point. The lowest code is never made: a
    symmetric scale leaves it unused."""
    half = 1 << (bits - 1)
    return ElementFormat(name, tuple(i / 2**fraction for i in (*range(half), *range(-half, 0))))


E2M1 = minifloat("e2m1", 2, 1, bias=1)
E1M2 = minifloat("e1m2", 1, 2, bias=1)
E3M0 = minifloat("e3m0", 3, 0, bias=3)
E2M3 = minifloat("e2m3", 2, 3, bias=1)
E3M2 = minifloat("e3m2", 3, 2, bias=3)
E4M3 = minifloat("e4m3", 4, 3, bias=7, nans=1)
E5M2 = minifloat("e5m2", 5, 2, bias=15, nans=3, inf=True)
INT4, INT3, INT2 = (integer(f"int{bits}", bits) for bits in (4, 3, 2))
INT8 = integer("int8", 8, fraction=6)  # of MXINT8: OCP MX v1.0
# quantiles of a normal distribution, scaled to ±1; arXiv 2305.14314, appendix E
NF4 = ElementFormat(
    "nf4",
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
)  # fmt: skip

ELEMENTS = {
    element.name: element
    for element in (E2M1, E1M2, E3M0, E2M3, E3M2, E4M3, E5M2, INT8, INT4, INT3, INT2, NF4)
}
