"""Epilogues of the GEMM: fused in Triton, a pass of their own elsewhere, against float64."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fp4kernels
from fp4bench.proof.targets import ARCHES
from fp4kernels import finished_gate, gate
from fp4kernels.devices import Device, Toolchain
from fp4kernels.epilogues import (
    PLAIN,
    Activation,
    Added,
    Epilogue,
    beside,
    finished,
    interleaved,
    write,
)
from fp4kernels.errors import FormatError
from fp4kernels.layouts import Layout
from fp4kernels.ops import linear_finished_op
from fp4kernels.packing import Packed
from fp4kernels.qtensor import QTensor
from fp4kernels.recipes import RECIPES
from fp4kernels.registry import VARIANTS, variant
from fp4kernels.torch_gemm import TorchConfig, TorchGemm
from fp4kernels.triton.finishing import FinishingVariant
from fp4kernels.triton.gemm import DecodeConfig
from fp4kernels.workloads import GemmWorkload

CPU = torch.device("cpu")
RECIPE = RECIPES["mxfp4"]
EVERY = [*itertools.product(Activation, ("", "mxfp4", "nvfp4"))]
SHAPES = {Activation.SWIGLU: (21, 192, 288)}  # else N = 96: three blocks of 32

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def case_for(activation: Activation, data: str = "outliers", recipe: str = "mxfp4") -> gate.Case:
    shape = SHAPES.get(activation, (21, 96, 288))
    return gate.synthetic_case(data, RECIPES[recipe], shape, 3, CPU)


@pytest.mark.parametrize(("activation", "following"), EVERY)
@pytest.mark.parametrize("name", ["cpp_w4a4", "torch_rows"])
def test_unfused_passes_the_gate(
    name: str, activation: Activation, following: str, cpu: Device, toolchain: Toolchain
) -> None:
    kernel, epilogue = VARIANTS[name], Epilogue(activation, following)
    case = case_for(activation)
    config = kernel.default(GemmWorkload(*case.shape), RECIPE, cpu)
    assert kernel.unfused(epilogue, config) == f"{name} has no epilogue in its kernel"
    launch = kernel.build_finished(epilogue, config, RECIPE, cpu, toolchain)
    for dtype in (torch.bfloat16, torch.float32) if not following else (torch.bfloat16,):
        outcome = finished_gate.check(launch, kernel.layout, 2.0**-24, case, epilogue, dtype)
        assert outcome.why is None
        assert following or 0 < outcome.used <= 1


def without_bias(sums: Tensor, epilogue: Epilogue, added: Added, out: Any) -> None:
    write(finished(sums, epilogue, added._replace(bias=None)), epilogue, added, out)


def without_residual(sums: Tensor, epilogue: Epilogue, added: Added, out: Any) -> None:
    write(finished(sums, epilogue, added._replace(residual=None)), epilogue, added, out)


def residual_first(sums: Tensor, epilogue: Epilogue, added: Added, out: Any) -> None:
    early = finished(sums, PLAIN, added)
    write(finished(early, epilogue, Added()), epilogue, added, out)


def rounded_before(sums: Tensor, epilogue: Epilogue, added: Added, out: Any) -> None:
    write(finished(sums.bfloat16().float(), epilogue, added), epilogue, added, out)


def other_gelu(sums: Tensor, epilogue: Epilogue, added: Added, out: Any) -> None:
    write(finished(sums, Epilogue(Activation.GELU, epilogue.recipe), added), epilogue, added, out)


def up_for_gate(sums: Tensor, epilogue: Epilogue, added: Added, out: Any) -> None:
    turned = sums.view(len(sums), -1, 2).flip(-1).flatten(1)
    assert added.bias is not None
    bias = added.bias.view(-1, 2).flip(-1).flatten()
    write(finished(turned, epilogue, added._replace(bias=bias)), epilogue, added, out)


def one_code(sums: Tensor, epilogue: Epilogue, added: Added, out: Any) -> None:
    write(finished(sums, epilogue, added), epilogue, added, out)
    out.codes[3, 2] ^= 0x08  # a sign


def one_scale(sums: Tensor, epilogue: Epilogue, added: Added, out: Any) -> None:
    write(finished(sums, epilogue, added), epilogue, added, out)
    out.scales[7, 1] += 2


def another_amax(sums: Tensor, epilogue: Epilogue, added: Added, out: Any) -> None:
    assert added.amax is not None
    write(finished(sums, epilogue, added), epilogue, added._replace(amax=added.amax * 2), out)


def unwritten(sums: Tensor, epilogue: Epilogue, added: Added, out: Any) -> None:
    write(finished(sums, epilogue, added), epilogue, added, out)
    out.codes[20, -1] = 0x55


GELU_TANH, SWIGLU = Activation.GELU_TANH, Activation.SWIGLU
WRONG: list[tuple[Callable[..., None], Activation, str]] = [
    (without_bias, GELU_TANH, ""), (without_residual, GELU_TANH, "mxfp4"),
    (residual_first, GELU_TANH, ""), (rounded_before, Activation.NONE, ""),
    (other_gelu, GELU_TANH, ""), (up_for_gate, SWIGLU, ""), (up_for_gate, SWIGLU, "nvfp4"),
    (one_code, SWIGLU, "mxfp4"), (one_scale, Activation.NONE, "nvfp4"),
    (another_amax, GELU_TANH, "nvfp4"), (unwritten, Activation.NONE, "mxfp4"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "activation", "following"), WRONG)
def test_the_gate_rejects_wrong_epilogues(
    wrong: Callable[..., None], activation: Activation, following: str,
    cpu: Device, toolchain: Toolchain,
) -> None:  # fmt: skip
    epilogue, case = Epilogue(activation, following), case_for(activation, "gaussian")
    plain = TorchGemm().build(TorchConfig(), RECIPE, cpu, toolchain)

    def launch(x: Any, w: Packed, added: Added, out: Any) -> None:
        m, n, _ = case.shape
        sums = torch.empty(m, n)
        plain(x, w, sums)
        wrong(sums, epilogue, added, out)

    outcome = finished_gate.check(launch, Layout.CANONICAL, 2.0**-24, case, epilogue, torch.float32)
    assert outcome.why is not None
    right = finished_gate.check(
        beside(plain, epilogue), Layout.CANONICAL, 2.0**-24, case, epilogue, torch.float32
    )
    assert right.why is None


def test_slopes_are_what_the_gate_says() -> None:
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64, requires_grad=True)
    for function in (
        torch.nn.functional.gelu,
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        torch.nn.functional.silu,
    ):
        (slope,) = torch.autograd.grad(function(x).sum(), x)
        assert 1.09 < slope.abs().max() < finished_gate.SLOPE


def mlp(x: Tensor, gate_up: QTensor, down: QTensor, amax: Tensor | None) -> Tensor:
    """Half a transformer's block: the first output is the second's input, as it is."""
    epilogue = Epilogue(Activation.SWIGLU, down.recipe_name)
    hidden = fp4kernels.linear(x, gate_up, amax=amax, epilogue=epilogue)
    return fp4kernels.linear(hidden, down, residual=x)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("layout", [Layout.CANONICAL, Layout.PANEL16])
def test_layers_hand_codes_on(name: str, layout: Layout) -> None:
    gate_w, up_w, x = normal(96, 64, seed=1), normal(96, 64, seed=2), normal(2, 5, 64)
    gate_up = fp4kernels.quantize(interleaved(gate_w, up_w), name).to_layout(layout)
    down = fp4kernels.quantize(normal(64, 96, seed=3), name).to_layout(layout)
    amax = torch.tensor(300.0) if name == "nvfp4" else None
    xq = fp4kernels.quantize(x, name).dequantize()
    halves = (xq @ gate_up.dequantize().T).unflatten(-1, (-1, 2))
    hidden = torch.nn.functional.silu(halves[..., 0]) * halves[..., 1]
    held = fp4kernels.quantize(hidden, name, amax=amax)
    expected = held.dequantize() @ down.dequantize().T + x
    got = mlp(x, gate_up, down, amax)
    assert got.dtype is torch.float32
    close = (got - expected).abs() <= 1e-4 * expected.abs().max()
    assert close.float().mean() > 0.9  # a code on a tie may fall to either side


def test_a_bias_is_rounded_once() -> None:
    x, w = normal(3, 64).bfloat16(), fp4kernels.quantize(normal(40, 64, seed=1), "mxfp4-w4a16")
    bias = 100 * normal(40, seed=2)
    exact = x.double() @ w.dequantize().double().T + bias.double()
    got = fp4kernels.linear(x, w, bias)
    assert got.dtype is torch.bfloat16
    assert ((got.double() - exact).abs() <= (2.0**-8 + 2.0**-16) * exact.abs()).all()


def test_an_amax_takes_the_batch_out_of_nvfp4() -> None:
    w = fp4kernels.quantize(normal(40, 64, seed=1), "nvfp4").to_layout(Layout.PANEL16)
    x, amax = normal(9, 64), torch.tensor(2.0)
    whole = fp4kernels.linear(fp4kernels.quantize(x, "nvfp4", amax=amax), w, batch_invariant=True)
    part = fp4kernels.linear(
        fp4kernels.quantize(x[4:5], "nvfp4", amax=amax), w, batch_invariant=True
    )
    assert torch.equal(part, whole[4:5])
    held = fp4kernels.quantize(x, "nvfp4", amax=amax)
    assert float(held.dequantize().abs().max()) == pytest.approx(2.0)  # the rest is clipped
    lost = x.clone()
    lost[2, 20] = float("nan")
    back = fp4kernels.quantize(lost, "nvfp4", amax=amax).dequantize()
    assert back[2, 16:32].isnan().all()
    assert int(back.isnan().sum()) == 16


@pytest.mark.parametrize("following", ["", "mxfp4", "nvfp4"])
def test_the_op_passes_opcheck_and_takes_no_rows(following: str) -> None:
    x, w = normal(3, 64), fp4kernels.quantize(normal(64, 64, seed=1), "mxfp4")
    amax = torch.tensor(3.0) if following == "nvfp4" else None
    for rows in (3, 0):
        arguments = (
            [x[:rows]], [*w.packed], [normal(64), normal(rows, 32), amax], 64, "mxfp4",
            "canonical", "", "swiglu", following, torch.bfloat16,
        )  # fmt: skip
        torch.library.opcheck(linear_finished_op, arguments)
        assert linear_finished_op(*arguments)[0].shape[0] == rows


def test_whole_under_compile() -> None:
    gate_up, down = (
        fp4kernels.quantize(normal(n, k, seed=n), "mxfp4") for n, k in ((192, 64), (64, 96))
    )
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    x = normal(5, 64)
    assert torch.equal(compiled(x, gate_up, down, None), mlp(x, gate_up, down, None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 33, "epilogue": Epilogue(SWIGLU)}, "columns in pairs, but N=33 is odd"),
        ({"epilogue": Epilogue(SWIGLU, "mxfp4")}, "whole blocks of 32 columns, but the output has 24"),
        ({"epilogue": Epilogue(recipe="nvfp4")}, "needs the amax"),
        ({"amax": torch.tensor(1.0)}, "an output in bfloat16 or float32 takes no amax"),
        ({"epilogue": Epilogue(recipe="mxfp4-w4a16")}, "for a recipe of FP4 activations"),
        ({"epilogue": Epilogue(recipe="int4-g32")}, "quantized to mxfp4 or nvfp4"),
        ({"bias": torch.ones(47)}, r"bias must be torch.bfloat16 or torch.float32 of shape \(48,\)"),
        ({"residual": torch.ones(2, 48).half()}, r"of shape \(2, 48\), but got torch.float16"),
        ({"x": fp4kernels.quantize(torch.ones(2, 64), "nvfp4")}, "the recipe of w, but got nvfp4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    n = changes.pop("n", 48)
    w, x = fp4kernels.quantize(torch.ones(n, 64), "mxfp4"), changes.pop("x", torch.ones(2, 64))
    with pytest.raises(FormatError, match=message):
        fp4kernels.linear(x, w, **changes)


CONFIG = DecodeConfig(16, 64, 128, warps=4, stages=4, group_m=1, split_k=1)


def test_what_a_tile_cannot_hold_is_not_fused() -> None:
    kernel = variant("decode_bf16")
    assert kernel.unfused(Epilogue(SWIGLU, "mxfp4"), CONFIG) is None
    narrow = replace(CONFIG, block_n=32)
    why = kernel.unfused(Epilogue(SWIGLU, "mxfp4"), narrow)
    assert why is not None
    assert "blocks of the output, of 32 columns, but 32 columns of sums make 16 of them" in why
    assert kernel.unfused(Epilogue(SWIGLU, "mxfp4"), replace(narrow, split_k=2)) is None
    assert kernel.unfused(Epilogue(SWIGLU, "nvfp4"), narrow) is None
    assert kernel.unfused(Epilogue(SWIGLU), narrow) is None
    why = kernel.unfused(Epilogue(recipe="mxfp4-row-14"), CONFIG)
    assert why == (
        "decode_bf16 makes no scales by the rule floor-row-14 in its kernel, since they follow from "
        "a whole row"
    )


def interpret(*arguments: str, cases: list[Any] | None = None) -> list[str | None]:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("interpret_finish.py")),
         *arguments],
        input=json.dumps(cases), capture_output=True, text=True, timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    answers: list[str | None] = json.loads(result.stdout)
    if answers == ["skip"]:
        pytest.skip("this interpreter's loops need numpy < 2.4")
    return answers


@needs_triton
def test_functions_of_kernels_over_all_exponents() -> None:
    assert interpret("functions") == []


def decoding(**changes: int) -> dict[str, int]:
    return replace(CONFIG, **{"stages": 2, **changes}).values()


DOTS = {"block_m": 16, "block_n": 64, "block_k": 64, "warps": 4, "stages": 2, "group_m": 1}
WIDE = {**DOTS, "block_n": 128}  # lines of scales
HALVED = {**DOTS, "block_n": 256}  # finished by halves of halves
FOLD = {**DOTS, "promote": 0}
CASES = [
    ("decode_canonical", "mxfp4", decoding(), [13, 96, 128], "swiglu", "", "bfloat16"),
    ("decode_canonical", "mxfp4", decoding(split_k=2), [13, 96, 288], "gelu", "", "float32"),
    ("decode_canonical", "nvfp4-w4a16", decoding(split_k=2), [3, 128, 256], "swiglu", "mxfp4", ""),
    ("decode_canonical", "nvfp4", decoding(), [13, 160, 80], "none", "mxfp4", ""),
    ("decode_canonical", "mxfp4-w4a16", decoding(), [1, 80, 96], "gelu-tanh", "nvfp4", ""),
    ("decode_bf16", "nvfp4", decoding(), [13, 96, 128], "gelu-tanh", "nvfp4", ""),
    ("decode_bf16", "mxfp4-w4a16", decoding(), [13, 73, 160], "gelu", "", "bfloat16"),
    ("decode_bf16", "nvfp4-w4a16", decoding(split_k=2), [1, 96, 256], "none", "nvfp4", ""),
    ("decode_bf16", "mxfp4", decoding(block_m=32), [29, 192, 128], "swiglu", "mxfp4", ""),
    ("decode_bf16", "nvfp4", decoding(block_m=128), [130, 96, 128], "swiglu", "nvfp4", ""),
    ("decode_bf16", "mxfp4", decoding(split_k=2), [5, 96, 256], "swiglu", "", "float32"),
    ("dot_scaled", "nvfp4", DOTS, [13, 96, 80], "gelu-tanh", "mxfp4", ""),
    ("dot_scaled", "mxfp4-w4a16", DOTS, [5, 73, 96], "gelu", "", "float32"),
    ("dot_scaled", "nvfp4-w4a16", {**DOTS, "block_m": 128}, [130, 128, 64], "swiglu", "nvfp4", ""),
    ("dot_scaled_swizzled", "nvfp4", WIDE, [13, 160, 80], "none", "nvfp4", ""),
    ("dot_scaled_swizzled", "nvfp4", {**WIDE, "block_m": 128}, [130, 192, 64], "swiglu", "", ""),
    ("dot_scaled_swizzled", "nvfp4", HALVED, [13, 416, 64], "gelu", "nvfp4", ""),
    ("dot_scaled", "nvfp4", HALVED, [5, 448, 64], "swiglu", "mxfp4", ""),
    ("dot_scaled", "mxfp4-w4a16", HALVED, [5, 329, 96], "none", "", "float32"),
    ("fold_fp8", "mxfp4-row-14", FOLD, [13, 96, 96], "gelu-tanh", "nvfp4", ""),
    ("fold_fp8", "mxfp4-row-28", {**FOLD, "block_m": 32}, [29, 192, 64], "swiglu", "mxfp4", ""),
    ("fold_fp8", "mxfp4-row-14", FOLD, [5, 73, 96], "gelu", "", "float32"),
]  # fmt: skip
BESIDE = [
    ("decode_canonical", "mxfp4", decoding(block_n=32), [5, 128, 96], "swiglu", "mxfp4", ""),
    ("expand_dense", "nvfp4", {"warps": 4, "steps": 1}, [5, 64, 64], "swiglu", "mxfp4", ""),
    ("fold_fp8", "mxfp4-row-14", FOLD, [5, 64, 64], "none", "mxfp4-row-14", ""),
]


def unfused(name: str, values: dict[str, int], activation: str, following: str) -> str | None:
    kernel = variant(name)
    return kernel.unfused(Epilogue(Activation(activation), following), kernel.config(values))


@needs_triton
def test_kernels_pass_the_gate() -> None:
    """Tails in M, N and K, shared out and not; fused, and in a pass of their own."""
    assert all(unfused(case[0], case[2], *case[4:6]) is None for case in CASES)
    assert not any(unfused(case[0], case[2], *case[4:6]) is None for case in BESIDE)
    cases = [*CASES, *BESIDE]
    answers = interpret(cases=[(*case[:-1], case[-1] or "bfloat16") for case in cases])
    wrong = [(case, why) for case, why in zip(cases, answers, strict=True) if why]
    assert not wrong


@needs_triton
def test_mistakes_of_kernels_fail_the_gate() -> None:
    few = {case[0]: (*case[:-1], "float32") for case in CASES if case[3][0] == 13}
    assert {*few} == {case[0] for case in CASES}
    cases = [*few.values()]
    answers = interpret("mistakes", cases=cases)
    assert [(case, passed) for case, passed in zip(cases, answers, strict=True) if passed] == []


@needs_triton
@pytest.mark.parametrize(
    ("name", "recipe_name", "arch", "m", "how"),
    [
        ("decode_bf16", "nvfp4-w4a16", "sm_90", 16, SWIGLU),
        ("decode_canonical", "nvfp4-w4a16", "sm_80", 16, SWIGLU),
        ("fold_fp8", "mxfp4-row-14", "sm_90", 16, SWIGLU),
        ("dot_scaled_swizzled", "nvfp4", "sm_100", 16, SWIGLU),
        ("dot_scaled_swizzled", "nvfp4", "sm_100", 512, Activation.GELU_TANH),
        ("dot_scaled", "mxfp4", "sm_120", 16, SWIGLU),
        ("dot_scaled", "mxfp4", "gfx950", 16, SWIGLU),
    ],
)
def test_a_default_with_an_epilogue_compiles_without_spills(
    name: str, recipe_name: str, arch: str, m: int, how: Activation
) -> None:
    """scripts/check_epilogues.py has all of them."""
    from fp4kernels.triton.offline import compile_for

    kernel, recipe, device = variant(name), RECIPES[recipe_name], ARCHES[arch]
    assert isinstance(kernel, FinishingVariant)
    workload, epilogue = GemmWorkload(m, 28672, 4096), Epilogue(how, "nvfp4")
    config = kernel.default(workload, recipe, device)
    assert config.values().get("split_k", 1) == 1  # N is wide enough
    finished = [
        source
        for source in kernel.finished_sources(epilogue, config, recipe, workload)
        if "finish" in source.kernel.__name__
    ]
    assert finished
    for built in (compile_for(source, arch) for source in finished):
        assert built.spills == 0
        assert built.shared_bytes <= kernel.shared_limit(config, recipe, workload, device)
        assert "fma.rn.ftz" not in built.ptx
