"""Reference and C++ quantizers, byte for byte, against numpy, ml_dtypes and torchao."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx

from fp4kernels import reference
from fp4kernels.cpu import launch
from fp4kernels.devices import Device, Toolchain, isa_levels
from fp4kernels.errors import FormatError
from fp4kernels.packing import Packed, unpack_nibbles
from fp4kernels.recipes import RECIPES, Recipe, Rounding, ScaleRule, Transform, rules_for
from oracle import mxfp4_floor, nvfp4

Quantizer = Callable[[Tensor, Recipe], Packed]
MX, NV, INT8 = RECIPES["mxfp4"], RECIPES["nvfp4"], RECIPES["mxint8"]
MX_RULES = [*map(ScaleRule, ("floor", "ceil", "rceil", "even", "floor-3/4"))]
CPP = [(recipe, rule) for recipe in (MX, INT8) for rule in MX_RULES]
CPP.append((NV, ScaleRule.NV))


@pytest.fixture(params=["reference", "cpp"])
def quantizer(request: pytest.FixtureRequest, cpu: Device, toolchain: Toolchain) -> Quantizer:
    if request.param == "reference":
        return reference.quantize
    return lambda x, recipe: launch.quantize(x, recipe, cpu, toolchain)


def adversarial(rows: int, k: int) -> Tensor:
    """Gaussian rows 2^±20 apart, ties, zeros of both signs, outliers, subnormals, equal values."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(rows, k, generator=generator)
    x *= torch.exp2(torch.linspace(-20, 20, rows)).round(decimals=3).unsqueeze(1)
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    x[0, :32] = torch.cat([ties, -ties, ties * 2, -ties * 2])
    x[1] = 0.0
    x[2, ::2], x[2, 1::2] = 0.0, -0.0
    x[3, ::17] *= 1000
    x[4] = 1e-41
    x[5] = -3.0
    x[6, :16] = 1e-30
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nvfp4_equals_the_oracle(quantizer: Quantizer, dtype: torch.dtype) -> None:
    x = adversarial(64, 256).to(dtype)
    codes, scales, tensor_scale = nvfp4(x.float().numpy())
    ours = quantizer(x, NV)
    np.testing.assert_array_equal(ours.scales.numpy(), scales)
    np.testing.assert_array_equal(unpack_nibbles(ours.codes).numpy(), codes)
    assert ours.tensor_scale.item() == tensor_scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_equals_the_oracle(quantizer: Quantizer, dtype: torch.dtype) -> None:
    x = adversarial(64, 256).to(dtype)
    codes, scales = mxfp4_floor(x.float().numpy())
    ours = quantizer(x, MX)
    np.testing.assert_array_equal(ours.scales.numpy(), scales)
    np.testing.assert_array_equal(unpack_nibbles(ours.codes).numpy(), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_equals_torchao(quantizer: Quantizer, dtype: torch.dtype) -> None:
    x = adversarial(64, 256).to(dtype)
    x[4] = 0.0  # torchao divides by at least 2^-126: blocks below differ by design
    scales, codes = to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode.FLOOR)
    ours = quantizer(x, MX)
    assert torch.equal(ours.scales, scales.view(torch.uint8).view_as(ours.scales))
    assert torch.equal(ours.codes, codes.view(torch.uint8).view_as(ours.codes))


def test_nvfp4_adversarial_blocks_where_rounding_twice_differs(quantizer: Quantizer) -> None:
    """amax / 6 * S_enc is another float than amax * (S_enc * (1/6)) for some of these."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(512, 16, generator=generator) * 3.7
    x[0, 0] = 3.71
    encode = np.float32(2688) / np.float32(x.abs().max().item())
    amax = x.abs().amax(1).numpy()
    once = amax * (encode * (np.float32(1) / np.float32(6)))
    twice = (amax / np.float32(6)) * encode
    assert (once != twice).any()
    codes, scales, _ = nvfp4(x.numpy())
    ours = quantizer(x, NV)
    np.testing.assert_array_equal(ours.scales.numpy(), scales)
    np.testing.assert_array_equal(unpack_nibbles(ours.codes).numpy(), codes)


@pytest.mark.parametrize("exponent", [-130, -127, -1, 0, 9, 126])
def test_mxint8_equals_numpy(quantizer: Quantizer, exponent: int) -> None:
    """Every code, every tie between two, and a step to both sides of it, under a scale's ends."""
    steps = np.arange(-512, 512, dtype=np.float64) / 256
    x = np.stack(
        [steps, np.nextafter(steps, 9, dtype=np.float32), np.nextafter(steps, -9, dtype=np.float32)]
    )
    x = np.clip(x, -1.9999, 1.9999).reshape(-1, 16)
    x = np.concatenate([x, np.full_like(x, 1.0)], 1) * 2.0**exponent  # amax between 1 and 2
    found = quantizer(torch.from_numpy(x).float(), INT8)
    scale = np.exp2(np.maximum(exponent, -127.0))  # the smallest of E8M0
    kept = torch.from_numpy(x).float().numpy().astype(np.float64)  # subnormal numbers lose bits
    codes = np.clip(np.rint(kept / scale * 64), -127, 127).astype(np.int8)
    np.testing.assert_array_equal(found.codes.numpy().view(np.int8), codes)
    assert (found.scales == max(exponent, -127) + 127).all()
    assert torch.equal(
        reference.dequantize(found, INT8.format).double(), torch.from_numpy(codes / 64 * scale)
    )


@pytest.mark.parametrize("recipe", [MX, NV], ids=lambda r: r.name)
def test_minus_zero_survives_a_round_trip(quantizer: Quantizer, recipe: Recipe) -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -1.0] * 16).view(1, 64)
    back = reference.dequantize(quantizer(x, recipe), recipe.format)
    assert torch.equal(torch.signbit(back), torch.signbit(x))


@pytest.mark.parametrize("recipe", [MX, NV], ids=lambda r: r.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(quantizer: Quantizer, recipe: Recipe, bad: float) -> None:
    x = torch.ones(2, 64)
    x[0, 3] = bad
    back = reference.dequantize(quantizer(x, recipe), recipe.format)
    assert not back[0, :32].isfinite().any()
    if recipe is MX:
        assert torch.equal(back[1], x[1])


@pytest.mark.parametrize("recipe", [MX, NV], ids=lambda r: r.name)
def test_an_empty_tensor_and_a_vector(quantizer: Quantizer, recipe: Recipe) -> None:
    empty = quantizer(torch.ones(0, 64), recipe)
    assert empty.codes.shape == (0, 32)
    vector = quantizer(torch.full((64,), 0.5), recipe)
    assert torch.equal(reference.dequantize(vector, recipe.format), torch.full((64,), 0.5))


@pytest.mark.parametrize("shape", [(4, 40), (4, 0), ()])
def test_a_shape_of_no_whole_blocks_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match="multiple of 32"):
        reference.quantize(torch.ones(shape), MX)


def test_every_rule_of_the_cpp_quantizer_is_the_reference_bit_for_bit(
    cpu: Device, toolchain: Toolchain
) -> None:
    """Every bfloat16 number, shuffled into blocks; all magnitudes; ties; blocks of no whole group."""
    generator = torch.Generator().manual_seed(0)
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    mixed = every.float()[torch.randperm(1 << 16, generator=generator)].view(-1, 32)
    finite = torch.where(every.isfinite(), every, 1.0).float().view(-1, 32)
    wide = torch.randn(7, 416, generator=generator)
    wide *= torch.exp2(torch.randint(-140, 120, (7, 416), generator=generator).float())
    levels = isa_levels(Path("/proc/cpuinfo").read_text())
    for isa, (recipe, rule) in itertools.product({levels[0], levels[-1]}, CPP):  # the two ways
        device = replace(cpu, arch=f"{cpu.arch.partition('-')[0]}-{isa}")
        how = replace(recipe, scale_rule=rule)
        inputs = [adversarial(64, 224), wide, finite, *([mixed] if recipe is not NV else [])]
        for x, dtype in itertools.product(inputs, (torch.float32, torch.bfloat16)):
            expected = reference.quantize(x.to(dtype), how)
            ours = launch.quantize(x.to(dtype), how, device, toolchain)
            assert torch.equal(ours.scales, expected.scales)
            assert torch.equal(ours.tensor_scale, expected.tensor_scale)
            nan = x.view(*expected.scales.shape, -1).isnan().any(-1)  # whose signs are free
            codes = [p.codes.view(*expected.scales.shape, -1)[~nan] for p in (ours, expected)]
            assert torch.equal(*codes), (isa, rule, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nvfp4_under_a_given_amax(dtype: torch.dtype, cpu: Device, toolchain: Toolchain) -> None:
    x = adversarial(64, 256)[:, :240].contiguous().to(dtype)
    own = launch.quantize(x, NV, cpu, toolchain)
    amax = x.abs().max().float()
    for ours, expected in zip(launch.quantize(x, NV, cpu, toolchain, amax), own, strict=True):
        assert torch.equal(ours, expected)
    # a larger one is what a tensor with one more row has; a smaller one clips
    more = torch.cat([x, torch.full((1, 240), 3 * amax.item(), dtype=dtype)])
    larger = launch.quantize(x, NV, cpu, toolchain, more.abs().max().float())
    assert torch.equal(larger.codes, reference.quantize(more, NV).codes[:-1])
    clipped = reference.dequantize(launch.quantize(x, NV, cpu, toolchain, amax / 8), NV.format)
    assert clipped.abs().max().item() == pytest.approx(amax.item() / 8)
    x[5, 3], x[7, 70] = float("nan"), float("inf")
    back = reference.dequantize(launch.quantize(x, NV, cpu, toolchain, amax), NV.format)
    lost = back.isnan().view(64, 15, 16).any(-1).nonzero().tolist()
    assert lost == [[5, 0], [7, 4]]
    with pytest.raises(FormatError, match="a float32 scalar on cpu and for nvfp4 alone"):
        launch.quantize(x, MX, cpu, toolchain, amax)
    with pytest.raises(FormatError, match="on meta"):  # whose memory no kernel may read
        launch.quantize(x, NV, cpu, toolchain, amax.to("meta"))


@pytest.mark.parametrize("recipe", [MX, NV], ids=["mxfp4", "nvfp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_that_are_stored_past_the_caches_are_those_of_parts(
    recipe: Recipe, dtype: torch.dtype, cpu: Device, toolchain: Toolchain
) -> None:
    """8 MB of codes, and a part of a task; each sixteenth is too small to be stored so."""
    x = adversarial(4112, 4096 + 32).to(dtype)
    amax = x.abs().amax().float() if recipe is NV else None
    whole = launch.quantize(x, recipe, cpu, toolchain, amax)
    parts = [launch.quantize(rows, recipe, cpu, toolchain, amax) for rows in x.chunk(16)]
    assert torch.equal(whole.codes, torch.cat([part.codes for part in parts]))
    assert torch.equal(whole.scales, torch.cat([part.scales for part in parts]))


def test_what_the_cpp_quantizer_takes(cpu: Device, toolchain: Toolchain) -> None:
    others = [r for r in RECIPES.values() if r.format not in (MX.format, NV.format, INT8.format)]
    others += [
        replace(r, scale_rule=rule)
        for r in (MX, NV, INT8)
        for rule in rules_for(r.format)
        if (r, rule) not in CPP
    ]
    others += [r for r in RECIPES.values() if r.transform is not Transform.NONE]
    others.append(replace(MX, rounding=Rounding.STOCHASTIC))
    assert len(others) > 20
    for recipe in others:
        assert not launch.quantizes(recipe, torch.float32)
        with pytest.raises(FormatError, match=f"but got {recipe.format.name} with"):
            launch.quantize(torch.ones(32, 128), recipe, cpu, toolchain)
    with pytest.raises(FormatError, match=r"of torch\.float16"):
        launch.quantize(torch.ones(32, 128).half(), MX, cpu, toolchain)


def test_integers_are_refused() -> None:
    with pytest.raises(FormatError, match="floating"):
        reference.quantize(torch.ones(2, 32, dtype=torch.int32), MX)


def test_published_error_on_gaussian_data() -> None:
    """Relative MSE x 1e-3: NVFP4 9.03 and MXFP4 floor 13.22 over 2M samples."""
    x = torch.randn(1024, 2048, generator=torch.Generator().manual_seed(0))
    for recipe, published in ((NV, 9.03e-3), (MX, 13.22e-3)):
        back = reference.dequantize(reference.quantize(x, recipe), recipe.format)
        error = ((back - x).square().sum() / x.square().sum()).item()
        assert error == pytest.approx(published, rel=0.02)
