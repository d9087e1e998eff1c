"""`fp4bench bench`: everyone in one run, against measured limits; recorded as races."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fp4bench import evidence
from fp4bench.attainment import bound_of, entries
from fp4bench.baselines import BASELINES
from fp4bench.locks import exclusive
from fp4bench.present import bench_table
from fp4bench.summary import pooled
from fp4bench.trials import REFERENCE, Limits
from fp4kernels.devices import Device
from fp4kernels.formats import MXFP4
from fp4kernels.layouts import Layout, held_bytes
from fp4kernels.recipes import recipe
from running import Run
from samples import DEVICE, TOOLCHAIN, race

BENCH = ["bench", "--shape", "8x64x64", "--recipe", "mxfp4", "--seconds", "0.1s"]
LIMITS = Limits(
    device=DEVICE, toolchain=TOOLCHAIN, memory_read=10, cache_read=100, int8=1000, bf16=500
)


def test_bench_races_everyone_hot_and_cold(run: Run, cpu: Device) -> None:
    ran = run(*BENCH, "--json")
    assert ran.code == 0, ran.err
    values = json.loads(ran.out)
    lines = {(line["role"], line["cache"]): line for line in values["lines"]}
    roles = {role for role, _ in lines}
    assert {"default", "tuned", REFERENCE, "torch_fp32"} <= roles
    assert roles - {"default", "tuned"} | set(values["absent"]) == set(BASELINES)
    assert {cache for _, cache in lines} == {"cold", "warm"}
    assert all(line["median_us"] > 0 for line in lines.values())
    assert lines[REFERENCE, "cold"]["against_bf16"]["middle"] == 1
    default = lines["default", "cold"]
    assert default["bound_by"] in ("memory", "int8", "fp32")
    assert 0 < default["share_of_limit"] < 2
    assert values["limits"]["memory_read"] > 0
    (weight,) = values["weights"]
    assert weight.pop("pack_seconds") > 0
    assert weight == {
        "n": 64, "k": 64, "format": "mxfp4", "layout": "panel16",
        "bytes": held_bytes(64, 64, MXFP4, Layout.PANEL16),
        "canonical_bytes": 64 * 64 // 2 + 64 * 2,
    }  # fmt: skip
    found = evidence.read(Path(values["results"]))
    assert len([*found.races]) == 2 * 3  # policies, passes
    for cold, warm in zip([*found.races][::2], [*found.races][1::2], strict=True):
        assert len(cold.default.samples_ns) == len(warm.default.samples_ns)  # one interleaved run
    assert len([*found.limits]) == 1

    again = run(*BENCH, "--batch-invariant")
    assert again.code == 0, again.err
    assert "vs bf16" in again.out
    assert "mxfp4 batch_invariant" in again.out
    assert "absent: flashinfer: " in again.out
    assert "weight 64×64 mxfp4 panel16: 0.00 MB, canonical 0.00 MB; packed in " in again.out
    second = sorted(Path(values["results"]).parent.glob("*.jsonl"))[-1]
    assert [*evidence.read(second).limits] == []  # known from the first run


def test_bench_takes_tuned_kernels_from_a_table(run: Run, cpu: Device) -> None:
    tuned = run("tune", "--shape", "8x64x64", "--recipe", "mxfp4", "--budget", "10s", "--json")
    assert tuned.code == 0, tuned.err
    table = json.loads(tuned.out)["files"]["table"]
    ran = run(*BENCH, "--shape", "8x128x64", "--table", table, "--json", "--out", "elsewhere")
    assert ran.code == 0, ran.err
    assert "8×128×64 mxfp4: the table has no gemm of N=128, K=64" in ran.err
    assert {line["workload"] for line in json.loads(ran.out)["lines"]} == {"8×64×64", "8×128×64"}


def test_one_process_a_device(run: Run, cpu: Device) -> None:
    with exclusive(cpu):
        for command in (BENCH, ["tune", "--shape", "8x64x64", "--out", "other"]):
            ran = run(*command)
            assert ran.code == 1
            assert "one process at a time may measure on a device" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "soon"], "--seconds reads as 90s"),
        (["--table", "none.json"], "cannot read the table"),
        (["--recipe", "nvpf4"], "did you mean 'nvfp4'"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: list[str], message: str) -> None:
    ran = run("bench", "--shape", "8x64x64", *arguments)
    assert ran.code in (1, 2)
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_shares_are_of_what_binds() -> None:
    one = race(default_ns=1000.0, m=8, n=48, k=64)  # flops 49152; cold
    found = {entry.role: entry for entry in entries(one, LIMITS)}
    least = one.workload.fewest_bytes(recipe("mxfp4")) / 10
    assert found["default"].bound == bound_of(one, "default", LIMITS)
    assert found["default"].bound is not None
    assert found["default"].bound.by == "memory"
    assert found["default"].bound.ns == pytest.approx(least)
    assert found["default"].share == pytest.approx(least / one.default.median_ns)
    dense = found[REFERENCE].bound
    assert dense is not None
    assert dense.ns == pytest.approx((48 * 64 * 2 + 8 * 64 * 2 + 8 * 48 * 2) / 10)
    assert [entry.share for entry in entries(one, None)] == [None] * 3


def test_where_no_bf16_is_known_its_kernels_are_held_against_float32() -> None:
    one = race(m=512, n=4096, k=4096)
    lacking = LIMITS.model_copy(update={"bf16": None, "fp32": 100.0})
    bound = bound_of(one, REFERENCE, lacking)
    assert bound is not None
    assert (bound.by, bound.ns) == ("fp32", one.workload.flops / 100)
    assert bound_of(one, "default", lacking) == bound_of(one, "default", LIMITS)


def test_passes_over_one_thing_are_pooled() -> None:
    earlier, first, second = race(500.0, 250.0, kernels="old"), race(1300.0, 700.0), race(1000.0)
    (both,) = pooled([earlier, first, second])
    assert both.default.samples_ns == first.default.samples_ns + second.default.samples_ns
    assert both.tuned.samples_ns == first.tuned.samples_ns + second.tuned.samples_ns
    assert both.baseline.samples_ns == first.baseline.samples_ns + second.baseline.samples_ns
    assert (both.kernels, both.time) == (second.kernels, second.time)


def test_recipes_of_one_run_share_their_baselines_in_the_table() -> None:
    table = bench_table([race(recipe="mxfp4"), race(recipe="nvfp4")], LIMITS, 120)
    names = [str(cell) for cell in table.columns[2].cells]
    assert names.count(REFERENCE) == 1
    assert [name for name in names if name != REFERENCE] == [
        "mxfp4 default", "mxfp4 tuned", "nvfp4 default", "nvfp4 tuned",
    ]  # fmt: skip
