"""The gate passes a right kernel on all its data, and rejects every wrong one."""

from __future__ import annotations

import pytest
import torch

from fp4kernels import gate
from fp4kernels.gate import Case
from fp4kernels.layouts import Layout
from fp4kernels.recipes import RECIPES
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
