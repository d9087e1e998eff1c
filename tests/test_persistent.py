"""The persistent kernel: its numbers under the interpreter, and what it compiles to without a GPU."""

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

from fp4bench.boards import BOARDS
from fp4bench.proof.targets import ARCHES
from fp4bench.spaces import EFFORTS, values_of
from fp4bench.static.footprint import Footprint
from fp4bench.static.model import predict
from fp4bench.static.product import product_of
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES
from fp4kernels.registry import VARIANTS
from fp4kernels.triton.persistent import PersistentConfig, PersistentDotScaledGemm
from fp4kernels.variants import Badge, Candidate
from fp4kernels.workloads import GemmWorkload

TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
KERNEL = PersistentDotScaledGemm()
B200, RTX, H100 = ARCHES["sm_100"], ARCHES["sm_120"], ARCHES["sm_90"]
SQUARE = PersistentConfig(
    128, 128, 128, warps=4, stages=3, group_m=8, parts=1, flatten=1, warp_specialize=1, ctas=1
)
WIDE = replace(SQUARE, block_n=256, warps=8, flatten=0, warp_specialize=0)
NATIVE = {
    ("sm_100", "mxfp4"): "kind::mxf4.block_scale",
    ("sm_100", "nvfp4"): "kind::mxf4nvf4.block_scale",
    ("sm_120", "mxfp4"): "kind::mxf4nvf4.block_scale.scale_vec::2X",
    ("sm_120", "nvfp4"): "kind::mxf4nvf4.block_scale.scale_vec::4X",
}
NAMES = ("mxfp4", "nvfp4")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def here() -> Toolchain:
    return replace(TOOLCHAIN, triton=importlib.metadata.version("triton"))


def interpret(*arguments: str, cases: list[Any]) -> list[str | None]:
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interpret_persistent.py")), *arguments],
        input=json.dumps(cases), capture_output=True, text=True, timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    answers: list[str | None] = json.loads(result.stdout)
    if answers == ["skip"]:
        pytest.skip("this Triton's interpreter has no dot_scaled; 3.9 does")
    return answers


@needs_triton
def test_tails_and_several_tiles_to_a_program_pass_the_gate() -> None:
    """One core works off all tiles, or three share five unevenly; N and K are short of a tile."""
    cases: list[Any] = []
    for name, (number, (m, n, k, cores)) in itertools.product(
        NAMES,
        enumerate(((13, 136, 160, 1), (257, 200, 256, 4), (133, 608, 96, 3), (1, 8, 32, 132))),
    ):
        config = WIDE if number == 1 else SQUARE
        config = replace(config, parts=(1, 2, 4, 1)[number], block_k=256 if number == 1 else 128)
        dtype = "bfloat16" if number % 2 else "float32"
        cases.append((name, config.values(), (m, n, k), dtype, cores))
    answers = interpret(cases=cases)
    assert [(case, why) for case, why in zip(cases, answers, strict=True) if why] == []


@needs_triton
def test_all_codes_under_all_scales_multiply_exactly() -> None:
    cases = [(name, config.values()) for name in NAMES for config in (SQUARE, WIDE)]
    answers = interpret("codes", cases=cases)
    assert [(case, why) for case, why in zip(cases, answers, strict=True) if why] == []


def compiled(config: PersistentConfig, name: str, arch: str, m: int = 4096) -> list[Any]:
    from fp4kernels.triton.offline import compile_for

    device, recipe, workload = ARCHES[arch], RECIPES[name], GemmWorkload(m, 4096, 4096)
    if (why := KERNEL.takes(recipe, device, here())) is not None:
        pytest.skip(why)
    assert KERNEL.illegal(config, recipe, workload, device, here()) is None
    return [compile_for(one, arch) for one in KERNEL.sources(config, recipe, workload)]


def assert_native(built: list[Any], config: PersistentConfig, name: str, arch: str) -> None:
    gemm, device = built[0], ARCHES[arch]
    where = f"{arch} {name} {config.label}"
    assert gemm.mma_kinds, where
    assert all(NATIVE[arch, name] in kind for kind in gemm.mma_kinds), where
    loads = gemm.ptx.count("cp.async.bulk.tensor.2d.shared")
    assert loads >= 2, where  # of both operands' codes
    assert gemm.ptx.count("cp.async.bulk.tensor.4d.shared") >= 2, where  # and scales
    assert "cp.async.bulk.tensor.2d.global" in gemm.ptx, where  # the output
    assert {"UTMALDG", "UTMASTG"} <= {*gemm.instructions}, where
    assert "LDG" not in gemm.instructions or gemm.instructions["LDG"] <= 4, where  # tensor scales
    assert sum(code.spills for code in built) == 0, where
    workload = GemmWorkload(4096, 4096, 4096)
    limit = KERNEL.shared_limit(config, RECIPES[name], workload, device)
    assert gemm.shared_bytes <= limit <= gemm.shared_bytes + 4096, where


@needs_triton
@pytest.mark.parametrize(("arch", "name"), NATIVE, ids=str)
def test_defaults_are_native_and_move_by_descriptors(arch: str, name: str) -> None:
    for m in (1, 4096) if arch == "sm_100" else (4096,):  # the other has one tile for all
        workload = GemmWorkload(m, 4096, 4096)
        config = KERNEL.default(workload, RECIPES[name], ARCHES[arch])
        built = compiled(config, name, arch, m)
        assert_native(built, config, name, arch)
        if arch == "sm_100":
            assert "tcgen05.cp" in built[0].ptx  # scales go to tensor memory as they lie


@needs_triton
@pytest.mark.parametrize("name", NAMES)
def test_warps_specialize_where_sums_are_in_tensor_memory(name: str) -> None:
    """The program has more warps than it asked for, and the code of each is one loop."""
    config = replace(SQUARE, block_k=256)
    built = compiled(config, name, "sm_100")
    assert_native(built, config, name, "sm_100")
    alone = compiled(replace(config, warp_specialize=0), name, "sm_100")
    threads = [int(code[0].ptx.partition(".reqntid ")[2].partition("\n")[0].split(",")[0].rstrip(";"))
               for code in (built, alone)]  # fmt: skip
    assert threads == [2 * 4 * 32, 4 * 32]


# a process for each, since a compiler may take its own along
CLUSTERS = """
import sys
from fp4bench.proof.targets import target
from fp4kernels.errors import BuildError
from fp4kernels.recipes import recipe
from fp4kernels.registry import variant
from fp4kernels.triton.offline import compile_for
from fp4kernels.workloads import GemmWorkload

kernel, name, arch = variant("dot_scaled_persistent"), *sys.argv[1:3]
values = dict(zip(("block_m", "block_n"), map(int, sys.argv[3:]), strict=True))
workload, how = GemmWorkload(4096, 4096, 4096), recipe(name)
config = kernel.default(workload, how, target(arch))
config = kernel.config({**config.values(), **values, "ctas": 2})
try:
    code = compile_for(kernel.sources(config, how, workload)[0], arch)
except BuildError:
    sys.exit(3)
print(*code.mma_kinds)
"""


@needs_triton
@pytest.mark.parametrize("case", ["mxfp4 sm_100 256 256", "mxfp4 sm_120 128 128"])
def test_what_legality_says_of_clusters_is_so(case: str) -> None:
    """Where this fails, some Triton multiplies FP4 by two CTAs: let legality ask for it."""
    done = subprocess.run(
        [sys.executable, "-c", CLUSTERS, *case.split()], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0 or "block_scale" not in done.stdout, done.stdout


def test_takes() -> None:
    taken = {(arch, name) for arch, name in itertools.product(ARCHES, RECIPES)
             if KERNEL.takes(RECIPES[name], ARCHES[arch], TOOLCHAIN) is None}  # fmt: skip
    plain = {(arch, f"mxfp4-row-{bits}") for arch in ("sm_100", "sm_120") for bits in (14, 28)}
    assert taken - plain == set(NATIVE)
    assert all(KERNEL.badge(RECIPES[n], ARCHES[a]) is Badge.NATIVE for a, n in NATIVE)
    recipe, old = RECIPES["mxfp4"], replace(TOOLCHAIN, triton="3.6.0")
    assert "H100 multiplies mxfp4 otherwise" in (KERNEL.takes(recipe, H100, TOOLCHAIN) or "")
    assert "Triton 3.7 and later, but got 3.6.0" in (KERNEL.takes(recipe, RTX, old) or "")
    assert KERNEL.takes(recipe, B200, old) is None
    none = replace(TOOLCHAIN, triton=None)
    assert "not installed" in (KERNEL.takes(recipe, B200, none) or "")


@pytest.mark.parametrize("device", [B200, RTX], ids=lambda device: device.arch)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_default_is_legal_and_in_the_space(device: Device, dtype: str) -> None:
    sizes = ((1, 16, 17, 65, 128, 512, 4096), (8, 136, 4096, 28672), (32, 96, 4096))
    for name, m, n, k in itertools.product(NAMES, *sizes):
        recipe, workload = RECIPES[name], GemmWorkload(m, n, k, output_dtype=dtype)
        config = KERNEL.default(workload, recipe, device)
        why = KERNEL.illegal(config, recipe, workload, device, TOOLCHAIN)
        assert why is None, (name, workload, config, why)
        for effort in EFFORTS if k == 4096 else ():
            space = values_of(KERNEL, effort)
            assert all(value in space[field] for field, value in config.values().items()), config


def test_quick_space_has_a_sensible_size() -> None:
    space = values_of(KERNEL, "quick")
    configs = [
        PersistentConfig(**dict(zip(space, values, strict=True)))
        for values in itertools.product(*space.values())
    ]
    for (arch, name), m in itertools.product(NATIVE, (128, 4096)):
        recipe, workload = RECIPES[name], GemmWorkload(m, 4096, 4096)
        legal = [KERNEL.illegal(c, recipe, workload, ARCHES[arch], TOOLCHAIN) for c in configs]
        assert 4 <= legal.count(None) <= 140, (arch, name, m, legal.count(None))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block_k": 64}, "whole tiles of scales and one box of codes, 128 to 512, but got 64"),
        ({"block_k": 1024}, "one box of codes, 128 to 512, but got 1024"),
        ({"block_m": 64}, "128 to 256, but got 64"),
        ({"block_n": 192}, "power of two, but got 192"),
        ({"stages": 0}, "stages must be at least 1"),
        ({"flatten": 2}, "flatten is 0 or 1, but got 2"),
        ({"warps": 64}, "up to 32, but got 64"),
        ({"parts": 8}, "at least 32 columns, but parts=8 cut 128"),
        ({"stages": 40}, "bytes of shared memory, but B200 has 232448"),
        ({"block_n": 256, "warps": 8}, "columns of tensor memory, but there are 512"),
        ({"block_m": 256}, "holds 256 sums a thread, but 128 fit"),
        ({"ctas": 2}, "no Triton up to 3.9 compiles dot_scaled for clusters"),
        ({"flatten": 0}, "in one flat loop (Triton 3.6 fails on nested ones): take flatten=1"),
        ({"group_m": 8}, "M=128 has one"),
    ],
)  # fmt: skip
def test_illegal_says_why(change: dict[str, int], reason: str) -> None:
    config = replace(SQUARE, group_m=1)
    workload, recipe = GemmWorkload(128, 4096, 4096), RECIPES["mxfp4"]
    assert KERNEL.illegal(config, recipe, workload, B200, TOOLCHAIN) is None
    why = KERNEL.illegal(replace(config, **change), recipe, workload, B200, TOOLCHAIN)
    assert why is not None
    assert reason in why


@pytest.mark.parametrize(
    ("workload", "name", "reason"),
    [
        (GemmWorkload(128, 4100, 4096), "mxfp4", "outputs of N=4100 have 8200 bytes"),
        (GemmWorkload(128, 4096, 4112), "nvfp4", "codes of K=4112 have 2056 bytes"),
        (GemmWorkload(128, 4096, 4096, output_dtype="float16"), "mxfp4", "the output is float16"),
    ],
)
def test_rows_that_the_copy_engine_cannot_reach(
    workload: GemmWorkload, name: str, reason: str
) -> None:
    config = replace(SQUARE, group_m=1)
    assert reason in (KERNEL.illegal(config, RECIPES[name], workload, B200, TOOLCHAIN) or "")
    assert reason in (KERNEL.illegal(config, RECIPES[name], workload, B200, TOOLCHAIN) or "")


def test_registers_hold_the_sums_of_small_blackwell() -> None:
    recipe, workload = RECIPES["mxfp4"], GemmWorkload(4096, 4096, 4096)
    config = KERNEL.default(workload, recipe, RTX)
    for field in ("flatten", "warp_specialize"):
        bad = replace(config, **{field: 1})
        why = KERNEL.illegal(bad, recipe, workload, RTX, TOOLCHAIN)
        assert "sums are in registers on sm_120" in (why or "")


@needs_triton
def test_an_output_out_of_reach_is_refused_at_the_launch() -> None:
    launch = KERNEL.build(SQUARE, RECIPES["mxfp4"], B200, TOOLCHAIN)
    x, w = (
        Packed(torch.zeros(rows, 16).byte(), torch.zeros(rows, 1).byte(), torch.ones(()))
        for rows in (1, 12)
    )
    with pytest.raises(FormatError, match="outputs of N=12 have 24 bytes"):
        launch(x, w, torch.zeros(1, 12, dtype=torch.bfloat16))


def test_the_model_gives_a_program_that_stays_its_edge_once() -> None:
    workload, board = GemmWorkload(4096, 4096, 4096), BOARDS["b200"]
    config = replace(WIDE, block_k=256)
    one = product_of(workload, Candidate("mxfp4", KERNEL.name, KERNEL.layout, config), B200)
    assert one.persistent
    needs = Footprint(128, 64 << 10, {}, 500.0)
    stays, goes = (predict(board, replace(one, persistent=p), needs) for p in (True, False))
    assert stays.resident == 1
    assert goes.resident == 2
    assert stays.waves == 2 * goes.waves
    alone = predict(board, replace(one, persistent=False), replace(needs, shared_bytes=200 << 10))
    assert alone.edge_seconds == pytest.approx(-(-one.programs // board.cores) * stays.edge_seconds)
    assert alone.loop_seconds == pytest.approx(stays.loop_seconds)


def test_it_stands_behind_the_one_that_is_simpler() -> None:
    names = [*VARIANTS]
    assert names.index("dot_scaled_swizzled") < names.index(KERNEL.name)
    assert not KERNEL.leads(GemmWorkload(4096, 4096, 4096), RECIPES["mxfp4"], B200)


def test_the_variant_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import fp4kernels.triton.persistent"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
