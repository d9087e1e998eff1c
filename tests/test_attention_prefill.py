"""FP4 prefill in Triton: numbers under the interpreter, and what it compiles to without a GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import pytest

from fp4bench.proof.targets import ARCHES
from fp4kernels.attention.problem import Mask, MaskKind
from fp4kernels.attention.recipes import K8V4_ATTENTION, attention_recipe
from fp4kernels.errors import FormatError
from fp4kernels.triton.dot_scaled_limits import version
from fp4kernels.variants import Badge
from test_attention_decode import interpret

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

# the rest of what there is: scripts/check_attention_builds.py
NATIVE = {
    ("sm_100", "nvfp4"): "kind::mxf4nvf4.block_scale.block16",
    ("sm_120", "mxfp4"): "kind::mxf4nvf4.block_scale.scale_vec::2X",
    ("sm_120", "nvfp4"): "kind::mxf4nvf4.block_scale.scale_vec::4X",
    ("gfx950", "mxfp4"): "v_mfma_scale_f32",
}
EMULATED = [("sm_80", "nvfp4"), ("sm_90", "mxfp4")]


def installed() -> str:
    return importlib.metadata.version("triton")


def case(
    recipe: str, arch: str, head_dim: int, group: int, lengths: list[tuple[int, int]], *,
    mask: str = "full", window: int | None = None, kind: str = "gaussian", kv_heads: int = 1,
    dtype: str = "float32", block_m: int = 64, block_n: int = 64,
) -> dict[str, Any]:  # fmt: skip
    return {**locals(), "config": {"block_m": block_m, "block_n": block_n}}


def test_prefill_is_the_simulation() -> None:
    """Native and emulated; every mask, head dim and axis of accuracy; groups of 1, 4 and 8; short
    queries over long prefixes, sequences without queries or without keys, tiles that end within."""
    wrong = interpret("prefill", [
        case("nvfp4", "sm_100", 64, 4, [(70, 130)], mask="causal", kind="outliers"),
        case("nvfp4,reverse=1", "sm_90", 128, 1, [(70, 140)], mask="causal", kind="sink",
             block_m=128),
        case("nvfp4-single,round_scale=0", "sm_120", 96, 1, [(1, 130), (0, 3), (40, 40), (0, 0)],
             mask="causal", kv_heads=2, dtype="bfloat16"),
        case("nvfp4,rotate=1,smooth_q=0,p_scale=448", "sm_80", 64, 8, [(20, 129), (5, 0), (3, 64)],
             kind="biased-k"),
        case("mxfp4", "gfx950", 128, 1, [(70, 140)], mask="sliding", window=50, block_n=128),
        case("mxfp4,smooth_q=0,smooth_k=0,reverse=1", "sm_90", 256, 1, [(66, 90)], mask="sliding",
             window=30, dtype="float16"),
        case("mxfp4,p_scale=2688", "sm_89", 64, 1, [(64, 64), (30, 150)], kind="outliers"),
    ])  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize(("arch", "recipe"), [*NATIVE, *EMULATED])
def test_defaults_compile_without_spills(arch: str, recipe: str) -> None:
    """Native where the device multiplies FP4 under scales, and on bf16 units elsewhere."""
    from fp4kernels.triton.attention_prefill import prefill_source
    from fp4kernels.triton.flash_prefill import badge, not_compiled
    from fp4kernels.triton.offline import compile_for

    how, device, triton = attention_recipe(recipe), ARCHES[arch], installed()
    if not_compiled(how, device, triton) is not None:
        pytest.skip("this Triton does not compile it")
    native = NATIVE.get((arch, recipe))
    assert badge(how, device) is (Badge.NATIVE if native else Badge.EMULATED)
    built = compile_for(prefill_source(how, Mask(MaskKind.CAUSAL), 128, device), arch)
    # the first of these versions keeps a few more registers busy
    assert built.spills <= (8 if version(triton) < (3, 7) else 0)
    assert built.shared_bytes <= device.shared_memory
    assert all((native or "bf16") in kind for kind in built.mma_kinds)
    assert built.mma_kinds
    if arch in ("sm_100", "sm_120"):
        assert "cvt.rn.satfinite.e2m1x2.f32" in built.ptx


def test_what_prefill_cannot_run_is_refused() -> None:
    from fp4kernels.triton.attention_prefill import (
        PrefillConfig,
        not_compiled,
        prefill_source,
        unfit,
    )

    with pytest.raises(FormatError, match="prefill multiplies FP4 under one kind of scale"):
        prefill_source(K8V4_ATTENTION, Mask(), 128, ARCHES["sm_90"])
    nvfp4 = attention_recipe("nvfp4")
    assert "in Triton 3.9 and later" in str(not_compiled(nvfp4, ARCHES["sm_100"], "3.7.1"))
    assert not_compiled(nvfp4, ARCHES["sm_100"], "3.9.0") is None
    assert not_compiled(nvfp4, ARCHES["sm_120"], "3.6.0") is None
    assert unfit(PrefillConfig(64, 32), native=False) is None
    assert "block_n at least 64 here, but got 64 and 32" in str(unfit(PrefillConfig(64, 32), True))
    assert "but got 96 and 64" in str(unfit(PrefillConfig(96, 64), native=False))
