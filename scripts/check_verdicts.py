"""How often a race is right: a kernel against itself, and against one slowed by a known share.

    python scripts/check_verdicts.py --pairs 200 --tries 50

Exit 1 if a kernel beats itself in more than 5% of the pairs, if a slowdown of 5% is found in fewer
than 90% of the tries, or if a kernel slowed by 2% is called the faster one in more than 5%.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "scripts")]
os.environ["PYTHONPATH"] = str(ROOT / "scripts")

import slowed  # noqa: E402, F401
import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402

from fp4bench import timing  # noqa: E402
from fp4bench.judging import RACE_LIMIT  # noqa: E402
from fp4bench.outcomes import Failure  # noqa: E402
from fp4bench.racing import paired_ratio  # noqa: E402
from fp4bench.worker import RaceOptions, Setup, Worker  # noqa: E402
from fp4bench.workloads import Problem, from_shapes  # noqa: E402
from fp4kernels.devices import probe_device, probe_toolchain  # noqa: E402
from fp4kernels.recipes import recipe as recipe_named  # noqa: E402
from fp4kernels.registry import default_candidate  # noqa: E402
from fp4kernels.variants import Candidate  # noqa: E402

# the layers of a small and of a larger model, from decode to prefill
SHAPES = ["1x1536x576", "8x1536x576", "512x576x1536", "1x4096x4096", "8x4096x4096", "512x2048x2048"]
# name → (percent that the first is slowed by, and the second; the verdict that is counted)
TESTS = {"A/A": (0, 0), "5% found": (5, 0), "2% faster": (0, 2)}


def main(
    pairs: Annotated[int, typer.Option(help="A/A pairs in all")] = 200,
    tries: Annotated[int, typer.Option(help="tries of each slowdown")] = 50,
    seconds: Annotated[float, typer.Option(help="of a race, as a default tune has them")] = 1.0,
    recipe: str = "mxfp4",
) -> None:
    """Race, count, judge."""
    where, toolchain = probe_device("cpu"), probe_toolchain("cpu")
    setup = Setup(where, toolchain, timing.default_policy("cpu", "cold"), seed=0)
    problems = from_shapes(SHAPES)
    counts: dict[str, Counter[str]] = {name: Counter() for name in TESTS}
    logs: list[tuple[str, str, float, float, float, int]] = []
    with Worker(setup, module="slowed") as worker:
        for problem in problems:
            default = default_candidate(problem.gemm, recipe_named(recipe), where, toolchain)
            for name, percents in TESTS.items():
                total = pairs if name == "A/A" else tries
                share = range(problems.index(problem), total, len(problems))
                for _ in track(
                    share, f"{problem.workload.label} {name}", console=Console(stderr=True)
                ):
                    pair = [of(default, percent) for percent in percents]
                    result = verdict(worker, problem, pair, seconds)
                    counts[name][result[0]] += 1
                    logs.append((problem.workload.label, name, *result[1:]))
    for log in logs:
        print(*log[:2], *(f"{value:.3f}" for value in log[2:5]), log[5])
    for name, count in counts.items():
        print(f"{name}: {dict(count)} of {count.total()}")
    wrong = (
        counts["A/A"]["win"] > 0.05 * counts["A/A"].total()
        or counts["5% found"]["win"] < 0.9 * counts["5% found"].total()
        or counts["2% faster"]["win"] > 0.05 * counts["2% faster"].total()
    )
    raise SystemExit(wrong)


def of(default: Candidate, percent: int) -> Candidate:
    return replace(default, variant=f"slowed_{percent}")


def verdict(
    worker: Worker, problem: Problem, pair: list[Candidate], seconds: float
) -> tuple[str, float, float, float, int]:
    """Of the second over the first, with the interval and the number of rounds."""
    raced = worker.race(problem, pair, RaceOptions(seconds, RACE_LIMIT))
    if isinstance(raced, Failure):
        raise SystemExit(f"the race of {problem.workload.label} failed: {raced.reason}")
    first, second = raced[0].candidates
    ratio = paired_ratio(first, second)
    return ratio.verdict, ratio.low, ratio.middle, ratio.high, len(first.samples_ns)


if __name__ == "__main__":
    typer.run(main)
