"""The fast reference against the scalar truth, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fp4kernels import reference, scalar
from fp4kernels.elements import ELEMENTS, ElementFormat, minifloat
from fp4kernels.formats import ROW, TENSOR, BlockFormat
from fp4kernels.packing import unpack_nibbles
from fp4kernels.recipes import Recipe, rules_for
from fp4kernels.scales import ScaleFormat

SHAPES = [(1, 4), (2, 2), (2, 8), ROW, TENSOR]
ROWS, COLUMNS = 2, 8
FORMATS = [
    BlockFormat("any", element, shape, scale, tensor_scale)
    for element in ELEMENTS.values()
    for shape in SHAPES
    for scale in ScaleFormat
    for tensor_scale in {False, scale is ScaleFormat.E4M3}
]
RECIPES = [Recipe("any", fmt, rule) for fmt in FORMATS for rule in rules_for(fmt)]


def hard_values(element: ElementFormat) -> torch.Tensor:
    """Every value, every tie, the neighbours of both, both signs, and what lies outside."""
    grid = torch.tensor(element.grid, dtype=torch.float64)
    middles = ((grid[1:] + grid[:-1]) / 2).float()
    x = torch.cat([grid.float(), middles])
    up, down = torch.tensor(math.inf), torch.tensor(-math.inf)
    x = torch.cat([x, x.nextafter(up), x.nextafter(down), 1.1 * x[:1], torch.tensor([0.0, 1e-45])])
    outside = torch.tensor([element.max * 1.2, 1e30, 3.4e38, math.inf, math.nan])
    x = torch.cat([x, outside])
    return torch.cat([x, -x])


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=lambda e: e.name)
def test_every_tie_of_every_element(element: ElementFormat) -> None:
    x = hard_values(element)
    assert element.encode(x).tolist() == [scalar.encode(v, element) for v in x.tolist()]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_flexible_elements(data: st.DataObject) -> None:
    exponent = data.draw(st.integers(0, 4))
    mantissa = data.draw(st.integers(0 if exponent else 1, 3))
    bias = data.draw(st.integers(-20, 20))
    element = minifloat("any", exponent, mantissa, bias)
    values = data.draw(st.lists(st.floats(width=32), min_size=1, max_size=8))
    x = torch.cat([torch.tensor(values), hard_values(element)])
    assert element.encode(x).tolist() == [scalar.encode(v, element) for v in x.tolist()]


@st.composite
def matrices(draw: st.DrawFn, element: ElementFormat) -> torch.Tensor:
    """Ties of the element under powers of two, anything else, and zeros of both signs."""
    ties = hard_values(element).tolist()[: 3 * len(element.grid)]
    exponent = draw(st.integers(-140, 120))
    tie = st.sampled_from(ties).map(lambda v: math.ldexp(v, exponent))
    ordinary = st.floats(-8, 8, width=32)
    wild = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, math.inf, math.nan]))
    one = st.one_of(tie, tie, ordinary) if draw(st.booleans()) else st.one_of(tie, wild)
    size = ROWS * COLUMNS
    values = draw(st.lists(one, min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float64).float().view(ROWS, COLUMNS)


def assert_equal_to_the_scalar_truth(x: torch.Tensor, recipe: Recipe) -> None:
    fmt = recipe.format
    truth = scalar.quantize(x.tolist(), recipe)
    ours = reference.quantize(x, recipe)
    np.testing.assert_array_equal(ours.scales.float().numpy(), np.array(truth.scales, np.float32))
    np.testing.assert_array_equal(ours.tensor_scale.numpy(), truth.tensor_scale)
    codes = unpack_nibbles(ours.codes) if fmt.codes_per_byte == 2 else ours.codes
    high, wide = fmt.tile(*x.shape)
    nan = fmt.scale.decode(ours.scales).isnan()  # of such a block no code matters
    known = ~nan.repeat_interleave(high, 0).repeat_interleave(wide, 1)
    assert (codes == torch.tensor(truth.codes))[known].all()


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_every_format_and_rule(data: st.DataObject) -> None:
    recipe = data.draw(st.sampled_from(RECIPES))
    x = data.draw(matrices(recipe.format.element))
    assert_equal_to_the_scalar_truth(x, recipe)


@pytest.mark.parametrize(
    "recipe",
    [r for r in RECIPES if r.format.element.name == "e2m1" and r.format.block_shape == (1, 4)],
    ids=lambda r: f"{r.format.scale}-{r.scale_rule}",
)
def test_fp4_rules_on_many_blocks(recipe: Recipe) -> None:
    """Rows 2^±20 apart and more, with ties, zeros, subnormals and the largest numbers."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(64, 32, generator=generator)
    x *= torch.exp2(torch.linspace(-20, 20, 64)).unsqueeze(1)
    x[0] = hard_values(recipe.format.element)[:32]
    x[1], x[2, ::2], x[2, 1::2] = 0.0, 0.0, -0.0
    assert_equal_to_the_scalar_truth(x, recipe)
    x[3], x[4, ::3], x[5] = 1e-41, 3.4e38, 1.2e-38
    assert_equal_to_the_scalar_truth(x, recipe)
