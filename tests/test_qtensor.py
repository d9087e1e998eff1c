"""QTensor and the ops: what a training step does with them."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fp4kernels
from fp4kernels import FormatError, Layout, LayoutError, QTensor, dispatch, reference
from fp4kernels.dispatch import DEFAULT_PLAN
from fp4kernels.layouts import held_bytes
from fp4kernels.ops import linear_op, quantize_op
from fp4kernels.recipes import RECIPES, Outliers, Rounding, Transform

RECIPE_NAMES = [*RECIPES]
READ = [Layout.CANONICAL, Layout.PANEL16]  # by kernels of a CPU


def expected_linear(x: Tensor, w: QTensor) -> Tensor:
    how, left = w.recipe.activations, x.float()
    if not how.weight_only:
        left = reference.dequantize(reference.quantize(x, how), how.format)
    return left @ w.dequantize().T


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(96, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_quantize_and_linear(name: str, weight: Tensor, x: Tensor) -> None:
    w = fp4kernels.quantize(weight, name)
    assert (w.shape, w.dtype, w.held_as) == (weight.shape, torch.float32, Layout.CANONICAL)
    assert torch.equal(w.dequantize(), reference.dequantize(w.packed, w.format))
    y = fp4kernels.linear(x, w, torch.ones(96, dtype=torch.bfloat16))
    assert w.held_bytes == held_bytes(96, 128, w.format, Layout.CANONICAL)
    assert y.shape == (2, 5, 96)
    torch.testing.assert_close(y.float(), expected_linear(x, w) + 1, rtol=2**-7, atol=2**-7)


def test_linear_on_panels_runs_the_compiled_kernel(weight: Tensor, x: Tensor) -> None:
    w = fp4kernels.quantize(weight, "mxfp4")
    panels = w.to_layout(Layout.PANEL16)
    assert torch.equal(panels.dequantize(), w.dequantize())
    got = fp4kernels.linear(x.float(), panels)
    torch.testing.assert_close(got, expected_linear(x, w))


def test_no_rows_give_no_rows(weight: Tensor) -> None:
    w = fp4kernels.quantize(weight, "mxfp4").to_layout(Layout.PANEL16)
    assert fp4kernels.linear(torch.ones(0, 128), w).shape == (0, 96)


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_ops_pass_opcheck(name: str, weight: Tensor, x: Tensor) -> None:
    torch.library.opcheck(quantize_op, (weight, name))
    for layout in READ if name in ("mxfp4", "nvfp4") else READ[:1]:
        w = fp4kernels.quantize(weight, name).to_layout(layout)
        arguments = (x, *w.packed, 96, name, layout.value, DEFAULT_PLAN)
        torch.library.opcheck(linear_op, arguments)


@pytest.mark.parametrize("layout", READ)
def test_whole_under_compile(layout: Layout, weight: Tensor, x: Tensor) -> None:
    w = fp4kernels.quantize(weight, "nvfp4").to_layout(layout)

    def model(x: Tensor, w: QTensor) -> Tensor:
        return fp4kernels.linear(torch.relu(x), w) * 2

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, w), model(x, w))


def test_quantize_under_compile(x: Tensor) -> None:
    def model(x: Tensor) -> Tensor:
        return fp4kernels.quantize(x * 2, "nvfp4").codes.int()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))


def test_it_travels_through_a_checkpoint(weight: Tensor) -> None:
    w = fp4kernels.quantize(weight, "nvfp4").to_layout(Layout.PANEL16)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(w, requires_grad=False)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    back = torch.load(file, weights_only=True)["weight"]
    assert isinstance(back, QTensor)
    assert back.held_as is Layout.PANEL16
    assert torch.equal(back.dequantize(), w.dequantize())


def test_moves_and_clones_stay_quantized_and_nothing_else_runs(weight: Tensor) -> None:
    w = fp4kernels.quantize(weight, "nvfp4")
    for same in (w.clone(), w.detach(), w.to("cpu", copy=True), w.to(torch.bfloat16)):
        assert isinstance(same, QTensor)
        assert torch.equal(same.codes, w.codes)
    assert w.to(torch.bfloat16).dtype is torch.bfloat16
    with pytest.raises(NotImplementedError, match="call .dequantize"):
        w + 1


def test_bad_input_is_refused_with_the_rule_and_the_values(weight: Tensor, x: Tensor) -> None:
    w = fp4kernels.quantize(weight, "mxfp4")
    with pytest.raises(FormatError, match="did you mean 'mxfp4'"):
        fp4kernels.quantize(weight, "mxpf4")
    with pytest.raises(FormatError, match="multiple of 32"):
        fp4kernels.quantize(torch.ones(4, 40), "mxfp4")
    with pytest.raises(FormatError, match="share K, but got 32 and 128"):
        fp4kernels.linear(torch.ones(4, 32), w)
    with pytest.raises(FormatError, match="bfloat16 or float32"):
        fp4kernels.linear(x.half(), w)
    with pytest.raises(LayoutError, match="only a matrix"):
        fp4kernels.quantize(x, "mxfp4").to_layout(Layout.PANEL16)
    with pytest.raises(LayoutError, match="reads a mxfp4 weight as swizzled"):
        fp4kernels.linear(x, w.to_layout(Layout.SWIZZLED))
    with pytest.raises(FormatError, match="a matrix whose rows are a multiple of 16"):
        fp4kernels.quantize(weight[:40], "nvfp4-2d")


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"rounding": Rounding.STOCHASTIC}, "stochastic, none, no outliers"),
        ({"transform": Transform.CENTER}, "nearest-even, center, no outliers"),
        ({"outliers": Outliers(0.99, compensate=True)}, "nearest-even, none, occ-0.99"),
    ],
)
def test_what_an_op_cannot_do_is_refused(
    change: dict[str, Any], asked: str, weight: Tensor, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = fp4kernels.quantize(weight, "mxfp4").packed
    monkeypatch.setitem(RECIPES, asked, replace(RECIPES["mxfp4"], **change))  # type: ignore[misc]
    w = QTensor(packed, asked, weight.shape, weight.dtype)
    for call in (lambda: fp4kernels.quantize(weight, asked), lambda: fp4kernels.linear(x, w)):
        with pytest.raises(FormatError, match=f"but {asked} asks for {asked}; use"):
            call()


def test_half_and_strided_inputs_quantize_as_their_float_values() -> None:
    base = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    strided = base[::2, 32:96]
    assert not strided.is_contiguous()
    for value in (strided, strided.half(), strided.bfloat16()):
        got = fp4kernels.quantize(value, "nvfp4")
        expected = reference.quantize(value.float().contiguous(), RECIPES["nvfp4"])
        assert torch.equal(got.codes, expected.codes)
        assert torch.equal(got.scales, expected.scales)


def test_after_warmup_a_call_builds_nothing(weight: Tensor) -> None:
    model = torch.nn.Module()
    for name, recipe in (("up", "mxfp4"), ("gate", "mxfp4"), ("down", "nvfp4")):
        quantized = fp4kernels.quantize(weight, recipe).to_layout(Layout.PANEL16)
        model.register_parameter(name, torch.nn.Parameter(quantized, requires_grad=False))
    dispatch.built.cache_clear()
    assert fp4kernels.warmup(model, [1, 24]) == 4
    built = dispatch.built.cache_info().misses
    assert built > 0
    for w in model.parameters():
        for m in (1, 24):
            fp4kernels.linear(torch.ones(m, w.shape[1], dtype=torch.bfloat16), w)
    assert dispatch.built.cache_info().misses == built


def test_warmup_of_a_model_without_quantized_weights_is_refused() -> None:
    with pytest.raises(FormatError, match="no parameter or buffer of Linear is a QTensor matrix"):
        fp4kernels.warmup(torch.nn.Linear(8, 8), [1])
