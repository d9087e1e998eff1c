"""The Triton quantizer: its bytes under the interpreter, and what it compiles to without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fp4kernels import ops
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.packing import Packed
from fp4kernels.philox import Philox
from fp4kernels.recipes import RECIPES, Outliers, Recipe, Rounding, ScaleRule, Transform, rules_for
from fp4kernels.transforms import HADAMARD_SIZES

ROOT = Path(__file__).parent.parent
MX, NV = RECIPES["mxfp4"], RECIPES["nvfp4"]
TAKEN = [
    *(
        replace(MX, scale_rule=ScaleRule(rule))
        for rule in ("floor", "ceil", "rceil", "even", "floor-3/4")
    ),
    *(replace(NV, scale_rule=ScaleRule(rule)) for rule in ("nv", "four-six-mse", "four-six-mae")),
]
BY_ROW = [RECIPES["mxfp4-row-14"], RECIPES["mxfp4-row-28"]]
BY_CHANCE = [replace(r, rounding=Rounding.STOCHASTIC) for r in (MX, NV, TAKEN[-1])]
ROTATED = [replace(r, transform=transform) for r in (MX, NV) for transform in HADAMARD_SIZES]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
H100 = Device("cuda", "H100", "sm_90", 132, 50 << 20, 227 << 10, 80 << 30)
TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@needs_triton
@pytest.mark.parametrize(
    "check",
    ["same", "every_scale", "given_amax", "layouts", "four_over_six", "chance", "rotations"],
)
def test_bytes_are_those_of_the_reference(check: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interpret_quantize.py"), check],
        capture_output=True, text=True, timeout=120, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout) == []


BUILDS = [
    *((recipe, torch.bfloat16, False) for recipe in TAKEN[:-1]),
    *((recipe, dtype, False) for recipe in (MX, NV) for dtype in DTYPES[1:]),
    *((recipe, torch.bfloat16, True) for recipe in (MX, NV)),
]
OF_A_THREAD = 32  # values


@needs_triton
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_it_compiles_offline(arch: int) -> None:
    from fp4kernels.triton.offline import compile_kernel
    from fp4kernels.triton.quantize_launch import quantize_sources

    for recipe, dtype, swizzle in BUILDS:
        sources = quantize_sources((4096, 4096), dtype, recipe, swizzle=swizzle)
        assert len(sources) == (2 if recipe.format is NV.format else 1)
        for source in sources:
            built = compile_kernel(source, arch)
            where = f"{built.name}, {recipe.name} {recipe.scale_rule} of {dtype}"
            looks = "amax" in built.name
            assert built.spills == 0, where
            loads = re.findall(r"ld\.global\S*\.v(\d)\.b32", built.ptx)
            values_a_load = 4 * 4 // dtype.itemsize
            of_threads = OF_A_THREAD * (4 if looks else 1)
            assert loads == ["4"] * (of_threads // values_a_load), where  # 16 bytes each
            # products round before sums, quotients to nearest, and subnormals are numbers
            for inexact in ("div.full", "div.approx", ".ftz"):
                assert inexact not in built.ptx, f"{inexact} in {where}"
            # but for the exact products of codes.nearest, once for each choice of scales
            choices = 0 if looks else 3 if "four-six" in recipe.scale_rule else 1
            fused = sum(len(x2) or 1 for x2 in re.findall(r"fma\.rn\.f32(x2)?", built.ptx))
            assert fused == 2 * OF_A_THREAD * choices, where
            assert "fma.rn.f64" not in built.ptx, where


@needs_triton
@pytest.mark.parametrize(
    ("recipe", "instructions"), [(MX, 14.0), (NV, 21.0)], ids=lambda value: str(value)[:40]
)
def test_a_thread_has_whole_blocks(recipe: Recipe, instructions: float) -> None:
    """Nothing goes through shared memory or to other threads, and there is little of it."""
    from fp4kernels.triton.offline import compile_kernel
    from fp4kernels.triton.quantize_launch import quantize_sources

    built = compile_kernel(quantize_sources((4096, 4096), torch.bfloat16, recipe)[0], 90)
    assert built.shared_bytes == 0
    assert built.instructions["SHFL"] == 0
    assert re.findall(r"LDG\.E\.128", built.sass) == ["LDG.E.128"] * 4
    assert len(re.findall(r"STG\.E\.128", built.sass)) == 1
    assert sum(built.instructions.values()) / OF_A_THREAD <= instructions


@needs_triton
@pytest.mark.parametrize(
    ("recipe", "arch"), [(BY_CHANCE[1], 90), (ROTATED[1], 90), (ROTATED[-1], 100)],
    ids=lambda v: f"{v.rounding}-{v.transform}" if isinstance(v, Recipe) else str(v),
)  # fmt: skip
def test_what_else_a_thread_does_without_others(recipe: Recipe, arch: int) -> None:
    """Up to 128 values that are transformed together, of which the codes are made part by part."""
    from fp4kernels.triton.offline import compile_kernel
    from fp4kernels.triton.quantize_launch import quantize_sources

    for source in quantize_sources((4096, 4096), torch.bfloat16, recipe):
        built = compile_kernel(source, arch)
        assert built.spills == built.instructions["SHFL"] == 0
        assert built.shared_bytes == 0 or "amax" in built.name


@needs_triton
@pytest.mark.parametrize("arch", [100, 120])
@pytest.mark.parametrize("recipe", [MX, NV], ids=lambda r: r.name)
def test_conversion_by_hardware(recipe: Recipe, arch: int) -> None:
    """One instruction for two values, where the chip has it; by chance it is not for use."""
    from fp4kernels.triton.offline import compile_kernel
    from fp4kernels.triton.quantize_launch import quantize_sources

    converted = "cvt.rn.satfinite.e2m1x2.f32"
    chance = replace(recipe, rounding=Rounding.STOCHASTIC)
    for how, count in ((recipe, OF_A_THREAD // 2), (chance, 0)):
        source = quantize_sources((4096, 4096), torch.bfloat16, how, converts=True)[0]
        built = compile_kernel(source, arch)
        assert built.ptx.count(converted) == count
        assert len(re.findall(r"F2FP\S*E2M1", built.sass)) == count
        assert built.spills == built.shared_bytes == 0


@needs_triton
def test_what_it_takes() -> None:
    from fp4kernels.triton.quantize_launch import quantize, quantizes

    assert all(
        quantizes(recipe, dtype)
        for recipe in (*TAKEN, *BY_ROW, *BY_CHANCE, *ROTATED)
        for dtype in DTYPES
    )
    others = [r for r in RECIPES.values() if r.format not in (MX.format, NV.format)]
    others += [
        replace(r, scale_rule=rule) for r in (MX, NV) for rule in rules_for(r.format)
        if (r.format, rule) not in [(taken.format, taken.scale_rule) for taken in (*TAKEN, *BY_ROW)]
    ]  # fmt: skip
    others.append(replace(MX, transform=Transform.CENTER))
    others.append(replace(MX, outliers=Outliers(0.99, compensate=False)))
    assert len(others) > 15
    for recipe in others:
        assert not quantizes(recipe, torch.float32)
        with pytest.raises(FormatError, match=f"but got {recipe.format.name} with"):
            quantize(torch.ones(32, 128), recipe)
    with pytest.raises(FormatError, match=r"of torch\.float64"):
        quantize(torch.ones(32, 128).double(), MX)


@needs_triton
def test_wrong_arguments_are_refused() -> None:
    from fp4kernels.triton.quantize_launch import MOST_BLOCKS, quantize

    with pytest.raises(FormatError, match="multiple of 32"):
        quantize(torch.ones(2, 40), MX)
    with pytest.raises(FormatError, match="mxfp4 has no tensor scale"):
        quantize(torch.ones(2, 32), MX, torch.ones(()))
    with pytest.raises(FormatError, match=r"one float32 on cpu, but got \(2,\) of torch\.float32"):
        quantize(torch.ones(2, 32), NV, torch.ones(2))
    with pytest.raises(FormatError, match="hadamard-64 needs K to be a positive multiple of 64"):
        quantize(torch.ones(2, 32), replace(MX, transform=Transform.HADAMARD_64))
    with pytest.raises(FormatError, match="stochastic rounding takes a chance"):
        quantize(torch.ones(2, 32), BY_CHANCE[0])
    with pytest.raises(FormatError, match="nearest-even rounding takes no chance"):
        quantize(torch.ones(2, 32), MX, chance=Philox(0))
    with pytest.raises(FormatError, match=f"at most {MOST_BLOCKS} blocks"):
        quantize(torch.ones(1, 16).expand(MOST_BLOCKS + 1, 16), NV)


@needs_triton
def test_the_op_takes_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as that can be shown without one."""
    from fp4kernels.triton import quantize_launch

    class OnGpu(torch.Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]

    wanted = Packed(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    surroundings = (H100, TOOLCHAIN)
    monkeypatch.setattr(ops, "surroundings", lambda kind: surroundings)
    monkeypatch.setattr(quantize_launch, "quantize", lambda x, recipe, amax: wanted)
    monkeypatch.setattr(ops.reference, "quantize", lambda x, recipe: None)
    x = torch.ones(2, 32).as_subclass(OnGpu)
    assert ops._quantize(x, MX) is wanted
    assert ops._quantize(x, replace(NV, scale_rule=ScaleRule.NV_CLAMPED)) is None
    surroundings = (H100, replace(TOOLCHAIN, triton=None))
    assert ops._quantize(x, MX) is None
    surroundings = (replace(H100, arch="sm_75"), TOOLCHAIN)
    assert ops._quantize(x, MX) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "recipe", [*TAKEN, *BY_ROW, *BY_CHANCE, *ROTATED],
    ids=lambda r: f"{r.name}-{r.scale_rule}-{r.rounding}-{r.transform}",
)  # fmt: skip
def test_bytes_on_a_gpu(recipe: Recipe, dtype: torch.dtype) -> None:
    from fp4kernels import reference
    from fp4kernels.transforms import transformed
    from fp4kernels.triton.quantize_launch import quantize

    x = torch.randn(513, 1152, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0], x[1] = -0.0, x[1] * 1e-6
    chance = None if recipe.rounding is Rounding.NEAREST_EVEN else Philox(11)
    turned, _ = transformed(x, recipe.transform)
    wanted = reference.quantize(turned, recipe, chance)
    for ours, theirs in zip(quantize(x.cuda(), recipe, chance=chance), wanted, strict=True):
        assert torch.equal(ours.cpu(), theirs)
