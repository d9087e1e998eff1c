"""Attention as a tuned operation: problems, spaces, candidates, rows, and the command."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from fp4bench import evidence, summary
from fp4bench.attention.problems import attention_problems
from fp4bench.operations import default_for
from fp4bench.proof.targets import ARCHES
from fp4bench.ranking import hints
from fp4bench.spaces import EFFORTS, Space, values_of
from fp4bench.trials import END_TO_END, SDPA, AttentionErrors, PassedTrial, Race
from fp4bench.workloads import Model
from fp4kernels.attention.plans import AttentionKey
from fp4kernels.attention.problem import Mask
from fp4kernels.attention.recipes import attention_recipe
from fp4kernels.attention.registry import ATTENTION_VARIANTS
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.cpu.attention import DecodeConfig
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError, WorkloadError
from fp4kernels.registry import candidate_from_json
from fp4kernels.tables import Table
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload
from running import Run
from samples import ACCURACY, common, measurement
from test_attention_decode import interpret

DECODE = AttentionWorkload(Phase.DECODE, 8, 1, 4096, 32, 8, 128, page_size=64)
PREFILL = AttentionWorkload(Phase.PREFILL, 2, 300, 300, 32, 8, 128)
BOTH = ("nvfp4", "mxfp4")


@pytest.fixture
def vnni(cpu: Device) -> Device:
    return dataclasses.replace(cpu, arch="x86_64-avx512vnni")


@pytest.fixture
def chain(toolchain: Toolchain) -> Toolchain:
    return dataclasses.replace(toolchain, compiler="c++", triton="3.9.0")


@pytest.mark.parametrize(("changes", "message"), [
    ({"head_dim": 80}, "the head dim must be one of"),
    ({"batch": 0}, "at least 1, but got batch 0"),
    ({"keys": 0}, "at least 1"),
    ({"heads": 33}, "a multiple of kv heads, but got 33 and 8"),
    ({"queries": 5000}, "at least as many keys as queries, but got 5000"),
    ({"window": -1}, "a window is at least 1"),
    ({"page_size": 48}, r"the page size of decode must be one of \(16, 32, 64, 128\), but got 48"),
    ({"phase": Phase.PREFILL}, "the page size of prefill must be 0"),
    ({"phase": "chat"}, "a phase of attention must be a known name"),
    ({"keys": 1 << 22}, "at most 2\\^31-1 values"),
    ({"dtype": "float64"}, "a dtype must be one of"),
])  # fmt: skip
def test_a_problem_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((FormatError, WorkloadError), match=message):
        dataclasses.replace(DECODE, **changes)


def test_recipes_beyond_four_bits_only_decode() -> None:
    DECODE.check(attention_recipe("k8v4"))
    with pytest.raises(FormatError, match="prefill multiplies FP4"):
        PREFILL.check(attention_recipe("k8v4"))


@pytest.mark.parametrize(("queries", "keys", "window"), [*itertools.product((1, 3, 9), (9, 20), (0, 1, 4, 11))])  # fmt: skip
def test_flops_are_those_that_the_mask_leaves(queries: int, keys: int, window: int) -> None:
    import torch

    work = AttentionWorkload(Phase.PREFILL, 2, queries, keys, 4, 2, 64, window=window)
    seen = int(work.mask.visible(queries, keys, torch.device("cpu")).sum())
    assert isinstance(work.mask, Mask)
    assert work.visible == seen
    assert work.flops == 2 * 2 * 2 * 64 * 4 * seen


def test_a_decode_moves_72_bytes_a_token_and_head_of_keys() -> None:
    tokens = DECODE.batch * DECODE.keys * DECODE.kv_heads
    rows = DECODE.batch * DECODE.heads * 128 * 2 * 2
    assert DECODE.fewest_bytes(attention_recipe("nvfp4")) == tokens * 144 + rows
    assert DECODE.fewest_bytes(attention_recipe("mxfp4")) == tokens * 136 + rows
    windowed = dataclasses.replace(DECODE, window=100)
    assert windowed.fewest_bytes(attention_recipe("mxfp4")) == tokens // 4096 * 100 * 136 + rows


def test_keys_are_safe_in_a_file_name_and_tell_all_apart() -> None:
    works = [DECODE, PREFILL, *(dataclasses.replace(DECODE, **change) for change in (
        {"window": 5}, {"page_size": 16}, {"queries": 2}, {"batch": 3}, {"dtype": "float32"},
    ))]  # fmt: skip
    keys = {work.key for work in works}
    assert len(keys) == len(works)
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for key in keys)
    assert DECODE.label == "decode 8×4096 32/8×128"


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("name", [n for n in ATTENTION_VARIANTS if not n.startswith("torch")])
def test_the_toml_has_exactly_the_fields_of_the_config(name: str, effort: str) -> None:
    variant = ATTENTION_VARIANTS[name]
    fields = [field.name for field in dataclasses.fields(variant.config_type)]
    assert [*values_of(variant, effort)] == fields


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("place", ["cpu", "sm_80", "sm_90", "sm_100", "sm_120", "gfx950"])
@pytest.mark.parametrize("work", [
    DECODE, PREFILL, dataclasses.replace(DECODE, keys=5, heads=8, head_dim=256),
    dataclasses.replace(DECODE, heads=64, queries=3), dataclasses.replace(PREFILL, head_dim=96),
])  # fmt: skip
def test_the_default_is_legal_and_inside_the_space(
    work: AttentionWorkload, place: str, effort: str, vnni: Device, chain: Toolchain
) -> None:
    device = vnni if place == "cpu" else ARCHES[place]
    space = Space(work, BOTH, device, chain, effort)
    for recipe in BOTH:
        default = space.default(recipe)
        assert space.illegal(default) is None
        table = space.values[default.variant]
        assert all(value in table[name] for name, value in default.config.values().items())
        assert space.candidates[recipe][0] == default
    on_gpu = place != "cpu"
    assert (len(space.candidates["nvfp4"]) > 10) is (on_gpu or work.phase is Phase.DECODE)


def test_bytes_of_integers_are_searched_where_there_are_integers(
    vnni: Device, chain: Toolchain
) -> None:
    plain = dataclasses.replace(vnni, arch="x86_64-avx2")
    fast, slow = (
        {c.config.values()["q_bytes"] for c in Space(DECODE, ("nvfp4",), device, chain, "quick").candidates["nvfp4"]}
        for device in (vnni, plain)
    )  # fmt: skip
    assert (fast, slow) == ({2, 3}, {2})
    mixed = Space(DECODE, ("k8v4",), vnni, chain, "quick").candidates["k8v4"]
    assert {c.config.values()["q_bytes"] for c in mixed} == {2}  # keys of 8 bits
    assert {c.config.values()["p_bytes"] for c in mixed} == {2, 3}


def test_a_kernel_of_the_other_phase_is_illegal(vnni: Device, chain: Toolchain) -> None:
    candidate = default_for(DECODE, "nvfp4", (vnni, chain))
    space = Space(PREFILL, ("nvfp4",), vnni, chain, "quick")
    assert "does decode, but the workload is prefill" in str(space.illegal(candidate))


def test_without_a_compiler_the_reference_is_all_there_is(cpu: Device, chain: Toolchain) -> None:
    bare = dataclasses.replace(chain, compiler=None)
    space = Space(DECODE, BOTH, cpu, bare, "quick")
    assert {c.variant for cs in space.candidates.values() for c in cs} == {"torch_decode"}


def test_a_candidate_survives_json_and_names_its_recipe(vnni: Device, chain: Toolchain) -> None:
    for recipe in ("nvfp4", "mxfp4,rotate=1", "k8v4"):
        candidate = default_for(DECODE, recipe, (vnni, chain))
        assert candidate_from_json(json.loads(json.dumps(candidate.to_json()))) == candidate
        assert attention_recipe(candidate.recipe) == attention_recipe(recipe)
    values = default_for(DECODE, "nvfp4", (vnni, chain)).to_json()
    with pytest.raises(FormatError, match="attention recipe must be a known name"):
        candidate_from_json({**values, "recipe": "nvfp4-w4a16"})
    with pytest.raises(FormatError, match="reads layout 'canonical'"):
        candidate_from_json({**values, "layout": "panel16"})


def test_hints_come_from_the_same_operation_and_head_dim(vnni: Device, chain: Toolchain) -> None:
    def one(rows: int) -> Candidate:
        found = default_for(DECODE, "nvfp4", (vnni, chain))
        return dataclasses.replace(found, config=DecodeConfig(rows=rows))

    known = [
        (GemmWorkload(8, 64, 64), [one(1)]),
        (dataclasses.replace(DECODE, head_dim=64), [one(2)]),
        (dataclasses.replace(DECODE, keys=32768), [one(4)]),
        (dataclasses.replace(DECODE, keys=8192), [one(8)]),
    ]
    assert hints(DECODE, known, ["nvfp4"]) == [one(8), one(4)]


def model(**changes: int) -> Model:
    return Model(**{
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, **changes,
    })  # fmt: skip


def test_problems_of_a_model() -> None:
    found = attention_problems(model(), [4096, 512], [1, 8], [*Phase], 32)
    works = [problem.workload for problem in found]
    assert len(works) == 8
    assert AttentionWorkload(Phase.DECODE, 8, 1, 512, 32, 8, 128, page_size=32) in works
    assert AttentionWorkload(Phase.PREFILL, 1, 4096, 4096, 32, 8, 128) in works
    given = attention_problems(model(head_dim=64), [16], [1], [Phase.DECODE])
    assert given[0].workload.label == "decode 1×16 32/8×64"
    with pytest.raises(FormatError, match="the head dim must be one of .*, but got 40"):
        attention_problems(model(head_dim=40), [16], [1], [Phase.DECODE])


def attention_trial(ns: float) -> PassedTrial:
    candidate = Candidate("nvfp4", "cpp_attention_decode", ATTENTION_VARIANTS["cpp_attention_decode"].layout, DecodeConfig())  # fmt: skip
    own = AttentionErrors(sqnr_db=17.0, cosine=0.99, rmse=0.01, max=0.1, mean=0.02, lse=0.03)
    return PassedTrial(
        **{**common(), "workload": DECODE}, candidate_values=candidate.to_json(),
        accuracy=ACCURACY.model_copy(update={"attention": own}),
        measurement=measurement([ns] * 6), beside_default=ns / 1000,
    )  # fmt: skip


def attention_race(**changes: Any) -> Race:
    values = attention_trial(1.0).candidate_values
    times = (1000, 500, 3000, 700)
    samples = [measurement([ns * (1 + i / 1000) for i in range(10)]) for ns in times]
    return Race(**{
        **common(), "workload": DECODE, "recipe": "nvfp4", "default_values": values,
        "tuned_values": {**values, "config": {**values["config"], "ahead": 2}},
        "default": samples[0], "tuned": samples[1], "accuracy": attention_trial(1.0).accuracy,
        "baselines": {SDPA: samples[2], END_TO_END: samples[3]}, **changes,
    })  # fmt: skip


def test_rows_are_read_as_they_were_written_beside_those_of_products(tmp_path: Path) -> None:
    from samples import passed_trial

    rows = (attention_trial(900.0), attention_race(), passed_trial())
    evidence.write(tmp_path / "rows.jsonl", rows)
    found = evidence.read(tmp_path / "rows.jsonl")
    assert found.damage == ()
    assert found.rows == rows
    table = evidence.frame(found)
    first = table.iloc[0]
    assert (first["op"], first["context"], first["batch"], first["kv_heads"]) == (
        "attention",
        4096,
        8,
        8,
    )
    assert (first["sqnr_db"], first["lse_error"], first["rmse"]) == (17.0, 0.03, 0.01)
    assert set(table["role"]) == {"trial", "default", "tuned", SDPA, END_TO_END}
    assert set(table["op"]) == {"attention", "gemm"}
    (line,) = summary.summarize(found.races)
    assert line.won
    assert 5.9 < line.against_bf16.middle < 6.1


def test_a_race_of_attention_has_torchs_own_beside_it() -> None:
    measured = attention_race().baselines[END_TO_END]
    with pytest.raises(ValueError, match="a race has the baseline torch_sdpa"):
        attention_race(baselines={"torch_bf16": measured})


@pytest.mark.parametrize(("arguments", "message"), [
    (["tune", "convolution"], "an operation is gemm or attention, but got 'convolution'"),
    (["tune", "--context", "4096"], "--context goes with attention, as in `fp4bench tune attention`"),
    (["bench", "--page-size", "16"], "--page-size goes with attention"),
    (["tune", "attention", "--shape", "8x64x64"], "--shape goes with products"),
    (["tune", "attention", "--train"], "--train goes with products"),
    (["bench", "attention", "--m", "8"], "--m goes with products"),
    (["tune", "attention", "--context", "4k"], "--context reads as numbers with commas"),
    (["tune", "attention", "--batch", "0", "--context", "64"], "at least 1, but got batch 0"),
    (["tune", "attention", "--page-size", "10", "--context", "64"], "the page size of decode must be one of"),
    (["tune", "attention", "--phase", "chat", "--context", "64"], "a phase must be a known name, but got 'chat'"),
    (["tune", "attention", "--recipe", "fp4", "--context", "64"], "attention recipe must be a known name"),
    (["tune", "attention", "--phase", "prefill", "--recipe", "k8v4", "--context", "64"], "prefill multiplies FP4"),
    (["tune", "attention", "--batch", "4096", "--context", "65536"], "two copies of K and V in bf16 take"),
    (["tune", "attention", "--preset", "gpt-9"], "a preset must be a known name"),
    (["tune", "attention", "--model", "nowhere"], "a model folder holds a config.json"),
])  # fmt: skip
def test_bad_input_is_one_line(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.code in (1, 2)
    assert message in result.err
    assert "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert result.out == ""


def test_tune_and_bench_of_a_small_attention(run: Run, tmp_path: Path) -> None:
    """Searched, proven, raced beside torch and end to end, recorded, shown and reported."""
    small = ("attention", "--preset", "smollm2-135m", "--context", "48", "--batch", "2",
             "--recipe", "nvfp4", "--page-size", "16")  # fmt: skip
    result = run("tune", *small, "--budget", "5s", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    (line,) = told["lines"]
    assert line["workload"] == "decode 2×48 9/3×64"
    found = evidence.read(Path(told["files"]["results"]))
    assert found.damage == ()
    race = [*found.races][-1]
    assert {SDPA, END_TO_END} <= set(race.baselines)
    assert race.accuracy.attention is not None
    assert race.accuracy.attention.sqnr_db > 12
    assert race.accuracy.attention.cosine > 0.97
    assert -race.accuracy.format_error_db == pytest.approx(race.accuracy.attention.sqnr_db, abs=0.1)
    assert "decode 2×48" in Path(told["files"]["report"]).read_text()
    table = Table.load(told["files"]["table"])
    key = AttentionKey("decode", 9, 3, 64, "nvfp4")
    assert table.lookup_attention(key).buckets[0][:2] == (2, 48)
    shown = run("show", str(Path(told["files"]["results"]).parent), "--kind", "race", "--json")
    assert {row["context"] for row in json.loads(shown.out)["rows"]} == {48}
    raced = run("bench", *small, "--seconds", "0.2s", "--passes", "1", "--json")
    assert raced.code == 0, raced.err
    roles = {entry["role"] for entry in json.loads(raced.out)["lines"]}
    assert {"default", SDPA, "torch_sdpa_repeated", END_TO_END} <= roles


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_what_is_tuned_in_triton_passes_the_gate() -> None:
    """Under the interpreter; one kind of input each."""
    shape = {"batch": 1, "heads": 4, "kv_heads": 1, "head_dim": 64}
    decode = {**shape, "phase": "decode", "queries": 1, "keys": 300, "page_size": 16}
    prefill = {**shape, "phase": "prefill", "queries": 20, "keys": 20}
    cases: list[dict[str, Any]] = [
        {"variant": "flash_decode", "work": decode, "recipe": "mxfp4,rotate=1", "arch": "sm_90",
         "config": {"block_n": 64}, "kind": "outliers"},
        {"variant": "flash_prefill", "work": prefill, "recipe": "nvfp4", "arch": "sm_120",
         "config": {"block_m": 32, "block_n": 64}, "kind": "sink"},
    ]  # fmt: skip
    assert interpret("variant", cases) == []


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_attention_is_compiled_for_gpus_that_are_not_here(run: Run) -> None:
    result = run("compile", "attention", "--arch", "sm_80", "--recipe", "k8v4", "--json")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)["rows"]
    assert (row["variant"], row["workload"]["phase"], row["default"]) == (
        "flash_decode",
        "decode",
        True,
    )
    assert [code["spills"] for code in row["code"]] == [0, 0]
    assert "untuned choices, but got quick" in run("compile", "attention", "--effort", "quick").err
