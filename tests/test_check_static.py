"""What the static model is judged by: good where it is the truth plus noise, bad where it is chance."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fp4bench import evidence
from fp4bench.boards import BOARDS
from fp4bench.errors import BenchError
from fp4bench.proof.targets import ARCHES
from fp4bench.spaces import Space
from fp4bench.static.evaluation import LEAST, TOP, expected_best, judge
from fp4bench.static.guess import guesses
from fp4bench.trials import Measurement, PassedTrial, Policy
from fp4kernels.devices import Toolchain
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload
from samples import ACCURACY, passed_trial

ROOT = Path(__file__).parents[1]
TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
SPACE = Space(GemmWorkload(1, 4096, 4096), ("mxfp4-w4a16",), ARCHES["sm_90"], TOOLCHAIN, "full")
NOISE = 0.02


def synthesized(shuffled: bool) -> dict[Candidate, float]:
    """SYNTHETIC times, measured by no one: the model's own guess in ns with noise, for a control
    dealt out to the candidates at random."""
    random = np.random.default_rng(0)
    found = guesses(SPACE, BOARDS["h100"], "mxfp4-w4a16").seconds
    chosen = [*found][:: max(1, len(found) // 150)]
    times = np.array([found[one] for one in chosen]) * 1e9
    times *= np.exp(random.normal(0, NOISE, len(times)))
    if shuffled:
        random.shuffle(times)
    return dict(zip(chosen, times.tolist(), strict=True))


def rows_of(times: dict[Candidate, float]) -> list[PassedTrial]:
    return [
        PassedTrial(
            device=SPACE.device, toolchain=TOOLCHAIN, policy=Policy(launch="graph", cache="cold"),
            weights="synthetic", kernels="0", workload=SPACE.workload,
            candidate_values=one.to_json(), accuracy=ACCURACY, beside_default=1.0,
            measurement=Measurement(samples_ns=(ns,) * 6, calls=1, warmup_calls=1,
                                    timer="cuda_event",
                                    policy=Policy(launch="graph", cache="cold")),
        )
        for one, ns in times.items()
    ]  # fmt: skip


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/check_static.py", "--space", str(path), "--guess"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_model_passes_on_its_own_guesses_with_noise(tmp_path: Path) -> None:
    evidence.write(tmp_path / "space.jsonl", rows_of(synthesized(shuffled=False)))
    done = check(tmp_path / "space.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1×4096×4096 mxfp4-w4a16 on H100" in done.stdout
    assert "does not hold" not in done.stdout


def test_a_shuffled_space_fails(tmp_path: Path) -> None:
    evidence.write(tmp_path / "space.jsonl", rows_of(synthesized(shuffled=True)))
    done = check(tmp_path / "space.jsonl")
    assert done.returncode == 1, done.stderr
    assert "does not hold: the rank correlation is" in done.stdout
    assert "at random are as good" in done.stdout


def test_rows_of_a_cpu_are_refused_in_one_line(tmp_path: Path) -> None:
    evidence.write(tmp_path / "space.jsonl", [passed_trial()])
    done = check(tmp_path / "space.jsonl")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "the static model is of GPUs" in line
    assert "was measured on Test CPU (x86_64-avx2)" in line


def test_rows_of_two_devices_are_refused(tmp_path: Path) -> None:
    one, *_ = rows_of(synthesized(shuffled=False))
    other = one.model_copy(update={"device": replace(one.device, cores=114)})
    evidence.write(tmp_path / "space.jsonl", [one, other])
    done = check(tmp_path / "space.jsonl")
    assert done.returncode == 1
    assert "a space is measured on one GPU" in done.stderr


def test_the_mean_of_random_draws_is_exact() -> None:
    times = np.array([5.0, 1.0, 3.0, 9.0, 2.0, 8.0])
    draws = [min(draw) for draw in itertools.combinations(times, 3)]
    assert expected_best(times, 3) == pytest.approx(np.mean(draws))
    assert expected_best(times, 6) == 1.0
    assert expected_best(times, 1) == pytest.approx(times.mean())


def test_a_perfect_ranking_a_reversed_one_and_a_constant_one() -> None:
    times = np.geomspace(1, 10, 100)
    perfect = judge(times, times)
    assert perfect.problems == []
    assert perfect.top.value == perfect.top.low == perfect.top.high == 1.0
    assert perfect.spearman.value == pytest.approx(1.0)
    assert perfect.chance.low > 1.05
    backwards = judge(-times, times)
    assert len(backwards.problems) == 3
    assert len(judge(np.ones(100), times).problems) >= 1


def test_a_small_space_says_nothing() -> None:
    times = np.arange(1.0, LEAST)
    with pytest.raises(BenchError, match=f"at least {LEAST} candidates"):
        judge(times, times)
    assert LEAST > TOP


def test_predictions_are_never_read_as_measurements(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"kind": "prediction", "schema_version": 1}))
    found = evidence.read(tmp_path)
    assert not found.rows
    assert len(found.damage) == 1
