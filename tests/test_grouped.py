"""Grouped GEMM: empty experts, uneven counts, one launch; what it compiles to without a GPU."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fp4bench.proof.targets import ARCHES
from fp4kernels import grouped, reference
from fp4kernels.devices import Toolchain
from fp4kernels.errors import FormatError, WorkloadError
from fp4kernels.recipes import RECIPES
from fp4kernels.triton.grouped import GroupedConfig, default, illegal, takes
from fp4kernels.workloads import GroupedWorkload

ROOT = Path(__file__).parent.parent
TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
RECIPE_NAMES = ["mxfp4", "nvfp4", "mxfp4-w4a16", "nvfp4-w4a16"]
OFFSETS = [
    [0, 5, 5, 18, 19, 37],  # an empty expert, odd counts, three tiles of 16 for one
    [0, 0, 0, 21],  # all to the last
    [0, 33, 33, 33, 33],  # all to the first
    [0, 1],  # one token of one expert
]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def config_of(**changes: int) -> GroupedConfig:
    return replace(GroupedConfig(16, 64, 64, warps=4, stages=2, scaled=0), **changes)


def interpret(cases: list[Any]) -> list[str | None]:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interpret_grouped.py")],
        input=json.dumps(cases), capture_output=True, text=True, timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    answers: list[str | None] = json.loads(result.stdout)
    if answers == ["skip"]:
        pytest.skip("this Triton's interpreter has no dot_scaled; 3.9 does")
    return answers


@needs_triton
def test_empty_experts_and_uneven_counts_pass_the_gate() -> None:
    cases: list[Any] = []
    for number, (offsets, name) in enumerate(itertools.product(OFFSETS, RECIPE_NAMES)):
        block = RECIPES[name].format.block_size
        config = config_of(block_m=(16, 32, 128)[number % 3], scaled=(number + number // 4) % 2)
        size = (73, 128 + block) if number % 3 else (40, 128)
        dtype = "bfloat16" if number % 4 == 1 else "float32"
        cases.append((name, config.values(), offsets, size, dtype))
    answers = interpret(cases)
    assert [(case, why) for case, why in zip(cases, answers, strict=True) if why] == []


@needs_triton
def test_the_grid_holds_every_tile() -> None:
    from fp4kernels.triton.grouped_launch import most_tiles

    chance = random.Random(0)
    for _ in range(500):
        experts, block_m = chance.randint(1, 9), chance.choice((16, 32, 128))
        counts = [chance.choice((0, 1, block_m, chance.randint(0, 300))) for _ in range(experts)]
        counts[0] += sum(counts) == 0
        needed = sum(-(-count // block_m) for count in counts)
        assert needed <= most_tiles(GroupedWorkload(sum(counts), experts, 64, 64), block_m)
    # as few as can be: each of two experts has one token more than whole tiles
    assert most_tiles(GroupedWorkload(34, 2, 64, 64), 16) == 4


@needs_triton
@pytest.mark.parametrize(
    ("arch", "name", "kind"),
    [
        ("sm_90", "mxfp4-w4a16", "wgmma"),
        ("sm_100", "mxfp4", "kind::mxf4.block_scale"),
        ("sm_120", "nvfp4", "kind::mxf4nvf4.block_scale"),
        ("gfx950", "mxfp4", "v_mfma_scale"),
    ],
)
def test_defaults_compile_offline_without_spills(arch: str, name: str, kind: str) -> None:
    from fp4kernels.triton.grouped import sources
    from fp4kernels.triton.offline import compile_for

    recipe, device = RECIPES[name], ARCHES[arch]
    for tokens in (64, 16384):
        workload = GroupedWorkload(tokens, 64, 4096, 2048)
        config = default(workload, recipe, device)
        [code] = [compile_for(one, arch) for one in sources(config, recipe, workload)]
        where = f"{name} {config.label}"
        assert code.spills == 0, where
        assert code.shared_bytes <= device.shared_memory, where
        assert code.mma_kinds, where
        if tokens > 64 or kind != "wgmma":
            assert all(kind in found for found in code.mma_kinds), where


def test_every_architecture_takes_it_somehow() -> None:
    for arch, name in itertools.product(ARCHES, RECIPE_NAMES):
        why = takes(RECIPES[name], ARCHES[arch], TOOLCHAIN)
        lacking = (arch, name) in (("gfx950", "nvfp4"), ("gfx1250", "nvfp4-w4a16"))
        assert (why is not None) == lacking, (arch, name, why)
    assert takes(RECIPES["int4-g32"], ARCHES["sm_90"], TOOLCHAIN) is not None


@pytest.mark.parametrize("name", [*RECIPE_NAMES, "nvfp4-w4a8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_op_is_each_experts_product(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    recipe, offsets = RECIPES[name], torch.tensor([0, 3, 3, 10, 11], dtype=torch.int32)
    x = torch.randn(11, 96, generator=generator).to(dtype)
    weights = [torch.randn(40, 96, generator=generator) * 4.0**e for e in range(4)]
    packed = [reference.quantize(w, recipe) for w in weights]
    arguments = (x, *grouped.stack(packed), offsets, name)
    out = grouped.grouped_linear_op(*arguments)
    assert (out.shape, out.dtype) == ((11, 40), dtype)
    left = x.bfloat16() if recipe.weight_only else reference.dequantize(
        reference.quantize(x, recipe.activations), recipe.activations.format
    )  # fmt: skip
    for expert, (start, end) in enumerate(itertools.pairwise(offsets.tolist())):
        right = reference.dequantize(packed[expert], recipe.format)
        wanted = reference.gemm(left[start:end], right).to(dtype)
        assert torch.equal(out[start:end], wanted)
    torch.library.opcheck(grouped.grouped_linear_op, arguments)


def test_no_tokens_give_no_rows() -> None:
    w = grouped.stack([reference.quantize(torch.ones(8, 32), RECIPES["mxfp4"])] * 2)
    offsets = torch.zeros(3, dtype=torch.int32)
    assert grouped.grouped_linear_op(torch.ones(0, 32), *w, offsets, "mxfp4").shape == (0, 8)


def test_what_does_not_fit_says_why() -> None:
    w = grouped.stack([reference.quantize(torch.ones(8, 32), RECIPES["mxfp4"])] * 2)
    x, offsets = torch.ones(5, 32), torch.tensor([0, 5, 5], dtype=torch.int32)
    with pytest.raises(FormatError, match="offsets are 3 of int32 for 2 experts"):
        grouped.grouped_linear_op(x, *w, offsets.long(), "mxfp4")
    with pytest.raises(FormatError, match="offsets are 3 of int32 for 2 experts"):
        grouped.grouped_linear_op(x, *w, offsets[:2], "mxfp4")
    with pytest.raises(FormatError, match="codes \\[E, N, K/2\\]"):
        grouped.grouped_linear_op(torch.ones(5, 64), *w, offsets, "mxfp4")
    with pytest.raises(FormatError, match="bfloat16 or float32, but got torch.float16"):
        grouped.grouped_linear_op(x.half(), *w, offsets, "mxfp4")
    with pytest.raises(WorkloadError, match="at least 1, but got 0 tokens"):
        GroupedWorkload(0, 1, 8, 32)
    assert "at most 1024 experts" in (illegal(GroupedWorkload(1, 2000, 8, 32)) or "")
