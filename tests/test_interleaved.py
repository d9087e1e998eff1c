"""decode_bf16: the inline PTX by its text, the numbers under the interpreter, the code offline."""

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

import numpy as np
import pytest
import torch

import ptx
from fp4bench.boards import BOARDS
from fp4bench.proof.targets import ARCHES
from fp4bench.static.occupancy import resident
from fp4kernels import reference
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import LayoutError
from fp4kernels.formats import MXFP4, NVFP4, BlockFormat
from fp4kernels.interleaved import SPARE, TURNS
from fp4kernels.layouts import Layout, convert
from fp4kernels.packing import Packed, pack_nibbles, unpack_nibbles
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.triton.gemm import DecodeConfig
from fp4kernels.triton.interleaved_gemm import InterleavedGemm
from fp4kernels.triton.loops import main_loop
from fp4kernels.workloads import GemmWorkload

ROOT = Path(__file__).parent.parent
TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
VARIANT = InterleavedGemm()
H100 = ARCHES["sm_90"]
RECIPE_NAMES = ["mxfp4", "nvfp4", "mxfp4-w4a16", "nvfp4-w4a16"]
MOST_PER_VALUE = 2.5  # instructions for an FP4 weight at M <= 16, but for MMA, loads and barriers

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def packed_of(codes: torch.Tensor, scales: torch.Tensor) -> Packed:
    return Packed(pack_nibbles(codes), scales, torch.ones(()))


def interleaved(packed: Packed, fmt: BlockFormat) -> Packed:
    return convert(packed, packed.codes.shape[0], fmt, Layout.CANONICAL, Layout.INTERLEAVED)


def test_a_word_reads_as_described() -> None:
    codes = torch.randint(0, 16, (5, 256), dtype=torch.uint8)
    held = interleaved(packed_of(codes, torch.full((5, 8), 127, dtype=torch.uint8)), MXFP4)
    words = held.codes.view(torch.int64)
    assert words.shape == (2, 5, 8)
    for chunk, row, w in itertools.product(range(2), range(5), range(8)):
        word = words[chunk, row, w].item() & (1 << 64) - 1
        halves = [word & 0xFFFFFFFF, word >> 32]
        selected = halves[0] & SPARE | halves[1] & ~SPARE
        for half, quarter in itertools.product(range(2), range(4)):
            turn = TURNS[2][half] if quarter == 3 else TURNS[half][quarter]
            pair = selected if quarter == 3 else halves[half]
            pair = (pair >> turn | pair << 32 - turn) & 0x81C081C0
            for lane in range(2):
                bits = pair >> 16 * lane & 0xFFFF
                k = 128 * chunk + 32 * quarter + 4 * w + 2 * half + lane
                assert (bits >> 12 & 8 | bits >> 6) & 0xF == codes[row, k]


@pytest.mark.parametrize(
    ("fmt", "scales", "codes", "direct"),
    [
        (MXFP4, [0, 128], 1, True),
        (MXFP4, [0, 129], 1, False),
        (MXFP4, [127, 255], 0, False),
        (NVFP4, [1, 0x7E], 1, True),
        (NVFP4, [1, 0x7F], 1, False),
        (NVFP4, [1, 0x80], 1, False),
        (NVFP4, [1, 0], 8, True),  # minus zeros under zero
        (NVFP4, [1, 0], 1, False),
    ],
)
def test_which_scales_are_direct(
    fmt: BlockFormat, scales: list[int], codes: int, direct: bool
) -> None:
    count = 2 * fmt.block_size
    values = torch.full((1, count), codes, dtype=torch.uint8)
    packed = packed_of(values, torch.tensor([scales], dtype=torch.uint8))
    held = interleaved(packed, fmt)
    assert held.scales.dim() == (3 if direct else 4)
    back = convert(held, 1, fmt, Layout.INTERLEAVED, Layout.CANONICAL, count)
    assert torch.equal(back.scales, packed.scales)
    assert torch.equal(back.codes, packed.codes)


@needs_triton
@pytest.mark.parametrize("fmt", [MXFP4, NVFP4], ids=lambda fmt: fmt.name)
def test_the_inline_ptx_decodes_every_code_under_every_direct_scale(fmt: BlockFormat) -> None:
    """Evaluated from its text: any sum of products would not tell a swapped lane."""
    from fp4kernels.triton import interleaved_kernel as kernel

    nvfp4 = fmt is NVFP4
    count = 127 if nvfp4 else 129
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (count, 128), generator=generator).to(torch.uint8)
    codes[:, :16] = torch.arange(16).to(torch.uint8)
    scales = torch.arange(count).to(torch.uint8).unsqueeze(1)
    scales = torch.cat([scales.roll(i, 0) for i in range(128 // fmt.block_size)], 1)
    if nvfp4:
        codes[(scales == 0).repeat_interleave(16, 1)] &= 8
    packed = packed_of(codes, scales)
    held = interleaved(packed, fmt)
    assert held.scales.dim() == 3
    text = (kernel.E4M3_FACTORS if nvfp4 else kernel.E8M0_FACTORS).value
    bytes_ = held.scales.view(torch.int32)[0].numpy().view(np.uint32)
    factors = ptx.run(text, 2, [bytes_])
    words = held.codes.view(torch.int64)[0].numpy().view(np.uint64)
    share = 8 // bytes_.shape[1]
    pairs = ptx.run(kernel.UNPACK.value, 8, [words, *(f.repeat(share, 1) for f in factors)])
    found = np.empty((count, 4, 8, 2, 2))
    for i, pair in enumerate(pairs):
        for lane in range(2):
            found[:, i % 4, :, i // 4, lane] = ptx.bf16(
                pair >> np.uint64(16 * lane) & np.uint64(0xFFFF)
            )
    expected = reference.dequantize(packed, fmt).double().numpy() / (128 if nvfp4 else 1)
    assert np.array_equal(found.reshape(count, 128), expected)
    assert np.array_equal(np.signbit(found.reshape(count, 128)), np.signbit(expected))


def legal_configs(recipe: Recipe, workload: GemmWorkload, device: Device) -> Iterator[DecodeConfig]:
    space = tomllib.loads((ROOT / "search_spaces" / "decode_bf16.toml").read_text())["quick"]
    for values in itertools.product(*space.values()):
        config = DecodeConfig(**dict(zip(space, values, strict=True)))
        if VARIANT.illegal(config, recipe, workload, device, TOOLCHAIN) is None:
            yield config


def interpret(*arguments: str, cases: list[Any] | None = None) -> list[str | None]:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interpret_interleaved.py"), *arguments],
        input=json.dumps(cases), capture_output=True, text=True, timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    answers: list[str | None] = json.loads(result.stdout)
    if answers == ["skip"]:
        pytest.skip("this interpreter's loops need numpy < 2.4")
    return answers


@needs_triton
def test_all_codes_under_all_scales_decode_exactly_in_plain_operations() -> None:
    assert interpret("decode") == [None] * 4


@needs_triton
@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_tilings_pass_the_gate(name: str) -> None:
    """Direct scales (gaussian) and others, tails in M, N and K, both operand orders.

    The kinds of data and tails are dealt out: all four recipes together meet all of them.
    """
    block = RECIPES[name].format.block_size
    tilings = [
        (16, 32, 128, 1), (16, 64, 256, 2), (32, 32, 128, 4), (64, 64, 128, 1), (128, 32, 256, 1),
    ]  # fmt: skip
    cases = []
    for number, (block_m, block_n, block_k, shares) in enumerate(tilings):
        config = DecodeConfig(block_m, block_n, block_k, 2, 2, 1 + 7 * (block_m == 64), shares)
        m = {16: 13, 32: 29, 64: 69, 128: 100}[block_m]
        kinds = (("gaussian", 0), ("scales", block), ("gaussian", block_k - block))
        data, tail = kinds[(number + RECIPE_NAMES.index(name)) % 3]
        dtype = "bfloat16" if number % 2 else "float32"
        k = max(2, shares) * block_k - tail
        cases.append((name, config.values(), (m, 40, k), dtype, data))
    answers = interpret(cases=cases)
    wrong = [(case, why) for case, why in zip(cases, answers, strict=True) if why]
    assert not wrong, f"{len(wrong)} of {len(cases)}: {wrong[:3]}"


def built(config: DecodeConfig, recipe: Recipe, shape: GemmWorkload, arch: str) -> list[Any]:
    from fp4kernels.triton.offline import compile_for

    return [compile_for(source, arch) for source in VARIANT.sources(config, recipe, shape)]


@needs_triton
@pytest.mark.parametrize(
    ("name", "m"), [("mxfp4", 1), ("mxfp4-w4a16", 16), ("nvfp4", 16), ("nvfp4-w4a16", 1)]
)
def test_the_loop_of_the_default_is_short(name: str, m: int) -> None:
    recipe, shape = RECIPES[name], GemmWorkload(m, 8192, 8192)
    config = VARIANT.default(shape, recipe, H100)
    assert config.block_m >= 16
    assert config.block_n >= 64
    assert config.block_k >= 128
    gemm, *rest = built(config, recipe, shape, "sm_90")
    assert gemm.spills == sum(kernel.spills for kernel in rest) == 0
    assert gemm.shared_bytes <= VARIANT.shared_limit(config, recipe, shape, H100)
    [kind] = gemm.mma_kinds
    loop = main_loop(gemm.sass)
    assert loop is not None
    weights = loop.weights_per_lane(kind, config.block_m)
    assert weights == config.block_n * config.block_k // (32 * config.warps)
    assert loop.counted <= MOST_PER_VALUE * weights
    # subnormals carry the code of 0.5 and the scale 2^-127
    assert not re.search(r"(mul|fma)\S*\.ftz", gemm.ptx)


@needs_triton
@pytest.mark.parametrize("limit", [0, 88, 128])
def test_registers_are_what_a_thread_is_held_to(limit: int) -> None:
    """Eight programs share a core of sm_90 at a small M."""
    recipe, shape = RECIPES["mxfp4-w4a16"], GemmWorkload(1, 8192, 8192)
    config = replace(VARIANT.default(shape, recipe, H100), maxnreg=limit)
    assert VARIANT.illegal(config, recipe, shape, H100, TOOLCHAIN) is None
    gemm, *_ = built(config, recipe, shape, "sm_90")
    assert (".maxnreg" in gemm.ptx) == bool(limit)
    assert gemm.registers <= (limit or 112)
    assert gemm.spills == 0
    assert resident(BOARDS["h100"].core, gemm.registers, gemm.shared_bytes, config.warps) >= 8


@needs_triton
@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_other_architectures_compile(arch: str) -> None:
    recipe, device = RECIPES["nvfp4-w4a16"], ARCHES[arch]
    for m in (16, 4096):
        shape = GemmWorkload(m, 4096, 4096)
        config = VARIANT.default(shape, recipe, device)
        gemm, *_ = built(config, recipe, shape, arch)
        assert gemm.spills == 0
        assert gemm.shared_bytes <= VARIANT.shared_limit(config, recipe, shape, device)


@needs_triton
def test_scales_that_are_not_direct_compile() -> None:
    from fp4kernels.triton.interleaved_launch import interleaved_sources
    from fp4kernels.triton.offline import compile_for

    recipe, shape = RECIPES["mxfp4-w4a16"], GemmWorkload(16, 4096, 4096 + 32)
    config = VARIANT.default(shape, recipe, H100)
    gemm, *_ = (compile_for(s, "sm_90") for s in interleaved_sources(config, recipe, shape, False))
    assert gemm.spills == 0
    assert gemm.shared_bytes <= H100.shared_memory


@pytest.mark.parametrize("name", RECIPE_NAMES)
@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_the_default_is_legal(name: str, arch: str) -> None:
    recipe, device = RECIPES[name], ARCHES[arch]
    for m, n, k in itertools.product((1, 17, 64, 65, 128, 4096), (1, 40, 4096), (32, 160, 8192)):
        workload = GemmWorkload(m, n, k)
        config = VARIANT.default(workload, recipe, device)
        assert VARIANT.illegal(config, recipe, workload, device, TOOLCHAIN) is None, workload


def test_quick_space_has_a_sensible_size() -> None:
    for recipe, m in itertools.product(RECIPE_NAMES, (1, 64, 128, 4096)):
        count = len([*legal_configs(RECIPES[recipe], GemmWorkload(m, 4096, 4096), H100)])
        assert 15 <= count <= 90, (recipe, m, count)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block_k": 64}, "whole chunks of the interleaved layout, 128 values each, but got 64"),
        ({"block_m": 8}, "at least 16 a side"),
        ({"stages": 40}, "bytes of shared memory, but H100 has 232448"),
        ({"block_n": 256}, "registers a thread, but beside addresses"),
        ({"warps": 4}, "with 4 warps H100 would read the unpacked weights from shared memory"),
        ({"block_n": 16}, "2 warps of 16 rows each share only 16 rows"),
        ({"block_m": 64}, "block_m=64 would be at least half empty"),
        ({"group_m": 8}, "M=16 has one"),
        ({"split_k": 33}, "has only 32 blocks"),
        ({"split_k": 32}, "2048 programs, but 8 on each of 132 cores"),
        ({"maxnreg": 100}, "whole 8s from 32 to 248 registers of a thread, but got 100"),
        ({"maxnreg": 80}, "holds 80 registers a thread beside addresses, but maxnreg=80"),
        ({"maxnreg": 96, "block_k": 512, "stages": 5}, "no second program onto a core"),
    ],
)
def test_illegal_says_why(change: dict[str, int], reason: str) -> None:
    config = DecodeConfig(16, 64, 128, warps=2, stages=4, group_m=1, split_k=1)
    workload, recipe = GemmWorkload(16, 4096, 4096), RECIPES["mxfp4"]
    assert VARIANT.illegal(config, recipe, workload, H100, TOOLCHAIN) is None
    why = VARIANT.illegal(replace(config, **change), recipe, workload, H100, TOOLCHAIN)
    assert why is not None
    assert reason in why


@needs_triton
def test_canonical_weights_are_refused() -> None:
    config = DecodeConfig(16, 64, 128, warps=2, stages=4, group_m=1, split_k=1)
    launch = VARIANT.build(config, RECIPES["mxfp4-w4a16"], H100, TOOLCHAIN)
    w = Packed(torch.zeros(8, 16).byte(), torch.zeros(8, 1).byte(), torch.ones(()))
    with pytest.raises(LayoutError, match="reads interleaved weights"):
        launch(torch.zeros(1, 32, dtype=torch.bfloat16), w, torch.zeros(1, 8))


def test_the_variant_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import fp4kernels.triton.interleaved_gemm"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_unpacking_nibbles_is_what_the_layout_starts_from() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(8).unsqueeze(0)
    held = interleaved(packed_of(codes, torch.full((1, 4), 100, dtype=torch.uint8)), MXFP4)
    back = convert(held, 1, MXFP4, Layout.INTERLEAVED, Layout.CANONICAL)
    assert torch.equal(unpack_nibbles(back.codes), codes)
