"""How much an M between two tuned sizes loses against tuning that M itself.

    python scripts/check_buckets.py --n 4096 --k 4096 --budget 120s

Tunes M = 1, 8, 512, makes the table, tunes M = 3, 24, 700, and races for each of these what the
table would run against what tuning it found. Exit 1 if one loses more than 15%.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from fp4bench import evidence, export, timing  # noqa: E402
from fp4bench.cli import DEFAULT_RECIPES  # noqa: E402
from fp4bench.outcomes import Failure  # noqa: E402
from fp4bench.progress import TuneProgress  # noqa: E402
from fp4bench.racing import paired_ratio  # noqa: E402
from fp4bench.summary import summarize  # noqa: E402
from fp4bench.tuner import Options, Tuner  # noqa: E402
from fp4bench.worker import RaceOptions, Setup, Worker  # noqa: E402
from fp4bench.workloads import from_shapes  # noqa: E402
from fp4kernels.devices import probe_device, probe_toolchain  # noqa: E402

TUNED, BETWEEN = (1, 8, 512), (3, 24, 700)
ALLOWED = 1.15


def main(
    n: int = 4096,
    k: int = 4096,
    budget: Annotated[str, typer.Option(help="wall time in seconds")] = "120s",
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
) -> None:
    """Tune, look up, race."""
    console = Console(stderr=True)
    where = probe_device(device)
    setup = Setup(
        where, probe_toolchain(where.kind), timing.default_policy(where.kind, "cold"), seed=0
    )
    recipes, seconds = tuple(DEFAULT_RECIPES[where.kind]), float(budget.rstrip("s"))
    problems = {m: from_shapes([f"{m}x{n}x{k}"])[0] for m in (*TUNED, *BETWEEN)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        with evidence.Recorder(out) as recorder, TuneProgress(console, seconds) as progress:
            tuner = Tuner(
                Options(recipes, setup, "quick", seconds), recorder, evidence.read(out), progress
            )
            tuner.run(list(problems.values()))
        found = evidence.read(out)
    of_buckets = evidence.Evidence(
        tuple(row for row in (*found.trials, *found.races) if row.gemm.m in TUNED), ()
    )
    table = export.make_table(of_buckets, ["buckets"])
    worst = 0.0
    with Worker(setup) as worker:
        for line in summarize(found.races):
            work = line.race.gemm
            if work.m not in BETWEEN:
                continue
            looked_up = table.lookup(n, k, line.race.recipe).choose(work.m)
            options = RaceOptions(seconds=2.0, limit=120.0)
            raced = worker.race(problems[work.m], [looked_up, line.chosen], options)
            if isinstance(raced, Failure):
                raise SystemExit(f"the race of {work.label} failed: {raced.reason}")
            loss = paired_ratio(*raced[0].candidates)
            worst = max(worst, loss.middle)
            print(f"{work.label} {line.race.recipe}: the bucket's kernel takes {loss.middle:.3f}x "
                  f"[{loss.low:.3f}, {loss.high:.3f}] of the tuned time")  # fmt: skip
    print(f"worst {worst:.3f}x, allowed {ALLOWED}x")
    raise SystemExit(worst > ALLOWED)


if __name__ == "__main__":
    typer.run(main)
