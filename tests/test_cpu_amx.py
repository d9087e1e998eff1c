"""The kernels in tiles of AMX: their sources as they are on a twin of the tile instructions, on a CPU
that has them where there is one, and as compilers make machine code of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import test_cpu_gemm as int4_contract
import test_cpu_w4a8 as int8_contract
import test_cpu_w4a16 as bf16_contract
from fp4bench import doctor
from fp4bench.limits import cpu as limits
from fp4kernels import gate, reference
from fp4kernels.cpu import build
from fp4kernels.cpu.gemm import CppConfig, CppGemm, CppKernel
from fp4kernels.cpu.launch import start_pool
from fp4kernels.cpu.w4a8 import CppW4A8
from fp4kernels.cpu.w4a16 import CppW4A16
from fp4kernels.devices import Device, Toolchain, own_levels
from fp4kernels.errors import DeviceError
from fp4kernels.formats import MXINT8
from fp4kernels.layouts import Layout, convert
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES
from test_cpu_programs import SANITIZERS, check_gemm, compiled

Machine = tuple[Device, Toolchain]
TWIN = Path(__file__).with_name("amx_twin.h")
INTEGERS = {
    "mxfp4": CppGemm(),
    "nvfp4": CppGemm(),
    "mxfp4-w4a8": CppW4A8(),
    "nvfp4-w4a8": CppW4A8(),
}
# by kernel, of tiles too low for AMX: objects that other tests need, too
ON_VECTORS = {"cpp_w4a4": int4_contract.CONFIGS[2], "cpp_w4a8": int8_contract.CONFIGS[1]}
FULL = CppConfig(mr=16, rg=4, kc=64, mc=32, panels=2, prefetch=1024)
# no number of rows is filled up
RAGGED = CppConfig(mr=240, rg=1, kc=0, mc=128, panels=4, prefetch=0)
IN_TILES = [(recipe, RAGGED) for recipe in INTEGERS] + [("mxfp4", FULL)]
BF16 = CppW4A16()
BF16_IN_TILES = [
    CppConfig(mr=2, rg=2, kc=1024, mc=128, panels=4, prefetch=1024),
    CppConfig(mr=48, rg=1, kc=0, mc=16, panels=3, prefetch=0),
]
SHAPES = [(1, 16, 32), (21, 83, 288), (67, 35, 1120)]


@pytest.fixture(scope="module", params=["twin", "machine"])
def amx(
    request: pytest.FixtureRequest,
    cpu: Device,
    toolchain: Toolchain,
    tmp_path_factory: pytest.TempPathFactory,
) -> Machine:
    """A device of level amx, and what builds for it."""
    if request.param == "machine":
        if "amx" not in own_levels():
            pytest.skip(f"this CPU reports {', '.join(own_levels())}, which lack amx")
        return held_to_amx(cpu), toolchain
    if not cpu.has_avx512:
        pytest.skip(f"the twin leaves AVX-512 to the CPU, which is {cpu.arch}")
    return held_to_amx(cpu), with_twin(toolchain, tmp_path_factory.mktemp("twin"))


def held_to_amx(cpu: Device) -> Device:
    return dataclasses.replace(cpu, arch=f"{cpu.arch.partition('-')[0]}-amx")


def with_twin(toolchain: Toolchain, folder: Path) -> Toolchain:
    """A compiler that sees the twin before all else."""
    compiler = folder / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {toolchain.compiler} -include {TWIN} "$@"\n')
    compiler.chmod(0o755)
    digest = hashlib.sha256(TWIN.read_bytes()).hexdigest()
    version = f"{toolchain.compiler_version} with twin {digest}"
    return dataclasses.replace(toolchain, compiler=str(compiler), compiler_version=version)


@functools.cache
def synthetic(data: str, recipe: str, shape: tuple[int, int, int]) -> gate.Case:
    return gate.synthetic_case(data, RECIPES[recipe], shape, 11, torch.device("cpu"))


@pytest.mark.parametrize(("recipe", "config"), IN_TILES, ids=lambda p: getattr(p, "label", p))
def test_rows_have_the_bits_that_vectors_give_them(
    recipe: str, config: CppConfig, amx: Machine, cpu: Device, toolchain: Toolchain
) -> None:
    """Their block sums are the same integers, and are scaled and added in the same order."""
    kernel, how = INTEGERS[recipe], RECIPES[recipe]
    pair = (
        kernel.build(config, how, *amx),
        kernel.build(ON_VECTORS[kernel.name], how, cpu, toolchain),
    )
    for data, shape in itertools.product(gate.DATA, SHAPES):
        case = synthetic(data, recipe, shape)
        outs = [torch.full(shape[:2], math.nan) for _ in pair]
        for launch, out in zip(pair, outs, strict=True):
            launch(case.x, case.weight(Layout.PANEL16), out)
        torch.testing.assert_close(*outs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("recipe", "config"), IN_TILES, ids=lambda p: getattr(p, "label", p))
def test_every_code_and_the_largest_sums_are_exact(
    recipe: str, config: CppConfig, amx: Machine
) -> None:
    """In range, a product of random codes is the sum of integers under powers of two; scales of NVFP4
    also zero and negative."""
    how = RECIPES[recipe]
    block, one = how.format.block_size, 0x38 if how.format.block_size == 16 else 127
    generator = torch.Generator().manual_seed(5)
    draw = functools.partial(torch.randint, 0, 256, generator=generator, dtype=torch.uint8)
    w = Packed(draw((40, 64)), torch.full((40, 128 // block), one).byte(), torch.tensor(1.0))
    w.codes[3], w.codes[9] = 0x77, 0xFF  # 6 and -6 everywhere
    if block == 16:
        w.scales[5, 0], w.scales[6, 1], w.scales[7] = 0, 0x80, one | 0x80
    if how.activation == MXINT8:
        x = Packed(draw((33, 128)), torch.full((33, 4), 127).byte(), torch.tensor(1.0))
        x.codes[7], x.codes[8] = 127, 128
    else:
        x = Packed(draw((33, 64)), w.scales[:33].clone(), torch.tensor(1.0))
        x.codes[7], x.codes[8] = 0x77, 0xFF
    left, right = (
        reference.dequantize(packed, fmt).double()
        for packed, fmt in ((x, how.activations.format), (w, how.format))
    )
    held = convert(w, 40, how.format, Layout.CANONICAL, Layout.PANEL16)
    out = torch.full((33, 40), math.nan)
    INTEGERS[recipe].build(config, how, *amx)(x, held, out)
    assert torch.equal(out.double(), left @ right.T)


@pytest.mark.parametrize("config", BF16_IN_TILES, ids=lambda c: f"mr{c.mr}")
@pytest.mark.parametrize("recipe", ["mxfp4-w4a16", "nvfp4-w4a16"])
def test_bf16_passes_the_gate(recipe: str, config: CppConfig, amx: Machine) -> None:
    launch = BF16.build(config, RECIPES[recipe], *amx)
    half = [(5, 19, 1072)] if recipe.startswith("nvfp4") else []  # of a row of a tile
    for data, shape in itertools.product(gate.DATA, SHAPES + half):
        case = synthetic(data, recipe, shape)
        assert gate.check(launch, BF16.layout, 2.0**-24, case, torch.float32).why is None


@pytest.mark.parametrize(
    "contract",
    [
        bf16_contract.test_the_smallest_activation_of_the_fast_path_is_exact,
        bf16_contract.test_a_row_has_the_same_bits_beside_rows_that_take_the_careful_path,
    ],
    ids=lambda test: test.__name__,
)
@pytest.mark.parametrize("recipe", bf16_contract.BOTH, ids=lambda r: r.name)
def test_bf16_holds_the_contract_of_other_levels(
    contract: Callable[..., None],
    recipe: object,
    amx: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where tiles would take subnormal numbers for zero, vectors give the same bits; so do all sizes
    of tiles."""
    monkeypatch.setattr(bf16_contract, "CONFIGS", [*BF16_IN_TILES, BF16_IN_TILES[1]])
    contract(recipe, *amx)


@pytest.mark.parametrize(
    "contract",
    [
        bf16_contract.test_not_a_number_and_infinity_stay_in_their_row,
        bf16_contract.test_the_result_does_not_depend_on_the_number_of_threads,
    ],
    ids=lambda test: test.__name__,
)
def test_bf16_keeps_rows_apart_on_any_number_of_threads(
    contract: Callable[..., None], amx: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bf16_contract, "CONFIGS", BF16_IN_TILES)
    contract(*amx)


@pytest.mark.parametrize("recipe", ["mxfp4-w4a16", "nvfp4-w4a16"])
def test_every_scale_byte_and_code_of_bf16_is_exact(recipe: str, amx: Machine) -> None:
    """One value of x at a time, so that an output is the weight itself: zeros, subnormals, NaN."""
    fmt = RECIPES[recipe].format
    block = fmt.block_size
    codes = torch.arange(16, dtype=torch.uint8).repeat(block // 16) * 0x11
    w = Packed(
        codes[: block // 2].repeat(256, 1), torch.arange(256).byte().view(256, 1), torch.tensor(1.0)
    )
    w.codes[:, 0] = 0x1F  # another code at k = 0 than at k = 1
    values = reference.dequantize(w, fmt)
    for config, rows in itertools.product(BF16_IN_TILES, (slice(None), slice(2, 253))):
        some = Packed(w.codes[rows], w.scales[rows], w.tensor_scale)
        count = some.codes.shape[0]
        held = convert(some, count, fmt, Layout.CANONICAL, Layout.PANEL16)
        out = torch.full((block, count), math.nan)
        BF16.build(config, RECIPES[recipe], *amx)(torch.eye(block).bfloat16(), held, out)
        finite = values[rows].isfinite().all(1)
        assert torch.equal(out[:, finite], values[rows].T[:, finite])
        assert not out[:, ~finite].isfinite().all(0).any()


def test_the_limits_of_the_level_are_products_of_tiles(
    amx: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin is slow: only whether it runs is asked."""
    monkeypatch.setattr(limits, "STEPS", 64)
    monkeypatch.setattr(limits, "UNIT_SECONDS", 0.01)
    probe = limits.Probe(*amx)
    assert all(probe.unit_rate(name) for name in limits.UNITS)


def test_the_doctor_says_that_the_level_is_unmeasured(
    cpu: Device, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "own_levels", lambda: ("amx", "avx512vnni", "portable"))
    for isa, expected in (
        ("avx512vnni", "but runs avx512vnni: the amx kernels were never timed"),
        ("amx", "the amx kernels are proven, but were never timed"),
    ):
        device = dataclasses.replace(cpu, arch=f"x86_64-{isa}")
        (found,) = [f for f in doctor.findings(device, toolchain) if "amx" in f.problem]
        assert expected in found.problem


def test_tiles_are_clean_under_sanitizers(
    cpu: Device, toolchain: Toolchain, tmp_path: Path
) -> None:
    if not cpu.has_avx512:
        pytest.skip(f"the twin leaves AVX-512 to the CPU, which is {cpu.arch}")
    assert toolchain.compiler is not None
    options = ("amx", (*SANITIZERS, "-include", str(TWIN)))
    program = compiled(toolchain.compiler, "mxfp4", RAGGED.values(), options, tmp_path)
    shape = (21, 37, 288)  # two tiles of eleven rows: one row is past the last
    check_gemm([program], "mxfp4", ON_VECTORS["cpp_w4a4"], (cpu, toolchain), tmp_path, shape)


@pytest.mark.parametrize(
    ("recipe", "kernel", "config", "multiplies", "lacks"),
    [
        ("mxfp4-w4a8", CppW4A8(), FULL, "tdpbssd", "tdpbf16ps"),
        ("mxfp4", CppGemm(), ON_VECTORS["cpp_w4a4"], "vpdpbusd", "tdpbssd"),
        ("mxfp4-w4a16", BF16, BF16_IN_TILES[1], "tdpbf16ps", "vdpbf16ps"),
    ],
)
def test_compilers_know_the_instructions(
    recipe: str,
    kernel: CppKernel,
    config: CppConfig,
    multiplies: str,
    lacks: str,
    cpu: Device,
    toolchain: Toolchain,
) -> None:
    if not cpu.arch.startswith("x86_64"):
        pytest.skip(f"tiles are an extension of x86-64, but this is {cpu.arch}")
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump (Debian: binutils) to read machine code")
    defines = {name.upper(): value for name, value in config.values().items()}
    defines["NVFP4"] = int(RECIPES[recipe].format.block_size == 16)
    path = build.compile_object(kernel.source, defines, held_to_amx(cpu), toolchain)
    said = subprocess.run(
        ["objdump", "-d", path], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert multiplies in said
    assert ("ldtilecfg" in said) == ("tilerelease" in said) == multiplies.startswith("t")
    assert lacks not in said


def test_a_system_that_permits_no_tiles_is_one_clear_line(
    cpu: Device, toolchain: Toolchain
) -> None:
    if "amx" in own_levels() or not cpu.arch.startswith("x86_64"):
        pytest.skip("needs an x86-64 CPU without AMX")
    with pytest.raises(
        DeviceError, match=r"level amx needs .* arch_prctl refused: .* --device cpu"
    ):
        start_pool(held_to_amx(cpu), toolchain)
