"""The C++ GEMM of int8 activations: every instruction set, every scale byte, and `linear` with it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import tomllib
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fp4kernels
from fp4bench.proof.targets import ARCHES
from fp4kernels import FormatError, Layout, gate, reference
from fp4kernels.cpu import launch
from fp4kernels.cpu.gemm import CppConfig
from fp4kernels.cpu.w4a8 import CppW4A8
from fp4kernels.devices import Device, Toolchain, isa_levels
from fp4kernels.errors import WorkloadError
from fp4kernels.formats import MXINT8
from fp4kernels.layouts import convert
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.registry import FALLBACK, default_candidate, variants_for
from fp4kernels.workloads import GemmWorkload

VARIANT = CppW4A8()
BOTH = [RECIPES["mxfp4-w4a8"], RECIPES["nvfp4-w4a8"]]
ISAS = ["avx512vnni", "avxvnni", "avx2", "portable"]
CONFIGS = [  # between them: every field at several values, tails of every size
    CppConfig(mr=2, rg=2, kc=64, mc=16, panels=1, prefetch=1024),
    CppConfig(mr=12, rg=4, kc=0, mc=16, panels=2, prefetch=0),
    CppConfig(mr=30, rg=2, kc=128, mc=64, panels=4, prefetch=0),
]
PATHS = [("avx512vnni", config) for config in CONFIGS]
PATHS += [(isa, config) for isa in ISAS[1:] for config in CONFIGS[:2]]
SHAPES = [(1, 16, 32), (3, 37, 96), (21, 83, 288), (37, 129, 544)]


def with_isa(device: Device, isa: str) -> Device:
    """The device restricted to `isa`; skips where it has not even that."""
    if isa not in isa_levels(Path("/proc/cpuinfo").read_text()):
        pytest.skip(f"this CPU reports {device.arch}, which lacks {isa}")
    return dataclasses.replace(device, arch=f"{device.arch.partition('-')[0]}-{isa}")


@functools.cache
def synthetic(data: str, recipe: Recipe, shape: tuple[int, int, int]) -> gate.Case:
    return gate.synthetic_case(data, recipe, shape, 11, torch.device("cpu"))


def random_codes(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
@pytest.mark.parametrize(("isa", "config"), PATHS, ids=lambda p: getattr(p, "label", p))
def test_every_path_passes_the_gate(
    recipe: Recipe, isa: str, config: CppConfig, cpu: Device, toolchain: Toolchain
) -> None:
    launch = VARIANT.build(config, recipe, with_isa(cpu, isa), toolchain)
    for data, shape in itertools.product(gate.DATA, SHAPES):
        case = synthetic(data, recipe, shape)
        assert gate.check(launch, VARIANT.layout, 2.0**-24, case, torch.float32).why is None


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_every_pair_of_scale_bytes_is_exact(
    recipe: Recipe, isa: str, cpu: Device, toolchain: Toolchain
) -> None:
    """One block of w that is not zero, so that an output is one rounding from scale x scale x
    integer."""
    w_block = recipe.format.block_size
    bytes_ = torch.arange(256, dtype=torch.uint8)
    x = Packed(random_codes(256, 32), bytes_.view(256, 1), torch.tensor(1.0))
    x.codes[:, w_block:] = 0
    scales = torch.stack([bytes_] * (32 // w_block), 1)
    w = Packed(random_codes(256, 16), scales, torch.tensor(1.0))
    out = torch.full((256, 256), math.nan)
    device = with_isa(cpu, isa)
    held = convert(w, 256, recipe.format, Layout.CANONICAL, Layout.PANEL16)
    VARIANT.build(CONFIGS[1], recipe, device, toolchain)(x, held, out)
    one = 0x38 if w_block == 16 else 127
    left = reference.dequantize(x._replace(scales=torch.full((256, 1), 127).byte()), MXINT8)
    right = reference.dequantize(w._replace(scales=torch.full_like(scales, one)), recipe.format)
    factors = [fmt.scale.decode(bytes_).double() for fmt in (MXINT8, recipe.format)]
    expected = left.double() @ right.double().T * factors[0][:, None] * factors[1]
    torch.testing.assert_close(out, expected.float(), rtol=2.0**-22, atol=2.0**-148, equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_scales_in_range_take_the_fast_path_exactly(
    recipe: Recipe, isa: str, cpu: Device, toolchain: Toolchain
) -> None:
    """Every code of x, the lowest too; blocks of zeros under extreme scales; scales of zero."""
    w_block = recipe.format.block_size
    x = Packed(random_codes(33, 128), torch.full((33, 4), 125).byte(), torch.tensor(1.0))
    x.codes[4, 32:64], x.scales[4, 1] = 0, 1
    x.codes[7, :32], x.codes[8, :32] = 127, 128  # ±127, -128: the largest sums
    w = Packed(
        random_codes(40, 64),
        torch.full((40, 128 // w_block), 0x40 if w_block == 16 else 127).byte(),
        torch.tensor(1.0),
    )
    w.codes[3], w.codes[9] = 0x77, 0xFF  # 6 and -6 everywhere
    if w_block == 16:
        w.scales[5, 0], w.scales[6, 1], w.scales[7] = 0, 0x80, 0xC1
    else:
        w.codes[5, :16], w.scales[5, 0] = 0, 254
    left, right = reference.dequantize(x, MXINT8), reference.dequantize(w, recipe.format)
    out = torch.full((33, 40), math.nan)
    held = convert(w, 40, recipe.format, Layout.CANONICAL, Layout.PANEL16)
    VARIANT.build(CONFIGS[1], recipe, with_isa(cpu, isa), toolchain)(x, held, out)
    assert torch.equal(out.double(), left.double() @ right.double().T)


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_a_row_has_the_same_bits_beside_rows_that_take_the_careful_path(
    recipe: Recipe, cpu: Device, toolchain: Toolchain
) -> None:
    case = synthetic("scales", recipe, SHAPES[2])
    assert isinstance(case.x, Packed)
    beside = case.x._replace(scales=case.x.scales.clone())
    beside.scales[20, 0] = 255
    for config in CONFIGS:
        run = VARIANT.build(config, recipe, cpu, toolchain)
        outs = [torch.full((21, 83), math.nan) for _ in range(2)]
        for x, out in zip((case.x, beside), outs, strict=True):
            run(x, case.weight(Layout.PANEL16), out)
        assert torch.equal(outs[0][:20], outs[1][:20])
        assert outs[1][20].isnan().all()


def test_the_result_does_not_depend_on_the_number_of_threads(
    cpu: Device, toolchain: Toolchain
) -> None:
    case = synthetic("gaussian", BOTH[1], SHAPES[3])
    outs = []
    for cores in (1, 2, 5):
        out = torch.full((37, 129), math.nan)
        device = dataclasses.replace(cpu, cores=cores)
        run = VARIANT.build(CONFIGS[1], BOTH[1], device, toolchain)
        run(case.x, case.weight(Layout.PANEL16), out)
        outs.append(out)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_linear_quantizes_plain_activations_as_the_reference_does(
    recipe: Recipe, dtype: torch.dtype, cpu: Device, toolchain: Toolchain
) -> None:
    """Huge and tiny values, zeros, and rows that are lost to NaN and to infinity."""
    x = torch.randn(2, 9, 96, generator=torch.Generator().manual_seed(2))
    x[0, 0], x[0, 1], x[0, 2] = 0.0, x[0, 1] * 1e30, x[0, 2] * 1e-38
    x[0, 3, 5], x[1, 4, 70] = math.nan, math.inf
    x = x.to(dtype)
    w = fp4kernels.quantize(torch.randn(40, 96), recipe.name).to_layout(Layout.PANEL16)
    got = fp4kernels.linear(x, w)
    assert (got.shape, got.dtype) == ((2, 9, 40), dtype)
    rows = reference.quantize(x.view(18, 96), recipe.activations)
    config = VARIANT.default(GemmWorkload(18, 40, 96), recipe, cpu)
    out = torch.full((18, 40), math.nan, dtype=dtype)
    VARIANT.build(config, recipe, cpu, toolchain)(rows, w.packed, out)
    torch.testing.assert_close(got.view(18, 40), out, rtol=0, atol=0, equal_nan=True)
    lost = got.view(18, 40).isnan().all(1).nonzero().flatten().tolist()
    assert lost == [3, 13]
    assert got.view(18, 40)[[0, 2, 4]].isfinite().all()
    assert (got[0, 0] == 0).all()


def test_linear_takes_no_quantized_activations() -> None:
    w = fp4kernels.quantize(torch.randn(16, 32), "mxfp4-w4a8")
    with pytest.raises(FormatError, match="but got mxfp4-w4a8 and mxfp4-w4a8, which takes x as"):
        fp4kernels.linear(fp4kernels.quantize(torch.randn(4, 32), "mxfp4-w4a8"), w)
    with pytest.raises(
        WorkloadError, match="nvfp4-w4a8 needs K to be a multiple of 32, but got K=48"
    ):
        fp4kernels.linear(
            torch.randn(4, 48), fp4kernels.quantize(torch.randn(16, 48), "nvfp4-w4a8")
        )


def test_rows_are_scaled_apart(cpu: Device, toolchain: Toolchain) -> None:
    """Unlike activations of NVFP4, under one tensor scale."""
    w = fp4kernels.quantize(torch.randn(40, 96), "nvfp4-w4a8").to_layout(Layout.PANEL16)
    x = torch.randn(70, 96)
    whole = fp4kernels.linear(x, w, batch_invariant=True)
    assert torch.equal(fp4kernels.linear(x[5:8], w, batch_invariant=True), whole[5:8])


def test_it_takes_int8_activations_and_nothing_else_does(cpu: Device, toolchain: Toolchain) -> None:
    taken = [name for name, r in RECIPES.items() if VARIANT.takes(r, cpu, toolchain) is None]
    assert taken == ["mxfp4-w4a8", "nvfp4-w4a8"]
    for recipe in BOTH:
        assert [v.name for v in variants_for(recipe, cpu, toolchain)] == [VARIANT.name]
        assert launch.quantizes(recipe.activations, torch.bfloat16)
    boards = [device for device in ARCHES.values() if device.kind == "cuda"]
    assert boards
    triton = Toolchain("2.13", "3.9.0", None, None, None)
    for device, recipe in itertools.product(boards, BOTH):
        assert variants_for(recipe, device, triton) == [FALLBACK]
    why = VARIANT.takes(RECIPES["mxfp4"], cpu, toolchain)
    assert why == "multiplies activations of mxint8, but the recipe has others"


@pytest.mark.parametrize("m", [1, 2, 3, 4, 8, 10, 24, 48, 49, 81, 129, 512])
def test_the_default_is_legal(m: int, cpu: Device, toolchain: Toolchain) -> None:
    work = GemmWorkload(m, 1536, 384)
    for recipe in BOTH:
        chosen = default_candidate(work, recipe, cpu, toolchain)
        assert chosen.variant == VARIANT.name
        assert VARIANT.illegal(chosen.config, recipe, work, cpu, toolchain) is None
        assert VARIANT.malformed(chosen.config, recipe) is None


def test_the_space_has_the_config_fields() -> None:
    file = Path(__file__).parents[1] / "search_spaces" / "cpp_w4a8.toml"
    for values in tomllib.loads(file.read_text()).values():
        assert [*values] == [field.name for field in dataclasses.fields(CppConfig)]
