"""Codes and scales byte for byte as torchao, ml_dtypes and gfloat make them; where they differ by
design, the difference is asserted."""

from __future__ import annotations

import math

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
from torchao.prototype.mx_formats.mx_tensor import to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize

from fp4kernels import reference, scalar
from fp4kernels.elements import E2M1, E2M3, E3M2, E4M3, E5M2, ElementFormat
from fp4kernels.formats import NVFP4, NVFP4_SINGLE, BlockFormat
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe, ScaleRule
from fp4kernels.scales import ScaleFormat
from test_scalar import hard_values

MINIFLOATS = [E2M1, E2M3, E3M2, E4M3, E5M2]
ML_DTYPES = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
GFLOAT = {e.name: getattr(gfloat.formats, f"format_info_ocp_{e.name}") for e in MINIFLOATS}
TORCHAO = {
    "e2m1": torch.float4_e2m1fn_x2,
    "e2m3": DTYPE_FP6_E2M3,
    "e3m2": DTYPE_FP6_E3M2,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
MX_RULES = [ScaleRule.FLOOR, ScaleRule.CEIL, ScaleRule.RCEIL, ScaleRule.EVEN]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
by_name = pytest.mark.parametrize("element", MINIFLOATS, ids=lambda e: e.name)


def assert_same_floats(ours: np.ndarray, theirs: np.ndarray) -> None:
    """The sign of zero, too."""
    np.testing.assert_array_equal(ours, theirs)
    numbers = ~np.isnan(ours)
    np.testing.assert_array_equal(np.signbit(ours)[numbers], np.signbit(theirs)[numbers])


# elements


@by_name
def test_every_code_decodes_as_ml_dtypes_and_gfloat_have_it(element: ElementFormat) -> None:
    codes = np.arange(2**element.bits, dtype=np.uint8)
    ours = element.decode(torch.from_numpy(codes)).numpy()
    assert_same_floats(ours, codes.view(ML_DTYPES[element.name]).astype(np.float32))
    theirs = [gfloat.decode_float(GFLOAT[element.name], int(code)).fval for code in codes]
    assert_same_floats(ours, np.array(theirs, np.float32))


@by_name
def test_every_tie_and_its_neighbours_encode_as_in_ml_dtypes_and_gfloat(
    element: ElementFormat,
) -> None:
    x = hard_values(element)
    x = x[x.abs() <= element.max]
    ours = element.encode(x).numpy()
    theirs = x.numpy().astype(ML_DTYPES[element.name]).view(np.uint8)
    np.testing.assert_array_equal(ours, theirs)
    info = GFLOAT[element.name]
    rounded = [gfloat.round_float(info, v, sat=True) for v in x.tolist()]
    assert [gfloat.encode_float(info, v) for v in rounded] == ours.tolist()


def test_the_seven_ties_of_fp4() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert E2M1.encode(ties).tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert E2M1.encode(ties.nextafter(torch.tensor(9.0))).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert E2M1.encode(ties.nextafter(torch.tensor(0.0))).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert torch.equal(E2M1.encode(-ties), E2M1.encode(ties) | 8)


@by_name
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_number_encodes_as_in_ml_dtypes(
    element: ElementFormat, dtype: torch.dtype
) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    x = x[x.abs() <= element.max]
    theirs = x.numpy().astype(ML_DTYPES[element.name]).view(np.uint8)
    np.testing.assert_array_equal(element.encode(x).numpy(), theirs)


def test_what_is_too_large_saturates_where_ml_dtypes_has_nan_or_infinity() -> None:
    x = torch.tensor([465.0, 6e4 * 2, math.inf, -math.inf])
    assert E4M3.decode(E4M3.encode(x)).tolist() == [448, 448, 448, -448]
    assert np.isnan(x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)).all()
    assert E5M2.decode(E5M2.encode(x)).tolist() == [448, 57344, 57344, -57344]
    assert np.isinf(x.numpy().astype(ml_dtypes.float8_e5m2).astype(np.float32))[1:].all()
    assert torch.equal(E5M2.encode(x[2:]), torch.tensor([0x7B, 0xFB], dtype=torch.uint8))


def test_nan_where_it_has_no_code() -> None:
    """ml_dtypes makes it -0, torchao 1.5 or what its bits give; here it is the largest value."""
    nan = torch.tensor([math.nan])
    assert [e.encode(nan.abs()).item() for e in (E2M1, E2M3, E3M2)] == [7, 31, 31]
    assert [e.encode(nan.abs()).item() for e in (E4M3, E5M2)] == [0x7F, 0x7F]
    assert nan.to(torch.float8_e5m2).view(torch.uint8).item() & 0x7F == 0x7F


# scales


def test_e8m0_decodes_every_byte_as_ml_dtypes_and_gfloat_have_it() -> None:
    codes = np.arange(256, dtype=np.uint8)
    ours = ScaleFormat.E8M0.decode(torch.from_numpy(codes)).numpy()
    assert_same_floats(ours, codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    info = gfloat.formats.format_info_ocp_e8m0
    theirs = [gfloat.decode_float(info, int(code)).fval for code in codes]
    np.testing.assert_array_equal(ours, np.array(theirs, np.float32))
    assert (ours[0], ours[254]) == (2.0**-127, 2.0**127)
    assert np.isnan(ours[255])


def mx(element: ElementFormat, rule: ScaleRule) -> Recipe:
    return Recipe("mx", BlockFormat("mx", element, (1, 32), ScaleFormat.E8M0), rule)


def torchao_mx(x: Tensor, recipe: Recipe) -> Packed:
    mode = ScaleCalculationMode(recipe.scale_rule.value)
    scales, codes = to_mx(x, TORCHAO[recipe.format.element.name], 32, mode)
    return Packed(codes.view(torch.uint8), scales.view(torch.uint8), torch.ones(()))


def hard_rows(element: ElementFormat, rows: int = 96) -> Tensor:
    """Rows 2^±20 apart, ties under powers of two, zeros of both signs, equal values, outliers."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 256, generator=generator)
    x *= torch.exp2(torch.linspace(-20, 20, rows).round()).unsqueeze(1)
    ties = hard_values(element)
    ties = ties[ties.abs() <= element.max]
    picks = torch.randint(0, len(ties), (rows // 2, 256), generator=generator)
    exponents = torch.randint(-20, 21, (rows // 2, 8, 1), generator=generator)
    x[::2] = (ties[picks].view(-1, 8, 32) * torch.exp2(exponents.float())).flatten(1)
    x[1], x[3, ::2], x[3, 1::2], x[5], x[7, ::17] = 0.0, 0.0, -0.0, -3.0, 1000.0
    return x


@by_name
@pytest.mark.parametrize("rule", MX_RULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mx_is_torchao(element: ElementFormat, rule: ScaleRule, dtype: torch.dtype) -> None:
    x, same = take(hard_rows(element), dtype)
    recipe = mx(element, rule)
    ours, theirs = reference.quantize(x, recipe), torchao_mx(same, recipe)
    other = ours.scales != theirs.scales
    if rule is ScaleRule.RCEIL:  # torchao's float32 log2 does not see the last bits
        amax = same.float().view(len(x), -1, 32).abs().amax(-1)
        above = torch.frexp(amax / element.max).mantissa * 2 - 1
        other &= ~((above > 0) & (above < 2.0**-16))
    assert not other.any()
    equal = (ours.scales == theirs.scales).unsqueeze(-1).expand(*ours.scales.shape, -1)
    ours_codes, theirs_codes = (c.view(len(x), 8, -1) for c in (ours.codes, theirs.codes))
    known = equal.expand_as(ours_codes)
    assert torch.equal(ours_codes[known], theirs_codes[known])
    assert known.float().mean() > 0.9


@by_name
@pytest.mark.parametrize("rule", MX_RULES)
def test_every_e8m0_byte_is_made_as_torchao_makes_it(
    element: ElementFormat, rule: ScaleRule
) -> None:
    """Blocks whose largest magnitude is just at, above or below every power of two."""
    recipe = mx(element, rule)
    powers = torch.exp2(torch.arange(-126, 128).double()).float()
    largest = torch.stack([powers, powers * 1.25, powers * 1.5, powers * 1.875, powers * 1.95], 1)
    x = largest.reshape(-1, 1) * torch.linspace(-1, 1, 32)
    ours, theirs = reference.quantize(x, recipe), torchao_mx(x, recipe)
    assert torch.equal(ours.scales, theirs.scales)
    largest_byte = (254 if rule is ScaleRule.FLOOR else 255) - element.emax  # of finite values
    assert set(ours.scales.flatten().tolist()) == set(range(largest_byte + 1))
    known = ours.scales.flatten() > 0  # as byte 0 torchao divides by 2^-126, and in rceil by 1
    assert torch.equal(ours.codes[known], theirs.codes[known])


def test_torchao_takes_scale_byte_0_for_another_number() -> None:
    x = torch.zeros(1, 32)
    x[0, 0] = 2.0**-125  # 4 * 2^-127
    for rule, code in ((ScaleRule.FLOOR, 4), (ScaleRule.RCEIL, 0)):
        recipe = mx(E2M1, rule)
        ours, theirs = reference.quantize(x, recipe), torchao_mx(x, recipe)
        assert ours.scales.item() == theirs.scales.item() == 0
        assert (ours.codes[0, 0], theirs.codes[0, 0]) == (6, code)
        assert reference.dequantize(ours, recipe.format)[0, 0] == x[0, 0]


def test_torchao_loses_a_block_with_an_infinity() -> None:
    x = torch.ones(1, 32)
    x[0, 3] = math.inf
    theirs = [torchao_mx(x, mx(E2M1, rule)).scales.item() for rule in MX_RULES]
    assert theirs == [253, 253, 254, 253]
    assert [reference.quantize(x, mx(E2M1, rule)).scales.item() for rule in MX_RULES] == [255] * 4
    x[0, 3] = math.nan
    assert {torchao_mx(x, mx(E2M1, rule)).scales.item() for rule in MX_RULES} == {255}
    assert {reference.quantize(x, mx(E2M1, rule)).scales.item() for rule in MX_RULES} == {255}


def test_torchao_rceil_clips_just_above_a_power_of_two() -> None:
    """Its float32 log2 does not see the last bit of a large amax; PTX's conversion does."""
    amax = torch.tensor(6 * 2.0**60).nextafter(torch.tensor(math.inf))
    x = torch.full((1, 32), amax.item())
    ours, theirs = (f(x, mx(E2M1, ScaleRule.RCEIL)) for f in (reference.quantize, torchao_mx))
    assert (ours.scales.item(), theirs.scales.item()) == (127 + 61, 127 + 60)
    assert scalar.e8m0(amax.item(), E2M1, ScaleRule.RCEIL) == 127 + 61


# NVFP4

SINGLE = Recipe("single", NVFP4_SINGLE, ScaleRule.AMAX_CLAMPED)
CLAMPED = Recipe("clamped", NVFP4, ScaleRule.NV_CLAMPED)
TWO_LEVEL = Recipe("nvfp4", NVFP4, ScaleRule.NV)


def torchao_nvfp4(x: Tensor, tensor_scale: Tensor | None) -> Packed:
    scales, codes = nvfp4_quantize(x, 16, tensor_scale)
    scale = torch.ones(()) if tensor_scale is None else tensor_scale
    return Packed(codes, scales.view(torch.uint8), scale)


def assert_same_bytes(ours: Packed, theirs: Packed) -> None:
    assert torch.equal(ours.scales, theirs.scales.view_as(ours.scales))
    assert torch.equal(ours.codes, theirs.codes)


def take(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """In `dtype`, and as torchao, which has no float16, takes it."""
    x = x.clamp(-6e4, 6e4).to(dtype)
    return x, x.float() if dtype is torch.float16 else x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_single_level_nvfp4_is_torchao(dtype: torch.dtype) -> None:
    x, same = take(hard_rows(E2M1), dtype)
    assert_same_bytes(reference.quantize(x, SINGLE), torchao_nvfp4(same, None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_level_nvfp4_is_torchao(dtype: torch.dtype) -> None:
    for scale in (1.0, 2.0**-12, 3.0, 2.0**7):
        x, same = take(hard_rows(E2M1).clamp(-400, 400) * scale, dtype)
        tensor_scale = same.float().abs().max() / 2688
        ours = reference.quantize(x, CLAMPED)
        assert ours.tensor_scale == tensor_scale
        assert_same_bytes(ours, torchao_nvfp4(same, tensor_scale))


def test_every_e4m3_scale_code_is_made_as_torchao_makes_it() -> None:
    """Blocks whose largest magnitude asks for every scale, for every tie between two, and beside."""
    scales = hard_values(E4M3)
    scales = scales[(scales > 0) & (scales <= 448)]
    x = (scales * 6).unsqueeze(1) * torch.linspace(-1, 1, 16)
    ours = reference.quantize(x, SINGLE)
    assert set(ours.scales.flatten().tolist()) == set(range(8, 127))  # from 2^-6 on
    assert_same_bytes(ours, torchao_nvfp4(x, None))
    ours = reference.quantize(x, CLAMPED)
    assert_same_bytes(ours, torchao_nvfp4(x, ours.tensor_scale))
    unclamped = reference.quantize(x, Recipe("amax", NVFP4_SINGLE, ScaleRule.AMAX))
    assert set(unclamped.scales.flatten().tolist()) == set(range(127))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_level_nvfp4_is_the_specification_in_ml_dtypes(dtype: torch.dtype) -> None:
    x = hard_rows(E2M1).clamp(-400, 400).to(dtype)
    assert_is_the_specification(x.float())


def assert_is_the_specification(x: Tensor) -> None:
    """arXiv 2509.25149 appendix B, in numpy and ml_dtypes."""
    f32 = np.float32
    blocks = x.numpy().reshape(len(x), -1, 16)
    amax, tensor_amax = np.abs(blocks).max(-1), np.abs(blocks).max()
    encode = f32(2688) / tensor_amax
    scale = np.minimum(amax * (encode * (f32(1) / f32(6))), f32(448)).astype(ML_DTYPES["e4m3"])
    with np.errstate(divide="ignore"):
        inverse = f32(1) / (scale.astype(f32) * (f32(1) / encode))
    inverse = np.minimum(inverse, np.finfo(f32).max)[..., None]
    codes = np.clip(blocks * inverse, f32(-6), f32(6)).astype(ML_DTYPES["e2m1"]).view(np.uint8)
    codes = codes.reshape(x.shape)
    ours = reference.quantize(x, TWO_LEVEL)
    np.testing.assert_array_equal(ours.scales.numpy(), scale.view(np.uint8))
    np.testing.assert_array_equal(ours.codes.numpy(), codes[:, ::2] | codes[:, 1::2] << 4)
    assert ours.tensor_scale.item() == tensor_amax / f32(2688)


def test_blocks_where_rounding_twice_gives_another_scale() -> None:
    """amax * (S / 6) against amax / 6 * S: blocks whose scales lie at a tie of E4M3."""
    tensor_amax = np.float32(3.71)
    encode = np.float32(2688) / tensor_amax
    steps = hard_values(E4M3).numpy()
    steps = steps[(steps > 2.0**-6) & (steps < 448)]
    amax = (steps * 6 / encode).astype(np.float32)
    once = (amax * (encode * (np.float32(1) / np.float32(6)))).astype(ML_DTYPES["e4m3"])
    twice = (amax / np.float32(6) * encode).astype(ML_DTYPES["e4m3"])
    differing = np.flatnonzero(once.view(np.uint8) != twice.view(np.uint8))
    assert len(differing) >= 5
    x = torch.from_numpy(amax[differing]).unsqueeze(1) * torch.linspace(-1, 1, 16)
    x = torch.cat([x, torch.full((1, 16), float(tensor_amax))])
    assert_is_the_specification(x)
    specified, clamped = (reference.quantize(x, r) for r in (TWO_LEVEL, CLAMPED))
    assert (specified.scales != clamped.scales).any()
    assert_same_bytes(clamped, torchao_nvfp4(x, clamped.tensor_scale))


def test_four_over_six_by_hand() -> None:
    """Block scales of at most 256, or 3/2 of that; 6 where both err alike."""
    x = torch.zeros(5, 16)
    x[0, :2] = torch.tensor([1536.0, 1024.0])  # 256 * 6: exact with 6, not with 4
    x[1, :2] = torch.tensor([1536.0, 1152.0])  # 384 * 4 and 384 * 3: exact with 4, not with 6
    x[2, :2] = torch.tensor([1536.0, 768.0])  # exact with both
    x[4, :2] = torch.tensor([1536.0, 1088.0])  # as far from 1024 with 6 as from 1152 with 4
    for rule in (ScaleRule.FOUR_SIX_MSE, ScaleRule.FOUR_SIX_MAE):
        ours = reference.quantize(x, Recipe("4/6", NVFP4, rule))
        values = ScaleFormat.E4M3.decode(ours.scales).flatten().tolist()
        assert values == [256, 384, 256, 0, 256]
        assert ours.tensor_scale == 1
        assert torch.equal(reference.dequantize(ours, NVFP4)[:4], x[:4])


def test_the_clamp_is_a_rule_of_its_own() -> None:
    """A block of zeros has the scale 2^-6 in torchao, and 0 in the specification."""
    x = torch.zeros(2, 16)
    x[1] = 1.0
    assert reference.quantize(x, TWO_LEVEL).scales.flatten().tolist() == [0, 126]
    assert reference.quantize(x, CLAMPED).scales.flatten().tolist() == [8, 126]
    amax = Recipe("amax", NVFP4_SINGLE, ScaleRule.AMAX)
    assert [reference.quantize(x, r).scales[0].item() for r in (amax, SINGLE)] == [0, 8]
    tiny = torch.full((1, 16), 6 * 2.0**-9)  # exact without the clamp
    back = [reference.dequantize(reference.quantize(tiny, r), NVFP4_SINGLE) for r in (amax, SINGLE)]
    assert torch.equal(back[0], tiny)
    assert torch.equal(back[1], torch.full((1, 16), 2.0**-6))


def test_torchao_gives_an_infinity_the_largest_scale_and_zeros_none() -> None:
    x = torch.ones(1, 16)
    x[0, 3] = math.inf
    assert torchao_nvfp4(x, None).scales.item() == 126
    assert reference.quantize(x, SINGLE).scales.item() == 127
    zeros = torch.zeros(1, 16)
    assert torchao_nvfp4(zeros, torch.zeros(())).scales.item() & 0x7F == 0x7F
    ours = reference.quantize(zeros, CLAMPED)
    assert (ours.scales.item(), ours.tensor_scale.item()) == (8, 1)
