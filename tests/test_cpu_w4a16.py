"""The C++ GEMM of bf16 activations: every instruction set, every scale byte, what bf16 cannot hold."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
import tomllib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fp4kernels import gate, ops, reference
from fp4kernels.cpu.gemm import CppConfig
from fp4kernels.cpu.w4a16 import CppW4A16
from fp4kernels.devices import Device, Toolchain, isa_levels
from fp4kernels.layouts import Layout, convert
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.registry import default_candidate
from fp4kernels.workloads import GemmWorkload

VARIANT = CppW4A16()
BOTH = [RECIPES["mxfp4-w4a16"], RECIPES["nvfp4-w4a16"]]
ISAS = ["avx512vnni", "avx2", "portable"]
CONFIGS = [  # between them: every field at several values, tails of every size
    CppConfig(mr=2, rg=2, kc=0, mc=128, panels=1, prefetch=1024),
    CppConfig(mr=8, rg=4, kc=1024, mc=16, panels=1, prefetch=0),
    CppConfig(mr=24, rg=6, kc=2048, mc=64, panels=2, prefetch=1024),
    CppConfig(mr=1, rg=1, kc=0, mc=128, panels=4, prefetch=0),
]
# elsewhere two, since compilers take seconds over what vectors are too short for
PATHS = [("avx512vnni", config) for config in CONFIGS]
PATHS += [(isa, config) for isa in ISAS[1:] for config in CONFIGS[:2]]
SHAPES = [(1, 16, 32), (3, 37, 96), (21, 83, 288), (37, 129, 544), (5, 19, 2144)]


def with_isa(device: Device, isa: str) -> Device:
    """The device restricted to `isa`; skips where it has not even that."""
    if isa not in isa_levels(Path("/proc/cpuinfo").read_text()):
        pytest.skip(f"this CPU reports {device.arch}, which lacks {isa}")
    return dataclasses.replace(device, arch=f"{device.arch.partition('-')[0]}-{isa}")


def weight(recipe: Recipe, n: int, k: int, scales: Tensor | None = None) -> Packed:
    """Random codes, canonical; scales [N, K/block], by default near 1."""
    block, generator = recipe.format.block_size, torch.Generator().manual_seed(5)
    codes = torch.randint(0, 256, (n, k // 2), generator=generator, dtype=torch.uint8)
    if scales is None:
        middle = 0x38 if block == 16 else 127
        scales = torch.randint(middle - 4, middle + 4, (n, k // block), generator=generator).byte()
    return Packed(codes, scales, torch.tensor(1.0))


def product(config: CppConfig, recipe: Recipe, device: Device, toolchain: Toolchain,
            x: Tensor, w: Packed) -> Tensor:  # fmt: skip
    n = w.codes.shape[0]
    out = torch.full((x.shape[0], n), float("nan"))
    held = convert(w, n, recipe.format, Layout.CANONICAL, Layout.PANEL16)
    VARIANT.build(config, recipe, device, toolchain)(x, held, out)
    return out


@functools.cache
def synthetic(data: str, recipe: Recipe, shape: tuple[int, int, int]) -> gate.Case:
    return gate.synthetic_case(data, recipe, shape, 11, torch.device("cpu"))


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
@pytest.mark.parametrize(("isa", "config"), PATHS, ids=lambda p: getattr(p, "label", p))
def test_every_path_passes_the_gate(
    recipe: Recipe, isa: str, config: CppConfig, cpu: Device, toolchain: Toolchain
) -> None:
    launch = VARIANT.build(config, recipe, with_isa(cpu, isa), toolchain)
    for data, shape in itertools.product(gate.DATA, SHAPES):
        case = synthetic(data, recipe, shape)
        unit = VARIANT.accumulator_unit(config)
        assert gate.check(launch, VARIANT.layout, unit, case, torch.float32).why is None


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_a_long_sum_of_outliers_passes_the_gate(
    recipe: Recipe, cpu: Device, toolchain: Toolchain
) -> None:
    """One float32 sum along all of K strays from the gate in every such case."""
    config = CONFIGS[1]
    launch = VARIANT.build(config, recipe, cpu, toolchain)
    case = synthetic("outliers", recipe, (64, 128, 14336))
    outcome = gate.check(
        launch, VARIANT.layout, VARIANT.accumulator_unit(config), case, torch.float32
    )
    assert outcome.why is None
    assert outcome.used < 0.8


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_every_scale_byte_and_code_is_exact(
    recipe: Recipe, isa: str, cpu: Device, toolchain: Toolchain
) -> None:
    """One value of x at a time, so that an output is the weight itself: zeros, subnormals, NaN."""
    block = recipe.format.block_size
    codes = torch.arange(16, dtype=torch.uint8).repeat(block // 16) * 0x11
    w = Packed(
        codes[: block // 2].repeat(256, 1), torch.arange(256).byte().view(256, 1), torch.tensor(1.0)
    )
    w.codes[:, 0] = 0x1F  # another code at k = 0 than at k = 1
    x = torch.eye(block).bfloat16()
    values = reference.dequantize(w, recipe.format)
    expected = torch.where(values.isfinite().all(1), values.T, float("nan"))
    for config, rows in itertools.product(CONFIGS[:2], (slice(None), slice(2, 253))):
        some = Packed(w.codes[rows], w.scales[rows], w.tensor_scale)
        out = product(config, recipe, with_isa(cpu, isa), toolchain, x, some)
        finite = values[rows].isfinite().all(1)
        assert torch.equal(out[:, finite], expected[:, rows][:, finite])
        assert not out[:, ~finite].isfinite().all(0).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_values_that_bf16_instructions_flush_are_kept(
    recipe: Recipe, isa: str, cpu: Device, toolchain: Toolchain
) -> None:
    """Subnormal activations, and products and cancelled sums that are subnormal."""
    block = recipe.format.block_size
    large = torch.full((40, 2), 0x7E if block == 16 else 167, dtype=torch.uint8)
    small = torch.full((40, 2), 1 if block == 16 else 100, dtype=torch.uint8)
    base = torch.randn(30, 2 * block, generator=torch.Generator().manual_seed(3))
    for scales, exponent in ((large, -128), (large, -133), (small, -100), (small, -118)):
        x = (base * 2.0**exponent).bfloat16()
        w = weight(recipe, 40, 2 * block, scales)
        exact = x.double() @ reference.dequantize(w, recipe.format).double().T
        size = x.double().abs() @ reference.dequantize(w, recipe.format).double().abs().T
        out = product(CONFIGS[1], recipe, with_isa(cpu, isa), toolchain, x, w)
        assert ((out - exact).abs() <= 2.0**-20 * size + 2.0**-144).all()
        assert (exact != 0).any()


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_the_smallest_activation_of_the_fast_path_is_exact(
    recipe: Recipe, cpu: Device, toolchain: Toolchain
) -> None:
    """Sums that cancel to the last place of a product, on both sides of the limit."""
    block = recipe.format.block_size
    scales = torch.full((16, 1), 1 if block == 16 else 127, dtype=torch.uint8)
    w = weight(recipe, 16, block, scales)
    w.codes[:] = 0x11  # 0.5 everywhere
    for exponent in range(-124, -104):
        x = torch.zeros(1, block)
        x[0, 0], x[0, 1] = 1.0078125 * 2.0**exponent, -1 * 2.0**exponent
        out = product(CONFIGS[0], recipe, cpu, toolchain, x.bfloat16(), w)
        assert torch.equal(
            out.double(), x.double() @ reference.dequantize(w, recipe.format).double().T
        )


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_a_row_has_the_same_bits_beside_rows_that_take_the_careful_path(
    recipe: Recipe, cpu: Device, toolchain: Toolchain
) -> None:
    x = torch.randn(24, 288, generator=torch.Generator().manual_seed(4)).bfloat16()
    w = weight(recipe, 40, 288)
    here = product(CONFIGS[2], recipe, cpu, toolchain, x, w)
    x[7, 5] = 2.0**-130
    beside = product(CONFIGS[2], recipe, cpu, toolchain, x, w)
    assert torch.equal(here[:7], beside[:7])
    for config in CONFIGS:
        assert torch.equal(product(config, recipe, cpu, toolchain, x, w), beside)


def test_not_a_number_and_infinity_stay_in_their_row(cpu: Device, toolchain: Toolchain) -> None:
    x = torch.ones(3, 32).bfloat16()
    x[0, 3], x[1, 4] = float("nan"), float("inf")
    w = weight(BOTH[0], 16, 32)
    w.codes[:] = 0x22
    out = product(CONFIGS[1], BOTH[0], cpu, toolchain, x, w)
    assert out[0].isnan().all()
    assert (out[1] == float("inf")).all()
    assert out[2].isfinite().all()


def test_the_result_does_not_depend_on_the_number_of_threads(
    cpu: Device, toolchain: Toolchain
) -> None:
    x = torch.randn(19, 512, generator=torch.Generator().manual_seed(4)).bfloat16()
    w = weight(BOTH[0], 200, 512)
    outs = [
        product(CONFIGS[1], BOTH[0], dataclasses.replace(cpu, cores=cores), toolchain, x, w)
        for cores in (1, 2, 5)
    ]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_it_takes_bf16_activations_of_two_formats(cpu: Device, toolchain: Toolchain) -> None:
    taken = [name for name, r in RECIPES.items() if VARIANT.takes(r, cpu, toolchain) is None]
    assert taken == ["mxfp4-w4a16", "nvfp4-w4a16"]
    why = VARIANT.takes(RECIPES["mxfp4"], cpu, toolchain)
    assert why == "multiplies activations in bf16, but the recipe quantizes them"


@pytest.mark.parametrize("m", [1, 2, 3, 4, 8, 9, 24, 25, 48, 49, 81, 100, 129, 257, 512])
def test_the_default_is_legal(m: int, cpu: Device, toolchain: Toolchain) -> None:
    work = GemmWorkload(m, 1536, 384)
    for recipe in BOTH:
        chosen = default_candidate(work, recipe, cpu, toolchain)
        assert chosen.variant == VARIANT.name
        assert VARIANT.illegal(chosen.config, recipe, work, cpu, toolchain) is None
        assert VARIANT.malformed(chosen.config, recipe) is None


def test_the_pool_is_compiled_while_the_kernel_is(monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()
    monkeypatch.setattr(ops.cpu, "start_pool", lambda *here: started.set())
    monkeypatch.setattr(ops, "built", lambda *what: what[0].variant)
    ops._compiled_beside.cache_clear()
    find = ops._launcher.__wrapped__
    assert find("", (4, 64, 64), "int4-g32", "canonical", "cpu", False) == "torch_expand"
    assert not started.wait(0.2)  # torch has its own
    assert find("", (4, 64, 64), BOTH[0].name, "panel16", "cpu", False) == VARIANT.name
    assert started.wait(20)


def test_the_space_has_the_config_fields() -> None:
    file = Path(__file__).parents[1] / "search_spaces" / "cpp_w4a16.toml"
    for values in tomllib.loads(file.read_text()).values():
        assert [*values] == [field.name for field in dataclasses.fields(CppConfig)]
