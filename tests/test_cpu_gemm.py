"""The C++ GEMM: every instruction set that this machine runs, every scale code, odd tails."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from pathlib import Path

import pytest
import torch

from fp4kernels import gate, reference
from fp4kernels.cpu import build
from fp4kernels.cpu.gemm import CppConfig, CppGemm, even_panels
from fp4kernels.devices import Device, Toolchain, isa_levels
from fp4kernels.errors import BuildError
from fp4kernels.layouts import Layout, convert
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES, Recipe, ScaleRule, rules_for
from fp4kernels.workloads import GemmWorkload

VARIANT = CppGemm()
BOTH = [RECIPES["mxfp4"], RECIPES["nvfp4"]]
ISAS = ["avx512vnni", "avxvnni", "avx2", "portable"]
CONFIGS = [  # between them: every field at several values, tails of every size
    CppConfig(mr=1, rg=1, kc=0, mc=128, panels=4, prefetch=1024),
    CppConfig(mr=2, rg=2, kc=64, mc=16, panels=1, prefetch=0),
    CppConfig(mr=8, rg=4, kc=0, mc=16, panels=2, prefetch=0),
    CppConfig(mr=12, rg=6, kc=128, mc=128, panels=1, prefetch=0),
    CppConfig(mr=20, rg=5, kc=2048, mc=64, panels=2, prefetch=1024),
    CppConfig(mr=30, rg=2, kc=0, mc=16, panels=4, prefetch=0),
]
SHAPES = [(1, 16, 32), (3, 37, 96), (21, 83, 288), (37, 129, 2144)]


def with_isa(device: Device, isa: str) -> Device:
    """The device restricted to `isa`; skips where it has not even that."""
    if isa not in isa_levels(Path("/proc/cpuinfo").read_text()):
        pytest.skip(f"this CPU reports {device.arch}, which lacks {isa}")
    return dataclasses.replace(device, arch=f"{device.arch.partition('-')[0]}-{isa}")


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"mr{c.mr}")
def test_every_path_passes_the_gate(
    recipe: Recipe, isa: str, config: CppConfig, cpu: Device, toolchain: Toolchain
) -> None:
    launch = VARIANT.build(config, recipe, with_isa(cpu, isa), toolchain)
    for data, shape in itertools.product(gate.DATA, SHAPES):
        case = gate.synthetic_case(data, recipe, shape, 11, torch.device("cpu"))
        outcome = gate.check(launch, VARIANT.layout, 2.0**-24, case, torch.float32)
        assert outcome.why is None


@pytest.mark.parametrize(
    ("recipe", "rule"), [(r, rule) for r in BOTH for rule in rules_for(r.format)[1:]]
)
def test_every_scale_rule_passes_the_gate(
    recipe: Recipe, rule: ScaleRule, cpu: Device, toolchain: Toolchain
) -> None:
    """Floor of 3/4 has a tensor scale of 4/3 on MXFP4."""
    recipe = dataclasses.replace(recipe, scale_rule=rule)
    assert VARIANT.takes(recipe, cpu, toolchain) is None
    launch = VARIANT.build(CONFIGS[2], recipe, cpu, toolchain)
    case = gate.synthetic_case("scales", recipe, SHAPES[2], 11, torch.device("cpu"))
    assert gate.check(launch, VARIANT.layout, 2.0**-24, case, torch.float32).why is None


def test_it_takes_two_formats_and_no_other(cpu: Device, toolchain: Toolchain) -> None:
    taken = [name for name, r in RECIPES.items() if VARIANT.takes(r, cpu, toolchain) is None]
    assert taken == ["mxfp4", "nvfp4", "mxfp4-row-14", "mxfp4-row-28"]
    why = VARIANT.takes(RECIPES["nvfp4-2d"], cpu, toolchain)
    assert why == "reads blocks of mxfp4 and nvfp4, but the recipe has nvfp4-2d"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_every_pair_of_scale_bytes_is_exact(
    recipe: Recipe, isa: str, cpu: Device, toolchain: Toolchain
) -> None:
    """One block of K, so that the output is one rounding from scale x scale x integer."""
    block = recipe.format.block_size
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 256, (256, block // 2), generator=generator, dtype=torch.uint8)
    scales = torch.arange(256, dtype=torch.uint8).view(256, 1)
    x = Packed(codes, scales, torch.tensor(1.0))
    w = Packed(codes.flip(0).contiguous(), scales, torch.tensor(1.0))
    out = torch.full((256, 256), float("nan"))
    held = convert(w, 256, recipe.format, Layout.CANONICAL, Layout.PANEL16)
    config = CppConfig(mr=4, rg=2, kc=0, mc=128, panels=1, prefetch=0)
    VARIANT.build(config, recipe, with_isa(cpu, isa), toolchain)(x, held, out)
    # float64 holds the product; a NaN times a zero block is NaN, and overflow is infinity
    left = reference.dequantize(Packed(codes, scales.fill_(0x38 if block == 16 else 127), x[2]),
                                recipe.format).double()  # fmt: skip
    right = left.flip(0)
    factors = recipe.format.scale.decode(torch.arange(256, dtype=torch.uint8)).double()
    expected = (left @ right.T) * factors[:, None] * factors[None, :]
    torch.testing.assert_close(out, expected.float(), rtol=2.0**-22, atol=2.0**-149, equal_nan=True)


@pytest.mark.parametrize("recipe", BOTH, ids=lambda r: r.name)
def test_scales_in_range_take_the_fast_path_exactly(
    recipe: Recipe, cpu: Device, toolchain: Toolchain
) -> None:
    """Narrow scales, blocks of zeros with extreme scale bytes: block sums must be the integers."""
    block = recipe.format.block_size
    generator = torch.Generator().manual_seed(9)
    codes = torch.randint(0, 256, (33, 4 * block // 2), generator=generator, dtype=torch.uint8)
    codes[5, : block // 2] = 0x80  # zeros of both signs
    scales = torch.full((33, 4), 0x38 if block == 16 else 127, dtype=torch.uint8)
    scales[5, 0] = 1
    packed = Packed(codes, scales, torch.tensor(1.0))
    values = reference.dequantize(packed, recipe.format).double()
    held = convert(packed, 33, recipe.format, Layout.CANONICAL, Layout.PANEL16)
    out = torch.full((33, 33), float("nan"))
    VARIANT.build(CONFIGS[2], recipe, cpu, toolchain)(packed, held, out)
    assert torch.equal(out.double(), values @ values.T)


@pytest.mark.parametrize("isa", ISAS)
def test_a_block_of_zeros_under_an_extreme_scale_stays_zero(
    isa: str, cpu: Device, toolchain: Toolchain
) -> None:
    """What a quantizer never writes, but a checkpoint may hold."""
    codes = torch.full((16, 32), 0x22, dtype=torch.uint8)
    codes[3, :16] = 0
    scales = torch.full((16, 2), 127, dtype=torch.uint8)
    scales[3, 0] = 254
    large = Packed(codes.clone(), torch.full((16, 2), 147, dtype=torch.uint8), torch.tensor(1.0))
    w = Packed(codes, scales, torch.tensor(1.0))
    out = torch.full((16, 16), float("nan"))
    held = convert(w, 16, BOTH[0].format, Layout.CANONICAL, Layout.PANEL16)
    VARIANT.build(CONFIGS[2], BOTH[0], with_isa(cpu, isa), toolchain)(large, held, out)
    values = [reference.dequantize(p, BOTH[0].format).nan_to_num(0.0).double() for p in (large, w)]
    assert torch.equal(out.double(), values[0] @ values[1].T)


def test_the_result_does_not_depend_on_the_number_of_threads(
    cpu: Device, toolchain: Toolchain
) -> None:
    case = gate.synthetic_case("gaussian", BOTH[0], (19, 200, 512), 1, torch.device("cpu"))
    outs = []
    for cores in (1, 2, 5):
        device = dataclasses.replace(cpu, cores=cores)
        out = torch.full((19, 200), float("nan"))
        VARIANT.build(CONFIGS[2], BOTH[0], device, toolchain)(
            case.x, case.weight(Layout.PANEL16), out
        )
        outs.append(out)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_no_compiler_is_one_clear_line(cpu: Device, toolchain: Toolchain) -> None:
    without = dataclasses.replace(toolchain, compiler=None, compiler_version=None)
    assert "C++ compiler" in str(VARIANT.takes(BOTH[0], cpu, without))
    with pytest.raises(BuildError, match=r"none of c\+\+, g\+\+, clang\+\+ is on PATH"):
        VARIANT.build(CONFIGS[0], BOTH[0], cpu, without)


def test_a_compiler_that_fails_leaves_its_last_lines(
    cpu: Device, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = dataclasses.replace(CONFIGS[0], panels=-1)  # an array of no size: the compiler objects
    with pytest.raises(BuildError, match="exited with 1: .*error"):
        VARIANT.build(config, BOTH[0], cpu, toolchain)
    assert [*build.cache_dir().iterdir()] == []


def test_objects_are_cached_under_source_compiler_and_flags(
    cpu: Device, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build.compile_object("pool.cpp", {}, cpu, toolchain)
    stamp = first.stat().st_mtime_ns
    assert build.compile_object("pool.cpp", {}, cpu, toolchain) == first
    assert first.stat().st_mtime_ns == stamp
    other = dataclasses.replace(toolchain, compiler_version="c++ 99")
    assert build.compile_object("pool.cpp", {}, cpu, other) != first
    assert build.compile_object("pool.cpp", {"X": 1}, cpu, toolchain) != first


def test_illegal_configurations_name_the_rule_and_the_values(
    cpu: Device, toolchain: Toolchain
) -> None:
    def reason(m: int, k: int, **changes: int) -> str:
        config = dataclasses.replace(CONFIGS[4], **changes)
        work = GemmWorkload(m, 64, k)
        return str(VARIANT.illegal(config, BOTH[0], work, cpu, toolchain))

    assert reason(512, 4096, rg=3) == "rows in flight must divide the tile, but got rg=3, mr=20"
    assert "registers" in reason(512, 4096, rg=20)
    assert "half empty at M=2" in reason(2, 4096)
    assert "mr=20 does not split M=7" in reason(7, 4096)
    assert "does not split K=512" in reason(512, 512)
    assert "does not split M=16" in reason(16, 4096, mc=512)
    assert reason(512, 4096) == "None"


@pytest.mark.parametrize("recipe", BOTH, ids=lambda one: one.name)
def test_the_default_is_legal_for_every_m(
    recipe: Recipe, cpu: Device, toolchain: Toolchain
) -> None:
    for m, arch in itertools.product(range(1, 300), (cpu.arch, "x86_64-avx2")):
        work, place = GemmWorkload(m, 64, 4096), dataclasses.replace(cpu, arch=arch)
        config = VARIANT.default(work, recipe, place)
        assert VARIANT.illegal(config, recipe, work, place, toolchain) is None, (m, config.label)


@pytest.mark.parametrize(
    ("n", "cores", "panels"),
    [
        (4096, 2, 4),
        (192, 2, 3),  # 3 groups of 4 would keep one core idle for a quarter of the time
        (192, 1, 4),
        (576, 16, 3),
        (16, 64, 2),
    ],
)
def test_panels_are_grouped_so_that_cores_end_together(n: int, cores: int, panels: int) -> None:
    assert even_panels(n, cores) == panels


def test_the_space_has_the_config_fields() -> None:
    file = Path(__file__).parents[1] / "search_spaces" / "cpp_w4a4.toml"
    for values in tomllib.loads(file.read_text()).values():
        assert [*values] == [field.name for field in dataclasses.fields(CppConfig)]
