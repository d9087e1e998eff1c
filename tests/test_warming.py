"""warmup with epilogues: after it no call builds anything, in any of the ways that layers call."""

from __future__ import annotations

import itertools

import pytest
import torch

import fp4kernels
from fp4kernels import dispatch
from fp4kernels.epilogues import Activation, Epilogue
from fp4kernels.errors import FormatError
from fp4kernels.layouts import Layout
from fp4kernels.ops import _launcher
from fp4kernels.qtensor import QTensor
from fp4kernels.warming import Use

BF16, F32 = torch.bfloat16, torch.float32
USES = (
    Use(), Use(bias=BF16), Use(residual=BF16), Use(Epilogue(Activation.GELU), bias=F32),
    Use(Epilogue(Activation.SWIGLU)), Use(Epilogue(Activation.SWIGLU, "mxfp4")),
    Use(Epilogue(Activation.GELU_TANH, "nvfp4"), residual=BF16), Use(quantized=True),
)  # fmt: skip


@pytest.fixture(autouse=True)
def forgotten() -> None:
    for cache in (dispatch.built, dispatch.built_finished, _launcher):
        cache.cache_clear()


def built() -> int:
    """Launchers that were made: with what is in them, on any device."""
    caches = (dispatch.built, dispatch.built_finished, _launcher)
    return sum(cache.cache_info().misses for cache in caches)


def model_of(*sizes: tuple[str, int, int]) -> torch.nn.Module:
    model = torch.nn.Module()
    for number, (recipe, n, k) in enumerate(sizes):
        w = fp4kernels.quantize(torch.ones(n, k), recipe)
        w = w.to_layout(Layout.PANEL16)
        model.register_parameter(f"w{number}", torch.nn.Parameter(w, requires_grad=False))
    return model


def call(w: QTensor, m: int, use: Use) -> None:
    n, k = w.shape
    x = torch.ones(m, k, dtype=BF16)
    columns = use.epilogue.columns(n)
    fp4kernels.linear(
        fp4kernels.quantize(x, w.recipe_name) if use.quantized else x, w,
        None if use.bias is None else torch.ones(n, dtype=use.bias),
        residual=None if use.residual is None else torch.ones(m, columns, dtype=use.residual),
        amax=torch.ones(()) if use.epilogue.recipe == "nvfp4" else None, epilogue=use.epilogue,
    )  # fmt: skip


def test_after_warmup_no_way_to_call_builds_anything() -> None:
    model = model_of(("mxfp4", 64, 128), ("nvfp4", 128, 64))
    assert fp4kernels.warmup(model, [1, 24], uses=USES) == 2 * 2 * len(USES)
    before = built()
    for w, m, use in itertools.product(model.parameters(), (1, 24), USES):
        assert isinstance(w, QTensor)
        call(w, m, use)
    assert built() == before


@pytest.mark.parametrize("use", USES[3:7], ids=lambda use: str(use.epilogue))
def test_without_its_use_a_call_builds(use: Use) -> None:
    model = model_of(("mxfp4", 64, 128))
    fp4kernels.warmup(model, [24])
    before = built()
    (w,) = model.parameters()
    assert isinstance(w, QTensor)
    call(w, 24, use)
    assert built() > before


def test_a_use_is_for_the_weights_that_it_fits() -> None:
    model = model_of(("mxfp4", 64, 128), ("mxfp4", 48, 128))
    quantizing = Use(Epilogue(recipe="mxfp4"))  # 48 columns are no whole blocks
    assert fp4kernels.warmup(model, [1], uses=[Use(), quantizing]) == 3
    odd = model_of(("mxfp4", 48, 128))
    with pytest.raises(FormatError, match="must fit a weight of the model, but got Use"):
        fp4kernels.warmup(odd, [1], uses=[quantizing])
    weight_only = model_of(("mxfp4-w4a16", 64, 128))
    with pytest.raises(FormatError, match="must fit a weight"):
        fp4kernels.warmup(weight_only, [1], uses=[Use(quantized=True)])
