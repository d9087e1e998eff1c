"""What a format derives from its one constant, and the names of formats."""

from __future__ import annotations

import math

import pytest
import torch

from fp4kernels.elements import (
    E1M2,
    E2M1,
    E2M3,
    E3M0,
    E3M2,
    E4M3,
    E5M2,
    ELEMENTS,
    INT2,
    INT3,
    INT4,
    NF4,
    ElementFormat,
    minifloat,
)
from fp4kernels.errors import FormatError
from fp4kernels.formats import FORMATS, ROW, TENSOR, BlockFormat, format_named, named
from fp4kernels.recipes import RECIPES, ScaleRule, recipe, rules_for
from fp4kernels.scales import ScaleFormat

FACTS = [  # bits, largest, smallest above zero, exponent of the largest, mantissa bits
    (E2M1, 4, 6, 0.5, 2, 1),
    (E1M2, 4, 1.75, 0.25, 0, 2),
    (E3M0, 4, 16, 0.25, 4, 0),
    (E2M3, 6, 7.5, 0.125, 2, 3),
    (E3M2, 6, 28, 2.0**-4, 4, 2),
    (E4M3, 8, 448, 2.0**-9, 8, 3),
    (E5M2, 8, 57344, 2.0**-16, 15, 2),
    (INT4, 4, 7, 1, 2, 2),
    (INT3, 3, 3, 1, 1, 1),
    (INT2, 2, 1, 1, 0, 0),
    (NF4, 4, 1, 0.07958029955625534, 0, 0),
]


@pytest.mark.parametrize(
    ("element", "bits", "largest", "smallest", "emax", "mantissa"),
    FACTS,
    ids=[fact[0].name for fact in FACTS],
)
def test_elements(
    element: ElementFormat, bits: int, largest: float, smallest: float, emax: int, mantissa: int
) -> None:
    assert (element.bits, element.max, element.emax) == (bits, largest, emax)
    assert element.mantissa_bits == mantissa
    assert min(value for value in element.values if value > 0) == smallest
    assert element.signed_magnitude == element.name.startswith("e")
    assert ELEMENTS[element.name] is element
    assert list(element.grid) == sorted(set(element.grid))


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=lambda e: e.name)
def test_chance_takes_one_of_both_neighbours_and_leaves_values_alone(
    element: ElementFormat,
) -> None:
    generator = torch.Generator().manual_seed(1)
    grid = torch.tensor(element.grid)
    held = torch.cat([grid, -grid]) if element.signed_magnitude else grid
    assert torch.equal(element.encode(held, generator), element.encode(held))
    shares = torch.linspace(0.05, 0.95, 19)
    for low, high in zip(element.grid[-3:], element.grid[-2:], strict=False):
        x = (low + (high - low) * shares).expand(4000, -1)
        drawn = element.decode(element.encode(x, generator))
        assert set(drawn.unique().tolist()) == {torch.tensor(low).item(), torch.tensor(high).item()}
        went_up = (drawn == torch.tensor(high)).float().mean(0)
        assert (went_up - shares).abs().max() < 0.04  # five deviations of 4000 draws
    beyond = torch.tensor([math.inf, -math.inf, 2 * element.max, -2 * element.max])
    assert torch.equal(element.encode(beyond, generator), element.encode(beyond))


def test_the_values_of_fp4_and_of_special_codes() -> None:
    assert E2M1.values[:8] == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert math.copysign(1, E2M1.values[8]) == -1
    assert [code for code, value in enumerate(E4M3.values) if math.isnan(value)] == [127, 255]
    assert (E5M2.values[0x7C], E5M2.values[0xFC]) == (math.inf, -math.inf)
    assert sum(math.isnan(value) for value in E5M2.values) == 6
    assert minifloat("e4m3b8", 4, 3, bias=8).max == 240
    assert minifloat("e4m3b8", 4, 3, bias=8, nans=0).values[1] == 2.0**-10


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("mxfp4", 4.25),
        ("nvfp4", 4.5),
        ("nvfp4-2d", 4 + 8 / 256),
        ("nvfp4-single", 4.5),
        ("mxfp4-2d", 4 + 8 / 1024),
        ("fp4-e4m3-g32", 4.25),
        ("fp4-e4m3-g128", 4.0625),
        ("int4-g16", 4.5),
        ("int4-g32", 5),
        ("int4-g128", 4.25),
        ("nf4-g64", 4.5),
        ("mxfp6-e2m3", 6.25),
        ("mxfp8-e5m2", 8.25),
        ("mxint8", 8.25),
        ("fp8-tensor", 8),
        ("fp8-row", 8),
        ("int3-fp32-1x32", 4),
        ("int2-bf16-1x16", 3),
    ],
)
def test_bits_per_value_count_the_scales(name: str, bits: float) -> None:
    assert format_named(name).bits_per_value == bits


def test_bits_of_a_matrix_count_every_scale() -> None:
    assert FORMATS["nvfp4"].bits(32, 64) == 32 * 64 * 4 + 32 * 4 * 8 + 32
    assert FORMATS["nvfp4-2d"].bits(32, 64) == 32 * 64 * 4 + 2 * 4 * 8 + 32
    assert FORMATS["fp8-row"].bits(32, 64) == 32 * 64 * 8 + 32 * 32
    assert FORMATS["fp8-bias"].bits(32, 64) == 32 * 64 * 8 + 8


def test_every_format_is_the_recipe_of_its_default_rule() -> None:
    for name, fmt in FORMATS.items():
        assert format_named(name) is fmt
        assert RECIPES[name].format == fmt
        assert RECIPES[name].scale_rule is rules_for(fmt)[0]
    assert RECIPES["fp8-bias"].scale_rule is ScaleRule.RCEIL  # a power of two that clips nothing


def test_activations_may_have_another_format() -> None:
    """OCP MX v1.0: MXINT8 is -127/64 to 127/64 under 2^floor(log2 amax)."""
    for name, k in (("mxfp4-w4a8", 32), ("nvfp4-w4a8", 32)):
        how = RECIPES[name]
        assert how.format == FORMATS[name.removesuffix("-w4a8")]
        assert (how.activations.format, how.activations.scale_rule) == (
            FORMATS["mxint8"],
            ScaleRule.FLOOR,
        )
        assert how.activations.activations == how.activations
        assert how.multiples == (1, k)
    assert RECIPES["nvfp4"].multiples == (1, 16)
    assert RECIPES["nvfp4-2d"].multiples == (16, 16)
    element = FORMATS["mxint8"].element
    assert (element.max, element.emax, element.mantissa_bits) == (127 / 64, 0, 6)


def test_composed_names() -> None:
    assert format_named("int3-fp32-1x32") == BlockFormat("", INT3, (1, 32), ScaleFormat.FP32)
    assert format_named("e3m0-e8m0-16x16") == BlockFormat("", E3M0, (16, 16), ScaleFormat.E8M0)
    assert format_named("e4m3-fp32-row") == BlockFormat("", E4M3, ROW, ScaleFormat.FP32)
    assert format_named("e2m1-bf16-tensor") == BlockFormat("", E2M1, TENSOR, ScaleFormat.BF16)
    assert format_named("e2m1-e4m3-1x16-fp32") == FORMATS["nvfp4"]
    assert format_named("e2m1-e4m3-3x7").block_shape == (3, 7)
    assert format_named("int3-fp32-1x32").name == "int3-fp32-1x32"


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("nvpf4", "nvfp4"),
        ("NVFP4", "nvfp4"),
        ("fp4-e4m3-g23", "fp4-e4m3-g32"),
        ("int3-fp23-1x32", "int3-fp32-1x32"),
        ("int33-fp32-1x48", "int3-fp32-1x48"),
        ("e2m1-e8m0-0x32", "e2m1-e8m0-1x32"),
        ("e2m1-e4m3-1x16-fp16", "e2m1-e4m3-1x16-fp32"),
    ],
)
def test_a_misspelt_name_suggests_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(FormatError, match=f"but got '{text}'; did you mean '{nearest}'"):
        format_named(text)


@pytest.mark.parametrize("text", ["zzz", "", "-", "--", "a-b-c-d-e", "x-y-z"])
def test_a_name_like_no_other_lists_them(text: str) -> None:
    with pytest.raises(FormatError, match="choose from mxfp4, nvfp4"):
        format_named(text)


def test_recipes_are_suggested_too() -> None:
    with pytest.raises(FormatError, match="a recipe must .* did you mean 'nvfp4-w4a16'"):
        recipe("nvfp4-w4a61")
    with pytest.raises(FormatError, match="did you mean 'int3'"):
        named("element", "itn3", ELEMENTS)


@pytest.mark.parametrize("scale", ["e8m0", "bf16", "fp32"])
def test_a_tensor_scale_goes_with_e4m3_alone(scale: str) -> None:
    with pytest.raises(FormatError, match=f"goes with e4m3 scales of blocks, but got {scale}"):
        format_named(f"e2m1-{scale}-1x32-fp32")
