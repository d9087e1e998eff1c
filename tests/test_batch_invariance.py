"""Batch-invariant products: a row has the same bits in every batch, and others have not."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fp4kernels
from fp4bench.proof.targets import ARCHES
from fp4kernels import gate
from fp4kernels.cpu.gemm import CppConfig, CppGemm
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError, LayoutError, TableError
from fp4kernels.layouts import Layout, convert
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES
from fp4kernels.registry import STEADY_M, VARIANTS, default_candidate, variant
from fp4kernels.tables import Plan, Table
from fp4kernels.torch_gemm import TorchConfig
from fp4kernels.triton.expand_dense import ExpandConfig
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload

SIZES = (1, 3, 17, 64, 200)
GPU_TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
ON_CPU = [
    ("mxfp4", Layout.PANEL16), ("mxfp4", Layout.CANONICAL), ("mxfp4-w4a16", Layout.CANONICAL),
    ("nvfp4-w4a16", Layout.CANONICAL), ("mxfp8-e4m3", Layout.CANONICAL),
]  # fmt: skip


def normal(rows: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("recipe", "layout"), ON_CPU)
def test_rows_have_the_same_bits_in_every_batch(recipe: str, layout: Layout) -> None:
    w = fp4kernels.quantize(normal(83, 288, 1), recipe).to_layout(layout)
    x = normal(max(SIZES), 288)
    whole = fp4kernels.linear(x, w, batch_invariant=True)
    for m in SIZES:
        for first in {0, max(SIZES) - m, (max(SIZES) - m) // 2}:
            part = fp4kernels.linear(x[first : first + m], w, batch_invariant=True)
            assert torch.equal(part, whole[first : first + m]), (m, first)
    allowed = 2 * gate.OUTPUT_UNIT[torch.float32] * 4 * (1 + math.log2(288))  # of both sums
    left = (
        x.bfloat16().float()
        if w.recipe.weight_only
        else fp4kernels.quantize(x, recipe).dequantize()
    )
    magnitude = left.abs() @ w.dequantize().abs().T
    assert ((fp4kernels.linear(x, w) - whole).abs() <= allowed * magnitude).all()


def test_a_row_does_not_see_which_way_others_take() -> None:
    """C++ has a slow way for NaN, and for scales whose products leave float32's normal numbers."""
    w = fp4kernels.quantize(normal(40, 64, 1), "mxfp4").to_layout(Layout.PANEL16)
    x = normal(5, 64)
    alone = fp4kernels.linear(x, w, batch_invariant=True)
    for strange in (float("nan"), 1e-38, 1e30):
        beside = torch.cat([x, torch.full((1, 64), strange)])
        assert torch.equal(fp4kernels.linear(beside, w, batch_invariant=True)[:5], alone)


def test_tensor_scales_of_any_size_leave_no_trace_of_the_way(
    cpu: Device, toolchain: Toolchain
) -> None:
    w, x = (fp4kernels.quantize(normal(rows, 64, rows), "nvfp4").packed for rows in (40, 5))
    held = convert(w, 40, RECIPES["nvfp4"].format, Layout.CANONICAL, Layout.PANEL16)
    large = torch.tensor(2.0**62)
    x.scales.fill_(1)  # 2^-9, and so the sums stay finite
    held.scales[64:].fill_(1)  # after the header
    lost = torch.cat([x.scales, torch.full((1, 4), 0x7F, dtype=torch.uint8)])
    codes = torch.cat([x.codes, x.codes[:1]])
    launch = CppGemm().build(CppConfig(4, 4, 0, 128, 1, 0), RECIPES["nvfp4"], cpu, toolchain)
    alone, beside = torch.empty(5, 40), torch.empty(6, 40)
    launch(Packed(x.codes, x.scales, large), held._replace(tensor_scale=large), alone)
    launch(Packed(codes, lost, large), held._replace(tensor_scale=large), beside)
    assert alone.isfinite().any()
    assert torch.equal(alone, beside[:5])


def chosen(m: int, recipe: str, device: Device, toolchain: Toolchain, steady: bool) -> Candidate:
    work = GemmWorkload(m, 4096, 4096)
    return default_candidate(work, RECIPES[recipe], device, toolchain, batch_invariant=steady)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("recipe", ["mxfp4", "nvfp4-w4a16"])
def test_one_configuration_for_every_m_on_a_gpu(arch: str, recipe: str) -> None:
    for steady, most in ((True, 1), (False, 5)):
        found = {chosen(m, recipe, ARCHES[arch], GPU_TOOLCHAIN, steady) for m in SIZES}
        assert len(found) == most if steady else 1 < len(found) <= most
    only = chosen(1, recipe, ARCHES[arch], GPU_TOOLCHAIN, True)
    assert only == chosen(STEADY_M, recipe, ARCHES[arch], GPU_TOOLCHAIN, False)


def test_cpp_keeps_what_suits_m(cpu: Device, toolchain: Toolchain) -> None:
    for m in SIZES:
        mine = chosen(m, "mxfp4", cpu, toolchain, False)
        assert chosen(m, "mxfp4", cpu, toolchain, True) == mine
    assert len({chosen(m, "mxfp4", cpu, toolchain, False) for m in SIZES}) > 1


def test_every_variant_says_whether_it_can() -> None:
    varying = {name for name, kernel in VARIANTS.items() if kernel.varies is not None}
    assert varying == {"expand_dense", "torch_expand"}


def test_one_scale_for_all_rows_is_refused() -> None:
    w = fp4kernels.quantize(normal(32, 64), "nvfp4")
    with pytest.raises(
        FormatError, match="nvfp4 has one scale for all of them; use a recipe of mx"
    ):
        fp4kernels.linear(normal(2, 64), w, batch_invariant=True)


def table_of(*buckets: tuple[int, Candidate]) -> Table:
    device = ARCHES["sm_90"]
    plan = Plan(tuple(buckets))
    return Table(device, GPU_TOOLCHAIN, {("gemm", 32, 64, "mxfp4"): plan})


def cpp(mr: int) -> Candidate:
    config = CppConfig(mr, 1, 0, 128, 1, 0)
    return Candidate("mxfp4", "cpp_w4a4", Layout.PANEL16, config)


def dense(name: str, config: TorchConfig | ExpandConfig) -> Candidate:
    return Candidate("mxfp4", name, Layout.CANONICAL, config)


def test_a_table_runs_one_of_its_kernels() -> None:
    kernel = variant("decode_canonical")
    small, middle, large = (
        Candidate("mxfp4", kernel.name, kernel.layout, kernel.default(
            GemmWorkload(m, 4096, 4096), RECIPES["mxfp4"], ARCHES["sm_90"]
        )) for m in (1, 48, 512)
    )  # fmt: skip
    floor = dense("expand_dense", ExpandConfig(4, 4))
    plan = Plan(((1, small), (48, middle), (512, large)))
    assert {plan.choose_steady(m) for m in SIZES} == {large}  # the bucket that holds 64
    plan = Plan(((1, small), (48, middle), (512, floor)))
    assert {plan.choose_steady(m) for m in SIZES} == {middle}
    plan = Plan(((1, cpp(1)), (64, cpp(4))))
    assert [plan.choose_steady(m) for m in (1, 64)] == [cpp(1), cpp(4)]


def test_a_table_without_such_a_kernel_says_so() -> None:
    plan = Plan(((8, dense("torch_expand", TorchConfig())),))
    with pytest.raises(TableError, match="torch_expand multiplies by a library that chooses by M"):
        plan.choose_steady(1)


def test_linear_with_a_table() -> None:
    table = table_of((1, cpp(1)), (64, cpp(4)))
    w = table.arrange(fp4kernels.quantize(normal(32, 64, 1), "mxfp4"))
    x = normal(200, 64)
    whole = fp4kernels.linear(x, w, table=table, batch_invariant=True)
    assert torch.equal(fp4kernels.linear(x[:1], w, table=table, batch_invariant=True), whole[:1])


def test_a_layout_that_nothing_reads_is_refused() -> None:
    w = fp4kernels.quantize(normal(32, 128), "mxfp4").to_layout(Layout.INTERLEAVED)
    with pytest.raises(LayoutError, match="reads a mxfp4 weight as interleaved"):
        fp4kernels.linear(normal(2, 128), w, batch_invariant=True)


def test_whole_under_compile() -> None:
    w = fp4kernels.quantize(normal(32, 64), "mxfp4").to_layout(Layout.PANEL16)

    def model(x: Tensor) -> Tensor:
        return fp4kernels.linear(x, w, batch_invariant=True) * 2

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(normal(3, 64)), model(normal(3, 64)))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_rows_have_the_same_bits_in_triton() -> None:
    """Two shares of K, tails in M and N."""
    cases = [
        ("decode_bf16", "mxfp4-w4a16", (40, 512)), ("decode_canonical", "nvfp4-w4a16", (40, 512)),
        ("dot_scaled", "nvfp4-w4a16", (40, 128)), ("fold_fp8", "mxfp4-row-14", (40, 256)),
    ]  # fmt: skip
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interpret_invariance.py"))],
        input=json.dumps(cases), capture_output=True, text=True, timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    answers = json.loads(result.stdout)
    if answers == ["skip"]:
        pytest.skip("this interpreter's loops need numpy < 2.4")
    assert answers == [None] * len(cases)
