"""`fp4bench compile`: real code for GPUs that are not here, and every way not to get it."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fp4bench.errors import BenchError
from fp4bench.proof import prover, rows, table
from fp4bench.proof.rows import BuiltProof, FailedProof, KernelCode, LoopCode
from fp4bench.proof.targets import ARCHES
from fp4kernels.devices import Toolchain
from fp4kernels.recipes import RECIPES
from fp4kernels.registry import VARIANTS
from fp4kernels.triton.instructions import class_of, mix
from running import Run
from test_evidence import documented

TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
RECORDED = Path(__file__).parents[1] / "results" / "offline"
FEW, DECODE = "decode_bf16", "decode_canonical"
TILED = {FEW, DECODE, "dot_scaled", "dot_scaled_swizzled", "dot_scaled_persistent"}
NVIDIA = {arch for arch in ARCHES if arch.startswith("sm_")}

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    prove = functools.partial(prover.prove, module="faulty_prover")
    monkeypatch.setattr(prover, "prove", prove)


@needs_triton
@pytest.mark.usefixtures("fresh_cache")
def test_kernels_compile_for_hopper_without_one(run: Run, tmp_path: Path) -> None:
    done = run("compile", "--arch", "sm_90", "--recipe", "nvfp4", "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert values["problems"] == []
    few, many = (row for row in values["rows"] if row["variant"] == FEW)
    decoding, prefill = (row for row in values["rows"] if row["variant"] == DECODE)
    assert [kernel["name"] for kernel in decoding["code"]] == ["gemm_kernel", "reduce_kernel"]
    names = ["interleaved_kernel", "reduce_kernel", "expand_kernel"]
    assert [kernel["name"] for kernel in few["code"]] == names
    for row in (few, decoding):
        [kind] = row["code"][0]["mma_kinds"]
        assert kind.startswith("mma.sync.aligned.m16n8k16")
    assert many["code"][0]["mma_kinds"] == prefill["code"][0]["mma_kinds"]
    loop = few["code"][0]["loop"]
    assert loop["weights"] == 128  # 64 x 128 on two warps
    assert loop["counted"] <= 2.5 * loop["weights"]
    [gemm] = prefill["code"]
    assert gemm["loop"]["weights"] == 32  # 128 x 64 on eight
    assert gemm["mma_kinds"] == ["wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"]
    assert gemm["spills"] == gemm["stack_bytes"] == 0
    assert 64 <= gemm["registers"] <= 255
    assert 16 << 10 <= gemm["shared_bytes"] <= prefill["shared_limit"]
    assert gemm["instructions"]["mma"] > 0
    assert gemm["instructions"]["global"] > 0
    assert "local" not in gemm["instructions"]
    assert prefill["toolchain"]["triton"] == importlib.metadata.version("triton")

    recorded = rows.read(tmp_path / "results" / "offline")
    assert [row.model_dump(mode="json") for row in recorded] == values["rows"]


@needs_triton
@pytest.mark.usefixtures("fresh_cache")
def test_amd_compiles_and_is_called_refused(run: Run, tmp_path: Path) -> None:
    done = run("compile", "--arch", "gfx950", "--recipe", "mxfp4-w4a16")
    assert done.code == 0, done.err  # the variant claims nothing there
    assert "compiled, but not for use: decode_canonical runs on an NVIDIA GPU" in done.out
    recorded = [r for r in rows.read(tmp_path / "results" / "offline") if r.variant == DECODE]
    if any(isinstance(row, FailedProof) for row in recorded):
        pytest.skip(f"this Triton does not compile for gfx950: {done.err}")
    for row in recorded:
        assert isinstance(row, BuiltProof)
        assert row.gemm.mma_kinds[0].startswith("v_mfma_f32_")
        assert row.gemm.registers > 0
        assert row.gemm.instructions["mma"] > 0
        assert row.gemm.instructions["global"] > 0


def test_an_unknown_architecture_names_the_nearest(run: Run, tmp_path: Path) -> None:
    done = run("compile", "--arch", "sm_9o")
    assert done.code == 2
    [line] = done.err.splitlines()
    assert "a GPU architecture must be a known name, but got 'sm_9o'; did you mean 'sm_90'?" in line
    assert not (tmp_path / "results").exists()


@needs_triton
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "nvpf4"], "did you mean 'nvfp4'?"),
        (["--recipe", "int4-g32"], "a recipe must have a Triton kernel, but int4-g32 has none"),
        (["--effort", "most"], "--effort must be one of default, quick, full, but got 'most'"),
    ],
)
def test_what_cannot_be_compiled_is_one_line(run: Run, arguments: list[str], words: str) -> None:
    done = run("compile", *arguments)
    assert done.code == 2
    [line] = done.err.splitlines()
    assert words in line


def test_without_triton_it_says_so() -> None:
    with pytest.raises(BenchError, match="needs Triton, which is not installed"):
        prover.recipes_of(None, Toolchain("2.13"))


@needs_triton
@pytest.mark.usefixtures("faulty")
def test_each_failure_is_a_line_and_the_rest_compiles(run: Run, tmp_path: Path) -> None:
    arches = ("sm_80", "sm_89", "sm_90", "gfx950")
    words = [word for arch in arches for word in ("--arch", arch)]
    done = run("compile", *words, "--recipe", "mxfp4")
    assert done.code == 1
    jobs = {a: prover.jobs_of([a], [RECIPES["mxfp4"]], "default", TOOLCHAIN) for a in arches}
    able = {
        arch: sum(
            VARIANTS[job.variant].takes(RECIPES["mxfp4"], ARCHES[arch], TOOLCHAIN) is None
            for job in jobs[arch]
        )
        for arch in arches
    }
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == sum(able.values())  # a refused architecture is no error
    assert all(why in line for why, line in zip(
        ["SIGABRT | Assertion `rank == 2' failed"] * able["sm_80"]
        + ["ptxas fatal: no registers"] * able["sm_89"]
        + ["a default must not spill, but has 7 accesses to local memory"]
        * (able["sm_90"] + able["gfx950"]),
        errors, strict=True,
    ))  # fmt: skip
    found = rows.read(tmp_path / "results" / "offline")
    crashed, refused, *fine = (len(jobs[arch]) for arch in arches)
    assert [row.status for row in found] == (
        ["COMPILE_ERROR"] * (crashed + refused) + ["OK"] * sum(fine)
    )
    killed = [row.killed for row in found if isinstance(row, FailedProof)]
    assert killed == [True] * crashed + [False] * refused


@needs_triton
@pytest.mark.usefixtures("faulty")
def test_leaving_early_ends_what_compiles() -> None:
    jobs = prover.jobs_of([*NVIDIA], [RECIPES["mxfp4"]], "default", TOOLCHAIN)
    proofs = prover.prove(jobs, TOOLCHAIN)
    next(iter(proofs))
    proofs.close()  # type: ignore[attr-defined]
    assert next(iter(proofs), None) is None


def test_a_space_is_its_legal_code_once() -> None:
    everything = prover.jobs_of(["sm_90", "gfx950"], [RECIPES["mxfp4"]], "quick", TOOLCHAIN)
    jobs = [job for job in everything if job.variant == DECODE]
    count = Counter(job.arch for job in jobs)
    assert 40 < count["sm_90"] < 120
    assert count["gfx950"] <= len(prover.SHAPES)  # the defaults: there is no legality to go by
    assert {job.config["group_m"] for job in jobs if not job.default} == {8}
    distinct = {(job.variant, job.arch, tuple(job.config.values())) for job in jobs}
    assert len(distinct) == len(jobs)


def built(**changes: Any) -> BuiltProof:
    code = KernelCode(
        name="gemm_kernel", registers=128, spills=0, stack_bytes=0, shared_bytes=1000,
        mma_kinds=("mma.sync",), instructions={"mma": 4},
    )  # fmt: skip
    fields: dict[str, Any] = {
        "arch": "sm_120", "toolchain": TOOLCHAIN, "kernels": "0", "variant": "decode_bf16",
        "recipe": "mxfp4", "workload": prover.PREFILL, "config": {"block_m": 16}, "default": True,
        "refused": None, "shared_limit": 1000,
    }  # fmt: skip
    kernel = {name: changes.pop(name) for name in ("spills", "shared_bytes") if name in changes}
    return BuiltProof(**{**fields, **changes}, code=(code.model_copy(update=kernel),))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"spills": 1}, "must not spill, but has 1"),
        ({"spills": 1, "default": False}, None),
        ({"shared_bytes": 1001, "default": False}, "legality counts on 1000"),
        ({"shared_bytes": 102400, "shared_limit": 102400}, "RTX 5090 has 101376"),
        ({"spills": 1, "shared_bytes": 1001, "refused": "runs elsewhere"}, None),
        ({"config": {"maxnreg": 128}}, None),
        ({"config": {"maxnreg": 120}}, "is held to 120 registers a thread, but has 128"),
    ],
)
def test_what_counts_as_a_problem(changes: dict[str, Any], words: str | None) -> None:
    problem = built(**changes).problem
    assert problem is None if words is None else words in (problem or "")


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("at 3:4:\n  x = tl.dot(a)\n      ^\nno shape", "no shape"),
        ("ptxas error: too large\nRepro command: ptxas -v", "ptxas error: too large"),
        ("", "no message"),
    ],
)
def test_the_last_line_of_a_compiler(text: str, last: str) -> None:
    assert prover.last_line(text) == last


OPCODES = {
    "mma": "HMMA HGMMA QGMMA IMMA OMMA UTCHMMA UTCOMMA v_mfma_f32_32x32x8_bf16 "
    "v_wmma_scale_f32_16x16x128_f8f6f4",
    "global": "LDG STG LDGSTS RED ATOMG UTMALDG LD ST global_load_dwordx4 buffer_store_short",
    "shared": "LDS STS LDSM STSM ATOMS LDTM ds_read_b128",
    "local": "LDL STL scratch_load_dword",
    "constant": "LDC ULDC LDCU s_load_dwordx2",
    "barrier": "BAR DEPBAR LDGDEPBAR SYNCS UTCBAR s_waitcnt s_barrier",
    "control": "BRA EXIT NOP BSSY s_cbranch_scc1 s_endpgm",
    "convert": "F2FP I2F F2I I2FP v_cvt_pk_bf16_f32",
    "float": "FADD FMUL2 HFMA2 HMUL2 MUFU v_mul_f32 v_fma_f32",
    "move": "MOV UMOV CS2R S2R S2UR R2UR v_mov_b32 v_accvgpr_read_b32",
    "integer": "IMAD LOP3 PRMT ISETP LEA SHF VIADD USHF UIADD3 v_lshlrev_b32 s_add_i32 v_and_b32",
}


@pytest.mark.parametrize("kind", OPCODES)
def test_opcodes_have_a_class(kind: str) -> None:
    assert {class_of(opcode) for opcode in OPCODES[kind].split()} == {kind}


def test_a_mix_sums_to_all() -> None:
    assert mix({"LDG": 2, "STG": 3, "HMMA": 4}) == {"global": 5, "mma": 4}


def test_names_are_short_in_the_table() -> None:
    long = "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"
    assert table.short(long) == "wgmma.m64n128k16.f32.bf16.bf16"


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(built().model_dump_json() + "\n{}\n")
    with pytest.raises(BenchError, match=r"a\.jsonl:2: no proof"):
        rows.read(tmp_path)


@pytest.mark.parametrize("triton", ["3.6.0", "3.7.1", "3.9.0"])
def test_the_recorded_matrix_is_whole_and_sound(triton: str) -> None:
    found = [row for row in rows.read(RECORDED) if row.toolchain.triton == triton]
    assert [row.label for row in found if row.problem] == []
    toolchain = Toolchain("2.13", triton)
    recipes = prover.recipes_of(None, toolchain)
    jobs = prover.jobs_of([*ARCHES], recipes, "default", toolchain)
    assert {(r.arch, r.recipe, r.variant, r.workload.m) for r in found} == {
        (job.arch, job.recipe, job.variant, job.workload.m) for job in jobs
    }
    for row in found:
        if row.variant not in TILED:
            continue
        if row.refused and (row.variant != DECODE or row.arch not in NVIDIA):
            continue
        assert isinstance(row, BuiltProof), row.label
        m, n, k = (row.config[name] for name in ("block_m", "block_n", "block_k"))
        least = (128, 128, 64) if row.workload.m >= 512 else (16, 64, 128)
        assert all(size >= low for size, low in zip((m, n, k), least, strict=True)), row.label
        native = {"sm_90": "wgmma", "sm_100": "tcgen05"}.get(row.arch, "mma")
        if row.arch == "sm_90" and row.variant == FEW and row.workload.m <= 16:
            assert row.gemm.loop is not None
            assert row.gemm.loop.per_value <= 2.5, row.label
        if row.workload.m >= 512 and row.arch in NVIDIA:
            assert all(kind.startswith(native) for kind in row.gemm.mma_kinds), row.label


@pytest.mark.parametrize("kind", [BuiltProof, FailedProof, KernelCode, LoopCode])
def test_every_field_is_in_the_data_dictionary(kind: Any) -> None:
    parts = ("Proofs", kind.__name__) if "Proof" in kind.__name__ else (kind.__name__,)
    names = [name for part in parts for name in documented(f"### {part}")]
    assert sorted(names) == sorted(kind.model_fields)
