"""What is quantized on the way out of another step: its bytes, and what it compiles to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fp4kernels import reference
from fp4kernels.errors import FormatError
from fp4kernels.fusion import quantize_fused, quantize_with_transpose
from fp4kernels.packing import Packed
from fp4kernels.philox import Philox
from fp4kernels.prologues import Prologue, RmsNorm, SwiGlu
from fp4kernels.recipes import Recipe, Rounding, ScaleRule, Transform
from fp4kernels.swizzle import swizzled
from fp4kernels.targets import Target
from fp4kernels.transforms import transformed
from test_triton_quantize import BY_ROW, DTYPES, MX, NV, OF_A_THREAD, ROOT, needs_triton

TURNED = replace(NV, transform=Transform.HADAMARD_16)
BY_CHANCE = replace(NV, rounding=Rounding.STOCHASTIC)
K = 4096


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


@needs_triton
def test_bytes_are_those_of_the_steps_one_by_one() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interpret_fused.py")],
        capture_output=True, text=True, timeout=200, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout) == []


BUILDS: list[tuple[str, Recipe, Prologue | None, tuple[int, int]]] = [
    ("sm_90", TURNED, RmsNorm(meta(K)), (K, K)),
    ("sm_90", BY_ROW[0], None, (K, K)),
    ("sm_90", MX, SwiGlu(meta(K, K)), (K, K)),
    ("sm_100", BY_ROW[1], RmsNorm(meta(5 * K)), (K, 5 * K)),  # in chunks
    ("gfx950", MX, SwiGlu(), (K, 2 * K)),
]


@needs_triton
@pytest.mark.parametrize("build", BUILDS, ids=lambda b: f"{b[0]}-{b[1].name}-{type(b[2]).__name__}")
def test_it_compiles_offline(
    build: tuple[str, Recipe, Prologue | None, tuple[int, int]],
) -> None:
    """The script check_quantize.py does so for all devices."""
    from fp4kernels.triton.offline import compile_for
    from fp4kernels.triton.quantize_launch import quantize_sources

    arch, recipe, prologue, shape = build
    for source in quantize_sources(shape, torch.bfloat16, recipe, prologue=prologue):
        built = compile_for(source, arch)
        where = built.name
        assert built.spills == 0, where
        if not built.ptx:
            continue
        if shape[1] <= 2 * K:  # a row is read once, by 16 bytes, and held
            loads = re.findall(r"ld\.global\S*\.v(\d)\.b32", built.ptx)
            tiles = 4 if built.name == "amax_kernel" else 1
            operands = 1 if prologue is None else 2
            assert loads == ["4"] * (operands * tiles * OF_A_THREAD // 8), where
        inexact = {*re.findall(r"\w+\.(?:full|approx)[\w.]*|\w+\.rn\.ftz[\w.]*", built.ptx)}
        allowed = {"div.full.f32", "ex2.approx.ftz.f32"}  # of silu alone
        assert inexact <= (allowed if isinstance(prologue, SwiGlu) else set()), where
        assert ("sqrt.rn.f32" in built.ptx) == isinstance(prologue, RmsNorm), where
        nearest = 0 if "amax" in built.name else 2 * OF_A_THREAD  # the exact ones of codes.nearest
        fused = sum(len(x2) or 1 for x2 in re.findall(r"fma\.rn\.f32(x2)?", built.ptx))
        assert fused == nearest, where


@needs_triton
@pytest.mark.parametrize("arch", ["sm_90", "gfx950"])
def test_the_transpose_compiles_offline(arch: str) -> None:
    from fp4kernels.triton.both_launch import both_sources
    from fp4kernels.triton.offline import compile_for

    for source in both_sources((K, K), torch.bfloat16, (Target(NV), Target(TURNED))):
        built = compile_for(source, arch)
        assert built.spills == 0, built.name
        if built.ptx:  # a thread has whole blocks: of two rows, and of two columns
            loads = re.findall(r"ld\.global\S*?(\.v4)?\.b32", built.ptx)
            along, amaxes = 2 * OF_A_THREAD // 8, 0 if "amax" in built.name else 2
            assert loads.count(".v4") == along
            assert loads.count("") == OF_A_THREAD + amaxes
            assert built.instructions["SHFL"] == 0


def test_prologues_are_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(9, 256, generator=generator), torch.randn(256, generator=generator)
    for dtype in DTYPES:
        one, other = x.to(dtype), weight.to(dtype)
        ours = RmsNorm(other, 1e-5).applied(one)
        assert torch.equal(ours, functional.rms_norm(one, (256,), other, 1e-5))
        assert torch.equal(SwiGlu(one).applied(one * 2), functional.silu(one * 2) * one)
        halves = torch.cat((one * 2, one), -1)
        assert torch.equal(SwiGlu().applied(halves), SwiGlu(one).applied(one * 2))


def test_the_plain_way() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    norm, chance = RmsNorm(torch.ones(256)), Philox(3)
    normal, _ = transformed(norm.applied(x), TURNED.transform)
    how = replace(TURNED, rounding=Rounding.STOCHASTIC)
    wanted = reference.quantize(normal, how, chance)
    ours = quantize_fused(x, Target(how, chance=chance), prologue=norm, swizzle=True)
    assert torch.equal(ours.codes, wanted.codes)
    assert torch.equal(ours.scales, swizzled(wanted.scales))
    raised = torch.tensor(5)
    x[:, 32:] *= 2.0**-15
    quantize_fused(x, Target(BY_ROW[0]), raised=raised)
    assert raised - 5 == reference.count_raised(x, BY_ROW[0]) > 0
    pair = quantize_with_transpose(x, Target(MX), Target(NV), prologue=SwiGlu(x * 2))
    y = SwiGlu(x * 2).applied(x)
    for one, other in zip(pair, ((y, MX), (y.mT, NV)), strict=True):
        for a, b in zip(one, reference.quantize(*other), strict=True):
            assert torch.equal(a, b)


def test_what_does_not_go_together_is_refused() -> None:
    x, one = torch.ones(32, 64), torch.ones(())
    with pytest.raises(FormatError, match=r"weight of rms_norm must be \(64,\) on cpu"):
        quantize_fused(x, Target(MX), prologue=RmsNorm(torch.ones(32)))
    with pytest.raises(
        FormatError, match=r"must be torch\.float32 or float32, but got torch\.float16"
    ):
        quantize_fused(x, Target(MX), prologue=RmsNorm(torch.ones(64).half()))
    with pytest.raises(FormatError, match=r"up must be \(32, 64\) of torch\.float32"):
        quantize_fused(x, Target(MX), prologue=SwiGlu(x[:3]))
    with pytest.raises(FormatError, match=r"halves K, but got shape \(32, 63\)"):
        quantize_fused(x[:, :63], Target(MX), prologue=SwiGlu())
    with pytest.raises(FormatError, match="multiple of 32"):
        quantize_fused(x[:, :48], Target(MX), prologue=SwiGlu())
    with pytest.raises(FormatError, match="floor raises no scales"):
        quantize_fused(x, Target(MX), raised=torch.tensor(0))
    with pytest.raises(FormatError, match="raised must be one int64 on cpu"):
        quantize_fused(x, Target(BY_ROW[0]), raised=one)
    with pytest.raises(FormatError, match="mxfp4 has no tensor scale"):
        quantize_with_transpose(x, Target(MX, one), Target(MX))
    with pytest.raises(FormatError, match="stochastic rounding takes a chance"):
        quantize_fused(x, Target(BY_CHANCE))
    with pytest.raises(FormatError, match="looks at whole rows, but got RmsNorm"):
        quantize_with_transpose(x, Target(MX), Target(MX), prologue=RmsNorm(torch.ones(64)))  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="scales of mxfp4-row-14 depend on whole rows"):
        quantize_with_transpose(x, Target(MX), Target(BY_ROW[0]))
    with pytest.raises(FormatError, match="needs a matrix"):
        quantize_with_transpose(x.view(2, 16, 64), Target(MX), Target(MX))
    with pytest.raises(FormatError, match="multiple of 32"):
        quantize_with_transpose(x[:16], Target(MX), Target(MX))


FUSED = [
    (MX, RmsNorm), (TURNED, RmsNorm), (BY_ROW[0], RmsNorm), (BY_CHANCE, RmsNorm), (MX, SwiGlu),
    (NV, SwiGlu), (BY_ROW[1], SwiGlu), (replace(NV, scale_rule=ScaleRule.FOUR_SIX_MSE), SwiGlu),
]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("recipe", "kind"), FUSED, ids=lambda v: getattr(v, "__name__", getattr(v, "name", ""))
)
@pytest.mark.parametrize("k", [1152, 16384 + 128])
def test_bytes_on_a_gpu(recipe: Recipe, kind: type, dtype: torch.dtype, k: int) -> None:
    """Of what the kernels' own arithmetic makes of x; and that is near what torch makes of it."""
    from fp4kernels.triton.quantize_config import QuantizeConfig
    from prologue_kernels import normal

    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(129, k, generator=generator).to(dtype).cuda() for _ in range(2))
    prologue = RmsNorm(other[0]) if kind is RmsNorm else SwiGlu(other)
    chance = None if recipe.rounding is Rounding.NEAREST_EVEN else Philox(11)
    y = normal(x, recipe, prologue, QuantizeConfig())
    assert torch.allclose(y, prologue.applied(x), rtol=2 * torch.finfo(dtype).eps + 2.0**-16)
    raised = None if recipe.window is None else torch.zeros((), dtype=torch.int64, device="cuda")
    ours = quantize_fused(x, Target(recipe, chance=chance), prologue=prologue, raised=raised)
    turned, _ = transformed(y.cpu(), recipe.transform)
    _assert_equal(ours, reference.quantize(turned, recipe, chance))
    if raised is not None:
        assert raised.cpu() == reference.count_raised(turned, recipe)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("other", [MX, TURNED, BY_CHANCE], ids=lambda r: f"{r.name}-{r.transform}")
def test_a_transpose_on_a_gpu(other: Recipe, dtype: torch.dtype) -> None:
    x = torch.randn(544, 1152, generator=torch.Generator().manual_seed(0)).to(dtype)
    chance = None if other.rounding is Rounding.NEAREST_EVEN else Philox(11)
    pair = quantize_with_transpose(x.cuda(), Target(NV), Target(other, chance=chance))
    _assert_equal(pair[0], reference.quantize(x, NV))
    turned, _ = transformed(x.mT, other.transform)
    _assert_equal(pair[1], reference.quantize(turned, other, chance))


def _assert_equal(ours: Packed, wanted: Packed) -> None:
    for one, other in zip(ours, wanted, strict=True):
        assert torch.equal(one.cpu(), other)
