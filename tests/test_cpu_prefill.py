"""FP4 prefill in C++: every instruction set that this machine runs, against the simulation."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

import fp4kernels
from fp4kernels.attention.accuracy import errors
from fp4kernels.attention.operands import prepare
from fp4kernels.attention.problem import Segments, mask_named
from fp4kernels.attention.recipes import K8V4_ATTENTION, attention_recipe
from fp4kernels.attention.simulate import simulate
from fp4kernels.attention.synthetic import inputs
from fp4kernels.cpu.attention_prefill import PrefillKernel, prefill
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.scales import ScaleFormat
from test_cpu_gemm import with_isa

ISAS = ["avx512vnni", "avx2", "portable"]
# float32 sums in another order, and an exp2 beside a tie of P's rounding
LEAST_DB, MOST_LSE = 70.0, 1e-5
CASES = [  # recipe, head dim, group, kv heads, lengths, mask, window, inputs
    ("nvfp4", 64, 4, 1, [(70, 130)], "causal", None, "outliers"),
    ("nvfp4,reverse=1", 128, 1, 1, [(70, 140)], "causal", None, "sink"),
    ("nvfp4-single,round_scale=0", 96, 1, 2, [(1, 130), (0, 3), (40, 40), (0, 0)], "causal", None,
     "gaussian"),
    ("nvfp4,rotate=1,smooth_q=0,p_scale=448", 64, 8, 1, [(20, 129), (5, 0), (3, 64)], "full", None,
     "biased-k"),
    ("mxfp4", 128, 1, 1, [(200, 300)], "sliding", 50, "gaussian"),
    ("mxfp4,smooth_q=0,smooth_k=0,reverse=1", 256, 1, 1, [(66, 90)], "sliding", 30, "gaussian"),
    ("mxfp4,p_scale=2688", 64, 1, 1, [(64, 64), (30, 150)], "full", None, "outliers"),
]  # fmt: skip
# plain C++ is one for all: two cases are enough where there is no AVX-512
PATHS = [(isa, case) for isa in ISAS for case in (CASES if isa == ISAS[0] else CASES[2::4])]


def kernel_for(recipe: str, head_dim: int, device: Device, toolchain: Toolchain) -> PrefillKernel:
    nvfp4 = attention_recipe(recipe).k.format.scale is ScaleFormat.E4M3
    return PrefillKernel(nvfp4, head_dim, device, toolchain)


@pytest.mark.parametrize(
    ("isa", "case"), PATHS, ids=lambda x: x if isinstance(x, str) else f"{x[0]}-{x[1]}"
)
def test_prefill_is_the_simulation(
    isa: str, case: tuple[str, int, int, int, list[tuple[int, int]], str, int | None, str],
    cpu: Device, toolchain: Toolchain,
) -> None:  # fmt: skip
    recipe, head_dim, group, kv_heads, lengths, kind, window, drawn = case
    how, mask, scale = attention_recipe(recipe), mask_named(kind, window), head_dim**-0.5
    cu_q, cu_k = (tuple(itertools.accumulate(n, initial=0)) for n in zip(*lengths, strict=True))
    q, k, v = inputs(drawn, cu_q[-1], cu_k[-1], group * kv_heads, kv_heads, head_dim)
    operands = prepare(q, k, v, Segments(cu_q, cu_k), how, scale)
    out, lse = kernel_for(recipe, head_dim, with_isa(cpu, isa), toolchain)(
        operands, how, mask, scale
    )
    want, want_lse = simulate(operands, how, mask, scale, head_dim)
    assert torch.equal(lse == -math.inf, want_lse == -math.inf)
    assert torch.equal(out[(lse == -math.inf).T], want[(lse == -math.inf).T])
    found = errors(out, lse, want, want_lse)
    assert found.sqnr >= LEAST_DB
    assert found.lse < MOST_LSE


def test_the_result_does_not_depend_on_the_number_of_threads(
    cpu: Device, toolchain: Toolchain
) -> None:
    q, k, v = inputs("gaussian", 140, 200, 4, 2, 64)
    how = attention_recipe("nvfp4")
    operands = prepare(q, k, v, Segments((0, 140), (0, 200)), how, 0.1)
    outs = [
        kernel_for("nvfp4", 64, dataclasses.replace(cpu, cores=cores), toolchain)(
            operands, how, mask_named("causal"), 0.1
        )
        for cores in (1, 2, 5)
    ]
    assert all(all(map(torch.equal, outs[0], other)) for other in outs[1:])


@pytest.mark.parametrize(("recipe", "share"), [
    ("nvfp4", 1.0), ("mxfp4", 1.0), ("nvfp4,reverse=1", 1.0), ("nvfp4,p_scale=1", 1.03125),
])  # fmt: skip
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_magnitude(head_dim: int, recipe: str, share: float) -> None:
    """Q = K = 0 and V = 1 give 1 and ln S; as test_attention_simulation has it."""
    zeros, ones = torch.zeros(1, 200, 2, head_dim), torch.ones(1, 200, 2, head_dim)
    out, lse = fp4kernels.attention(zeros, zeros, ones, recipe=recipe)
    torch.testing.assert_close(out, ones * share, rtol=1e-6, atol=0)
    torch.testing.assert_close(lse, torch.full((1, 2, 200), math.log(200)))


def rounded(p: Tensor, recipe: str, cpu: Device, toolchain: Toolchain) -> tuple[Tensor, Tensor]:
    """What P [keys] is taken for by the kernel, and by the simulation: V tells its keys apart."""
    how = attention_recipe(recipe)
    keys = len(p)
    q, k = torch.zeros(1, 1, 64), torch.zeros(keys, 1, 64)
    q[..., 0] = 1
    k[:, 0, 0] = p.log()
    outs: list[Tensor] = []
    for first in range(0, keys, 64):
        v = torch.zeros(keys, 1, 64)
        v[first : first + 64, 0] = torch.eye(64)[: keys - first]
        operands = prepare(q, k, v, Segments((0, 1), (0, keys)), how, 1.0)
        kernel = kernel_for(recipe, 64, cpu, toolchain)
        outs.append(torch.stack([
            kernel(operands, how, mask_named("full"), 1.0)[0],
            simulate(operands, how, mask_named("full"), 1.0, 64)[0],
        ]).flatten(1))  # fmt: skip
    ours, theirs = torch.cat(outs, 1)
    return ours, theirs


@pytest.mark.parametrize("recipe", [
    "nvfp4,smooth_q=0,smooth_k=0", "nvfp4,smooth_q=0,smooth_k=0,round_scale=0,p_scale=1",
    "mxfp4,smooth_q=0,smooth_k=0",
])  # fmt: skip
def test_every_weight_is_rounded_alike(recipe: str, cpu: Device, toolchain: Toolchain) -> None:
    """Weights over 30 powers of two, one after the other, and beside zeros."""
    p = torch.exp2(-torch.arange(128) / 4)
    ours, theirs = rounded(p, recipe, cpu, toolchain)
    assert int((theirs != 0).sum()) > 20
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_other_recipes_and_head_dims_are_refused(cpu: Device, toolchain: Toolchain) -> None:
    q, k, v = inputs("gaussian", 4, 4, 1, 1, 64)
    how = attention_recipe("nvfp4")
    operands = prepare(q, k, v, Segments((0, 4), (0, 4)), how, 0.1)
    with pytest.raises(FormatError, match="prefill multiplies FP4 under one kind of scale"):
        prefill(operands, K8V4_ATTENTION, mask_named("full"), 0.1, 64)
    with pytest.raises(FormatError, match="head dim must be one of"):
        PrefillKernel(True, 72, cpu, toolchain)
