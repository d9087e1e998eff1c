"""`fp4bench compare` on runs whose truth is known: two alike, and one with a single slowed kernel.

    python scripts/check_compare.py --percent 10

Three runs of the default kernels on the default preset are recorded, sixteen passes each; in the
third, one kernel is slowed. Exit 1 unless compare ties on 95% of the first two and exits 0,
names exactly the slowed one in the third and exits 5.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "scripts")]
os.environ["PYTHONPATH"] = str(ROOT / "scripts")

import slowed  # noqa: E402, F401  (registers the slowed kernels)
import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402

from fp4bench import timing  # noqa: E402
from fp4bench.cli.options import DEFAULT_PRESET, DEFAULT_RECIPES  # noqa: E402
from fp4bench.estimates import CANDIDATES  # noqa: E402
from fp4bench.evidence import Recorder  # noqa: E402
from fp4bench.outcomes import Failure  # noqa: E402
from fp4bench.trials import Accuracy, Race  # noqa: E402
from fp4bench.worker import RaceOptions, Setup, Worker  # noqa: E402
from fp4bench.workloads import Problem, from_preset  # noqa: E402
from fp4kernels.devices import probe_device, probe_toolchain  # noqa: E402
from fp4kernels.recipes import recipe as recipe_named  # noqa: E402
from fp4kernels.registry import default_candidate  # noqa: E402

ACCURACY = Accuracy(kernel_error=0.0, format_error_db=-15.0)  # compare does not look at it
PASSES = 16
BASELINES = ("torch_bf16", "torch_fp32", "torch_int8", "torchao")  # as `bench` runs them here
Work = tuple[Problem, str]  # with a recipe


def main(
    percent: Annotated[int, typer.Option(help="that one kernel is slowed by: 2, 5 or 10")] = 10,
    seconds: Annotated[float, typer.Option(help="of every race")] = 0.2,
    keep: Annotated[Path | None, typer.Option(help="folder for the runs' rows")] = None,
) -> None:
    """Record three runs, compare two and two."""
    setup = Setup(
        probe_device("cpu"), probe_toolchain("cpu"), timing.default_policy("cpu", "cold"), 0
    )
    works = [
        (p, r) for p in from_preset(DEFAULT_PRESET["cpu"], None) for r in DEFAULT_RECIPES["cpu"]
    ]
    chosen = works[len(works) // 2]
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        for name, slow in (("a", None), ("b", None), ("slowed", chosen)):
            record(folder / name, setup, works, slow, (percent, seconds))
        alike, code = compared(folder / "a", folder / "b")
        one, slow_code = compared(folder / "a", folder / "slowed")
    verdicts = [pair["verdict"] for pair in candidates(alike)]
    named = {(p["workload"], p["recipe"]) for p in candidates(one) if p["verdict"] == "slower"}
    truth = {(chosen[0].workload.key, chosen[1])}
    print(f"alike: {verdicts.count('tie')} of {len(verdicts)} tie, exit {code}")
    print(f"slowed by {percent}%: {sorted(truth)}; named {sorted(named)}, exit {slow_code}")
    good = verdicts.count("tie") >= 0.95 * len(verdicts) and code == 0
    raise SystemExit(not (good and named == truth and slow_code == 5))


def candidates(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [pair for pair in found["pairs"] if pair["role"] in CANDIDATES]


def record(
    folder: Path, setup: Setup, works: list[Work], slow: Work | None, how: tuple[int, float]
) -> None:
    """One race for each, default against itself, so that a race has both roles."""
    percent, seconds = how
    with Worker(setup, module="slowed") as worker, Recorder(folder) as recorder:
        for problem, name in track(PASSES * works, folder.name, console=Console(stderr=True)):
            default = default_candidate(
                problem.gemm, recipe_named(name), setup.device, setup.toolchain
            )
            runs = replace(default, variant=f"slowed_{percent if (problem, name) == slow else 0}")
            raced = worker.race(problem, [runs], RaceOptions(seconds, 120.0, (), BASELINES))
            if isinstance(raced, Failure):
                raise SystemExit(f"the race of {problem.workload.label} failed: {raced.reason}")
            (measured,) = raced[0].candidates
            values = default.to_json()
            recorder.append(Race(
                device=setup.device, toolchain=setup.toolchain, policy=setup.policy,
                workload=problem.workload, weights=problem.weights.name, kernels="check",
                recipe=name, default_values=values, tuned_values=values, default=measured,
                tuned=measured, baselines=raced[0].baselines, accuracy=ACCURACY,
            ))  # fmt: skip


def compared(a: Path, b: Path) -> tuple[dict[str, Any], int]:
    command = [sys.executable, "-m", "fp4bench", "compare", str(a), str(b), "--json"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ran.returncode not in (0, 5):
        raise SystemExit(ran.stderr)
    return json.loads(ran.stdout), ran.returncode


if __name__ == "__main__":
    typer.run(main)
