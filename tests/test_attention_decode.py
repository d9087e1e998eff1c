"""Flash-decoding and appending in Triton: numbers under the interpreter, and what they compile to."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fp4bench.proof.targets import ARCHES
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.storing import Order

ROOT = Path(__file__).parent.parent
ARCHES_BUILT = ("sm_80", "sm_90", "sm_100", "gfx950")  # all: scripts/check_attention_builds.py

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def interpret(check: str, cases: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """What is wrong with which case."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interpret_attention.py"), check],
        input=json.dumps(cases), capture_output=True, text=True, timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return [(case, why) for case, why in zip(cases, json.loads(result.stdout), strict=True) if why]


def case(
    recipe: str, head_dim: int, queries: int, group: int, *, order: str = "nhd", kv_heads: int = 2,
    page_size: int = 16, lengths: tuple[int, ...] = (41, 0, 75), window: int = 0, cores: int = 1,
    dtype: str = "bfloat16", block_n: int = 32,
) -> dict[str, Any]:  # fmt: skip
    return {**locals(), "config": {"block_n": block_n}}


def test_decode_is_the_reference_over_what_the_cache_holds() -> None:
    """Groups of 1, 4 and 8, every head dim, pages smaller and larger than a tile, shares of keys
    that may be empty, windows, sequences of nothing."""
    wrong = interpret("decode", [
        case("nvfp4", 64, 1, 4, cores=40),
        case("nvfp4", 128, 1, 8, order="hnd", page_size=64, cores=12, lengths=(0, 70)),
        case("nvfp4,rotate=1", 256, 1, 1, kv_heads=1, dtype="float16", lengths=(33, 5)),
        case("mxfp4", 96, 2, 8, order="hnd", window=7, dtype="float32", cores=4),
        case("k8v4", 128, 5, 8, order="hnd", lengths=(70, 5), kv_heads=1, cores=8, dtype="float32"),
        case("k8v4,rotate=1", 64, 20, 4, kv_heads=1, lengths=(20, 77), window=30),
    ])  # fmt: skip
    assert wrong == []


def test_what_is_appended_is_the_reference_byte_by_byte() -> None:
    cases = [
        {"recipe": recipe, "head_dim": head_dim, "order": order, "dtype": dtype}
        for recipe, head_dim, order, dtype in (
            ("nvfp4", 64, "nhd", "float32"), ("mxfp4", 96, "hnd", "bfloat16"),
            ("k8v4,rotate=1", 256, "nhd", "float16"), ("nvfp4,rotate=1", 96, "hnd", "float32"),
        )
    ]  # fmt: skip
    assert interpret("append", cases) == []


@pytest.mark.parametrize("arch", ARCHES_BUILT)
def test_defaults_compile_without_spills(arch: str) -> None:
    """For a head of 128, and where registers are scarcest, of 256."""
    from fp4kernels.triton.attention_append import append_sources
    from fp4kernels.triton.attention_decode import DecodeShape, decode_sources
    from fp4kernels.triton.offline import compile_for

    shapes = [("nvfp4", 128), ("k8v4", 256)] if arch == "sm_90" else [("nvfp4", 128)]
    for recipe, head_dim in shapes:
        how, device = attention_recipe(recipe), ARCHES[arch]
        shape = DecodeShape(8, 1, 32, 8, head_dim, 64, 512, 32768)
        sources = decode_sources(shape, how, Order.NHD, device)
        assert len(sources) == 2  # batch 8 alone does not fill the GPU
        sources += append_sources(head_dim, 8, how, 64, Order.NHD)[-1:]
        for built in [compile_for(source, arch) for source in sources]:
            assert built.spills == 0, f"{built.name} {recipe}"
            assert built.shared_bytes <= device.shared_memory
            expected = "mfma" if arch.startswith("gfx") else "bf16.bf16.f32"
            if built.name == "flash_decode_kernel":
                assert all(expected in kind for kind in built.mma_kinds)
                assert built.mma_kinds


def test_keys_are_split_for_the_sms_at_hand() -> None:
    """One more SM count is another number of shares, and never more than there are tiles."""
    from fp4kernels.triton.attention_decode import DecodeShape, FlashDecodeConfig, split_count

    config = FlashDecodeConfig(block_n=64, waves=2)
    one = DecodeShape(1, 1, 32, 8, 128, 64, 512, 32768)
    assert [split_count(one, cores, config) for cores in (84, 132, 170)] == [21, 33, 42]
    assert split_count(DecodeShape(64, 1, 32, 8, 128, 64, 512, 32768), 132, config) == 1
    assert split_count(DecodeShape(1, 1, 32, 8, 128, 64, 512, 100), 132, config) == 2
    assert split_count(DecodeShape(1, 1, 32, 1, 128, 64, 4096, 1 << 18), 132, config) == 128
