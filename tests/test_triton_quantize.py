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
from fp4kernels.recipes import RECIPES, Recipe, Rounding, ScaleRule, rules_for

ROOT = Path(__file__).parent.parent
MX, NV = RECIPES["mxfp4"], RECIPES["nvfp4"]
TAKEN = [
    *(replace(MX, scale_rule=ScaleRule(rule)) for rule in ("floor", "ceil", "rceil", "even")),
    NV,
]  # fmt: skip
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
H100 = Device("cuda", "H100", "sm_90", 132, 50 << 20, 227 << 10, 80 << 30)
TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@needs_triton
@pytest.mark.parametrize("check", ["same", "every_scale", "given_amax", "layouts"])
def test_bytes_are_those_of_the_reference(check: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interpret_quantize.py"), check],
        capture_output=True, text=True, timeout=120, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout) == []


BUILDS = [
    *((recipe, torch.bfloat16, False) for recipe in TAKEN),
    *((recipe, dtype, False) for recipe in (MX, NV) for dtype in DTYPES[1:]),
    *((recipe, torch.bfloat16, True) for recipe in (MX, NV)),
]


@needs_triton
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_it_compiles_offline(arch: int) -> None:
    from fp4kernels.triton.offline import compile_kernel
    from fp4kernels.triton.quantize_launch import quantize_sources

    for recipe, dtype, swizzle in BUILDS:
        sources = quantize_sources((4096, 4096), dtype, recipe, swizzle=swizzle)
        assert len(sources) == (2 if recipe is NV else 1)
        for source in sources:
            built = compile_kernel(source, arch)
            where = f"{built.name}, {recipe.name} {recipe.scale_rule} of {dtype}"
            assert built.spills == 0, where
            loads = re.findall(r"ld\.global\S*\.v(\d)\.b32", built.ptx)
            values_a_load = 4 * 4 // dtype.itemsize
            of_threads = 4096 // 128 * (4 if "amax" in built.name else 1)
            assert loads == ["4"] * (of_threads // values_a_load), where  # 16 bytes each
            # products round before sums, quotients to nearest, and subnormals are numbers
            for inexact in ("fma.rn", "div.full", "div.approx", ".ftz"):
                assert inexact not in built.ptx, f"{inexact} in {where}"


@needs_triton
def test_what_it_takes() -> None:
    from fp4kernels.triton.quantize_launch import quantize, quantizes

    assert all(quantizes(recipe, dtype) for recipe in TAKEN for dtype in DTYPES)
    others = [r for r in RECIPES.values() if r.format not in (MX.format, NV.format)]
    others += [
        replace(r, scale_rule=rule) for r in (MX, NV) for rule in rules_for(r.format)
        if (r.format, rule) not in [(taken.format, taken.scale_rule) for taken in TAKEN]
    ]  # fmt: skip
    others.append(replace(MX, rounding=Rounding.STOCHASTIC))
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
    monkeypatch.setattr(ops, "_surroundings", lambda kind: surroundings)
    monkeypatch.setattr(quantize_launch, "quantize", lambda x, recipe: wanted)
    monkeypatch.setattr(ops.reference, "quantize", lambda x, recipe: None)
    x = torch.ones(2, 32).as_subclass(OnGpu)
    assert ops._quantize(x, MX) is wanted
    assert ops._quantize(x, replace(MX, scale_rule=ScaleRule.FLOOR_3_4)) is None
    surroundings = (H100, replace(TOOLCHAIN, triton=None))
    assert ops._quantize(x, MX) is None
    surroundings = (replace(H100, arch="sm_75"), TOOLCHAIN)
    assert ops._quantize(x, MX) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recipe", TAKEN, ids=lambda r: f"{r.name}-{r.scale_rule}")
def test_bytes_on_a_gpu(recipe: Recipe, dtype: torch.dtype) -> None:
    from fp4kernels import reference
    from fp4kernels.triton.quantize_launch import quantize

    x = torch.randn(513, 1056, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0], x[1] = -0.0, x[1] * 1e-6
    for ours, wanted in zip(quantize(x.cuda(), recipe), reference.quantize(x, recipe), strict=True):
        assert torch.equal(ours.cpu(), wanted)
