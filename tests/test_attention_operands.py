"""Q, K and V of prefill, smoothed and quantized by Triton: bytes under the interpreter, and builds."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch

from fp4kernels.attention.recipes import K8V4_ATTENTION, attention_recipe
from test_attention_decode import interpret

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def case(
    recipe: str, head_dim: int, group: int, lengths: list[tuple[int, int]], *,
    kind: str = "outliers", dtype: str = "bfloat16", kv_heads: int = 1,
) -> dict[str, Any]:  # fmt: skip
    return {**locals()}


def test_operands_are_those_of_torch_byte_by_byte() -> None:
    """Every rule, type and head dim; with and without rotation and either smoothing; odd lengths,
    sequences without queries or keys, more than one tile."""
    wrong = interpret("operands", [
        case("nvfp4", 64, 2, [(3, 130)]),
        case("nvfp4-single", 96, 1, [(0, 0), (129, 33), (3, 0), (0, 7)], dtype="float16"),
        case("mxfp4,rotate=1", 256, 1, [(1, 33)], kind="sink"),
        case("nvfp4,rotate=1,smooth_q=0", 128, 1, [(7, 9)], dtype="float32", kind="biased-k"),
        case("mxfp4,smooth_k=0", 64, 1, [(17, 3)], dtype="float32"),
    ])  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize(("arch", "recipe", "head_dim", "warp"), [
    ("sm_90", "nvfp4-single,smooth_q=0", 128, 32), ("gfx950", "mxfp4,rotate=1", 64, 64),
])  # fmt: skip
def test_quantizing_kernels_compile_without_spills(
    arch: str, recipe: str, head_dim: int, warp: int
) -> None:
    """The rest of what there is: scripts/check_attention_builds.py."""
    from fp4kernels.triton.attention_operands import operand_sources
    from fp4kernels.triton.offline import compile_for

    names = set()
    for source in operand_sources(attention_recipe(recipe), head_dim, warp=warp):
        if source.kernel.__name__ in ("rows_kernel", "columns_kernel"):
            built = compile_for(source, arch)
            assert built.spills == 0
            names.add(built.name)
    assert len(names) == 2


def test_what_is_taken() -> None:
    from fp4kernels.triton.attention_operands import takes

    for name in ("nvfp4", "nvfp4-single", "mxfp4"):
        how = attention_recipe(name)
        assert takes(how, torch.bfloat16)
        assert not takes(how, torch.float64)
    assert not takes(K8V4_ATTENTION, torch.bfloat16)
    mx = attention_recipe("mxfp4")
    assert mx.q is not None
    other = replace(mx, name="other", q=replace(mx.q, scale_rule=type(mx.q.scale_rule)("even")))
    assert not takes(other, torch.bfloat16)
