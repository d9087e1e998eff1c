"""The gate passes a right kernel on all its data, and rejects every wrong one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fp4kernels import gate
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.gate import Case
from fp4kernels.layouts import Layout
from fp4kernels.recipes import RECIPES, Outliers, Transform
from fp4kernels.registry import variants_for
from fp4kernels.torch_gemm import TorchConfig, TorchGemm
from fp4kernels.variants import Launcher
from wrong_kernels import NV, WRONG, right

RECIPE = RECIPES["nvfp4"]
CPU = torch.device("cpu")
SHAPE = (21, 83, 9 * NV.block_size)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [gate.synthetic_case(data, RECIPE, SHAPE, 1, CPU) for data in gate.DATA]


def verdicts(launch: Launcher, cases: list[Case], dtype: torch.dtype) -> list[str | None]:
    return [gate.check(launch, Layout.CANONICAL, 2.0**-24, case, dtype).why for case in cases]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_right_kernel_passes(cases: list[Case], dtype: torch.dtype) -> None:
    assert verdicts(right, cases, dtype) == [None] * len(cases)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_rejected(cases: list[Case], name: str, dtype: torch.dtype) -> None:
    reasons = [why for why in verdicts(WRONG[name](), cases, dtype) if why is not None]
    assert reasons
    assert "elements outside the gate on" in reasons[0]


def test_a_kernel_that_returns_nan_is_rejected(cases: list[Case]) -> None:
    def launch(x: object, w: object, out: torch.Tensor) -> None:
        out.fill_(float("nan"))

    outcome = gate.check(launch, Layout.CANONICAL, 2.0**-24, cases[0], torch.float32)
    assert outcome.why is not None
    assert "got nan" in outcome.why


def test_the_reference_of_a_large_product_keeps_first_and_last_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "REFERENCE_FLOPS", 10 * 2 * 83 * SHAPE[2])
    case = gate.synthetic_case("gaussian", RECIPE, (200, 83, SHAPE[2]), 1, CPU)
    assert case.expected.shape == (10, 83)
    assert (case.rows[0], case.rows[-1]) == (0, 199)


def test_weight_only_recipes_compare_with_the_plain_activations() -> None:
    case = gate.synthetic_case("gaussian", RECIPES["mxfp4-w4a16"], (5, 40, 64), 1, CPU)
    assert isinstance(case.x, torch.Tensor)
    assert case.x.dtype is torch.bfloat16


@pytest.mark.parametrize("name", RECIPES)
def test_the_reference_kernel_passes_for_every_recipe(
    name: str, cpu: Device, toolchain: Toolchain
) -> None:
    kernel, recipe = TorchGemm(), RECIPES[name]
    assert kernel.takes(recipe, cpu, toolchain) is None
    launch = kernel.build(TorchConfig(), recipe, cpu, toolchain)
    for data in gate.DATA:
        case = gate.synthetic_case(data, recipe, (21, 96, 384), 1, CPU)
        assert case.shape == (21, 96, 384)
        assert case.expected.isfinite().all()
        assert gate.check(launch, kernel.layout, 2.0**-24, case, torch.float32).why is None


def test_operands_beyond_codes_and_scales_have_no_kernel(cpu: Device, toolchain: Toolchain) -> None:
    for change in ({"transform": Transform.HADAMARD_16}, {"outliers": Outliers(0.99, False)}):
        recipe = replace(RECIPES["nvfp4"], **change)
        with pytest.raises(
            FormatError, match="no kernel runs nvfp4: torch_expand multiplies codes"
        ):
            variants_for(recipe, cpu, toolchain)
