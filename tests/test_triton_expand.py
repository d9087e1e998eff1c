"""expand_dense: its numbers under the interpreter, and what it compiles to without a GPU."""

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
from fp4bench.spaces import Space, values_of
from fp4bench.study import Study
from fp4kernels import gate
from fp4kernels.devices import Toolchain
from fp4kernels.recipes import RECIPES, ScaleRule
from fp4kernels.registry import default_candidate
from fp4kernels.triton.expand_dense import ExpandConfig, ExpandDense
from fp4kernels.workloads import GemmWorkload

ROOT = Path(__file__).parent.parent
H100 = ARCHES["sm_90"]
TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
VARIANT = ExpandDense()
RECIPE_NAMES = ["mxfp4", "nvfp4", "mxfp4-w4a16", "nvfp4-w4a16"]
SHAPES = [(13, 40, 32), (4, 73, 96), (37, 29, 160), (64, 128, 512)]
LARGE = GemmWorkload(8192, 8192, 8192)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def interpret(*arguments: str, cases: list[Any] | None = None) -> list[str | None]:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interpret_expand.py"), *arguments],
        input=json.dumps(cases), capture_output=True, text=True, timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    answers: list[str | None] = json.loads(result.stdout)
    return answers


@needs_triton
def test_odd_and_even_sizes_pass_the_gate() -> None:
    space = values_of(VARIANT, "quick")
    configs = [
        dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())
    ]
    cases = [
        (
            name,
            configs[number % len(configs)],
            shape,
            ("bfloat16", "float32")[number // 2 % 2],
            gate.DATA[(number + number // 4) % 3],
        )
        for number, (name, shape) in enumerate(itertools.product(RECIPE_NAMES, SHAPES))
    ]
    answers = interpret(cases=cases)
    wrong = [(case, why) for case, why in zip(cases, answers, strict=True) if why]
    assert not wrong


@needs_triton
def test_all_codes_under_all_scales_expand_exactly() -> None:
    assert interpret("codes") == [None, None]


@needs_triton
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4-w4a16"])
def test_whole_lines_move_and_no_value_changes_threads(name: str, arch: str) -> None:
    from fp4kernels.triton.expand_launch import expand_sources
    from fp4kernels.triton.offline import compile_for

    recipe = RECIPES[name]
    config = VARIANT.default(LARGE, recipe, ARCHES[arch])
    expand, *_ = (compile_for(source, arch) for source in expand_sources(config, recipe, LARGE))
    assert expand.spills == expand.stack_bytes == expand.shared_bytes == 0
    assert expand.registers <= 40
    assert expand.ptx.count("st.global.v4.b32") == config.steps  # 8 values a thread, each time
    assert sum(expand.instructions.values()) <= 9 * 8 * config.steps  # memory takes as long as 20


@needs_triton
def test_what_is_scaled_has_a_kernel_for_it() -> None:
    def names(recipe: str, **changes: Any) -> list[str]:
        sources = VARIANT.sources(ExpandConfig(4, 4), replace(RECIPES[recipe], **changes), LARGE)
        return [source.kernel.__name__ for source in sources]

    assert names("mxfp4") == ["expand_kernel"] * 2
    assert names("mxfp4-w4a16") == ["expand_kernel"]
    assert names("nvfp4-w4a16") == ["expand_kernel", "reduce_kernel"]
    assert names("mxfp4", scale_rule=ScaleRule.FLOOR_3_4) == [
        *["expand_kernel"] * 2,
        "reduce_kernel",
    ]


@needs_triton
def test_torch_keeps_its_own_setting_of_sums() -> None:
    from fp4kernels.triton.expand_launch import _float32_sums

    matmul = torch.backends.cuda.matmul
    assert matmul.allow_bf16_reduced_precision_reduction
    with pytest.raises(KeyError), _float32_sums():
        assert not matmul.allow_bf16_reduced_precision_reduction
        raise KeyError
    assert matmul.allow_bf16_reduced_precision_reduction


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"warps": 3}, "warps must be a power of two up to 32, but got 3"),
        ({"warps": 64}, "up to 32, but got 64"),
        ({"steps": 0}, "between 1 and 64, but got 0"),
        ({"steps": 65}, "between 1 and 64, but got 65"),
    ],
)
def test_illegal_says_why(change: dict[str, int], reason: str) -> None:
    config, recipe = ExpandConfig(warps=4, steps=4), RECIPES["mxfp4"]
    assert VARIANT.illegal(config, recipe, LARGE, H100, TOOLCHAIN) is None
    why = VARIANT.illegal(replace(config, **change), recipe, LARGE, H100, TOOLCHAIN)
    assert reason in (why or "")


def test_dtypes_it_does_not_take() -> None:
    config = ExpandConfig(warps=4, steps=4)
    for workload, name in (
        (GemmWorkload(64, 4096, 4096, activation_dtype="float32"), "mxfp4-w4a16"),
        (GemmWorkload(64, 4096, 4096, output_dtype="float16"), "mxfp4"),
    ):
        why = VARIANT.illegal(config, RECIPES[name], workload, H100, TOOLCHAIN)
        assert "float" in (why or "")


def test_takes() -> None:
    taken = [name for name, r in RECIPES.items() if VARIANT.takes(r, H100, TOOLCHAIN) is None]
    assert sorted(taken) == sorted([*RECIPE_NAMES, "mxfp4-row-14", "mxfp4-row-28"])
    recipe = RECIPES["mxfp4"]
    assert "NVIDIA" in (VARIANT.takes(recipe, ARCHES["gfx942"], TOOLCHAIN) or "")
    turing = replace(H100, name="T4", arch="sm_75")
    assert "bf16 tensor cores, sm_80" in (VARIANT.takes(recipe, turing, TOOLCHAIN) or "")
    bare = replace(TOOLCHAIN, triton=None)
    assert "not installed" in (VARIANT.takes(recipe, H100, bare) or "")


def test_a_search_on_a_gpu_asks_for_both_kernels_and_starts_with_decode() -> None:
    recipe = RECIPES["mxfp4"]
    assert default_candidate(LARGE, recipe, H100, TOOLCHAIN).variant == "decode_bf16"
    study = Study(Space(LARGE, ("mxfp4",), H100, TOOLCHAIN, "quick"), seed=1)
    asked = study.ask_for(("mxfp4",), 400)
    assert asked[0].variant == "decode_bf16"
    count = sum(candidate.variant == VARIANT.name for candidate in asked)
    assert count == len([*itertools.product(*values_of(VARIANT, "quick").values())])


def test_the_variant_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import fp4kernels.triton.expand_dense"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
