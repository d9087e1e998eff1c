"""What becomes of values and shapes that no format can hold, for every recipe."""

from __future__ import annotations

import math

import pytest
import torch

from fp4kernels import reference
from fp4kernels.errors import FormatError
from fp4kernels.formats import FORMATS, WHOLE, format_named
from fp4kernels.recipes import RECIPES, Outliers, Recipe, Rounding, ScaleRule, Transform, rules_for
from fp4kernels.simulate import approximate

COMPOSED = [format_named(n) for n in ("int3-fp32-1x32", "e3m0-e8m0-16x16", "e2m1-bf16-tensor")]
ALL = [
    Recipe(fmt.name, fmt, rule) for fmt in (*FORMATS.values(), *COMPOSED) for rule in rules_for(fmt)
]
every = pytest.mark.parametrize("recipe", ALL, ids=lambda r: f"{r.format.name}:{r.scale_rule}")
NV, MX = RECIPES["nvfp4"], RECIPES["mxfp4"]
ROWS, COLUMNS = 64, 256


def round_trip(x: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    return reference.dequantize(reference.quantize(x, recipe), recipe.format)


def gaussian() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_finite_is_lost_and_seen(recipe: Recipe, bad: float) -> None:
    """Under a tensor scale all is lost; elsewhere only the block."""
    fmt = recipe.format
    x = gaussian()
    x[0, 3] = bad
    back = round_trip(x, recipe)
    lost = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    high, wide = fmt.tile(ROWS, COLUMNS)
    lost[:high, :wide] = True
    if fmt.tensor_scale:
        lost[:] = True
    assert torch.equal(back.isfinite(), ~lost)
    x[0, 3] = 0.0
    if not fmt.tensor_scale:
        assert torch.equal(back[~lost], round_trip(x, recipe)[~lost])


@every
def test_zeros_stay_zeros_of_both_signs(recipe: Recipe) -> None:
    x = torch.zeros(ROWS, COLUMNS)
    x[:, ::2] = -0.0
    back = round_trip(x, recipe)
    assert not back.any()
    if recipe.format.element.signed_magnitude:
        assert torch.equal(back.signbit(), x.signbit())
    x[1, 1] = 1.0  # zeros beside others
    back = round_trip(x, recipe)
    assert (back != 0).nonzero().tolist() == [[1, 1]]


@every
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-37, 8e37])
def test_subnormal_and_huge_values_neither_become_nan_nor_grow(recipe: Recipe, size: float) -> None:
    x = gaussian().clamp(-1, 1) * size
    back = round_trip(x, recipe)
    assert not back.isnan().any()
    # a scale of at least 2^-127 or 2^-6, or one rounded up, makes a value larger by so much
    step = {"e8m0": 2.0**-127, "e4m3": 2.0**-6}.get(recipe.format.scale, 0.0)
    assert (back.abs() <= x.abs().max() * 2 + step * recipe.format.element.max).all()
    assert back.isfinite().all()


def test_the_largest_numbers_may_be_rounded_up_to_infinity() -> None:
    """3.2e38 lies between 3 and 4 times 2^126, and float32 ends below 4 times."""
    x = torch.full((1, 32), 3.2e38)
    overflows = {
        rule: round_trip(x, Recipe("t", MX.format, rule)).isinf().all().item()
        for rule in rules_for(MX.format)
    }
    for floor in (ScaleRule.FLOOR, ScaleRule.FLOOR_ROW_14, ScaleRule.FLOOR_ROW_28):
        assert overflows.pop(floor) is False  # 6 times 2^125
    assert all(overflows.values())
    assert round_trip(x, NV).isfinite().all()


def test_rules_that_divide_never_overflow_on_tiny_tensors() -> None:
    """Under a tensor scale numbers of 1e-37 keep their precision, for both orders of division."""
    x = gaussian() * 1e-34
    for rule in (ScaleRule.NV, ScaleRule.NV_CLAMPED, ScaleRule.FOUR_SIX_MSE):
        back = round_trip(x, Recipe("t", NV.format, rule))
        assert ((back - x) / 1e-34).square().mean() < 0.01


@every
def test_empty_tensors(recipe: Recipe) -> None:
    packed = reference.quantize(torch.ones(0, COLUMNS), recipe)
    assert packed.codes.shape == recipe.format.codes_shape((0, COLUMNS))
    assert packed.scales.shape == recipe.format.scales_shape((0, COLUMNS))
    assert packed.tensor_scale.isfinite()
    assert reference.dequantize(packed, recipe.format).shape == (0, COLUMNS)
    with pytest.raises(FormatError, match=r"needs K .* but got shape \(64, 0\)"):
        reference.quantize(torch.ones(ROWS, 0), recipe)


@every
def test_shapes_that_are_not_whole_blocks(recipe: Recipe) -> None:
    fmt = recipe.format
    high, wide = fmt.block_shape
    if wide != WHOLE or fmt.codes_per_byte == 2:
        with pytest.raises(FormatError, match=r"K .* but got shape \(64, 17\); pad K with"):
            reference.quantize(torch.ones(ROWS, 17), recipe)
    if high > 1:
        with pytest.raises(FormatError, match=f"rows are a multiple of {high}.*; pad the rows"):
            reference.quantize(torch.ones(high + 1, COLUMNS), recipe)
        with pytest.raises(FormatError, match="needs a matrix"):
            reference.quantize(torch.ones(2, high, COLUMNS), recipe)
    with pytest.raises(FormatError, match="needs K to be"):
        reference.quantize(torch.ones(()), recipe)


@every
def test_memory_order_and_leading_dimensions_do_not_matter(recipe: Recipe) -> None:
    x = gaussian()
    straight = reference.quantize(x, recipe)
    turned = reference.quantize(x.T.contiguous().T, recipe)
    strided = reference.quantize(torch.stack([x, x], -1)[..., 0], recipe)
    for other in (turned, strided):
        assert all(torch.equal(a, b) for a, b in zip(straight, other, strict=True))
        assert other.codes.is_contiguous()
        assert other.scales.is_contiguous()
    if recipe.format.block_shape[0] == 1:
        deep = reference.quantize(x.view(4, 16, COLUMNS), recipe)
        assert torch.equal(deep.codes.flatten(0, 1), straight.codes)
        assert torch.equal(deep.scales.flatten(0, 1), straight.scales)
        assert reference.dequantize(deep, recipe.format).shape == (4, 16, COLUMNS)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_taken_as_float32(recipe: Recipe, dtype: torch.dtype) -> None:
    x = gaussian().to(dtype)
    ours, same = reference.quantize(x, recipe), reference.quantize(x.float(), recipe)
    assert all(torch.equal(a, b) for a, b in zip(ours, same, strict=True))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool, torch.complex64])
def test_what_is_not_floating_is_refused(dtype: torch.dtype) -> None:
    x = torch.ones(ROWS, COLUMNS).to(dtype)
    for take in (reference.quantize, approximate):
        with pytest.raises(FormatError, match=f"only floating tensors .* but got {dtype}"):
            take(x, NV)


def test_a_tensor_larger_than_what_is_worked_on_at_once() -> None:
    """Rows are quantized some at a time; it does not show in the bytes."""
    x = torch.randn(5000, 160, generator=torch.Generator().manual_seed(1))
    for recipe in (MX, Recipe("4/6", NV.format, ScaleRule.FOUR_SIX_MAE)):
        whole = reference.quantize(x, recipe)
        amax = x.abs().max()
        parts = [
            reference.quantize(torch.cat([part, torch.full((1, 160), amax.item())]), recipe)
            for part in x.split(1000)
        ]
        assert torch.equal(whole.codes, torch.cat([part.codes[:-1] for part in parts]))
        assert torch.equal(whole.scales, torch.cat([part.scales[:-1] for part in parts]))


@pytest.mark.parametrize("rounding", [Rounding.STOCHASTIC, Rounding.STOCHASTIC_NAIVE])
def test_chance_needs_a_generator_and_nothing_else_takes_one(rounding: Rounding) -> None:
    generator = torch.Generator().manual_seed(0)
    chance = Recipe("sr", NV.format, NV.scale_rule, rounding)
    with pytest.raises(FormatError, match=f"{rounding} rounding takes a generator"):
        reference.quantize(gaussian(), chance)
    with pytest.raises(FormatError, match="nearest-even rounding takes no generator"):
        reference.quantize(gaussian(), NV, generator)


@every
def test_chance_repeats_with_its_seed_and_leaves_scales_alone(recipe: Recipe) -> None:
    chance = Recipe("sr", recipe.format, recipe.scale_rule, Rounding.STOCHASTIC_NAIVE)
    x = gaussian()
    one, same, other = (
        reference.quantize(x, chance, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.codes, same.codes)
    assert not torch.equal(one.codes, other.codes)
    assert torch.equal(one.scales, reference.quantize(x, recipe).scales)


def test_clamping_survives_what_is_not_finite() -> None:
    x = gaussian()
    x[0, 0], x[5, 5] = math.inf, math.nan
    recipe = Recipe("occ", MX.format, MX.scale_rule, outliers=Outliers(0.99, compensate=True))
    back = approximate(x, recipe)
    assert back[0, 0] == math.inf  # kept apart
    assert back[0, 1:].isfinite().all()
    assert back[5, :32].isnan().all()
    assert back.isfinite().sum() == ROWS * COLUMNS - 33
    assert approximate(torch.ones(0, 64), recipe).shape == (0, 64)


@pytest.mark.parametrize("transform", list(Transform))
def test_empty_tensors_are_transformed(transform: Transform) -> None:
    recipe = Recipe("t", NV.format, NV.scale_rule, transform=transform)
    assert approximate(torch.ones(0, 128), recipe).shape == (0, 128)
    with pytest.raises(FormatError, match="needs K to be"):
        approximate(torch.ones(2, 0), recipe)
    with pytest.raises(FormatError, match="needs K to be"):
        approximate(torch.ones(()), recipe)
