"""Two full tunes of the default preset: do they choose alike, and what does tuning itself cost?

    python scripts/check_repeat.py --budget 90s

Runs `fp4bench tune` twice into folders of their own. Where the choices differ, both are raced: a tie
agrees. Exit 1 if fewer than 95% agree, if more than 5% of a run's wall time goes into neither
compiling nor measuring, or if `fp4bench compare` ties on fewer than 95% of the candidates.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import typer  # noqa: E402

from fp4bench import evidence, timing  # noqa: E402
from fp4bench.compare import compare  # noqa: E402
from fp4bench.estimates import CANDIDATES  # noqa: E402
from fp4bench.outcomes import Failure  # noqa: E402
from fp4bench.racing import paired_ratio  # noqa: E402
from fp4bench.summary import Line, joined, summarize  # noqa: E402
from fp4bench.trials import Race  # noqa: E402
from fp4bench.worker import RaceOptions, Setup, Worker  # noqa: E402
from fp4bench.workloads import Problem, WeightSource  # noqa: E402

AGREE, OVERHEAD, THRESHOLD = 0.95, 0.05, 0.05
PASSES = 3


def main(
    budget: Annotated[str, typer.Option(help="of each tune")] = "90s",
    keep: Annotated[Path | None, typer.Option(help="folder for both runs' results")] = None,
) -> None:
    """Tune twice, compare."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        shares = [tune(folder / name, budget) for name in ("first", "second")]
        one, other = (evidence.read(results(folder / name)) for name in ("first", "second"))
    first, second = ({key(line): line for line in summarize(run.races)} for run in (one, other))
    both = sorted(first.keys() & second.keys())
    differing = [k for k in both if first[k].chosen != second[k].chosen]
    tied = ties([(first[k], second[k]) for k in differing])
    agreeing = len(both) - len(differing) + tied
    print(f"{agreeing} of {len(both)} workloads and recipes agree: {len(both) - len(differing)} "
          f"chose the same, {tied} chose what ties with it")  # fmt: skip
    found = compare(one, other, THRESHOLD)
    verdicts = [pair.verdict for pair in found.pairs if pair.role in CANDIDATES]
    equal = verdicts.count("tie")
    print(f"compare: {equal} of {len(verdicts)} candidates tie")
    print("neither compiling nor measuring: " + ", ".join(f"{share:.1%}" for share in shares))
    good = (
        agreeing >= AGREE * len(both) and equal >= AGREE * len(verdicts) and max(shares) <= OVERHEAD
    )
    raise SystemExit(not good)


def tune(out: Path, budget: str) -> float:
    """Of the command's whole wall time, the share that was spent on neither work."""
    command = [
        sys.executable,
        "-m",
        "fp4bench",
        "tune",
        "--budget",
        budget,
        "--out",
        str(out),
        "--json",
    ]
    start = time.monotonic()
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    wall = time.monotonic() - start
    spent: dict[str, Any] = json.loads(ran.stdout)["seconds"]
    print(f"tune: {wall:.1f} s in all, of which {spent['measuring']:.1f} s measuring and "
          f"{spent['compiling']:.1f} s compiling", flush=True)  # fmt: skip
    return float((wall - spent["compiling"] - spent["measuring"]) / wall)


def results(out: Path) -> Path:
    (folder,) = (out / "results").iterdir()
    return folder


def key(line: Line) -> tuple[str, str]:
    return line.race.workload.key, line.race.recipe


def ties(pairs: list[tuple[Line, Line]]) -> int:
    """How many of the two choices cannot be told apart in races of their own, minutes apart."""
    raced: list[list[Race]] = [[] for _ in pairs]
    for _ in range(PASSES):
        for (one, other), races in zip(pairs, raced, strict=True):
            races.append(race(one, other))
    count = 0
    for (one, other), races in zip(pairs, raced, strict=True):
        both = joined(races)
        ratio = paired_ratio(both.default, both.tuned)
        print(f"{both.workload.label} {both.recipe}: {one.chosen.config.label} against "
              f"{other.chosen.config.label}: {ratio.verdict} {ratio.middle:.3f} "
              f"[{ratio.low:.3f}, {ratio.high:.3f}]", flush=True)  # fmt: skip
        count += ratio.verdict == "tie"
    return count


def race(one: Line, other: Line) -> Race:
    """Both choices, the first in the default's place."""
    known = one.race
    setup = Setup(
        known.device, known.toolchain, timing.default_policy(known.device.kind, "cold"), 0
    )
    problem = Problem(known.workload, WeightSource(), ())
    with Worker(setup) as worker:
        raced = worker.race(problem, [one.chosen, other.chosen], RaceOptions(1.0, 120.0))
    if isinstance(raced, Failure):
        raise SystemExit(f"the race of {known.workload.label} failed: {raced.reason}")
    first, second = raced[0].candidates
    return known.model_copy(update={
        "default_values": one.chosen.to_json(), "tuned_values": other.chosen.to_json(),
        "default": first, "tuned": second, "baselines": raced[0].baselines,
    })  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
