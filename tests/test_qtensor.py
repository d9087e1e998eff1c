"""QTensor and the ops: what a training step does with them."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

import fp4kernels
from fp4kernels import FormatError, Layout, LayoutError, QTensor, reference
from fp4kernels.ops import DEFAULT_PLAN, linear_op, quantize_op
from fp4kernels.recipes import RECIPES

RECIPE_NAMES = [*RECIPES]


def expected_linear(x: Tensor, w: QTensor) -> Tensor:
    left = x if w.recipe.weight_only else fp4kernels.quantize(x, w.recipe_name).dequantize()
    return left.float() @ w.dequantize().T


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(48, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_quantize_and_linear(name: str, weight: Tensor, x: Tensor) -> None:
    w = fp4kernels.quantize(weight, name)
    assert (w.shape, w.dtype, w.held_as) == (weight.shape, torch.float32, Layout.CANONICAL)
    assert torch.equal(w.dequantize(), reference.dequantize(w.packed, w.format))
    y = fp4kernels.linear(x, w, torch.ones(48, dtype=torch.bfloat16))
    assert y.shape == (2, 5, 48)
    torch.testing.assert_close(y.float(), expected_linear(x, w) + 1, rtol=2**-7, atol=2**-7)


def test_linear_on_panels_runs_the_compiled_kernel(weight: Tensor, x: Tensor) -> None:
    w = fp4kernels.quantize(weight, "mxfp4")
    panels = w.to_layout(Layout.PANEL16)
    assert torch.equal(panels.dequantize(), w.dequantize())
    got = fp4kernels.linear(x.float(), panels)
    torch.testing.assert_close(got, expected_linear(x, w))


def test_no_rows_give_no_rows(weight: Tensor) -> None:
    w = fp4kernels.quantize(weight, "mxfp4").to_layout(Layout.PANEL16)
    assert fp4kernels.linear(torch.ones(0, 64), w).shape == (0, 48)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_ops_pass_opcheck(name: str, weight: Tensor, x: Tensor) -> None:
    torch.library.opcheck(quantize_op, (x, name))
    for layout in Layout:
        w = fp4kernels.quantize(weight, name).to_layout(layout)
        arguments = (x, *w.packed, 48, name, layout.value, DEFAULT_PLAN)
        torch.library.opcheck(linear_op, arguments)


@pytest.mark.parametrize("layout", [*Layout])
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
    with pytest.raises(FormatError, match="share K, but got 32 and 64"):
        fp4kernels.linear(torch.ones(4, 32), w)
    with pytest.raises(FormatError, match="bfloat16 or float32"):
        fp4kernels.linear(x.half(), w)
    with pytest.raises(LayoutError, match="only a matrix"):
        fp4kernels.quantize(x, "mxfp4").to_layout(Layout.PANEL16)


def test_half_and_strided_inputs_quantize_as_their_float_values() -> None:
    base = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    strided = base[::2, 32:96]
    assert not strided.is_contiguous()
    for value in (strided, strided.half(), strided.bfloat16()):
        got = fp4kernels.quantize(value, "nvfp4")
        expected = reference.quantize(value.float().contiguous(), RECIPES["nvfp4"])
        assert torch.equal(got.codes, expected.codes)
        assert torch.equal(got.scales, expected.scales)
