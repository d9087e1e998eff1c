"""Two runs told apart: noise is a tie, drift is a tie, a slower kernel is named."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from fp4bench import cli, evidence
from fp4bench.compare import Comparison, compare
from fp4bench.evidence import Evidence
from fp4bench.trials import Measurement, Policy, Race, to_line
from samples import DEVICE, TOOLCHAIN, measurement, race

RECORDED = (
    Path(__file__).parents[1] / "results/amd-epyc-x86-64-avx512vnni-2/20261122T100602-18468.jsonl"
)
SIZES = [(m, n) for m in (1, 8, 64, 512) for n in (64, 128, 192)]
Slowed = Mapping[tuple[int, int, str, str], float]  # M, N, recipe, role → factor


def run(
    seed: int, slowed: Slowed | None = None, drift: float = 1.0, noise: float = 0.01,
    slow_modes: float = 0.0, sizes: list[tuple[int, int]] = SIZES,
) -> Evidence:  # fmt: skip
    """A race of each size and recipe: noise of the sample, of the round, of the race, of the run."""
    draw = np.random.default_rng(seed)

    def measured(ns: float, common: np.ndarray) -> Measurement:
        own = draw.lognormal(0, noise, 31) + draw.exponential(noise / 2, 31)
        return measurement((ns * common * own).tolist())

    def one(m: int, n: int, recipe: str) -> Race:
        factor = {
            role: (slowed or {}).get((m, n, recipe, role), 1.0) for role in ("default", "tuned")
        }
        ns = 50.0 * m * n
        common = drift * draw.lognormal(0, noise, 31) * draw.lognormal(0, noise)
        slow = 1.6 if draw.random() < slow_modes else 1.0
        found = race(m=m, n=n, recipe=recipe, kernels=str(seed))
        return found.model_copy(update={
            "default": measured(ns * factor["default"], common),
            "tuned": measured(0.8 * ns * factor["tuned"], common),
            "baselines": {"torch_bf16": measured(3 * ns * slow, common)},
        })  # fmt: skip

    return Evidence(tuple(one(m, n, r) for m, n in sizes for r in ("mxfp4", "nvfp4")), ())


def named(found: Comparison) -> list[tuple[int, int, str, str]]:
    return [(p.a.race.workload.m, p.a.race.workload.n, p.a.race.recipe, p.role)
            for p in found.regressions]  # fmt: skip


@pytest.mark.parametrize("drift", [0.92, 1.0, 1.08])
@pytest.mark.parametrize("noise", [0.005, 0.01, 0.03])
@pytest.mark.parametrize("slow_modes", [0, 0.15])
def test_two_runs_of_one_commit_tie(drift: float, noise: float, slow_modes: float) -> None:
    a = run(1, noise=noise, slow_modes=slow_modes)
    b = run(2, drift=drift, noise=noise, slow_modes=slow_modes)
    found = compare(a, b, 0.05)
    assert len(found.pairs) == 3 * 2 * len(SIZES)
    assert found.count("tie") >= 0.95 * len(found.pairs)
    assert found.regressions == ()
    assert found.noise.drift == pytest.approx(np.log(drift), abs=0.04)


@pytest.mark.parametrize("drift", [0.92, 1.0, 1.08])
@pytest.mark.parametrize("slow_modes", [0, 0.15])
@pytest.mark.parametrize("role", ["default", "tuned"])
def test_one_kernel_slowed_by_a_tenth_is_named_alone(
    drift: float, slow_modes: float, role: str
) -> None:
    for recipe in ("mxfp4", "nvfp4"):
        slowed = {(8, 128, recipe, role): 1.1}
        b = run(4, slowed, drift, noise=0.005, slow_modes=0)
        a = run(3, noise=0.005, slow_modes=slow_modes, sizes=[s for s in SIZES if s != (8, 128)])
        a = Evidence((*a.rows, *run(3, noise=0.005, sizes=[(8, 128)]).rows), ())
        assert named(compare(a, b, 0.05)) == [(8, 128, recipe, role)]


def test_most_kernels_faster_and_one_slower() -> None:
    slowed = {(m, n, r, role): 0.5 + 0.02 * i for i, (m, n) in enumerate(SIZES)
              for r in ("mxfp4", "nvfp4") for role in ("default", "tuned")}  # fmt: skip
    slowed |= {(512, 192, "mxfp4", role): 1.2 for role in ("default", "tuned")}
    found = compare(run(5, noise=0.005), run(6, slowed, noise=0.005), 0.05)
    assert sorted(named(found)) == [(512, 192, "mxfp4", role) for role in ("default", "tuned")]
    assert found.count("faster") > 0.9 * 2 * 2 * len(SIZES)


def test_a_slow_mode_of_the_baseline_alone_is_no_verdict_of_candidates() -> None:
    a, b = run(7, noise=0.005), run(8, noise=0.005)
    first = next(b.races)
    slow = measurement([1.6 * ns for ns in first.baseline.samples_ns])
    b = Evidence((first.model_copy(update={"baselines": {"torch_bf16": slow}}), *b.rows[1:]), ())
    assert {p.verdict for p in compare(a, b, 0.05).pairs if p.role != "torch_bf16"} == {"tie"}


def test_a_few_races_are_judged_by_their_samples() -> None:
    sizes = [(8, 128)]
    a, b = run(9, sizes=sizes), run(10, {(8, 128, "mxfp4", "tuned"): 1.5}, sizes=sizes)
    found = compare(a, b, 0.05)
    assert (found.noise.races, found.noise.drift) == (2, 0)
    assert named(found) == [(8, 128, "mxfp4", "tuned")]


def of(samples: list[float]) -> Evidence:
    """One race, all of its entries with these samples."""
    one = measurement(samples)
    update = {"default": one, "tuned": one, "baselines": {"torch_bf16": one}}
    return Evidence((race().model_copy(update=update),), ())


def test_samples_that_drift_within_a_run_are_no_verdict() -> None:
    steady = of([1000 + i % 3 for i in range(30)])
    jumped = of([1000 + i % 3 for i in range(14)] + [1200 + i % 3 for i in range(16)])
    assert {pair.verdict for pair in compare(steady, jumped, 0.05).pairs} == {"tie"}


def test_a_handful_of_samples_makes_no_pair() -> None:
    few, many = of([100, 101, 102]), of([200, 201, 202, 203, 204])
    found = compare(few, many, 0.05)
    assert found.pairs == ()
    assert "default: needs 4 samples of each, but there are 3 and 5" in str(found.incomparable)


def test_a_recorded_run_ties_with_itself() -> None:
    found = evidence.read(RECORDED)
    compared = compare(found, found, 0)
    assert len(compared.pairs) == 72
    assert {(pair.verdict, pair.ratio) for pair in compared.pairs} == {("tie", 1.0)}


def test_what_differs_is_named_and_stops_no_other() -> None:
    graph = Policy(launch="graph", cache="cold")
    a = (race(m=1), race(m=2), race(m=3), race(m=4), race(m=5), race(m=6, weights="w"))
    b = (
        race(m=1, kernels="another digest"),
        race(m=2, policy=graph),
        race(m=3, device=dataclasses.replace(DEVICE, cores=64)),
        race(m=4, toolchain=dataclasses.replace(TOOLCHAIN, torch="2.14.0")),
        race(m=7),
        race(m=6),
    )
    found = compare(Evidence(a, ()), Evidence(b, ()), 0.05)
    assert {pair.a.race.workload.m for pair in found.pairs} == {1}
    assert [str(one) for one in found.incomparable] == [
        "2×48×64 mxfp4 of A: policy: eager launch with cold cache here, "
        "graph launch with cold cache in B",
        "3×48×64 mxfp4 of A: device: cpu Test CPU x86_64-avx2 2 33554432 here, "
        "cpu Test CPU x86_64-avx2 64 33554432 in B",
        "4×48×64 mxfp4 of A: toolchain: torch 2.13.0 here, 2.14.0 in B",
        "5×48×64 mxfp4 of A: workload: B has none such",
        "6×48×64 mxfp4 of A: weights: w here, synthetic in B",
        "7×48×64 mxfp4 of B: workload: A has none such",
    ]


def test_memory_that_differs_from_boot_to_boot_is_the_same_device() -> None:
    other = dataclasses.replace(DEVICE, memory_bytes=DEVICE.memory_bytes - 4096)
    assert (
        len(compare(Evidence((race(),), ()), Evidence((race(device=other),), ()), 0.05).pairs) == 3
    )


def test_of_several_toolchains_the_shared_one_is_compared() -> None:
    newer = dataclasses.replace(TOOLCHAIN, torch="2.14.0")
    a = Evidence((race(), race(1000, 250, toolchain=newer)), ())
    b = Evidence((race(),), ())
    assert {pair.ratio for pair in compare(a, b, 0.05).pairs} == {1.0}


def test_baselines_that_only_one_race_has_are_named() -> None:
    more = {**race().baselines, "torch_int8": race().default}
    a = Evidence((race().model_copy(update={"baselines": more}),), ())
    b = Evidence((race().model_copy(update={"absent": {"torch_int8": "no such product"}}),), ())
    for ours, theirs, text in (
        (a, b, "A: torch_int8: not in B"),
        (b, a, "B: torch_int8: not in A"),
    ):
        found = compare(ours, theirs, 0.05)
        assert len(found.pairs) == 3
        assert [str(x) for x in found.incomparable] == [f"8×48×64 mxfp4 of {text}: no such product"]


@pytest.fixture
def ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`compare` of two runs by the command line."""

    def call(a: Evidence, b: Evidence, *options: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        for name, found in (("a.jsonl", a), ("b.jsonl", b)):
            Path(name).write_text("".join(map(to_line, found.rows)))
        monkeypatch.setattr(sys, "argv", ["fp4bench", "compare", "a.jsonl", "b.jsonl", *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def test_a_regression_is_exit_5(ran: Callable[..., tuple[int, str, str]]) -> None:
    a, b = run(3, noise=0.005), run(4, {(8, 128, "nvfp4", "tuned"): 1.1}, noise=0.005)
    code, out, err = ran(a, b)
    assert code == 5
    assert re.match(r"slower: 8×128×64 nvfp4 tuned by (9|10)% \[\d+%, \d+%\]\n$", err)
    assert "1 slower, 0 faster, 71 tie, 0 not comparable; a tie is within 5.0%" in out
    assert "kernels 3 against 4: they may differ" in out
    code, out, _ = ran(a, b, "--json")
    values = json.loads(out)
    assert (code, values["schema"], values["regression"]) == (5, 1, True)
    slower = [pair for pair in values["pairs"] if pair["verdict"] == "slower"]
    assert [(pair["role"], pair["recipe"]) for pair in slower] == [("tuned", "nvfp4")]
    assert ran(a, b, "--threshold", "15%")[0] == 0


def test_a_slower_baseline_is_no_regression(ran: Callable[..., tuple[int, str, str]]) -> None:
    b = race(1000, 500)
    slow = {"torch_bf16": measurement([5000.0] * 10)}
    code, out, _ = ran(
        Evidence((b,), ()), Evidence((b.model_copy(update={"baselines": slow}),), ())
    )
    assert code == 0
    assert "1 slower, 0 faster, 2 tie" in out


@pytest.mark.parametrize("text", ["5", "0.05", "-5%", "100%", "five", "5%%", "nan%"])
def test_a_threshold_that_is_none(ran: Callable[..., tuple[int, str, str]], text: str) -> None:
    one = Evidence((race(),), ())
    code, _, err = ran(one, one, f"--threshold={text}")
    assert code == 2
    assert f"--threshold reads as 5% (from 0% to under 100%), but got {text!r}" in err


def test_nothing_to_compare_is_an_error(ran: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = ran(Evidence((race(m=1),), ()), Evidence((race(m=2),), ()))
    assert code == 1
    assert "not comparable: 1 of A: workload: B has none such (1×48×64 mxfp4)" in out
    assert "error: compare needs a race that both have" in err
