"""fold_fp8: its numbers under the interpreter, and what it compiles to without a GPU."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fp4bench.proof.targets import ARCHES
from fp4bench.spaces import Space
from fp4kernels import gate
from fp4kernels.devices import Toolchain
from fp4kernels.errors import LayoutError
from fp4kernels.layouts import Layout
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES
from fp4kernels.registry import default_candidate
from fp4kernels.triton.fold_fp8 import FoldConfig, FoldFp8, shared_bytes
from fp4kernels.workloads import GemmWorkload

ROOT = Path(__file__).parent.parent
H100 = ARCHES["sm_90"]
TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
VARIANT = FoldFp8()
RECIPE_NAMES = ["mxfp4-row-14", "mxfp4-row-28"]
CONFIG = FoldConfig(128, 128, 128, warps=8, stages=4, group_m=8, promote=128)
LARGE = GemmWorkload(8192, 8192, 8192)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def interpret(*arguments: str, cases: list[Any] | None = None) -> list[str | None]:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interpret_fold.py"), *arguments],
        input=json.dumps(cases), capture_output=True, text=True, timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    answers: list[str | None] = json.loads(result.stdout)
    if answers == ["skip"]:
        pytest.skip("this interpreter's loops need numpy < 2.4")
    return answers


def test_odd_and_even_sizes_pass_a_gate_of_float32() -> None:
    pytest.importorskip("triton")
    shapes = [(13, 40, 96), (37, 73, 160), (16, 64, 256), (133, 29, 32)]
    tiles = [(16, 64, 64), (32, 32, 128), (64, 64, 32), (128, 128, 128)]
    kinds = [
        ("mxfp4-row-14", "float8_e4m3fn"), ("mxfp4-row-14", "float8_e5m2"),
        ("mxfp4-row-28", "float8_e5m2"),
    ]  # fmt: skip
    cases = [
        (name, kind, FoldConfig(*tile, 4, 2, 1 + number % 2 * 7, 0).values(), shape,
         ("bfloat16", "float32")[number % 2], gate.DATA[number % 3])
        for number, ((name, kind), (shape, tile)) in enumerate(
            itertools.product(kinds, zip(shapes, tiles, strict=True))
        )
    ]  # fmt: skip
    answers = interpret(cases=cases)
    wrong = [(case, why) for case, why in zip(cases, answers, strict=True) if why]
    assert not wrong


def test_activations_fold_as_weights_do_and_strays_become_nan() -> None:
    pytest.importorskip("triton")
    assert interpret("rows") == [None, None]


@needs_triton
@pytest.mark.parametrize("name", RECIPE_NAMES)
@pytest.mark.parametrize("arch", ["sm_89", "sm_90"])
def test_the_default_compiles_to_fp8_instructions(name: str, arch: str) -> None:
    from fp4kernels.triton.offline import compile_for

    recipe, board = RECIPES[name], ARCHES[arch]
    config = VARIANT.default(LARGE, recipe, board)
    assert VARIANT.illegal(config, recipe, LARGE, board, TOOLCHAIN) is None
    *gemms, fold = (compile_for(s, arch) for s in VARIANT.sources(config, recipe, LARGE))
    assert len(gemms) == (1 if name == "mxfp4-row-14" else 2)
    own = "e4m3" if name == "mxfp4-row-14" else "e5m2"
    for gemm, other in zip(gemms, (own, "e4m3"), strict=False):
        assert gemm.spills == 0
        assert gemm.shared_bytes <= shared_bytes(config, LARGE)
        [kind] = gemm.mma_kinds
        if arch == "sm_90":
            assert kind.startswith("wgmma.mma_async")
            assert gemm.instructions["QGMMA"]
        assert kind.endswith(f".f32.{own}.{other}" + ("" if arch == "sm_90" else ".f32"))
    assert fold.spills == fold.stack_bytes == 0
    assert not any(word in fold.ptx for word in (".ftz", "fma"))  # subnormals carry the code of 0.5


@needs_triton
def test_promotion_adds_partial_sums_in_float32() -> None:
    from fp4kernels.triton.offline import compile_for

    def additions(promote: int) -> int:
        [gemm, _] = VARIANT.sources(
            replace(CONFIG, promote=promote), RECIPES["mxfp4-row-14"], LARGE
        )
        code = compile_for(gemm, "sm_90")
        assert code.instructions["QGMMA"]
        return code.instructions["FADD"] + code.instructions["FFMA"]

    never, after_each_tile, after_each_instruction = (additions(each) for each in (0, 128, 32))
    sums = CONFIG.block_m * CONFIG.block_n // 256
    assert never < sums <= after_each_tile < after_each_instruction


def test_the_bound_follows_the_promotion() -> None:
    units = [VARIANT.accumulator_unit(replace(CONFIG, promote=p)) for p in (32, 64, 128, 0)]
    assert units == sorted(units)
    assert 2.0**-17 < units[0] < 2.0**-16
    assert 2.0**-16 < units[2] < 2.0**-15
    assert units[3] == 2.0**-13


def test_the_loosest_bound_still_refuses_a_kernel_that_writes_zeros() -> None:
    unit = VARIANT.accumulator_unit(replace(CONFIG, promote=0))
    case = gate.synthetic_case(
        "gaussian", RECIPES["mxfp4-row-14"], (16, 64, 8192), 1, torch.device("cpu")
    )
    outcome = gate.check(lambda x, w, out: out.zero_(), VARIANT.layout, unit, case, torch.bfloat16)
    assert "outside the gate" in (outcome.why or "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"promote": 48}, "whole instructions of 32 values within block_k=128, but got 48"),
        ({"promote": 256}, "within block_k=128, but got 256"),
        ({"block_m": 16, "warps": 4, "group_m": 1}, "needs wgmma, 64 rows and 4 warps"),
        ({"warps": 4}, "holds 296 registers a thread, but with 4 warps there are 255"),
        ({"stages": 8}, "bytes of shared memory, but H100 has 232448"),
        ({"block_k": 16, "promote": 0}, "32 values along K"),
        ({"warps": 6}, "warps must be a power of two"),
        ({"stages": 0}, "stages must be at least 1"),
        ({"promote": -32}, "promote must be at least 0"),
        ({"maxnreg": 168}, "holds 168 registers a thread beside addresses, but maxnreg=168"),
        ({"maxnreg": 176}, "lets no second program onto a core"),
    ],
)
def test_illegal_says_why(change: dict[str, int], reason: str) -> None:
    recipe = RECIPES["mxfp4-row-14"]
    assert VARIANT.illegal(CONFIG, recipe, LARGE, H100, TOOLCHAIN) is None
    why = VARIANT.illegal(replace(CONFIG, **change), recipe, LARGE, H100, TOOLCHAIN)
    assert reason in (why or "")


def test_what_the_device_or_the_shape_forbids() -> None:
    recipe, sums = RECIPES["mxfp4-row-14"], replace(CONFIG, promote=0)
    why = VARIANT.illegal(CONFIG, recipe, LARGE, ARCHES["sm_100"], TOOLCHAIN)
    assert "promote=128 is for sm_90, but got sm_100; take 0" in (why or "")
    few = GemmWorkload(40, 4096, 4096)
    assert "half empty" in (VARIANT.illegal(sums, recipe, few, H100, TOOLCHAIN) or "")
    one = GemmWorkload(128, 4096, 4096)
    assert "M=128 has one" in (VARIANT.illegal(sums, recipe, one, H100, TOOLCHAIN) or "")


def test_takes() -> None:
    taken = [name for name, r in RECIPES.items() if VARIANT.takes(r, H100, TOOLCHAIN) is None]
    assert taken == RECIPE_NAMES
    a100 = VARIANT.takes(RECIPES["mxfp4-row-14"], ARCHES["sm_80"], TOOLCHAIN)
    assert "needs FP8 tensor cores, sm_89 or later, but got sm_80" in (a100 or "")
    for name, words in (
        ("mxfp4", "choose mxfp4-row-14"), ("nvfp4", ""), ("mxfp4-w4a16", "activations in 16 bits"),
    ):  # fmt: skip
        why = VARIANT.takes(RECIPES[name], H100, TOOLCHAIN)
        assert why is not None
        assert words in why


@pytest.mark.parametrize("name", RECIPE_NAMES)
@pytest.mark.parametrize("arch", ["sm_89", "sm_90", "sm_100", "sm_120"])
def test_the_default_is_legal(name: str, arch: str) -> None:
    recipe, board = RECIPES[name], ARCHES[arch]
    for m, n, k in itertools.product((1, 17, 64, 65, 128, 4096), (80, 4096), (96, 4096)):
        workload = GemmWorkload(m, n, k)
        config = VARIANT.default(workload, recipe, board)
        assert VARIANT.illegal(config, recipe, workload, board, TOOLCHAIN) is None, workload


def test_a_space_holds_all_kernels_of_the_recipe_and_starts_with_decode() -> None:
    recipe = RECIPES["mxfp4-row-14"]
    assert default_candidate(LARGE, recipe, H100, TOOLCHAIN).variant == "decode_bf16"
    space = Space(LARGE, (recipe.name,), H100, TOOLCHAIN, "quick")
    found = {c.variant: c.layout for c in space.candidates[recipe.name]}
    assert found["fold_fp8"] is Layout.FOLDED
    assert found["expand_dense"] is found["decode_canonical"] is Layout.CANONICAL
    assert found["decode_bf16"] is Layout.INTERLEAVED
    count = sum(c.variant == "fold_fp8" for c in space.candidates[recipe.name])
    assert 10 <= count <= 80


@needs_triton
def test_a_weight_that_is_not_folded_is_refused() -> None:
    launch = VARIANT.build(CONFIG, RECIPES["mxfp4-row-14"], H100, TOOLCHAIN)
    w = Packed(torch.zeros(8, 16).byte(), torch.zeros(8, 1).byte(), torch.ones(()))
    with pytest.raises(LayoutError, match=r"must be folded, but its codes are torch\.uint8"):
        launch(w, w, torch.zeros(8, 8))


def test_the_variant_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import fp4kernels.triton.fold_fp8"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
