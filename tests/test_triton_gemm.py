"""decode_canonical: its numbers under the interpreter, and what it compiles to without a GPU."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.formats import NVFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.triton.gemm import DecodeConfig, DecodeGemm, shared_bytes
from fp4kernels.workloads import GemmWorkload

ROOT = Path(__file__).parent.parent
H100 = Device("cuda", "H100", "sm_90", 132, 50 << 20, 227 << 10, 80 << 30)
A100 = Device("cuda", "A100", "sm_80", 108, 40 << 20, 163 << 10, 80 << 30)
TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
VARIANT = DecodeGemm()
RECIPE_NAMES = ["mxfp4", "nvfp4", "mxfp4-w4a16", "nvfp4-w4a16"]
GRANULAR = [
    f"{name}-g{size}{rest}"
    for name in ("mxfp4", "fp4-e4m3", "fp4-fp32")
    for size in (64, 128)
    for rest in ("", "-w4a16")
]
MOST_SPILLS = 32  # loads and stores of local memory in all of a kernel, most outside its loop

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def legal_configs(recipe: Recipe, workload: GemmWorkload, device: Device) -> Iterator[DecodeConfig]:
    space = tomllib.loads((ROOT / "search_spaces" / "decode_canonical.toml").read_text())["quick"]
    for values in itertools.product(*space.values()):
        config = DecodeConfig(**dict(zip(space, values, strict=True)))
        if VARIANT.illegal(config, recipe, workload, device, TOOLCHAIN) is None:
            yield config


def interpret(*arguments: str, cases: list[Any] | None = None) -> list[str | None]:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interpret_decode.py"), *arguments],
        input=json.dumps(cases), capture_output=True, text=True, timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    answers: list[str | None] = json.loads(result.stdout)
    if answers == ["skip"]:
        pytest.skip("this interpreter's loops need numpy < 2.4")
    return answers


def interpreted_cases(recipe: Recipe) -> list[Any]:
    """Half of all tilings, each once, on the smallest shape with tails that it is legal on.

    A checkerboard: the other format of the same operand widths takes the other half.
    """
    half = (recipe.format is NVFP4) ^ recipe.weight_only
    cases: dict[DecodeConfig, Any] = {}
    for shares, steps in itertools.product((1, 2, 4, 8), (64, 128, 256)):
        # several tiles in M and N where K is not split; one is enough, and faster, where it is
        sizes_m, sizes_n = (
            ((13, 29, 69, 133), (73,)) if shares == 1 else ((13, 29, 45, 69, 133), (40, 73))
        )
        for m, n in itertools.product(sizes_m, sizes_n):
            tail = recipe.format.block_size - steps if len(cases) % 3 else 0
            shape = (m, n, max(2, shares) * steps + tail)
            for config in legal_configs(recipe, GemmWorkload(*shape), H100):
                tiling = replace(config, warps=4, stages=2)  # the interpreter has neither
                if (tiling.split_k, tiling.block_k) != (shares, steps) or tiling in cases:
                    continue
                if sum(value.bit_length() for value in tiling.values().values()) % 2 == half:
                    dtype = "bfloat16" if len(cases) % 2 else "float32"
                    cases[tiling] = (recipe.name, tiling.values(), shape, dtype)
    return [*cases.values()]


@needs_triton
@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_quick_tiling_passes_the_gate(name: str) -> None:
    cases = interpreted_cases(RECIPES[name])
    assert len(cases) > 50
    answers = interpret(cases=cases)
    wrong = [(case, why) for case, why in zip(cases, answers, strict=True) if why]
    assert not wrong, f"{len(wrong)} of {len(cases)}: {wrong[:3]}"


@needs_triton
def test_blocks_of_64_and_128_pass_the_gate() -> None:
    """Tails in M, N and K; K shared out for every other recipe."""
    cases = []
    for index, name in enumerate(GRANULAR):
        block, split = RECIPES[name].format.block_size, 1 + index // 2 % 2
        steps = block if "fp32" in name else 128
        config = DecodeConfig(16, 64, steps, warps=4, stages=2, group_m=1, split_k=split)
        shape = (13, 73, 3 * 128 + (block if block < steps else 0))
        cases.append((name, config.values(), shape, "float32" if index % 3 else "bfloat16"))
    answers = interpret(cases=cases)
    wrong = [(case, why) for case, why in zip(cases, answers, strict=True) if why]
    assert not wrong


@needs_triton
@pytest.mark.parametrize("device", [A100, H100], ids=lambda device: device.arch)
def test_defaults_of_blocks_of_64_and_128_compile(device: Device) -> None:
    from fp4kernels.triton.decode_launch import decode_sources
    from fp4kernels.triton.offline import compile_kernel

    for name, m in (("fp4-fp32-g128", 4096), ("mxfp4-g128", 64), ("fp4-e4m3-g64-w4a16", 1)):
        recipe, workload = RECIPES[name], GemmWorkload(m, 4096, 4096)
        config = VARIANT.default(workload, recipe, device)
        gemm = compile_kernel(
            decode_sources(config, recipe, workload)[0], device.compute_capability
        )
        assert gemm.spills <= MOST_SPILLS, (name, config.label)
        assert gemm.shared_bytes <= shared_bytes(config, recipe, workload, device)


def test_an_fp32_scale_takes_a_block_at_a_time() -> None:
    recipe, workload = RECIPES["fp4-fp32-g64"], GemmWorkload(16, 4096, 4096)
    config = DecodeConfig(16, 64, 128, warps=4, stages=4, group_m=1, split_k=1)
    why = VARIANT.illegal(config, recipe, workload, H100, TOOLCHAIN)
    assert why is not None
    assert "so block_k is one block of 64, but got 128" in why
    single = replace(recipe, format=replace(recipe.format, block_shape=(1, 32)))
    assert "pays from 64 values on" in (VARIANT.takes(single, H100, TOOLCHAIN) or "")


@needs_triton
def test_all_codes_under_all_scales_decode_exactly() -> None:
    assert interpret("decode") == [None, None]


def covering(configs: list[DecodeConfig]) -> list[DecodeConfig]:
    """A few of `configs` in which every value of every field stands."""
    missing = {pair for config in configs for pair in config.values().items()}
    chosen = []
    while missing:
        best = max(configs, key=lambda config: len(missing & {*config.values().items()}))
        missing -= {*best.values().items()}
        chosen.append(best)
    return chosen


@needs_triton
@pytest.mark.parametrize("device", [A100, H100], ids=lambda device: device.arch)
@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_configs_compile_offline(name: str, device: Device) -> None:
    from fp4kernels.triton.decode_launch import decode_sources
    from fp4kernels.triton.offline import compile_kernel

    recipe = RECIPES[name]
    shapes = [GemmWorkload(m, 4096, 4096) for m in (1, 32, 64, 4096)]
    configs = {VARIANT.default(shape, recipe, device): shape for shape in shapes}
    if device is H100:  # fp4bench compile takes the whole space for every one
        legal = {c: shape for shape in shapes for c in legal_configs(recipe, shape, device)}
        configs |= {config: legal[config] for config in covering([*legal])}
    for config, shape in configs.items():
        gemm, *rest = (
            compile_kernel(source, device.compute_capability)
            for source in decode_sources(config, recipe, shape)
        )
        where = f"{config.label} on {device.arch}"
        assert len(rest) == (config.split_k > 1)
        assert gemm.spills <= MOST_SPILLS, where
        assert gemm.shared_bytes <= shared_bytes(config, recipe, shape, device), where
        wgmma = device.arch == "sm_90" and config.block_m >= 64
        assert gemm.instructions["HGMMA" if wgmma else "HMMA"], where
        # subnormals carry the code of 0.5 and the scale 2^-127
        assert not re.search(r"(mul|fma)\S*\.ftz", gemm.ptx), where


@needs_triton
def test_a_tail_in_k_compiles() -> None:
    from fp4kernels.triton.decode_launch import decode_sources
    from fp4kernels.triton.offline import compile_kernel

    recipe = RECIPES["nvfp4"]
    workload = GemmWorkload(4096, 4096, 4096 + 16, output_dtype="float32")
    config = VARIANT.default(workload, recipe, H100)
    [source] = decode_sources(config, recipe, workload)
    assert compile_kernel(source, 90).spills <= MOST_SPILLS


@pytest.mark.parametrize("name", RECIPE_NAMES + GRANULAR)
@pytest.mark.parametrize("device", [A100, H100], ids=lambda device: device.arch)
def test_the_default_is_legal(name: str, device: Device) -> None:
    recipe = RECIPES[name]
    for m, n, k in itertools.product((1, 17, 64, 65, 128, 4096), (1, 80, 4096), (32, 96, 4096)):
        k = -(-k // recipe.format.block_size) * recipe.format.block_size
        workload = GemmWorkload(m, n, k)
        config = VARIANT.default(workload, recipe, device)
        assert VARIANT.illegal(config, recipe, workload, device, TOOLCHAIN) is None, workload


def test_quick_space_has_a_sensible_size() -> None:
    for recipe, m in itertools.product(RECIPE_NAMES, (1, 64, 128, 4096)):
        count = len([*legal_configs(RECIPES[recipe], GemmWorkload(m, 4096, 4096), H100)])
        assert 30 <= count <= 80, (recipe, m, count)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block_k": 16}, "whole scale blocks of 32, but got 16"),
        ({"block_n": 8}, "at least 16 a side"),
        ({"block_m": 48}, "power of two, but got 48"),
        ({"stages": 0}, "stages must be at least 1"),
        ({"warps": 64}, "at most 32 warps"),
        ({"stages": 40}, "bytes of shared memory, but H100 has 232448"),
        ({"block_m": 256, "warps": 4}, "registers a thread, but with 4 warps there are 256"),
        ({"block_k": 256, "warps": 16}, "registers a thread, but with 16 warps there are 128"),
        ({"block_m": 256}, "block_m=256 would be at least half empty at 128"),
        ({"block_m": 32}, "would decode every weight 4 times"),
        ({"group_m": 8}, "M=128 has one"),
        ({"split_k": 65}, "has only 64 blocks"),
        ({"split_k": 16}, "512 programs, but 2 on each of 132 cores"),
        ({"maxnreg": 20}, "whole 8s from 32 to 248 registers of a thread, but got 20"),
        ({"maxnreg": 96}, "holds 128 registers a thread beside addresses, but maxnreg=96"),
        ({"maxnreg": 128, "warps": 16}, "limits nothing: a thread of 16 warps has 128"),
    ],
)
def test_illegal_says_why(change: dict[str, int], reason: str) -> None:
    config = DecodeConfig(128, 128, 64, warps=8, stages=4, group_m=1, split_k=1)
    workload, recipe = GemmWorkload(128, 4096, 4096), RECIPES["mxfp4"]
    assert VARIANT.illegal(config, recipe, workload, H100, TOOLCHAIN) is None
    why = VARIANT.illegal(replace(config, **change), recipe, workload, H100, TOOLCHAIN)
    assert why is not None
    assert reason in why


def test_sums_and_operands_share_the_registers_before_wgmma() -> None:
    config = DecodeConfig(128, 128, 64, warps=4, stages=4, group_m=1, split_k=1)
    workload, recipe = GemmWorkload(128, 4096, 4096), RECIPES["mxfp4"]
    assert VARIANT.illegal(config, recipe, workload, H100, TOOLCHAIN) is None
    assert "128 sums" in (VARIANT.illegal(config, recipe, workload, A100, TOOLCHAIN) or "")


def test_dtypes_it_does_not_take() -> None:
    config = DecodeConfig(16, 64, 128, warps=4, stages=4, group_m=1, split_k=1)
    for workload, recipe in (
        (GemmWorkload(1, 4096, 4096, activation_dtype="float32"), RECIPES["mxfp4-w4a16"]),
        (GemmWorkload(1, 4096, 4096, output_dtype="float16"), RECIPES["mxfp4"]),
    ):
        assert "float" in (VARIANT.illegal(config, recipe, workload, H100, TOOLCHAIN) or "")


@needs_triton
def test_other_activations_are_refused() -> None:
    config = DecodeConfig(16, 64, 128, warps=4, stages=4, group_m=1, split_k=1)
    launch = VARIANT.build(config, RECIPES["mxfp4-w4a16"], H100, TOOLCHAIN)
    w = Packed(torch.zeros(8, 16).byte(), torch.zeros(8, 1).byte(), torch.ones(()))
    with pytest.raises(FormatError, match=r"bfloat16 activations only, but got torch\.float16"):
        launch(torch.zeros(1, 32, dtype=torch.float16), w, torch.zeros(1, 8))


def test_takes() -> None:
    taken = [name for name, r in RECIPES.items() if VARIANT.takes(r, H100, TOOLCHAIN) is None]
    others = ["mxfp4-row-14", "mxfp4-row-28", "nvfp4-single", "fp4-e4m3-g32", "fp4-e4m3-g32-w4a16"]
    assert sorted(taken) == sorted([*RECIPE_NAMES, *others, *GRANULAR])
    recipe = RECIPES["mxfp4"]
    turing = replace(H100, name="T4", arch="sm_75")
    assert VARIANT.takes(recipe, H100, TOOLCHAIN) is None
    assert "sm_80 or later" in (VARIANT.takes(recipe, turing, TOOLCHAIN) or "")
    assert "not installed" in (VARIANT.takes(recipe, H100, replace(TOOLCHAIN, triton=None)) or "")
    cpu = replace(H100, kind="cpu", name="EPYC", arch="x86_64-avx2")
    assert "the device is EPYC" in (VARIANT.takes(recipe, cpu, TOOLCHAIN) or "")


def test_the_variant_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import fp4kernels.triton.gemm"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
