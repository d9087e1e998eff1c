"""dot_scaled: its numbers under the interpreter, and what it compiles to without a GPU."""

from __future__ import annotations

import importlib.metadata
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
from fp4bench.spaces import EFFORTS, values_of
from fp4kernels.devices import Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES
from fp4kernels.triton.dot_scaled import DotScaledConfig, DotScaledGemm, SwizzledDotScaledGemm
from fp4kernels.triton.dot_scaled_limits import version
from fp4kernels.variants import Badge
from fp4kernels.workloads import GemmWorkload

ROOT = Path(__file__).parent.parent
TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
ROWS, LINES = DotScaledGemm(), SwizzledDotScaledGemm()
BOTH = [ROWS, LINES]
RECIPE_NAMES = ["mxfp4", "nvfp4", "mxfp4-w4a16", "nvfp4-w4a16"]
B200, H100 = ARCHES["sm_100"], ARCHES["sm_90"]
NATIVE = {
    ("sm_100", "mxfp4"): "kind::mxf4.block_scale",
    ("sm_100", "nvfp4"): "kind::mxf4nvf4.block_scale",
    ("sm_120", "mxfp4"): "kind::mxf4nvf4.block_scale.scale_vec::2X",
    ("sm_120", "nvfp4"): "kind::mxf4nvf4.block_scale.scale_vec::4X",
    ("gfx950", "mxfp4"): "v_mfma_scale_f32",
    ("gfx1250", "mxfp4"): "v_wmma_scale_f32",
    ("gfx1250", "nvfp4"): "v_wmma_scale16_f32",
}
# (recipe, architecture) that no Triton compiles, that 3.9 does, and that 3.7 does
NEVER = {
    *((name, "sm_80") for name in ("nvfp4", "nvfp4-w4a16")),
    ("nvfp4", "gfx950"), ("nvfp4-w4a16", "gfx1250"),
}  # fmt: skip
LATER = {
    *itertools.product(("nvfp4", "nvfp4-w4a16"), ("sm_89", "sm_90", "gfx942")),
    ("nvfp4-w4a16", "sm_100"), ("nvfp4-w4a16", "sm_120"), ("nvfp4-w4a16", "gfx950"),
    ("nvfp4", "gfx1250"), ("mxfp4", "gfx942"),
}  # fmt: skip
FIRST = {("mxfp4-w4a16", "gfx1250")}

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def installed() -> str:
    return importlib.metadata.version("triton")


def interpret(*arguments: str, cases: list[Any] | None = None) -> list[str | None]:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interpret_dots.py"), *arguments],
        input=json.dumps(cases), capture_output=True, text=True, timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    answers: list[str | None] = json.loads(result.stdout)
    if answers == ["skip"]:
        pytest.skip("this Triton's interpreter has no dot_scaled; 3.9 does")
    return answers


def taken() -> list[tuple[str, str]]:
    return [(v.name, name) for v in BOTH for name in RECIPE_NAMES
            if v.takes(RECIPES[name], B200, TOOLCHAIN) is None]  # fmt: skip


@needs_triton
def test_tails_and_several_tiles_pass_the_gate() -> None:
    """Each way to load and to multiply, with K short of a tile, even, and of one block more."""
    cases: list[Any] = []
    for variant, name in taken():
        block = RECIPES[name].format.block_size
        for number, (m, n, k, block_m, block_k) in enumerate((
            (13, 135, 256 + block, 16, 128),
            (67, 300, 256, 64, 256),
            (133, 73, 384 - 2 * block, 128, 128),
        )):  # fmt: skip
            block_n = 256 if number == 1 else 128
            config = DotScaledConfig(block_m, block_n, block_k, warps=4, stages=2, group_m=8)
            dtype = "bfloat16" if number % 2 else "float32"
            cases.append((variant, name, config.values(), (m, n, k), dtype))
    assert len(cases) == 18
    answers = interpret(cases=cases)
    assert [(case, why) for case, why in zip(cases, answers, strict=True) if why] == []


@needs_triton
def test_all_codes_under_all_scales_multiply_exactly() -> None:
    cases = taken()
    answers = interpret("codes", cases=cases)
    assert [(case, why) for case, why in zip(cases, answers, strict=True) if why] == []


@needs_triton
def test_scales_are_laid_out_as_by_torch() -> None:
    assert not any(interpret("swizzle"))


@needs_triton
@pytest.mark.parametrize(("arch", "name"), NATIVE, ids=lambda value: str(value))
def test_native_devices_multiply_blocks_under_scales(arch: str, name: str) -> None:
    from fp4kernels.triton.offline import compile_for

    device, recipe = ARCHES[arch], RECIPES[name]
    for variant, m in itertools.product(BOTH, (1, 4096)):
        if variant.takes(recipe, device, replace(TOOLCHAIN, triton=installed())) is not None:
            continue
        workload = GemmWorkload(m, 4096, 4096)
        config = variant.default(workload, recipe, device)
        built = [compile_for(one, arch) for one in variant.sources(config, recipe, workload)]
        gemm, where = built[0], f"{variant.name} {config.label}"
        assert all(NATIVE[arch, name] in kind for kind in gemm.mma_kinds), where
        assert gemm.mma_kinds, where
        assert sum(code.spills for code in built) == 0, where
        assert gemm.shared_bytes <= variant.shared_limit(config, recipe, workload, device), where
        if arch == "sm_100" and variant is LINES:  # scales go to tensor memory as they lie
            assert "tcgen05.cp" in gemm.ptx, where
            assert len(built) == (2 if m == 4096 else 1)


@needs_triton
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4-w4a16"])
def test_hopper_decodes_for_wgmma(name: str) -> None:
    from fp4kernels.triton.offline import compile_for

    recipe, workload = RECIPES[name], GemmWorkload(4096, 4096, 4096 + 32)
    if ROWS.takes(recipe, H100, replace(TOOLCHAIN, triton=installed())) is not None:
        pytest.skip("this Triton does not compile it")
    config = ROWS.default(workload, recipe, H100)
    [gemm] = [compile_for(one, "sm_90") for one in ROWS.sources(config, recipe, workload)]
    assert gemm.mma_kinds == ("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",)
    assert gemm.spills == 0


# a process for each, since a compiler may take its own along
COMPILE = """
import os, sys
from fp4bench.proof.targets import target
from fp4kernels.errors import BuildError
from fp4kernels.recipes import recipe
from fp4kernels.registry import variant
from fp4kernels.triton.offline import compile_for
from fp4kernels.workloads import GemmWorkload

workload, kernel = GemmWorkload(1, 4096, 4096), variant("dot_scaled")
for pair in sys.argv[1:]:
    name, arch = pair.split("/")
    how = recipe(name)
    config = kernel.default(workload, how, target(arch))
    [source] = kernel.sources(config, how, workload)
    child = os.fork()
    if child == 0:
        try:
            compile_for(source, arch)
        except BuildError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print("compiles:", pair)
print("tried", len(sys.argv) - 1)
"""


@needs_triton
def test_what_legality_calls_a_fault_of_triton_is_one() -> None:
    """Where this fails, a rule of dot_scaled_limits.not_compiled is out of date: drop it."""
    faults = NEVER | (LATER if version(installed()) < (3, 9) else set())
    faults |= FIRST if version(installed()) < (3, 7) else set()
    sound = ("mxfp4", "sm_100")  # the way to ask is not what fails
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, *map("/".join, [sound, *sorted(faults)])],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert result.stdout.splitlines() == ["compiles: mxfp4/sm_100", f"tried {len(faults) + 1}"]


def test_faults_of_the_compiler_are_legality() -> None:
    for name, arch in itertools.product(RECIPE_NAMES, ARCHES):
        versions = {"3.6.0": NEVER | LATER | FIRST, "3.7.1": NEVER | LATER, "3.9.0": NEVER}
        for triton, faults in versions.items():
            why = ROWS.takes(RECIPES[name], ARCHES[arch], replace(TOOLCHAIN, triton=triton))
            assert (why is not None) == ((name, arch) in faults), (name, arch, triton, why)


def test_takes() -> None:
    names = [name for name, r in RECIPES.items() if ROWS.takes(r, H100, TOOLCHAIN) is None]
    assert sorted(names) == sorted([*RECIPE_NAMES, "mxfp4-row-14", "mxfp4-row-28"])
    recipe = RECIPES["mxfp4"]
    assert "sm_80 or later" in (ROWS.takes(recipe, replace(H100, arch="sm_75"), TOOLCHAIN) or "")
    assert "not installed" in (ROWS.takes(recipe, H100, replace(TOOLCHAIN, triton=None)) or "")
    cpu = replace(H100, kind="cpu", name="EPYC", arch="x86_64-avx2")
    assert "the device is EPYC" in (ROWS.takes(recipe, cpu, TOOLCHAIN) or "")
    old = replace(H100, name="MI250", arch="gfx90a")
    assert "of AMD's GPUs, but got gfx90a" in (ROWS.takes(recipe, old, TOOLCHAIN) or "")
    assert "H100 multiplies mxfp4 otherwise" in (LINES.takes(recipe, H100, TOOLCHAIN) or "")


def test_badges() -> None:
    native = {(arch, name) for arch, name in itertools.product(ARCHES, RECIPE_NAMES)
              if ROWS.badge(RECIPES[name], ARCHES[arch]) is Badge.NATIVE}  # fmt: skip
    assert native == set(NATIVE)


@pytest.mark.parametrize("variant", BOTH, ids=lambda variant: variant.name)
def test_the_default_is_legal_and_no_small_tile(variant: DotScaledGemm) -> None:
    sizes = ((1, 16, 17, 64, 65, 128, 512, 4096), (1, 80, 4096), (32, 96, 4096))
    for arch, name in itertools.product(ARCHES, RECIPE_NAMES):
        device, recipe = ARCHES[arch], RECIPES[name]
        if variant.takes(recipe, device, TOOLCHAIN) is not None:
            continue
        for m, n, k in itertools.product(*sizes):
            workload = GemmWorkload(m, n, k)
            config = variant.default(workload, recipe, device)
            why = variant.illegal(config, recipe, workload, device, TOOLCHAIN)
            assert why is None, (arch, name, workload, config, why)
            tile = (config.block_m, config.block_n, config.block_k)
            if (n, k) == (4096, 4096) and (m >= 512 or m <= 16):
                least = (128, 128, 64) if m >= 512 else (16, 64, 128)
                assert all(size >= low for size, low in zip(tile, least, strict=True)), tile


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("arch", ["sm_90", "sm_100", "sm_120", "gfx950"])
def test_the_space_holds_the_default(arch: str, effort: str) -> None:
    device, recipe = ARCHES[arch], RECIPES["mxfp4"]
    for variant, m in itertools.product(BOTH, (1, 32, 64, 512, 4096)):
        if variant.takes(recipe, device, TOOLCHAIN) is None:
            space = values_of(variant, effort)
            config = variant.default(GemmWorkload(m, 4096, 4096), recipe, device)
            assert all(value in space[field] for field, value in config.values().items()), config


def test_quick_space_has_a_sensible_size() -> None:
    for variant, (arch, name), m in itertools.product(BOTH, NATIVE, (1, 64, 128, 4096)):
        device, recipe, workload = ARCHES[arch], RECIPES[name], GemmWorkload(m, 4096, 4096)
        if variant.takes(recipe, device, TOOLCHAIN) is None:
            space = values_of(variant, "quick")
            configs = [
                DotScaledConfig(**dict(zip(space, values, strict=True)))
                for values in itertools.product(*space.values())
            ]
            legal = [variant.illegal(c, recipe, workload, device, TOOLCHAIN) for c in configs]
            assert 8 <= legal.count(None) <= 140, (variant.name, arch, name, m, legal.count(None))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block_k": 16}, "whole scale blocks, and at least 32, but got 16"),
        ({"block_n": 8}, "at least 16 a side"),
        ({"block_m": 48}, "power of two, but got 48"),
        ({"stages": 0}, "stages must be at least 1"),
        ({"warps": 64}, "at most 1024 threads, but 64 warps have 2048"),
        ({"stages": 40}, "bytes of shared memory, but B200 has 232448"),
        ({"block_n": 512, "warps": 4}, "512 sums a thread, but 128 fit"),
        ({"block_n": 512, "warps": 16, "block_k": 64}, "columns of tensor memory, but there are 512"),
        ({"block_m": 64, "block_n": 64}, "has 128 rows, of activations or weights, but got"),
        ({"block_k": 32}, "takes 64 values of K, but got 32"),
        ({"block_m": 256, "warps": 8}, "block_m=256 would be at least half empty at 128"),
        ({"block_m": 32}, "would read every weight 4 times"),
        ({"group_m": 8}, "M=128 has one"),
        ({"maxnreg": 256}, "whole 8s from 32 to 248 registers of a thread, but got 256"),
    ],
)  # fmt: skip
def test_illegal_says_why(change: dict[str, int], reason: str) -> None:
    config = DotScaledConfig(128, 128, 256, warps=8, stages=4, group_m=1)
    workload, recipe = GemmWorkload(128, 4096, 4096), RECIPES["mxfp4"]
    assert ROWS.illegal(config, recipe, workload, B200, TOOLCHAIN) is None
    why = ROWS.illegal(replace(config, **change), recipe, workload, B200, TOOLCHAIN)
    assert why is not None
    assert reason in why


def test_registers_are_limited_on_nvidia_alone() -> None:
    config = DotScaledConfig(16, 128, 128, warps=4, stages=2, group_m=1, maxnreg=96)
    workload, recipe = GemmWorkload(16, 4096, 4096), RECIPES["mxfp4"]
    assert ROWS.illegal(config, recipe, workload, H100, TOOLCHAIN) is None
    assert {**ROWS.sources(config, recipe, workload)[0].options}["maxnreg"] == 96
    for arch in ("gfx950", "gfx1250"):
        free = replace(config, maxnreg=0)
        assert ROWS.illegal(free, recipe, workload, ARCHES[arch], TOOLCHAIN) is None
        assert "maxnreg" not in ROWS.sources(free, recipe, workload)[0].options
        why = ROWS.illegal(config, recipe, workload, ARCHES[arch], TOOLCHAIN)
        assert why == f"maxnreg is for NVIDIA's assembler, but got 96 for {arch}; take 0"


def test_whole_lines_of_scales_need_whole_tiles() -> None:
    config = DotScaledConfig(128, 128, 128, warps=8, stages=4, group_m=1)
    workload, recipe = GemmWorkload(128, 4096, 4096), RECIPES["mxfp4"]
    assert LINES.illegal(config, recipe, workload, B200, TOOLCHAIN) is None
    for change in ({"block_n": 64}, {"block_k": 64}):
        bad = replace(config, **change)
        assert ROWS.illegal(bad, recipe, workload, B200, TOOLCHAIN) is None
        assert "128" in (LINES.illegal(bad, recipe, workload, B200, TOOLCHAIN) or "")


@needs_triton
def test_other_activations_are_refused() -> None:
    config = DotScaledConfig(16, 64, 128, warps=4, stages=4, group_m=1)
    launch = ROWS.build(config, RECIPES["mxfp4-w4a16"], H100, TOOLCHAIN)
    w = Packed(torch.zeros(8, 16).byte(), torch.zeros(8, 1).byte(), torch.ones(()))
    with pytest.raises(FormatError, match=r"bfloat16 activations only, but got torch\.float16"):
        launch(torch.zeros(1, 32, dtype=torch.float16), w, torch.zeros(1, 8))


def test_the_variants_import_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import fp4kernels.triton.dot_scaled"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
