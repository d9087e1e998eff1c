"""The gate: a kernel's output against the float64 product of the same dequantized operands.

    |out - ref| <= u_out * |ref| + c * u_acc * sum |a| |b|,   c = 4 * (1 + log2 K)

elementwise. The output buffer is run with two fills, so an element that no one writes, or that is
added to, shows; its borders are guarded, and fresh scratch is poisoned. Passing says nothing about
the format's own error; that is measured elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fp4kernels import guard, reference
from fp4kernels.layouts import Layout, convert
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.variants import Launcher

OUTPUT_UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
FILLS = (math.nan, 12345.0)
DATA = ("gaussian", "outliers", "scales")
REFERENCE_FLOPS = 4e9  # a larger product is compared on evenly spaced rows only


@dataclass(frozen=True, eq=False)
class Case:
    """One input of the gate. `expected` and `magnitude` (sum |a||b|) are float64 [rows, N]."""

    name: str
    recipe: Recipe
    x: Packed | Tensor  # canonical, or plain bf16 for a weight-only recipe
    w: Packed  # canonical
    rows: Tensor  # which rows of the output are compared
    expected: Tensor
    magnitude: Tensor
    _held: dict[Layout, Packed] = field(default_factory=dict)

    def weight(self, layout: Layout) -> Packed:
        """`w` in another layout, arranged once."""
        if layout not in self._held:
            n = self.w.codes.shape[0]
            self._held[layout] = convert(self.w, n, self.recipe.format, Layout.CANONICAL, layout)
        return self._held[layout]

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, N, K."""
        m = (self.x.codes if isinstance(self.x, Packed) else self.x).shape[0]
        n, columns = self.w.codes.shape
        return m, n, columns * self.recipe.format.codes_per_byte


def make_case(name: str, recipe: Recipe, x: Tensor, w: Tensor) -> Case:
    """Quantize float operands `x` [M, K] and `w` [N, K], and multiply what they became."""
    wq = reference.quantize(w, recipe)
    how = recipe.activations
    xq = x.bfloat16() if recipe.weight_only else reference.quantize(x, how)
    x_values = xq.double() if isinstance(xq, Tensor) else reference.dequantize(xq, how.format)
    w_values = reference.dequantize(wq, recipe.format)
    rows = compared_rows(x.shape[0], 2 * w.numel(), x.device)
    left = x_values[rows]
    expected = reference.gemm(left, w_values)
    return Case(name, recipe, xq, wq, rows, expected, reference.gemm(left.abs(), w_values.abs()))


def synthetic_case(
    data: str, recipe: Recipe, shape: tuple[int, int, int], seed: int, device: torch.device
) -> Case:
    """A case of shape (M, N, K) with one of the distributions in DATA."""
    m, n, k = shape
    generator = torch.Generator().manual_seed(seed)
    block = recipe.format.block_size or k
    x, w = (_draw(data, rows, k, block, generator).to(device) for rows in (m, n))
    return make_case(data, recipe, x, w)


@dataclass(frozen=True)
class Outcome:
    """How much of the allowed error a kernel used (1 is all of it), and why it failed, if it did."""

    used: float
    why: str | None


def check(
    launch: Launcher,
    layout: Layout,
    unit: float,
    case: Case,
    dtype: torch.dtype,
    expendable: bool = False,
) -> Outcome:
    """Run `launch` on `case`. `unit` is the variant's accumulator unit u_acc.

    In an `expendable` process CPU outputs lie beside forbidden pages: a write beyond kills it.
    """
    m, n, k = case.shape
    w = case.weight(layout)
    bound = OUTPUT_UNIT[dtype] * case.expected.abs()
    bound += 4 * (1 + math.log2(k)) * unit * case.magnitude
    used, judged = 0.0, None
    device = case.w.codes.device
    for fill in FILLS:
        if expendable and device.type == "cpu":
            guarded = guard.fenced((m, n), dtype, at_end=fill is FILLS[0])
        else:
            guarded = guard.canaried((m, n), dtype, device)
        out = guarded.out.fill_(fill)
        with guard.poisoned_scratch():
            launch(case.x, w, out)
        if not guarded.intact:
            return Outcome(math.inf, f"wrote outside its output on {case.name} {m}x{n}x{k}")
        if judged is not None and torch.equal(out, judged):
            break  # the same values again, and none is NaN
        judged = out
        error = (out[case.rows].double() - case.expected).abs()
        same_nan = out[case.rows].isnan() & case.expected.isnan()
        wrong = ~((error <= bound) | same_nan)  # NaN against a number compares false: wrong
        if wrong.any():
            return Outcome(math.inf, _describe(case, fill, out, wrong, bound))
        used = max(used, float((error / bound).nan_to_num(0.0).max()))
    return Outcome(used, None)


def _describe(case: Case, fill: float, out: Tensor, wrong: Tensor, bound: Tensor) -> str:
    where = wrong.nonzero()[0].tolist()
    row, column = int(case.rows[where[0]]), where[1]
    m, n, k = case.shape
    return (
        f"{int(wrong.sum())} of {wrong.numel()} elements outside the gate on {case.name} "
        f"{m}x{n}x{k}; first at [{row}, {column}]: got {float(out[row, column]):.6g}, expected "
        f"{float(case.expected[where[0], column]):.6g} within "
        f"{float(bound[where[0], column]):.3g} (buffer filled with {fill})"
    )


def compared_rows(m: int, flops_per_row: int, device: torch.device) -> Tensor:
    """Which of M rows a reference is made for: all, or evenly spaced ones of a large product."""
    count = min(m, max(2, int(REFERENCE_FLOPS / flops_per_row)))
    spaced = torch.linspace(0, m - 1, count, dtype=torch.float64)  # the first and the last too
    return spaced.long().to(device)


def _draw(data: str, rows: int, k: int, block: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(rows, k, generator=generator)
    if data == "outliers":
        hit = torch.rand(rows, k, generator=generator) < 0.005
        x += hit * 100 * torch.randn(rows, k, generator=generator)
    if data == "scales":  # neighbouring blocks 2^40 apart, and blocks of zeros
        exponents = torch.randint(-20, 21, (rows, k // block), generator=generator)
        exponents[torch.rand(exponents.shape, generator=generator) < 0.1] = -1000
        scales = torch.exp2(exponents.float()).unsqueeze(-1)
        x = (x.view(rows, -1, block) * scales).flatten(1)
    return x
